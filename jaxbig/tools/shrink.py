"""A shrunken copy of an experiment, sharded by the same rules, and a random batch for it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.errors import Refused
from jaxbig.program.program import Program, make_program

PARAMETERS = 2**25
"""The most parameters of a shrunken copy, if its widths can be halved that often."""
LENGTH = 32
"""The length of its rows, or the least multiple of the mesh's `sequence` above that."""
DEPTH = 3
"""The most layers of a shrunken copy."""


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
    while sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)) > most_parameters:
        model = program.experiment.model
        widths = {
            name: value for name in ("width", "mlp_width") if (value := getattr(model, name, None))
        }
        if not widths or any(width % 2 for width in widths.values()):
            break
        halved = replaced(model, {name: width // 2 for name, width in widths.items()})
        try:
            program = make_program(dataclasses.replace(program.experiment, model=halved), devices)
        except Refused:
            break
    return program


def fewer(experiment: Experiment, mesh: Any, rows: int) -> Experiment:
    """The experiment with fewer rows, shorter rows and fewer layers."""
    model = experiment.model
    data = experiment.data
    unit = math.lcm(
        math.prod(mesh[axis] for axis in ROWS) * experiment.accumulate, experiment.reproducible or 1
    )
    stages = {"stages": (1,) * len(getattr(model, "stages", ()))}
    layers = {"depth": min(getattr(model, "depth", 1), DEPTH), **stages}
    sizes = {"batch": least(data.batch, unit, rows)}
    sizes |= {"length": least(getattr(data, "length", 1), mesh["sequence"], LENGTH)}
    return dataclasses.replace(
        experiment, model=replaced(model, layers), data=replaced(data, sizes)
    )


def least(size: int, unit: int, enough: int) -> int:
    """The least multiple of `unit` that is at least `enough`, or the size itself if it is less."""
    return min(size, -(-enough // unit) * unit)


def replaced(value: Any, fields: dict[str, Any]) -> Any:
    """The dataclass with these fields replaced; fields that it does not have are ignored."""
    names = {field.name for field in dataclasses.fields(value)}
    return dataclasses.replace(
        value, **{name: new for name, new in fields.items() if name in names}
    )


def random_batch(experiment: Experiment, seed: int = 0) -> Rows:
    """A random batch of the data's spec: tokens of the vocabulary, classes, rows half full."""
    draw = np.random.default_rng(seed)
    spec = experiment.data.spec()
    kinds = {
        "inputs": "vocab",
        "targets": "vocab" if hasattr(experiment.objective, "vocab") else "classes",
    }
    rows: Rows = {}
    for field, each in spec.items():
        if field in ("mask", "starts"):
            rows[field] = np.ones(each.shape, each.dtype)
        elif field == "lengths":
            rows[field] = np.full(each.shape, spec["inputs"].shape[1] // 2, each.dtype)
        elif field == "sizes":
            rows[field] = np.full(each.shape, spec["inputs"].shape[1], each.dtype)
        elif field == "segments":
            rows[field] = np.ones(each.shape, each.dtype)
        elif field == "positions":
            rows[field] = np.tile(np.arange(each.shape[1], dtype=each.dtype), (each.shape[0], 1))
        elif each.dtype == np.uint8:
            rows[field] = draw.integers(0, 256, each.shape, np.uint8)
        elif np.issubdtype(each.dtype, np.integer):
            rows[field] = draw.integers(
                0, getattr(experiment.data, kinds[field]), each.shape
            ).astype(each.dtype)
        else:
            rows[field] = draw.standard_normal(each.shape).astype(each.dtype)
    return rows
