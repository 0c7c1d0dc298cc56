"""Early stopping: a run ends for lack of a better evaluation, at the same step whatever happens."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small
from unit.train.test_trainer import Interrupting, curves

from jaxbig.config.experiment import Experiment
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant
from jaxbig.sweep.sweep import is_done
from jaxbig.tracking.console import Screen
from jaxbig.train.early_stopping import out_of_patience
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
FEW = {"steps": 20, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 3, "patience": 2}


def experiment(**changes: Any) -> Experiment:
    """A run that learns nothing: its first evaluation, at step 2, is its best."""
    model = ConvNet(layers=(Dense(16),), classes=10)
    optimizer = SGD(learning_rate=Constant(0.0))
    return small("digits_convnet", model=model, optimizer=optimizer, **{**FEW, **changes})


@pytest.mark.parametrize(
    ("accuracies", "patience", "over"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.5], 1, True),  # an equal one is not better
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.3], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([None, None], 2, True),  # not finite
        ([None, 0.1], 2, False),
        ([0.5, 0.4, 0.3, 0.2], 0, False),
    ],
)
def test_decision_follows_from_the_evaluations(
    accuracies: list[float | None], patience: int, over: bool
) -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "split": "eval", "accuracy": value} for step, value in enumerate(accuracies)
    ]
    lines.insert(len(lines) // 2, {"step": 0, "split": "train", "accuracy": 1.0})
    assert out_of_patience(lines, experiment(patience=patience)) == over


def test_lower_loss_is_better() -> None:
    lines = [{"step": n, "split": "eval", "loss": value} for n, value in enumerate((0.5, 0.4, 0.6))]
    regression = small("diabetes_mlp", patience=1)
    assert not out_of_patience(lines[:2], regression) and out_of_patience(lines, regression)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, shared_programs: None) -> Any:
    folder = tmp_path_factory.mktemp("ended") / "run"
    return folder, fit(experiment(), folder, Screen())


def test_run_without_a_better_evaluation_ends_saved_and_done(ended: Any) -> None:
    folder, summary = ended
    assert (summary["step"], summary["interrupted"], summary["stopped_early"]) == (6, False, True)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "checkpoints/6").is_dir() and curves(folder)[-1]["step"] == 6
    assert is_done(summary, 20)


def test_run_that_has_ended_trains_on_only_with_more_patience(ended: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ended[0], tmp_path / "run"))
    lines = curves(folder)
    assert fit(experiment(), folder, Screen()) == ended[1] and curves(folder) == lines
    assert fit(experiment(patience=3), folder, Screen())["step"] == 8
    last = fit(experiment(patience=0), folder, Screen())
    assert (last["step"], last["stopped_early"]) == (20, False)


@pytest.mark.parametrize("at", [3, 5])
def test_run_that_was_interrupted_ends_at_the_same_step(
    ended: Any, tmp_path: Path, at: int
) -> None:
    part = fit(experiment(), tmp_path, Interrupting(at))
    assert part["interrupted"] and not part["stopped_early"] and not is_done(part, 20)
    assert fit(experiment(), tmp_path, Screen())["state_sha256"] == ended[1]["state_sha256"]
    assert curves(tmp_path) == curves(ended[0])


def test_run_killed_before_it_saved_ends_at_the_same_step(ended: Any, tmp_path: Path) -> None:
    """Its last evaluation is in metrics.jsonl, and its last checkpoint is not there."""
    folder = Path(shutil.copytree(ended[0], tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints/6")
    (folder / "summary.json").unlink()
    lines = curves(folder)
    assert fit(experiment(), folder, Screen()) | {"metrics": 0} == ended[1] | {"metrics": 0}
    assert curves(folder) == lines


def test_last_step_is_no_early_end(tmp_path: Path) -> None:
    summary = fit(dataclasses.replace(experiment(), steps=6), tmp_path, Screen())
    assert (summary["step"], summary["stopped_early"], summary["interrupted"]) == (6, False, False)
