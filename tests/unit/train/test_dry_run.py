"""A dry run: what the run itself would refuse or start from, and nothing written."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small
from unit.train.test_trainer import contents

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.run_lock import lock_run_directory
from jaxbig.errors import Refused
from jaxbig.tracking.console import Screen
from jaxbig.train.dry_run import dry_run
from jaxbig.train.trainer import fit

FEW = {"steps": 4, "evaluate_every": 4, "checkpoint_every": 2}


def experiment(**changes: Any) -> Experiment:
    return small("diabetes_mlp", **{**FEW, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    fit(experiment(), folder, Screen())
    return folder


def test_run_that_could_start_is_described_and_nothing_is_written(tmp_path: Path) -> None:
    found = dry_run(experiment(), tmp_path / "runs/new")
    assert not any(tmp_path.iterdir())
    assert (found["start"], found["steps"], found["devices"]) == ("from step 0", 4, 8)
    assert found["data"] == "train 353, eval 89 examples, 22.1 steps an epoch"


def test_run_would_resume_or_go_back(made: Path) -> None:
    before = contents(made)
    assert dry_run(experiment(), made)["start"] == "from step 4"
    assert dry_run(experiment(), made, resume_from="2")["start"] == "from step 2"
    fork = dry_run(experiment(seed=1), made, fork=True)["start"]
    assert fork == "from step 0, with the weights of the run there at step 4"
    assert contents(made) == before


def test_run_that_would_be_refused_is_refused_in_the_same_words(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "run"))
    data = dataclasses.replace(experiment().data, batch=12)
    cases: list[tuple[Experiment, dict[str, Any]]] = [
        (experiment(seed=1), {}),
        (experiment(steps=3), {}),
        (experiment(), {"resume_from": "3"}),
        (experiment(mesh=Mesh(data=3)), {}),
        (experiment(data=data, mesh=Mesh(data=8)), {}),
    ]
    for changed, how in cases:
        with pytest.raises(Refused) as dry:
            dry_run(changed, folder, **how)
        with pytest.raises(Refused) as real:
            fit(changed, folder, Screen(), **how)
        assert str(dry.value) == str(real.value)
    (folder / "run.json").unlink()
    with pytest.raises(Refused, match=r"no run\.json"):
        dry_run(experiment(), folder)


def test_run_that_starts_from_another_is_refused_without_it(made: Path, tmp_path: Path) -> None:
    there = experiment(initialize_from=InitializeFrom(run=str(made)))
    found = dry_run(there, tmp_path / "run")
    assert found["start"] == f"from step 0, with the weights of {made}"
    missing = experiment(initialize_from=InitializeFrom(run=str(tmp_path / "diabetes_mlp")))
    with pytest.raises(Refused, match="jaxbig train diabetes_mlp") as dry:
        dry_run(missing, tmp_path / "run")
    with pytest.raises(Refused) as real:
        fit(missing, tmp_path / "run", Screen())
    assert str(dry.value) == str(real.value)


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    with lock_run_directory(tmp_path / "run"), pytest.raises(Refused, match="is in use by process"):
        dry_run(experiment(), tmp_path / "run")
    assert dry_run(experiment(), tmp_path / "run")["start"] == "from step 0"


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot write in .*file: give another"):
        dry_run(experiment(), tmp_path / "file" / "run")


def test_experiment_in_the_answer_is_that_of_run_json(made: Path) -> None:
    found = dry_run(experiment(), made)["experiment"]
    assert found == json.loads((made / "run.json").read_text())["experiment"]
