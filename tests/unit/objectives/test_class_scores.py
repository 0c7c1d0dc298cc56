"""Scores of classes against numbers by hand, and metrics over all outputs of an evaluation."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP
from jaxbig.objectives.bootstrap import Bootstrap
from jaxbig.objectives.calibration import CalibrationError
from jaxbig.objectives.class_scores import (
    AUC,
    Accuracy,
    MeanAveragePrecision,
    areas_under_curves,
    class_scores,
    most_confused,
)
from jaxbig.objectives.metric import Kept, Metric
from jaxbig.program.program import make_program
from jaxbig.tracking.console import Screen
from jaxbig.train.class_report import draw_confusion, report_classes
from jaxbig.train.passes import evaluate
from jaxbig.train.trainer import fit

NAMES = ("cat", "dog", "eel")
# classified as 0 0 1 2 1, in order
LOGITS = np.array([[3.0, 0, 0], [2, 1, 0], [0, 4, 1], [0, 1, 2], [1, 2, 0]])
TARGETS = np.array([0, 1, 1, 2, 0])


def test_scores_of_classes_are_those_by_hand() -> None:
    found = class_scores(LOGITS, TARGETS, NAMES, multi_label=False)
    assert found["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    cat, dog, eel = found["classes"]
    assert cat == {**cat, "class": "cat", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert dog == {**dog, "class": "dog", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert eel == {**eel, "precision": 1, "recall": 1, "f1": 1, "auc": 1, "support": 1}
    assert found["macro"]["f1"] == pytest.approx(2 / 3)
    assert found["weighted"]["f1"] == pytest.approx((2 * 0.5 + 2 * 0.5 + 1) / 5)
    assert found["macro"]["support"] == 5


def test_a_class_that_never_occurs_scores_zero_and_has_no_auc() -> None:
    found = class_scores(LOGITS[:3], TARGETS[:3], NAMES, multi_label=False)
    eel = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "auc": None, "support": 0}
    assert found["classes"][2] == {"class": "eel", **eel}
    assert found["macro"]["auc"] is not None


def test_an_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, 3))
    targets = generator.integers(0, 3, 40)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for k, area in enumerate(areas_under_curves(logits, targets)):
        inside = probabilities[targets == k, k]
        outside = probabilities[targets != k, k]
        assert area == pytest.approx(np.mean(inside[:, None] > outside[None]))


def test_an_average_precision_is_the_mean_precision_at_each_example_of_the_class() -> None:
    metric = MeanAveragePrecision()
    targets = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    found = metric.result({"outputs": LOGITS, "targets": targets})
    # cat: 3 2 1 0 0 is no, yes, no, then one of two; dog: 4 is yes, 2 no, and one of two of 1
    cat = (1 / 2 + 2 / 5) / 2
    dog = (1 / 1 + 2 / 4) / 2
    assert found["mean_average_precision"] == pytest.approx((cat + dog) / 2)  # no eel


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_examples() -> None:
    odds = np.log([[9.0, 1], [9, 1], [1, 9], [6, 4]])  # confidence 0.9 0.9 0.9 0.6
    targets = np.array([0, 1, 1, 1])  # right: 2 of 3 and 0 of 1
    found = CalibrationError(bins=10).result({"outputs": odds, "targets": targets})
    assert found["calibration_error"] == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.6)
    either = {"outputs": np.log([[3.0], [1 / 3]]), "targets": np.array([[1.0], [1.0]])}
    assert CalibrationError().result(either)["calibration_error"] == pytest.approx(0.5)


def test_a_bootstrap_interval_is_that_of_the_binomial_and_repeatable() -> None:
    outputs = np.tile([[1.0, 0.0]], (400, 1))
    targets = (np.arange(400) % 4 == 0).astype(int)  # 0.75 right
    kept = {"outputs": outputs, "targets": targets}
    found = Bootstrap(Accuracy(), samples=500).result(kept)
    assert found["accuracy"] == 0.75
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found["accuracy_low"] == pytest.approx(0.75 - spread, abs=0.008)
    assert found["accuracy_high"] == pytest.approx(0.75 + spread, abs=0.008)
    assert found == Bootstrap(Accuracy(), samples=500).result(kept)
    assert found != Bootstrap(Accuracy(), samples=500, seed=1).result(kept)


def test_a_bootstrap_of_rare_classes_uses_the_draws_that_have_some() -> None:
    kept = {"outputs": LOGITS, "targets": TARGETS}
    found = Bootstrap(AUC(), samples=50).result(kept)
    assert found["auc_low"] <= found["auc"] <= found["auc_high"] <= 1


def test_classes_that_may_occur_together_are_scored_one_by_one() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    found = class_scores(LOGITS - 1.5, targets, NAMES, multi_label=True)
    assert found["confusion"] is None
    assert [row["support"] for row in found["classes"]] == [3, 3, 1]
    cat = found["classes"][0]
    assert (cat["precision"], cat["recall"]) == (1.0, pytest.approx(2 / 3))
    # 3, 2 and 1 of the class, 0 and 0 of the others
    assert cat["auc"] == 1.0


def test_classes_that_are_confused_most_often_come_first() -> None:
    found = most_confused([[9, 1, 0], [4, 9, 0], [2, 0, 9]], NAMES)
    times = [(pair["class"], pair["classified as"], pair["times"]) for pair in found]
    assert times == [("dog", "cat", 4), ("eel", "cat", 2), ("cat", "dog", 1)]


# -- in an evaluation


@dataclasses.dataclass(frozen=True)
class Everything(Metric):
    """Sums and counts of all that is kept."""

    def result(self, kept: Kept) -> dict[str, float]:
        right = kept["outputs"].argmax(1) == kept["targets"]
        return {"seen": len(right), "right": right.mean(), "sum": kept["outputs"].sum()}


def experiment(**changes: Any) -> Experiment:
    """360 examples to evaluate: the last batch is half padding."""
    return small("digits_convnet", model=MLP(widths=(), outputs=10), **changes)


def test_a_metric_sees_each_output_of_an_evaluation_once() -> None:
    plain = make_program(experiment())
    program = make_program(experiment(metrics=(Everything(), AUC())))
    source = program.experiment.data.source("eval")
    with program.activate():
        state = program.init()
        found = evaluate(program, state, source)
        expected = evaluate(plain, state, source)
    assert found is not None and expected is not None
    assert found["seen"] == 360
    assert found["right"] == pytest.approx(found["accuracy"], abs=1e-6)
    assert 0.3 < found["auc"] < 0.7
    assert found == {**found, **{k: pytest.approx(v, rel=1e-6) for k, v in expected.items()}}
    rows = source.rows(np.arange(360))
    kernel, bias = (flatten_with_paths(state.params)[f"head/{n}"] for n in ("kernel", "bias"))
    outputs = rows["inputs"].reshape(360, -1) @ np.asarray(kernel) + np.asarray(bias)
    assert found["sum"] == pytest.approx(float(outputs.sum()), rel=1e-4, abs=1e-3)


def test_without_metrics_the_evaluation_is_the_plain_one(monkeypatch: Any) -> None:
    program = make_program(experiment())
    monkeypatch.setitem(vars(program), "eval_step_with_outputs", None)
    with program.activate():
        source = program.experiment.data.source("eval")
        assert evaluate(program, program.init(), source) is not None


@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        ("diabetes_mlp", AUC(), "metrics: AUC needs a logit for each class"),
        ("pytext_bert", AUC(), "metrics: AUC needs targets, and the data has"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(name: str, metric: Metric, said: str) -> None:
    with pytest.raises(Refused, match=said):
        make_program(small(name, metrics=(metric,)))


def test_a_report_on_what_has_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--report: Diabetes has no classes"):
        report_classes(
            small("diabetes_mlp"), tmp_path, "last", "eval", picture=tmp_path / "confusion.png"
        )


@pytest.mark.parametrize("count", [2, 30, 100])
def test_a_confusion_matrix_is_drawn_of_few_classes_and_of_many(tmp_path: Path, count: int) -> None:
    picture = tmp_path / "new" / "confusion.png"
    names = [f"class $\\x_{k}$\x00" for k in range(count)]
    draw_confusion(np.eye(count, dtype=int).tolist(), names, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_report_names_classes_and_draws_them(tmp_path: Path) -> None:
    every = {"steps": 1, "evaluate_every": 1, "checkpoint_every": 1}
    run = experiment(**every)
    summary = fit(run, tmp_path / "run", Screen(quiet=True))
    picture = tmp_path / "confusion.png"
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    found = report_classes(run, tmp_path / "run", "last", "eval", picture=picture)
    assert found["metrics"]["accuracy"] == pytest.approx(summary["metrics"]["eval/accuracy"])
    report = found["report"]
    assert [row["class"] for row in report["classes"]] == list("0123456789")
    assert np.trace(report["confusion"]) / 360 == pytest.approx(found["metrics"]["accuracy"])
    assert len(report["confused"]) == 5
    assert report["macro"]["auc"] == pytest.approx(found["metrics"]["auc"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
