"""Epochs and steps: how many steps pass over the training examples once, or a number of times."""

import dataclasses
import math
from fractions import Fraction

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Source
from jaxbig.data.pipeline.sampler import is_contiguous
from jaxbig.errors import Refused
from jaxbig.train.resume import prepare


def with_epochs(experiment: Experiment, epochs: float) -> Experiment:
    """The experiment with the steps of that many epochs; prepares its data to count the examples.

    Raises:
      Refused: the number is not above 0.
    """
    if not 0 < epochs < math.inf:
        raise Refused(f"--epochs {epochs}: it must be above 0.")
    prepare(experiment)
    data = experiment.data
    return dataclasses.replace(
        experiment, steps=steps_in(data.source("train"), epochs=epochs, batch=data.batch)
    )


def steps_in(source: Source, *, epochs: float, batch: int) -> int:
    """The fewest steps that take every example `epochs` times, as the sampler orders them.

    An epoch of a contiguous source ends with a step of its own (sampler.py); of others, a batch may
    have the last examples of one epoch and the first of the next.
    """
    exact = Fraction(str(epochs))
    if is_contiguous(source):
        return math.ceil(exact * math.ceil(len(source) / batch))
    return math.ceil(exact * len(source) / batch)


def describe_sizes(train: Source, evaluation: Source, batch: int) -> str:
    """The sizes of both splits and of an epoch, for the screen."""
    steps = steps_in(train, epochs=1, batch=batch) if is_contiguous(train) else len(train) / batch
    number = f"{steps:,.1f}".removesuffix(".0") if steps >= 1 else f"{steps:.2g}"
    return (
        f"train {len(train):,}, eval {len(evaluation):,} examples, "
        f"{number} step{'' if steps == 1 else 's'} an epoch"
    )
