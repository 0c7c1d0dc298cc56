"""A shrunken copy of an experiment, sharded by the same rules, and a random batch for it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.errors import Refused
from jaxbig.models.base import model_class
from jaxbig.program.program import Program, all_parameters, make_program

PARAMETERS = 2**25
"""The most parameters of a shrunken copy, if its widths can be halved that often."""
LENGTH = 32
"""The length of its rows, or the least multiple of the mesh's `sequence` above that."""
DEPTH = 3
"""The most layers of a shrunken copy, or the least multiple of the mesh's `stage` above that."""


def small_program(experiment: Experiment, devices: Sequence[Any], rows: int) -> Program:
    """The program of a copy with few and short rows, few layers, and at most `PARAMETERS`."""
    whole = make_program(experiment, devices)  # errors name the numbers that were asked for
    return narrow_program(fewer(experiment, whole.mesh.shape, rows), devices, PARAMETERS)


def narrow_program(
    experiment: Experiment, devices: Sequence[Any] | None, most_parameters: int
) -> Program:
    """The program with the model's widths halved until it has few enough parameters.

    It keeps more where a width is odd, or would no longer divide over the heads or the mesh.
    """
    program = make_program(experiment, devices)
    while sum(leaf.size for leaf in all_parameters(program).values()) > most_parameters:
        model = program.experiment.model
        narrower = model_class(model).narrower(model)
        if narrower is None or narrower == model:
            break
        try:
            program = make_program(dataclasses.replace(program.experiment, model=narrower), devices)
        except Refused:
            break
    return program


def fewer(experiment: Experiment, mesh: Any, rows: int) -> Experiment:
    """The experiment with fewer rows, shorter rows and fewer layers."""
    model = experiment.model
    parts = experiment.accumulate * (model_class(model).microbatch_count(model) or 1)
    unit = math.lcm(math.prod(mesh[axis] for axis in ROWS) * parts, experiment.reproducible or 1)
    batch = least(experiment.data.batch, unit, rows)
    data = dataclasses.replace(experiment.data, batch=batch)
    return dataclasses.replace(
        experiment,
        model=model_class(model).shallower(model, round_up(DEPTH, mesh["stage"])),
        data=data.shorter(round_up(LENGTH, mesh["sequence"])),
    )


def least(size: int, unit: int, enough: int) -> int:
    """The least multiple of `unit` that is at least `enough`, or the size itself if it is less."""
    return min(size, round_up(enough, unit))


def round_up(size: int, unit: int) -> int:
    """The least multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit


def random_batch(experiment: Experiment, seed: int = 0) -> Rows:
    """A random batch of the data's spec: tokens of the vocabulary, classes, rows half full, boxes
    near the middle."""
    draw = np.random.default_rng(seed)
    spec = experiment.data.spec()
    full = spec["inputs"].shape[1] // 2 if "lengths" in spec else None  # the length of each row
    kinds = {
        "inputs": "vocab",
        "rejected": "vocab",
        "other": "vocab",
        "targets": "vocab" if hasattr(experiment.objective, "vocab") else "classes",
    }
    rows: Rows = {}
    for field, each in spec.items():
        if field in ("mask", "starts", "rejected_mask", "present"):
            rows[field] = np.ones(each.shape, each.dtype)
        elif field == "lengths":
            rows[field] = np.full(each.shape, full, each.dtype)
        elif field == "types":
            places = np.arange(each.shape[1]) < (full or each.shape[1])
            rows[field] = np.broadcast_to(places, each.shape).astype(each.dtype)
        elif field == "other_lengths":
            rows[field] = np.full(each.shape, spec["other"].shape[1] // 2, each.dtype)
        elif field == "sizes":
            rows[field] = np.full(each.shape, spec["inputs"].shape[1], each.dtype)
        elif field == "segments":
            rows[field] = np.ones(each.shape, each.dtype)
        elif field == "crowd":
            rows[field] = np.zeros(each.shape, each.dtype)
        elif field == "boxes":
            rows[field] = draw.uniform(0.2, 0.6, each.shape).astype(each.dtype)
        elif field in ("positions", "offsets"):
            places = np.arange(each.shape[1], dtype=each.dtype)
            places = places.reshape(-1, *[1] * (len(each.shape) - 2))
            rows[field] = np.broadcast_to(places, each.shape).copy()
        elif each.dtype == np.uint8:
            rows[field] = draw.integers(0, 256, each.shape, np.uint8)
        elif np.issubdtype(each.dtype, np.integer):
            least = getattr(experiment.objective, "least_target", 0) if field == "targets" else 0
            count = getattr(experiment.data, kinds[field], 0)
            count = count or full or spec["inputs"].shape[1]  # places, where targets are no classes
            rows[field] = draw.integers(least, count, each.shape).astype(each.dtype)
        else:
            rows[field] = draw.standard_normal(each.shape).astype(each.dtype)
    return rows
