"""Commands that take the folder of a run in place of an experiment's name."""

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small

from jaxbig.cli.main import run
from jaxbig.cli.train import Train
from jaxbig.config.options import run_name
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
EVERY = {"steps": 6, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "keep_last": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_programs: None) -> Path:
    """A folder that holds `runs/v1.0`, a short run with options of its own."""
    experiment = small("digits_convnet", **EVERY)
    model = ConvNet(layers=(Dense(16),), classes=10)
    folder = tmp_path_factory.mktemp("trained")
    fit(dataclasses.replace(experiment, model=model, seed=3), folder / "runs/v1.0", Screen())
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, from the current one: a copy that a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/v1.0")


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The JSON that a command prints."""

    def carry_out(*arguments: object) -> Any:
        capsys.readouterr()
        assert run([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return carry_out


def evaluations(folder: Path) -> dict[int, dict[str, Any]]:
    return {line.pop("step"): line for line in read_metrics(folder) if line.pop("split") == "eval"}


def test_evaluate_takes_the_last_the_best_or_any_checkpoint(folder: Path, answer: Any) -> None:
    logged = evaluations(folder)
    best = json.loads((folder / "summary.json").read_text())["best"]["step"]
    assert set(logged) == {2, 4, 6}
    for which, step in (("last", 6), ("best", best), (4, 4), (2, 2)):
        found = answer("evaluate", folder, "--step", which)
        assert (found["step"], found["metrics"]) == (step, logged[step])
    assert answer("evaluate", folder)["step"] == 6


@pytest.mark.parametrize("step", ["3", "first", "-1", "04"])
def test_evaluate_refuses_a_step_without_a_checkpoint_and_names_those_there_are(
    folder: Path, step: str
) -> None:
    with pytest.raises(Refused, match=f"--step {step}: it must be last, best or .* are 2, 4, 6"):
        run(["evaluate", str(folder), f"--step={step}"])


def test_show_has_the_options_of_the_run_and_those_given(folder: Path, answer: Any) -> None:
    shown = answer("show", f"{folder}/", "--optimizer.weight-decay", 0.5)["experiment"]
    recorded = json.loads((folder / "run.json").read_text())["experiment"]
    assert shown.pop("optimizer") == {**recorded.pop("optimizer"), "weight_decay": 0.5}
    assert shown == recorded and shown["seed"] == 3


def test_train_resumes_the_run_in_its_folder(folder: Path, answer: Any) -> None:
    summary = answer("train", folder, "--steps", 8)
    assert summary["step"] == 8 and {6, 8} <= set(evaluations(folder))
    assert not (folder.parent / "v1").exists() and not Path("runs/0").exists()


def test_train_with_another_folder_repeats_the_run(folder: Path, answer: Any) -> None:
    before = json.loads((folder / "summary.json").read_text())
    again = answer("train", folder, "--workdir", "again")
    assert again["state_sha256"] == before["state_sha256"]


def test_replay_repeats_a_step_of_the_run_in_its_folder(folder: Path, answer: Any) -> None:
    assert answer("replay", folder, "--step", 5)["from"] == 4


def test_run_in_the_current_folder_is_named_by_a_dot(
    folder: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert answer("evaluate", ".")["step"] == 6
    assert run_name(".") == run_name(os.curdir + "/") == "v1.0"


@pytest.mark.parametrize("name", ["runs", "runs/v2", "/no/such"])
def test_folder_that_is_no_run_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(Refused, match=f"{name} is not the folder of a run"):
        run(["evaluate", name])


def test_name_of_an_experiment_is_never_taken_for_a_folder(folder: Path, answer: Any) -> None:
    shutil.copytree(folder, "digits_convnet")
    assert answer("show", "digits_convnet")["experiment"]["seed"] == 0
    assert answer("show", "./digits_convnet")["experiment"]["seed"] == 3


def test_next_commands_name_the_folder_and_work(folder: Path, answer: Any) -> None:
    command = Train.from_arguments("train", [str(folder), "--log-every=2"])
    evaluate, repeat, compare, _ = (shlex.split(hint) for hint in command.hints())
    other = f"{folder}-seed4"
    assert evaluate == ["jaxbig", "evaluate", str(folder)]
    assert repeat == ["jaxbig", "train", str(folder), "--seed", "4", "--workdir", other]
    assert answer(*repeat[1:])["step"] == 6
    lines = [line["differs"] for line in answer(*compare[1:])["differences"]]
    assert [line for line in lines if "experiment" in line] == ["experiment.seed: 3 -> 4"]
