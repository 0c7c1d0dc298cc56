"""Options to try, in a fixed order, where an experiment needs too much memory."""

import math
from collections.abc import Iterator

import flax.linen as nn

from jaxbig.config.experiment import Experiment
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.distributed.placement import AXES
from jaxbig.errors import Refused
from jaxbig.models.base import model_class


def remedies(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[list[str]]:
    """Settings that save memory, the cheapest first.

    They are: recompute (remat), accumulate gradients, shard the parameters, and combinations; fewer
    rows where gradients cannot be accumulated.
    """
    model = experiment.model
    _, current = remat_policies(model)
    remat = [[], *([option] for option in remat_options(model)[current + 1 :])]
    yield from remat[1:]
    most = {"data": slices, "fsdp": devices // slices}
    sizes = experiment.mesh.sizes(devices)
    fsdp = tuple(most.get(axis, 1) for axis in AXES)
    rows = math.prod(size for axis, size in zip(AXES, sizes, strict=True) if axis in ROWS)
    yield from ([*remat[-1], *each] for each in fewer_rows(experiment, rows))
    if sizes != fsdp and experiment.data.batch % devices == 0:
        sharded = [f"--mesh.{axis}={size}" for axis, size in zip(AXES, fsdp, strict=True)]
        yield from (
            sharded + policy
            for policy in {tuple(each): each for each in (remat[0], remat[-1])}.values()
        )
        yield from ([*sharded, *remat[-1], *each] for each in fewer_rows(experiment, devices))


def remat_policies(model: nn.Module) -> tuple[list[str], int]:
    """The names of a model's remat policies, by the memory that they save, and its own one's index.

    Raises:
      Refused: its own is none of them.
    """
    field, policies = model_class(model).remat_choices(model)
    if not policies:
        return [], 0
    own = getattr(model, field)
    names = [str(policy) for policy in policies]
    if own not in policies:
        raise Refused(f"{field} {own!r}: it must be one of {', '.join(names)}.")
    return names, policies.index(own)


def remat_options(model: nn.Module) -> list[str]:
    """The option for each remat policy of a model, in the order of the memory that they save."""
    field, policies = model_class(model).remat_choices(model)
    flags = {True: f"--model.{field}", False: f"--model.no-{field}"}
    return [
        flags[policy] if isinstance(policy, bool) else f"--model.{field}={policy}"
        for policy in policies
    ]


def fewer_rows(experiment: Experiment, devices: int) -> Iterator[list[str]]:
    """Settings with ever fewer rows at once on each of `devices`, down to one."""
    batch = experiment.data.batch
    parts = experiment.accumulate
    while batch % (2 * devices * parts) == 0:
        if experiment.reproducible:  # which excludes accumulation
            batch //= 2
            yield [f"--data.batch={batch}"]
        else:
            parts *= 2
            yield [f"--accumulate={parts}"]
