"""Every checkpoint of a run, each once, also while the run trains or removes them."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

import jaxbig as jb
from jaxbig.cli import main as command_line
from jaxbig.cli.evaluate import Evaluate
from jaxbig.errors import Failed, Refused
from jaxbig.tracking.console import Screen
from jaxbig.train import evaluate_checkpoints as module
from jaxbig.train.evaluate import SavedRun, evaluate_run
from jaxbig.train.evaluate_checkpoints import FILE, evaluate_checkpoints
from jaxbig.train.trainer import fit

Make = Callable[..., jb.Experiment]


@dataclasses.dataclass(frozen=True)
class Again(jb.Evaluator):
    """The evaluation split once more."""

    def run(self, evaluation: jb.Evaluation, state: Any) -> dict[str, float]:
        return evaluation.metrics(state, evaluation.source("eval"))


@pytest.fixture(scope="module")
def trained(
    shared_programs: None, tiny: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[jb.Experiment, Path]:
    """A run with an evaluator and checkpoints of steps 2, 4 and 6."""
    experiment = tiny(
        evaluators=(jb.Every(100, Again()),), evaluate_every=2, checkpoint_every=2, keep_last=3
    )
    folder = tmp_path_factory.mktemp("trained")
    fit(experiment, folder, Screen(quiet=True))
    return experiment, folder


@pytest.fixture
def run(trained: tuple[jb.Experiment, Path], tmp_path: Path) -> tuple[jb.Experiment, Path]:
    """A copy of it."""
    experiment, folder = trained
    return experiment, Path(shutil.copytree(folder, tmp_path / "run"))


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of the run's own evaluations."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"]


def without_digest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "state_sha256"} for row in rows]


def test_each_checkpoint_is_evaluated_once_as_the_run_did(run: Any) -> None:
    experiment, folder = run
    before = (folder / "metrics.jsonl").read_bytes()
    found = list(evaluate_checkpoints(experiment, folder))
    assert without_digest(found) == evaluations(folder)
    assert [json.loads(line) for line in (folder / FILE).read_text().splitlines()] == found
    assert list(evaluate_checkpoints(experiment, folder)) == []
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_evaluators_are_added_to_checkpoints_that_have_their_other_row(run: Any) -> None:
    experiment, folder = run
    list(evaluate_checkpoints(experiment, folder))
    added = list(evaluate_checkpoints(experiment, folder, evaluators=True))
    assert [(row["step"], row["split"]) for row in added] == [(n, "again") for n in (2, 4, 6)]
    assert added[-1]["loss"] == evaluations(folder)[-1]["loss"]


def test_evaluation_of_one_checkpoint_has_the_evaluators_apart(run: Any) -> None:
    experiment, folder = run
    found = evaluate_run(experiment, folder, "4", evaluators=True)
    assert found["step"] == 4
    assert found["evaluators"] == {"again": found["metrics"]}
    assert "evaluators" not in evaluate_run(experiment, folder)


def test_row_that_a_kill_cut_off_is_made_again(run: Any) -> None:
    experiment, folder = run
    whole = list(evaluate_checkpoints(experiment, folder))
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(text[:-20])
    assert list(evaluate_checkpoints(experiment, folder)) == whole[-1:]
    assert len(module.read_rows(folder / FILE)) == 3


def test_checkpoint_that_is_removed_meanwhile_is_skipped_and_named(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, folder = run
    evaluate = SavedRun.evaluate

    def removing(saved: SavedRun, steps: Any, splits: Any) -> Any:
        if steps == [4]:
            shutil.rmtree(folder / "checkpoints" / "4")
        return evaluate(saved, steps, splits)

    monkeypatch.setattr(SavedRun, "evaluate", removing)
    monkeypatch.setattr(logging.getLogger("jaxbig"), "propagate", True)
    with caplog.at_level("WARNING", "jaxbig"):
        found = list(evaluate_checkpoints(experiment, folder))
    assert [row["step"] for row in found] == [2, 6]
    assert "removed its checkpoint of step 4 meanwhile: it is skipped" in caplog.text


def test_damaged_checkpoint_is_an_error(run: Any) -> None:
    experiment, folder = run
    (folder / "checkpoints" / "4" / "jaxbig.json").write_text("x")
    with pytest.raises(Failed, match="has changed in its file"):
        list(evaluate_checkpoints(experiment, folder))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_programs")
def test_watching_waits_for_the_run_and_ends_with_it(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(evaluate_every=2, checkpoint_every=2, keep_last=1, keep_best=0)
    lengths = iter([2, 4, 6])

    def train_on(heartbeat: Any) -> None:
        """The run makes two more steps whenever the watcher waits."""
        fit(experiment.replace(steps=next(lengths)), tmp_path, Screen(quiet=True))
        summary = json.loads((tmp_path / "summary.json").read_text())
        ended = {**summary, "interrupted": summary["step"] < 6}
        (tmp_path / "summary.json").write_text(json.dumps(ended))

    monkeypatch.setattr(module, "wait", train_on)
    found = list(evaluate_checkpoints(experiment, tmp_path, watch=True))
    assert without_digest(found) == evaluations(tmp_path)
    assert [row["step"] for row in found] == [2, 4, 6]


def test_two_processes_do_not_evaluate_the_same_checkpoints(run: Any) -> None:
    experiment, folder = run
    with (
        filelock.FileLock(folder / f"{FILE}.lock"),
        pytest.raises(Refused, match="another process evaluates"),
    ):
        list(evaluate_checkpoints(experiment, folder))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--watch"], "give --every-checkpoint too"),
        (["--every-checkpoint", "--step", "best"], "--step best is one checkpoint"),
        (["--every-checkpoint", "--report"], "--report is of one checkpoint"),
        (["--evaluators", "--report"], "--report is of one split"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: list[str], said: str) -> None:
    command = Evaluate.from_arguments("evaluate", ["digits_convnet", *options])
    with pytest.raises(Refused, match=said):
        command()


def test_evaluators_of_an_experiment_without_any_are_refused(run: Any) -> None:
    experiment, folder = run
    with pytest.raises(Refused, match="--evaluators: the experiment has none"):
        evaluate_run(experiment.replace(evaluators=()), folder, evaluators=True)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_programs")
def test_command_prints_a_row_for_each_checkpoint(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny(), tmp_path, Screen(quiet=True))
    words = ["evaluate", str(tmp_path), "--every-checkpoint", "--json"]
    assert command_line.run(words) == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)["evaluations"]] == [3, 6]
    assert command_line.run(words[:-1]) == 0
    assert "every checkpoint is evaluated already" in capsys.readouterr().out
