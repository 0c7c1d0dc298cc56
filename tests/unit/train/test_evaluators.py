"""Evaluators of a run: their rows, at which steps, resumption, and what is refused before it."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.config.deserialize import from_json
from jaxbig.config.serialize import to_json
from jaxbig.errors import Failed, Refused
from jaxbig.program.program import make_program
from jaxbig.tracking.console import Screen
from jaxbig.train.dry_run import dry_run
from jaxbig.train.passes import Evaluation, check_evaluators
from jaxbig.train.trainer import fit

Make = Callable[..., jb.Experiment]
pytestmark = pytest.mark.usefixtures("shared_programs")


@dataclasses.dataclass(frozen=True)
class Counting(jb.Evaluator):
    """Notes each step at which it is run; stops the run in the middle of its n-th evaluation."""

    stop_at: int = 0
    seen: list[int] = dataclasses.field(default_factory=list, init=False, compare=False)

    def run(self, evaluation: jb.Evaluation, state: Any) -> dict[str, float]:
        self.seen.append(len(self.seen))
        if len(self.seen) == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        return evaluation.metrics(state, evaluation.source("eval"))


def rows(folder: Path, split: str = "") -> list[dict[str, Any]]:
    """The rows of evaluators, or of one split."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        line
        for line in lines
        if (line["split"] == split if split else line["split"] not in ("train", "eval"))
    ]


def steps(folder: Path, split: str) -> list[int]:
    return [row["step"] for row in rows(folder, split)]


# -- what they measure


@pytest.fixture(scope="module")
def measured(
    shared_programs: None, tiny: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[jb.Experiment, Path, dict[str, Any]]:
    """A run with one of each, its folder and its summary."""
    others = jb.evaluators.OtherData(data=tiny().data, of="train")
    experiment = tiny(
        evaluators=(
            jb.Every(2, jb.evaluators.Split("eval", name="again")),
            jb.Every(4, others),
            jb.Every(4, jb.evaluators.KNearest(k=3, most=50)),
            jb.Every(6, jb.evaluators.LinearProbe(most=50)),
        )
    )
    folder = tmp_path_factory.mktemp("measured")
    return experiment, folder, fit(experiment, folder, Screen(quiet=True))


def test_each_evaluator_has_rows_at_its_own_steps_and_at_the_end(measured: Any) -> None:
    _, folder, _ = measured
    assert steps(folder, "again") == [2, 4, 6]
    assert steps(folder, "other_data") == [4, 6]
    assert steps(folder, "k_nearest") == [4, 6]
    assert steps(folder, "linear_probe") == [6]


def test_a_split_has_the_metrics_of_an_evaluation(measured: Any) -> None:
    _, folder, _ = measured
    [evaluated] = [row for row in rows(folder, "eval") if row["step"] == 6]
    [again] = [row for row in rows(folder, "again") if row["step"] == 6]
    assert {**again, "split": "eval"} == evaluated


def test_other_data_has_the_metrics_of_its_own_split(measured: Any) -> None:
    _, folder, _ = measured
    expected = jb.evaluate(jb.restore(folder), split="train")
    assert rows(folder, "other_data")[-1] == {"step": 6, "split": "other_data", **expected}


def test_neighbors_are_those_of_the_input_of_the_head(measured: Any) -> None:
    experiment, folder, _ = measured
    run = jb.restore(folder)
    sources = [experiment.data.source(split) for split in ("train", "eval")]
    places = [np.arange(50) * len(sources[0]) // 50, np.arange(len(sources[1]))]
    features = []
    targets = []
    for source, at in zip(sources, places, strict=True):
        batch = source.rows(at)
        params = run.state.params["layers_0"]["linear"]
        kernel, bias = (np.asarray(params[name]) for name in ("kernel", "bias"))
        hidden = np.maximum(batch["inputs"].reshape(len(at), -1) @ kernel + bias, 0)
        features.append(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))
        targets.append(batch["targets"])
    nearest = np.argsort(-features[1] @ features[0].T, axis=1, kind="stable")[:, :3]
    votes = [np.bincount(targets[0][each], minlength=10).argmax() for each in nearest]
    accuracy = np.mean(np.array(votes) == targets[1])
    assert rows(folder, "k_nearest")[-1]["accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert 0.5 < rows(folder, "linear_probe")[-1]["accuracy"] <= 1


def test_evaluators_change_no_bit_of_a_run(measured: Any, tmp_path: Path) -> None:
    experiment, folder, summary = measured
    plain = fit(experiment.replace(evaluators=()), tmp_path, Screen(quiet=True))
    assert plain["state_sha256"] == summary["state_sha256"]
    assert rows(tmp_path, "train")[-1]["loss"] == rows(folder, "train")[-1]["loss"]
    assert rows(tmp_path, "eval") == rows(folder, "eval")
    assert summary["metrics"]["again/loss"] == summary["metrics"]["eval/loss"]


def test_experiment_with_evaluators_is_rebuilt_from_its_json(measured: Any) -> None:
    experiment, _, _ = measured
    assert from_json(to_json(experiment)) == experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(jb.data.Records):
    """The same text again and again."""

    text: str
    count: int

    def open(self, split: str) -> list[dict[str, Any]]:
        return [{"text": self.text}] * self.count


def test_each_part_of_a_mixture_is_evaluated_apart() -> None:
    parts = (Words(text="text", count=2), Words(text="another", count=3))
    records = jb.data.Mixture(parts=parts, weights=(1.0, 1.0))
    experiment = small(
        "pytext_transformer",
        data=jb.data.Tokens(records=records, length=16, batch=8),
        model=jb.models.Decoder(vocab=257, depth=1, width=16, heads=2),
        objective=jb.objectives.NextToken(vocab=257),
    )
    program = make_program(experiment)
    with program.activate():
        state = program.init()
        evaluation = Evaluation(program)
        row = jb.evaluators.MixtureParts().run(evaluation, state)
        whole = evaluation.metrics(state, evaluation.source("eval"))
    tokens = [2 * len("text "), 3 * len("another ")]  # with the end token
    assert whole["loss"] == pytest.approx(
        np.average([row["1/loss"], row["2/loss"]], weights=tokens), rel=1e-5
    )
    assert row["1/loss"] != row["2/loss"]


# -- interrupted and resumed


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 3])
def test_run_that_was_stopped_in_an_evaluator_has_the_same_rows_in_the_end(
    stop_at: int, tiny: Make, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    stopped = tmp_path / "stopped"

    def experiment(stop_at: int = 0) -> jb.Experiment:
        return tiny(evaluators=(jb.Every(2, Counting(stop_at)), jb.Every(4, Counting(name="b"))))

    done = fit(experiment(), whole, Screen(quiet=True))
    part = fit(experiment(stop_at), stopped, Screen(quiet=True))
    assert part["interrupted"] and part["step"] == 2 * stop_at
    assert part["step"] not in steps(stopped, "counting")
    rest = fit(experiment(), stopped, Screen(quiet=True))
    assert not rest["interrupted"] and rest["state_sha256"] == done["state_sha256"]
    assert sorted(rows(stopped), key=str) == sorted(rows(whole), key=str)


def test_evaluator_that_is_added_to_a_finished_run_is_run_at_its_last_step(
    tiny: Make, tmp_path: Path
) -> None:
    before = fit(tiny(), tmp_path, Screen(quiet=True))
    after = fit(tiny(evaluators=(jb.Every(100, Counting()),)), tmp_path, Screen(quiet=True))
    assert steps(tmp_path, "counting") == [6]
    assert after["state_sha256"] == before["state_sha256"] and not after["interrupted"]


def test_run_that_stops_early_runs_its_evaluators_at_the_end(tiny: Make, tmp_path: Path) -> None:
    rate = jb.optim.Constant(0.0)  # nothing is learned
    experiment = tiny(evaluate_every=1, patience=2, evaluators=(jb.Every(100, Counting()),))
    still = experiment.replace(optimizer=jb.optim.SGD(learning_rate=rate))
    ended = fit(still, tmp_path, Screen(quiet=True))
    assert ended["stopped_early"] and ended["step"] == 3
    assert steps(tmp_path, "counting") == [3]


# -- what does not fit

KNEAREST = jb.evaluators.KNearest
WRONG = {
    "more neighbors than examples": (
        "digits_convnet",
        KNEAREST(k=2_000),
        "k_nearest: k 2,000 neighbors of 1,437 training examples",
    ),
    "more neighbors than examples to fit": (
        "digits_convnet",
        KNEAREST(k=60, most=50),
        "k 60 neighbors of 50 training examples, by most=50",
    ),
    "an unknown split": (
        "digits_convnet",
        jb.evaluators.Split("held-out"),
        "split held-out: it is",
    ),
    "a split that is not there": (
        "digits_convnet",
        jb.evaluators.Split(),
        "test_split: split test",
    ),
    "no head": ("pytext_transformer", KNEAREST(), "Decoder has no ClassifierHead"),
    "a translator": ("dates_seq2seq", KNEAREST(), "RNNEncoderDecoder has no ClassifierHead"),
    "no classes": ("diabetes_mlp", KNEAREST(), "each example must have one class"),
    "no mixture": ("digits_convnet", jb.evaluators.MixtureParts(), "Digits are no Mixture"),
    "images of another size": (
        "digits_convnet",
        jb.evaluators.OtherData(
            data=jb.data.Images(
                records=jb.data.ImageFolder(folder="x"), size=16, classes=10, batch=16
            )
        ),
        "an example of Images is .16, 16, 3., and of this run.s data .8, 8, 1.",
    ),
    "more classes": (
        "digits_convnet",
        jb.evaluators.OtherData(
            data=jb.data.Images(
                records=jb.data.ImageFolder(folder="x"), size=8, classes=11, batch=16
            )
        ),
        "the data has 11 classes",
    ),
    "other fields": (
        "digits_convnet",
        jb.evaluators.OtherData(data=jb.data.Diabetes(batch=16)),
        "other_data: ",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_evaluator_that_does_not_fit_is_refused_before_anything_is_compiled(what: str) -> None:
    name, evaluator, said = WRONG[what]
    program = make_program(small(name, evaluators=(jb.Every(10, evaluator),)))
    with program.activate(), pytest.raises(Refused, match=f"evaluators: .*{said}"):
        check_evaluators(Evaluation(program))


def test_other_data_that_fits_the_adapters_but_not_the_frozen_parameters_is_refused(
    tiny: Make,
) -> None:
    _, other, said = WRONG["images of another size"]
    adapters = jb.LoRA(rank=1, pattern="head")
    program = make_program(tiny(lora=adapters, evaluators=(jb.Every(10, other),)))
    with program.activate(), pytest.raises(Refused, match=said):
        check_evaluators(Evaluation(program))


def test_refused_evaluator_leaves_no_run_behind(tiny: Make, tmp_path: Path) -> None:
    experiment = tiny(evaluators=(jb.Every(2, KNEAREST(k=10_000)),))
    with pytest.raises(Refused, match="k 10,000"):
        dry_run(experiment, tmp_path)
    with pytest.raises(Refused, match="k 10,000"):
        fit(experiment, tmp_path / "run", Screen(quiet=True))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (KNEAREST(), "must be a tuple"),
        ((KNEAREST(),), "must be an Every"),
        ((jb.Every(1, KNEAREST),), "must be an Every"),
        ((jb.Every(1, KNEAREST()), jb.Every(2, KNEAREST(k=1))), "rows of the split 'k_nearest'"),
        ((jb.Every(1, KNEAREST(name="eval")),), "rows of the split 'eval'"),
        ((jb.Every(1, KNEAREST(name="test")),), "rows of the split 'test'"),
        ((jb.Every(1, KNEAREST(name="a/b")),), "must be a word"),
        ((jb.Every(0, KNEAREST()),), "steps"),
    ],
)
def test_what_is_no_list_of_evaluators_is_refused(wrong: Any, said: str, tiny: Make) -> None:
    with pytest.raises(Refused, match=said):
        tiny(evaluators=wrong).check()


@dataclasses.dataclass(frozen=True)
class Wordy(jb.Evaluator):
    """Gives text."""

    def run(self, evaluation: jb.Evaluation, state: Any) -> Any:
        return "good"


def test_evaluator_that_gives_no_numbers_ends_the_run_with_its_name(
    tiny: Make, tmp_path: Path
) -> None:
    with pytest.raises(Failed, match=r"Wordy\.run must give numbers by name"):
        fit(tiny(steps=1, evaluators=(jb.Every(1, Wordy()),)), tmp_path, Screen(quiet=True))
