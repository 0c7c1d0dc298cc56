"""Programs that several runs of one process share, so that each is traced and compiled once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.program.program import Program, make_program

# fields that a run reads and its program does not
OF_THE_RUN: dict[str, Any] = {
    "log_every": 1,
    "evaluate_every": 1,
    "evaluate_batches": None,
    "checkpoint_every": 1,
    "keep_last": 2,
    "keep_best": 1,
    "reader_threads": 1,
}


def share_programs() -> Callable[..., Program]:
    """`make_program` that returns a program again where only `OF_THE_RUN` differs."""
    made: dict[Any, Program] = {}

    def make(experiment: Experiment, devices: Sequence[Any] | None = None) -> Program:
        where = None if devices is None else tuple(devices)
        hasty = jax.config.read("jax_disable_most_optimizations")
        key = (dataclasses.replace(experiment, **OF_THE_RUN), where, hasty)
        if key not in made:
            made[key] = make_program(experiment, devices)
        return dataclasses.replace(made[key], experiment=experiment)

    return make
