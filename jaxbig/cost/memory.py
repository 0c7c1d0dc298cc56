"""What an experiment is, before any data or step: parameters, where each is put, and bytes a device."""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbig.arrays.tree import HOST
from jaxbig.program.program import Program


def bytes_per_device(program: Program) -> dict[str, int]:
    """Bytes that one device holds of the state's parts, and of one batch; `host`: what its host holds for it, where
    that is something."""

    def size(tree: Any, on_host: bool = False) -> int:
        held = [
            leaf for leaf in jax.tree.leaves(tree) if (leaf.sharding.memory_kind == HOST) == on_host
        ]
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in held
        )

    state = program.abstract
    parts = {"parameters": state.params, "variables": state.variables, "optimizer": state.opt_state}
    sizes = {name: size(tree) for name, tree in {**parts, "batch": program.batch}.items()}
    host = size(state, on_host=True)
    return {**sizes, "total": sum(sizes.values()), **({"host": host} if host else {})}


def peak_bytes(compiled: Any) -> int:
    """Bytes that a compiled step needs on each device, its arguments with it; the donated state is counted once."""
    used = compiled.memory_analysis()
    if used is None:  # a backend that does not say
        return 0
    given_back = used.output_size_in_bytes - used.alias_size_in_bytes
    return used.argument_size_in_bytes + used.temp_size_in_bytes + given_back


def available_bytes() -> int | None:
    """Of each device here: what its allocator may take, or its part of a CPU's free memory; None if that is not known.

    Free is what others have left, and what this process's own arrays take already, which a step's need counts too.
    """
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit
    if device.platform != "cpu" or (free := free_bytes()) is None:
        return None
    own = sum(
        shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards
    )
    return (free + own) // jax.local_device_count()


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this machine can still give to this process: what Linux estimates without swapping, and no more than
    any of its control groups may still take (Slurm's, a container's, a pod's); None if that is not known."""
    found = [
        _kilobytes(root / "proc/meminfo").get("MemAvailable"),
        *(_left(group) for group in _groups(root)),
    ]
    return min((each for each in found if each is not None), default=None)


def _kilobytes(file: Path) -> dict[str, int]:
    """Lines `name: number kB` as bytes."""
    with contextlib.suppress(OSError):
        lines = re.findall(r"^(\w+): +(\d+) kB$", file.read_text(), re.MULTILINE)
        return {name: 1024 * int(number) for name, number in lines}
    return {}


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """The memory control groups of this process, innermost first: folder, and its files of limit and usage."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
            limit, usage = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
            folder = top / path.lstrip("/")
            for each in (folder, *folder.parents):
                if each.is_relative_to(top):
                    yield each, f"memory.{limit}", f"memory.{usage}"


def _left(group: tuple[Path, str, str]) -> int | None:
    """Bytes that a control group may still take; files that it has only read are given back first."""
    folder, limit, usage = group
    try:
        most, used = (
            int((folder / limit).read_text()),
            int((folder / usage).read_text()),
        )  # "max" is no number
        given_back = re.search(
            r"^(?:total_)?inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return None
    return max(most - used + (int(given_back[1]) if given_back else 0), 0)
