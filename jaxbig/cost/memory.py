"""Counts the memory that a state and a step need, and what a device or this machine has free."""

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
    """Bytes on one device of each part of the state and of a batch.

    `host`, if there is such: bytes in its host's memory.
    """

    def size(tree: Any, on_host: bool = False) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
            if (leaf.sharding.memory_kind == HOST) == on_host
        )

    state = program.abstract
    parts = {"parameters": state.params, "variables": state.variables, "optimizer": state.opt_state}
    sizes = {name: size(tree) for name, tree in {**parts, "batch": program.train_batch}.items()}
    host = size(state, on_host=True)
    return {**sizes, "total": sum(sizes.values()), **({"host": host} if host else {})}


def peak_bytes(compiled: Any) -> int:
    """Bytes of a compiled step on each device, with its arguments; donated state counts once."""
    used = compiled.memory_analysis()
    if used is None:  # this backend does not report it
        return 0
    given_back = used.output_size_in_bytes - used.alias_size_in_bytes
    return used.argument_size_in_bytes + used.temp_size_in_bytes + given_back


def available_bytes() -> int | None:
    """Bytes that a device here may use, or its part of a CPU's free memory; None if unknown.

    Free memory includes this process's own arrays, since a step's need counts them too.
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
    """Bytes that this process can still allocate; None if unknown.

    That is Linux's estimate without swapping, limited by what each control group of the process
    (Slurm's, a container's, a pod's) may still allocate.
    """
    limits = [
        _kilobytes(root / "proc/meminfo").get("MemAvailable"),
        *(_left(group) for group in _groups(root)),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _kilobytes(file: Path) -> dict[str, int]:
    """Lines `name: number kB` as bytes."""
    with contextlib.suppress(OSError):
        lines = re.findall(r"^(\w+): +(\d+) kB$", file.read_text(), re.MULTILINE)
        return {name: 1024 * int(number) for name, number in lines}
    return {}


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Memory control groups of this process, innermost first: folder, limit file, usage file."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
            limit = "limit_in_bytes" if kinds else "max"
            usage = "usage_in_bytes" if kinds else "current"
            folder = top / path.lstrip("/")
            for each in (folder, *folder.parents):
                if each.is_relative_to(top):
                    yield each, f"memory.{limit}", f"memory.{usage}"


def _left(group: tuple[Path, str, str]) -> int | None:
    """Bytes that a control group may still allocate; the kernel first evicts its cached files."""
    folder, limit, usage = group
    try:
        most = int((folder / limit).read_text())  # "max", for no limit, is no number
        used = int((folder / usage).read_text())
        statistics = (folder / "memory.stat").read_text()
        cached = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(most - used + (int(cached[1]) if cached else 0), 0)
