"""Going back to an earlier checkpoint: the run from there on, and nothing lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small
from unit.train.test_trainer import Interrupting, contents, curves

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Failed, Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.tracking.console import Screen
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
FEW = {"steps": 12, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 4, "keep_last": 9}


def experiment(**changes: Any) -> Experiment:
    model = ConvNet(layers=(Dense(16),), classes=10)
    return small("digits_convnet", model=model, **{**FEW, **changes})


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, shared_programs: None) -> Any:
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, fit(experiment(), folder, Screen())


@pytest.fixture
def folder(straight: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight[0], tmp_path / "run"))


def test_run_that_goes_back_ends_as_before_and_keeps_what_came_after(
    straight: Any, folder: Path
) -> None:
    before = contents(folder)
    again = fit(experiment(), folder, Screen(), resume_from="4")
    assert again["state_sha256"] == straight[1]["state_sha256"]
    assert curves(folder) == curves(straight[0])
    kept = contents(folder / "rewound_1")
    later = ("checkpoints/8/", "checkpoints/12/", "metrics.jsonl", "summary.json")
    assert kept == {name: each for name, each in before.items() if name.startswith(later)}


def test_run_that_goes_back_with_other_options_takes_them_from_there(folder: Path) -> None:
    summary = fit(experiment(steps=6, evaluate_every=1), folder, Screen(), resume_from="4")
    assert summary["step"] == 6
    evaluated = [line["step"] for line in curves(folder) if line["split"] == "eval"]
    assert evaluated == [4, 5, 6]


def test_best_checkpoint_may_be_gone_back_to(straight: Any, folder: Path) -> None:
    best = straight[1]["best"]["step"]
    fit(experiment(steps=13), folder, Screen(), resume_from="best")
    noted = json.loads((folder / "run.json").read_text())
    assert noted["rewound_to"] == "best"
    assert not (folder / "rewound_1" / "checkpoints" / str(best)).exists()


@pytest.mark.parametrize(("which", "message"), [("5", "there are 4, 8, 12"), ("x", "last, best")])
def test_step_that_was_not_saved_is_refused_and_changes_nothing(
    folder: Path, which: str, message: str
) -> None:
    before = contents(folder)
    with pytest.raises(Refused, match=f"--resume-from {which}: .*{message}"):
        fit(experiment(), folder, Screen(), resume_from=which)
    assert contents(folder) == before


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--resume-from 4: .* has no checkpoint"):
        fit(experiment(), tmp_path / "new", Screen(), resume_from="4")


def test_corrupt_checkpoint_is_not_gone_back_to_and_nothing_is_moved(folder: Path) -> None:
    file = next((folder / "checkpoints/4").rglob("d/*"))
    file.write_bytes(file.read_bytes()[:-1])
    before = contents(folder)
    with pytest.raises(Failed, match="checkpoints/4"):
        fit(experiment(), folder, Screen(), resume_from="4")
    assert contents(folder) == before


def test_same_command_resumes_an_interrupted_run_and_does_not_go_back_again(
    straight: Any, folder: Path
) -> None:
    part = fit(experiment(), folder, Interrupting(9), resume_from="4")
    assert part["interrupted"] and part["step"] == 10
    rest = fit(experiment(), folder, Screen(), resume_from="4")
    assert rest["state_sha256"] == straight[1]["state_sha256"]
    assert not (folder / "rewound_2").exists()
    fit(experiment(), folder, Screen(), resume_from="4")  # it was done: now it goes back again
    assert (folder / "rewound_2/checkpoints/12").exists()


def test_other_options_go_back_again(folder: Path) -> None:
    fit(experiment(), folder, Interrupting(9), resume_from="4")
    fit(experiment(accumulate=2), folder, Screen(), resume_from="4")
    assert (folder / "rewound_2/checkpoints/10").exists()


def test_kill_while_checkpoints_are_moved_loses_none(straight: Any, folder: Path) -> None:
    """As it was killed after the newest was moved, without and with the same option again."""
    target = folder / "rewound_1/checkpoints"
    target.mkdir(parents=True)
    (folder / "checkpoints/12").rename(target / "12")
    shutil.copy(folder / "metrics.jsonl", folder / "rewound_1")
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    digest = straight[1]["state_sha256"]
    assert fit(experiment(), folder, Screen())["state_sha256"] == digest
    again = fit(experiment(), other, Screen(), resume_from="4")
    assert again["state_sha256"] == digest and (other / "rewound_2/checkpoints/8").is_dir()
    assert (other / "rewound_1/checkpoints/12").is_dir()
