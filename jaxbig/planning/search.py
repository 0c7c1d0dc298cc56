"""`jaxbig plan --search`: an experiment planned on other meshes, with other remat and batches, and which is fastest."""

import dataclasses
import itertools
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import Topology
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.distributed.mesh import format_mesh
from jaxbig.distributed.placement import AXES
from jaxbig.errors import Failed, Refused
from jaxbig.models.layers.basic import choose
from jaxbig.models.transformer import Remat
from jaxbig.planning.planner import Plan, check_possible, compile_in_child

TIMES = (1, 2, 4)
"""How many times the experiment's batch is tried."""
TENSOR = (1, 2, 4, 8)
"""In how many pieces a layer is tried: with more, its devices wait for each other's sums."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one trial is: the size of each mesh axis, a remat policy by its place among all (0: saves least), rows."""

    mesh: tuple[int, ...]
    remat: int
    batch: int

    def needs(self, other: "Setting") -> bool:
        """Whether it takes at least the memory of another: on the same mesh as many rows or more, as much saved."""
        return self.mesh == other.mesh and self.batch >= other.batch and self.remat <= other.remat


def search(
    command: Sequence[str],
    experiment: Experiment,
    topology: Topology,
    timeout: float,
    limit: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Up to `limit` plans, compiled one after another, the fastest that fits first; each with its `options` and
    `seconds_per_example`. What needs as much memory as a trial that did not fit is left out; Ctrl-C ends the search
    with what was found."""
    if limit < 1:
        raise Refused(f"--search {limit}: it must be how many settings to plan, 1 or more.")
    check_possible(experiment, topology, timeout)
    tried: list[tuple[Setting, Plan]] = []
    names = policies(experiment)
    for setting in settings(experiment, topology.devices, topology.slices):
        if len(tried) == limit:
            break
        if any(setting.needs(other) and not plan["fits"] for other, plan in tried):
            continue
        options, began = to_options(setting, names), time.monotonic()
        try:
            plan = compile_in_child([*command, *options], topology, timeout)
        except (
            Refused,
            Failed,
        ) as error:  # a setting that cannot be is an answer too, and others may be better
            say(f"{shlex.join(options)}: {error}")
            continue
        except KeyboardInterrupt:
            say("stopped: what follows was found before")
            break
        told = {
            "options": options,
            "remat": names[setting.remat] if names else "",
            "batch": setting.batch,
        }
        tried.append((setting, plan | told))
        said = f"{plan['step_seconds']:.4g} s a step" if plan["fits"] else "does not fit"
        what = f"{format_mesh(plan['mesh'])}; {' '.join(options[len(AXES) :])}"
        say(
            f"[{len(tried)} of {limit}] {what}: {said} (compiled in {time.monotonic() - began:.0f} s)"
        )
    if not tried:
        raise Failed(f"no setting could be planned for {topology.name}.")
    return ranked([plan for _, plan in tried])


def policies(experiment: Experiment) -> tuple[str, ...]:
    """The remat policies that its model can have, in the order of what they save."""
    return get_args(Remat) if hasattr(experiment.model, "remat") else ()


def settings(experiment: Experiment, devices: int, slices: int = 1) -> list[Setting]:
    """All there are, in the order they are tried: the experiment's own first, then those that differ in one thing."""
    own, batch, names = experiment.mesh.sizes(devices), experiment.data.batch, policies(experiment)
    remat = names.index(choose("remat", experiment.model.remat, names)) if names else 0  # type: ignore[attr-defined]

    def changes(setting: Setting) -> int:
        return (setting.mesh != own) + (setting.remat != remat) + (setting.batch != batch)

    found = [
        Setting(mesh, policy, batch * times)
        for mesh, policy, times in itertools.product(
            meshes(own, devices, slices), range(max(len(names), 1)), TIMES
        )
        if not batch * times % rows(mesh)
    ]
    return sorted(found, key=changes)


def meshes(own: tuple[int, ...], devices: int, slices: int = 1) -> Iterator[tuple[int, ...]]:
    """The experiment's own; then the devices over fsdp and data, alone or half and half, and tensor; the same of each
    on every TPU slice."""
    yield own
    fixed = dict(zip(AXES, own, strict=True))
    left = devices // (fixed["sequence"] * fixed["expert"] * slices)
    for tensor in (size for size in TENSOR if not left % size):
        each = left // tensor
        for data in sorted({1, each, *(size for size in (2, 4, 8) if not each % size)}):
            mesh = tuple(
                (fixed | {"data": data * slices, "fsdp": each // data, "tensor": tensor}).values()
            )
            if mesh != own:
                yield mesh


def rows(mesh: tuple[int, ...]) -> int:
    """How many devices split the rows of a batch."""
    return math.prod(size for axis, size in zip(AXES, mesh, strict=True) if axis in ROWS)


def to_options(setting: Setting, names: Sequence[str]) -> list[str]:
    sizes = [f"--mesh.{axis}={size}" for axis, size in zip(AXES, setting.mesh, strict=True)]
    return [
        *sizes,
        *([f"--model.remat={names[setting.remat]}"] if names else []),
        f"--data.batch={setting.batch}",
    ]


def ranked(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """What fits before what does not, then by seconds an example, then by memory."""
    timed = [
        plan
        | {
            "seconds_per_example": plan["step_seconds"] / plan["batch"]
            if plan["step_seconds"]
            else None
        }
        for plan in plans
    ]
    return sorted(
        timed,
        key=lambda plan: (
            not plan["fits"],
            plan["seconds_per_example"] or 0.0,
            plan["memory"]["peak_bytes"],
        ),
    )
