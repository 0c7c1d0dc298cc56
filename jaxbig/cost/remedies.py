"""`jaxbig plan`: compiles an experiment for hardware that is not here, in a child process, and tries what would fit.

The child is `jaxbig plan` itself, told to compile: the compiler may crash or hang, and takes the process with it.
"""

import math
from collections.abc import Iterator
from typing import Any, get_args

from jaxbig.config.experiment import Experiment
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.distributed.placement import AXES
from jaxbig.models.transformer import Remat


def remedies(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[list[str]]:
    """Settings that save memory, the cheapest first: compute anew, take a batch in parts, store in pieces, and both;
    where a batch cannot be taken in parts, fewer rows."""
    model: Any = experiment.model
    remat: list[list[str]] = [[]]
    if hasattr(model, "remat"):
        policies = get_args(Remat)
        remat += [[f"--model.remat={name}"] for name in policies[policies.index(model.remat) + 1 :]]
    yield from remat[1:]
    most = {"data": slices, "fsdp": devices // slices}
    sizes, fsdp = experiment.mesh.sizes(devices), tuple(most.get(axis, 1) for axis in AXES)
    rows = math.prod(size for axis, size in zip(AXES, sizes, strict=True) if axis in ROWS)
    yield from ([*remat[-1], *each] for each in fewer_rows(experiment, rows))
    if sizes != fsdp and experiment.data.batch % devices == 0:
        sharded = [f"--mesh.{axis}={size}" for axis, size in zip(AXES, fsdp, strict=True)]
        yield from (
            sharded + policy
            for policy in {tuple(each): each for each in (remat[0], remat[-1])}.values()
        )
        yield from ([*sharded, *remat[-1], *each] for each in fewer_rows(experiment, devices))


def fewer_rows(experiment: Experiment, devices: int) -> Iterator[list[str]]:
    """Settings by which fewer rows are on a device at once, where so many share them, down to one."""
    batch, parts = experiment.data.batch, experiment.accumulate
    while batch % (2 * devices * parts) == 0:
        if experiment.reproducible:  # which does not go with parts
            batch //= 2
            yield [f"--data.batch={batch}"]
        else:
            parts *= 2
            yield [f"--accumulate={parts}"]
