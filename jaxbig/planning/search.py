"""Plans an experiment with many meshes, remat policies and batches, and ranks them by speed."""

import dataclasses
import itertools
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import Topology
from jaxbig.cost.remedies import remat_options, remat_policies
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.distributed.mesh import format_mesh
from jaxbig.distributed.placement import AXES, between_slices
from jaxbig.errors import Failed, Refused
from jaxbig.planning.planner import Plan, check_possible, compile_in_child

TIMES = (1, 2, 4)
"""Multiples of the experiment's batch that are tried."""
TENSOR = (1, 2, 4, 8)
"""Sizes of the tensor axis that are tried; larger ones wait longer for each other's sums."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A trial: the size of each mesh axis, the index of a remat policy (0 saves least), the
    rows."""

    mesh: tuple[int, ...]
    remat: int
    batch: int

    def needs(self, other: "Setting") -> bool:
        """Whether it needs at least the memory of another: same mesh, no fewer rows, no more
        remat."""
        return self.mesh == other.mesh and self.batch >= other.batch and self.remat <= other.remat


def search(
    command: Sequence[str],
    experiment: Experiment,
    topology: Topology,
    timeout: float,
    limit: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Compiles up to `limit` plans, one after another, and ranks them.

    A setting that needs at least the memory of one that did not fit is skipped. Ctrl-C ends the
    search with the plans found so far.

    Returns:
      The plans with their `options` and `seconds_per_example`; the fastest that fits first.
    """
    if limit < 1:
        raise Refused(f"--search {limit}: it must be the number of settings to plan, 1 or more.")
    check_possible(experiment, topology, timeout)
    tried: list[tuple[Setting, Plan]] = []
    names, _ = remat_policies(experiment.model)
    remat = remat_options(experiment.model)
    for setting in settings(experiment, topology.devices, topology.slices):
        if len(tried) == limit:
            break
        if any(setting.needs(other) and not plan["fits"] for other, plan in tried):
            continue
        options = to_options(setting, remat)
        began = time.monotonic()
        try:
            plan = compile_in_child([*command, *options], topology, timeout)
        except (Refused, Failed) as error:  # an impossible setting; others may work
            say(f"{shlex.join(options)}: {error}")
            continue
        except KeyboardInterrupt:
            say("stopped: these plans were found before")
            break
        extra = {
            "options": options,
            "remat": names[setting.remat] if names else "",
            "batch": setting.batch,
        }
        tried.append((setting, plan | extra))
        said = f"{plan['step_seconds']:.4g} s a step" if plan["fits"] else "does not fit"
        what = f"{format_mesh(plan['mesh'])}; {' '.join(options[len(AXES) :])}"
        seconds = time.monotonic() - began
        say(f"[{len(tried)} of {limit}] {what}: {said} (compiled in {seconds:.0f} s)")
    if not tried:
        raise Failed(f"no setting could be planned for {topology.name}.")
    return ranked([plan for _, plan in tried])


def settings(experiment: Experiment, devices: int, slices: int = 1) -> list[Setting]:
    """All settings in the order of trial: the experiment's own, then those nearest to it."""
    own = experiment.mesh.sizes(devices)
    batch = experiment.data.batch
    names, remat = remat_policies(experiment.model)

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
    """Meshes to try: the experiment's own, then other splits over data, fsdp and tensor.

    Every TPU slice has the same split.
    """
    yield own
    fixed = dict(zip(AXES, own, strict=True))
    slices = between_slices(own, slices)[0]
    left = devices // (fixed["sequence"] * fixed["expert"] * fixed["stage"] * slices)
    for tensor in (size for size in TENSOR if not left % size):
        each = left // tensor
        for data in sorted({1, each, *(size for size in (2, 4, 8) if not each % size)}):
            mesh = tuple(
                (fixed | {"data": data * slices, "fsdp": each // data, "tensor": tensor}).values()
            )
            if mesh != own:
                yield mesh


def rows(mesh: tuple[int, ...]) -> int:
    """Number of devices that the rows of a batch are split over."""
    return math.prod(size for axis, size in zip(AXES, mesh, strict=True) if axis in ROWS)


def to_options(setting: Setting, policies: Sequence[str]) -> list[str]:
    """The options of a setting, given those of the remat policies."""
    sizes = [f"--mesh.{axis}={size}" for axis, size in zip(AXES, setting.mesh, strict=True)]
    return [*sizes, *policies[setting.remat : setting.remat + 1], f"--data.batch={setting.batch}"]


def ranked(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Plans that fit first, then by seconds per example, then by memory."""
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
