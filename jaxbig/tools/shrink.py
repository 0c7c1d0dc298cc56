"""A small sibling of an experiment, placed by the same rules, and a batch of random numbers for it: what `check` runs
in its stead, with no data."""

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

PARAMETERS, LENGTH, DEPTH = 2**25, 32, 3
"""What a sibling has at most of each, or the least above it that divides over its mesh."""


def small_program(experiment: Experiment, devices: Sequence[Any], rows: int) -> Program:
    """The program of the experiment with few rows, short ones, and few layers; where it has many parameters still, with
    its widths halved until it has not, or until they would no longer divide over the mesh."""
    whole = make_program(
        experiment, devices
    )  # what cannot be is refused with the numbers that were asked for
    program = make_program(fewer(experiment, whole.mesh.shape, rows), devices)
    while sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)) > PARAMETERS:
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
    """The experiment with what a device does less of, but not otherwise: rows, their length, layers."""
    model, data = experiment.model, experiment.data
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
    """The least multiple of `unit` that is `enough`, or the size itself if that is less."""
    return min(size, -(-enough // unit) * unit)


def replaced(value: Any, fields: dict[str, Any]) -> Any:
    """A dataclass with those of the fields that it has replaced."""
    names = {field.name for field in dataclasses.fields(value)}
    return dataclasses.replace(
        value, **{name: new for name, new in fields.items() if name in names}
    )


def random_batch(experiment: Experiment, seed: int = 0) -> Rows:
    """A batch as the data's spec has it, of random numbers: tokens of the vocabulary, classes, lengths of a half."""
    draw, spec = np.random.default_rng(seed), experiment.data.spec()
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
