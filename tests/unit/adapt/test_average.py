"""The mean of a run's last checkpoints, as a run of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.cli.main import run as command_line
from jaxbig.config.lora import LoRA
from jaxbig.errors import Refused

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    experiment = small("digits_resnet", steps=3, evaluate_every=3, checkpoint_every=1, keep_last=3)
    return jb.fit(experiment, tmp_path_factory.mktemp("kept"))


def test_weights_and_statistics_are_means_of_the_last_checkpoints(
    run: jb.Run, tmp_path: Path
) -> None:
    made = jb.average(run.directory, tmp_path / "mean", last=2)
    states = [flatten_with_paths(jb.restore(run.directory, step=step).state) for step in (2, 3)]
    for path, leaf in flatten_with_paths(made.state).items():
        expected = np.asarray(states[1][path])
        if path.startswith(("params/", "variables/batch_stats/")):
            expected = (np.asarray(states[0][path]) + np.asarray(states[1][path])) / 2
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-8, err_msg=path)
    assert made.step == 3 and "mean" in "".join(path for path in states[0])


def test_new_run_is_evaluated_as_any_other(run: jb.Run, tmp_path: Path) -> None:
    folder = tmp_path / "mean"
    assert (
        command_line(["average", str(run.directory), "--last", "3", "--workdir", str(folder)]) == 0
    )
    assert 0 <= jb.evaluate(folder)["accuracy"] <= 1
    assert json.loads((folder / "run.json").read_text())["averaged"] == [1, 2, 3]


def test_average_that_is_interrupted_leaves_nothing(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["jaxbig.train.average"], "describe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        jb.average(run.directory, tmp_path / "mean", last=2)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_averaged_is_refused(run: jb.Run, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"has 3 checkpoints, of steps 1, 2, 3, and last is 5"):
        jb.average(run.directory, tmp_path / "mean")
    with pytest.raises(Refused, match="last 1: it must be 2 or more"):
        jb.average(run.directory, tmp_path / "mean", last=1)
    with pytest.raises(Refused, match="is there already"):
        jb.average(run.directory, run.directory, last=2)
    assert not (tmp_path / "mean").exists()
    adapted = small("diabetes_mlp", lora=LoRA(rank=1, pattern="head"), steps=1)
    jb.fit(adapted, tmp_path / "lora")
    with pytest.raises(Refused, match="has adapters"):
        jb.average(tmp_path / "lora", tmp_path / "mean", last=2)
