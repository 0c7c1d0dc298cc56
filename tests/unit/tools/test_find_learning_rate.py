"""The learning-rate finder: its suggestion on curves known by hand, and a whole search."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import small

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant
from jaxbig.tools.find_learning_rate import find_learning_rate, suggest
from jaxbig.tracking.console import Screen

RATES = np.logspace(-6, 0, 121).tolist()


def fall(rate: float) -> float:
    """From 3 to 1, fastest at 1e-3; from 1e-1 on it diverges."""
    return 2 - math.tanh(2 * (math.log10(rate) + 3)) + 1e3 * max(math.log10(rate) + 1, 0)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    found = suggest(RATES, [fall(rate) for rate in RATES])
    assert found["suggestion"] == pytest.approx(1e-3, rel=0.2)
    assert 1e-2 < found["lowest"] <= 2e-1


def test_noise_of_single_steps_does_not_move_the_suggestion() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, len(RATES))
    found = suggest(RATES, [fall(r) + n for r, n in zip(RATES, noise, strict=True)])
    assert found["suggestion"] == pytest.approx(1e-3, rel=1.0)


def test_nothing_is_suggested_where_the_loss_only_rises() -> None:
    assert suggest(RATES, np.linspace(1, 2, len(RATES)).tolist())["suggestion"] is None


def experiment() -> Experiment:
    return small(
        "digits_convnet",
        model=MLP(widths=(), outputs=10),
        optimizer=SGD(learning_rate=Constant(0.0), momentum=0.0),
    )


def search(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    arguments = {"start": 1e-4, "end": 1e4, "steps": 60, "picture": tmp_path / "a" / "found.png"}
    return find_learning_rate(experiment(), **(arguments | changes), screen=Screen(quiet=True))


def test_a_search_raises_the_rate_until_the_loss_diverges(tmp_path: Path) -> None:
    found = search(tmp_path)
    count = found["steps"]
    rates = 1e-4 * 10 ** (8 * np.arange(count) / 59)
    np.testing.assert_allclose(found["rates"], rates, rtol=1e-4)
    assert found["diverged"] and 20 < count < 60 and len(found["losses"]) == count
    assert 1e-3 < found["suggestion"] <= found["lowest"] < 1e3
    assert (tmp_path / "a" / "found.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "found.png"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": 0.0}, "--start 0 --end 10000: start must be above 0 and below end"),
        ({"start": 1.0, "end": 0.1}, "--start 1 --end 0.1"),
        ({"end": math.inf}, "--end inf"),
        ({"steps": 5}, "--search-steps 5: it must be 20 or more"),
    ],
)
def test_a_search_of_no_range_is_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        search(tmp_path, **changes)


def test_a_search_that_starts_too_high_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--start 1e\\+06: the loss diverged in"):
        search(tmp_path, start=1e6, end=1e30)


def test_the_schedule_of_the_experiment_is_not_used(tmp_path: Path) -> None:
    """With its constant 0 nothing would be learned."""
    losses = search(tmp_path, end=1.0, steps=20)["losses"]
    assert losses[-1] < losses[0] - 0.1
    assert dataclasses.asdict(experiment().optimizer.learning_rate) == {"peak": 0.0}
