"""Samples: Frechet's distance against SciPy's, what a classifier sees, the picture, refusals."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from PIL import Image
from support.experiments import small

import jaxbig as jb
from jaxbig.data.builtin.digits import Digits
from jaxbig.errors import Refused
from jaxbig.evaluators.samples import Judge, Samples, draw, frechet_distance
from jaxbig.program.program import make_program
from jaxbig.train.passes import Evaluation, check_evaluators


@pytest.mark.parametrize("count", [8, 60])  # fewer than features: the covariance is singular
def test_frechet_distance_is_that_of_scipys_root(count: int) -> None:
    draw = np.random.default_rng(0)
    one = draw.standard_normal((count, 12)) @ draw.standard_normal((12, 12))
    two = 0.5 + draw.standard_normal((80, 12))
    a = np.cov(one, rowvar=False)
    b = np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(a + b - 2 * root)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(two, one) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    one = np.random.default_rng(0).standard_normal((50, 3))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + np.arange(1, 4)) == pytest.approx(14)
    assert frechet_distance(one[:, :1], 2 * one[:, :1]) == pytest.approx(
        one[:, 0].mean() ** 2 + one[:, 0].var(ddof=1)
    )


def test_picture_has_samples_by_class_ten_in_a_row(tmp_path: Path) -> None:
    asked = np.array([7, 2, 7, 7])
    images = np.stack([np.full((8, 8, 1), k / 10) for k in (1, 2, 3, 4)])
    draw(images, asked, tmp_path / "samples.png")
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    assert pixels.shape == (30, 300, 3)  # 8 pixels and a line around them, three times
    assert pixels[15, 15::30, 0].tolist() == [51, 26, 76, 102, 0, 0, 0, 0, 0, 0]
    assert pixels[15, :2, 0].tolist() == [96, 96]


@pytest.mark.parametrize(
    ("name", "evaluator", "said"),
    [
        ("digits_convnet", Samples(), "the objective Classification predicts no"),
        ("digits_diffusion", Samples(classifier="nowhere"), "nowhere holds no run"),
        ("digits_diffusion", Samples(of="test"), "split test"),
        ("digits_diffusion", Samples(classifier="nowhere", most=1), "needs 2 samples or more"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, evaluator: Samples, said: str) -> None:
    experiment = small(name, evaluators=(jb.Every(1, evaluator),), mesh=jb.Mesh(data=1))
    experiment.data.prepare()
    program = make_program(experiment, jax.devices()[:1])
    with pytest.raises(Refused, match=said):
        check_evaluators(Evaluation(program))


class Eleven(Digits):
    classes = 11


@pytest.mark.slow
def test_a_run_draws_its_samples_and_asks_its_judge(tmp_path: Path) -> None:
    classifier = small("digits_convnet", steps=60, evaluate_every=60, checkpoint_every=60)
    trained = jb.fit(classifier, tmp_path / "classifier")
    samples = Samples(classifier=str(tmp_path / "classifier"), most=40)
    experiment = small("digits_diffusion", steps=4, evaluate_every=2, checkpoint_every=2)
    jb.fit(experiment.replace(evaluators=(jb.Every(2, samples),)), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rows = [line for line in lines if line["split"] == "samples"]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row["recognized"] <= 1 and row["frechet"] > 0 for row in rows)
    assert Image.open(tmp_path / "run" / "samples.png").width == 300

    real = experiment.data.source("eval")
    examples = real.rows(np.arange(len(real)))
    evaluation = Evaluation(make_program(experiment))
    judge = samples.judge(evaluation)
    assert samples.judge(evaluation) is judge  # restored once
    own = judge.scores(examples["inputs"], examples["targets"], real)
    assert own["frechet"] == pytest.approx(0, abs=1e-3)
    assert own["recognized"] == pytest.approx(trained.metrics["eval/accuracy"])
    wrong = judge.scores(examples["inputs"], (examples["targets"] + 1) % 10, real)
    assert wrong["recognized"] < 1 - own["recognized"] + 1e-9
    assert np.isnan(judge.scores(np.full((3, 8, 8, 1), np.nan), np.zeros(3), real)["frechet"])
    one = judge.scores(examples["inputs"][:1], examples["targets"][:1], real)
    assert np.isnan(one["frechet"])  # of a single sample there is no covariance

    for folder, name, said in (
        ("run", "digits_diffusion", "does not predict one class an image"),
        ("classifier", "imagenet64_dit_s2", r"sees \[.*'inputs', \[8, 8, 1\].* and this run "),
    ):
        of_run = Evaluation(make_program(small(name)))
        with pytest.raises(Refused, match=said):
            Judge(str(tmp_path / folder), of_run)
    eleven = experiment.replace(**{"data": Eleven(batch=16), "model.classes": 11})
    more = Evaluation(make_program(eleven))
    with pytest.raises(Refused, match="knows 10 classes, and this run's data has 11"):
        Judge(str(tmp_path / "classifier"), more)
