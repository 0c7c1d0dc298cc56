"""Epochs: the steps that pass over all examples a number of times."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import small

from jaxbig.cli.main import run
from jaxbig.data.pipeline.sampler import train_indices
from jaxbig.errors import Refused
from jaxbig.tracking.console import Screen
from jaxbig.train.epochs import describe_sizes, steps_in, with_epochs
from jaxbig.train.trainer import fit


class Examples:
    """A source of that many examples."""

    def __init__(self, size: int, contiguous: bool = False):
        self.size = size
        self.contiguous = contiguous

    def __len__(self) -> int:
        return self.size

    def rows(self, indices: np.ndarray) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize(("size", "batch"), [(570, 32), (64, 32), (65, 32), (5, 32), (100, 1)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_take_every_example_that_often_and_no_fewer_would(
    size: int, batch: int, epochs: int, contiguous: bool
) -> None:
    source = Examples(size, contiguous)
    steps = steps_in(source, epochs=epochs, batch=batch)

    def fewest(steps: int) -> int:
        taken = [train_indices(source, step, seed=0, batch=batch) for step in range(steps)]
        indices = np.concatenate([np.zeros(0, int), *taken])
        return int(np.bincount(indices[indices < size], minlength=size).min())

    assert fewest(steps) >= epochs > fewest(steps - 1)


def test_part_of_an_epoch_is_exact() -> None:
    assert steps_in(Examples(1000), epochs=0.1, batch=10) == 10  # in floats 10.000000000000002
    assert steps_in(Examples(1000), epochs=2.5, batch=10) == 250


def test_sizes_are_described_in_words() -> None:
    text = describe_sizes(Examples(570), Examples(30), 32)
    assert text == "train 570, eval 30 examples, 17.8 steps an epoch"
    assert describe_sizes(Examples(32), Examples(1), 32).endswith(", 1 step an epoch")
    assert describe_sizes(Examples(5), Examples(1), 32).endswith(", 0.16 steps an epoch")
    assert describe_sizes(Examples(570, True), Examples(1), 32).endswith(", 18 steps an epoch")
    assert describe_sizes(Examples(128_000), Examples(1), 32).endswith(", 4,000 steps an epoch")


@pytest.mark.parametrize("epochs", [0, -1.0, math.inf, math.nan])
def test_number_that_is_not_above_zero_is_refused(epochs: float) -> None:
    with pytest.raises(Refused, match=r"--epochs .*: it must be above 0"):
        with_epochs(small("digits_convnet"), epochs)


def test_schedule_and_run_follow_the_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = with_epochs(small("diabetes_mlp"), 0.2)
    assert experiment.steps == math.ceil(0.2 * 353 / 16) == 5
    summary = fit(experiment, tmp_path, Screen())
    assert summary["step"] == 5
    assert "train 353, eval 89 examples, 22.1 steps an epoch" in capsys.readouterr().out


def test_epochs_and_steps_together_are_refused() -> None:
    for steps in (["--steps", "3"], ["--steps=3"]):
        with pytest.raises(Refused, match="--epochs and --steps both"):
            run(["train", "digits_convnet", "--epochs", "2", *steps])
