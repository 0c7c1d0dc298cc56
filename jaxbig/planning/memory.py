"""Whether a run fits the devices that are here: said before its first step, or in words when a device runs out."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbig.errors import Failed, Refused
from jaxbig.placement import count_slices
from jaxbig.planning.chips import GiB, fraction_note
from jaxbig.planning.plan import remedies
from jaxbig.show import bytes_per_device
from jaxbig.step import Program


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


def check_memory(program: Program, compiled: Any = None) -> None:
    """`Refused` if the state, or the compiled step, is more than a device here has."""
    have, need = (
        available_bytes(),
        peak_bytes(compiled) if compiled else bytes_per_device(program)["total"],
    )
    if have is not None and need > have:
        raise Refused(lacking(program, compiled))


@contextlib.contextmanager
def enough_memory(program: Program, compiled: Any = None) -> Iterator[None]:
    """`Failed`, in words, where a device runs out of memory inside."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Failed(lacking(program, compiled)) from error


def lacking(program: Program, compiled: Any = None) -> str:
    """What is needed, what there is, and what may mend it: the first of each kind that `jaxbig plan` would try."""
    state, have, devices = bytes_per_device(program)["total"], available_bytes(), program.mesh.size
    need = (
        ""
        if compiled is None
        else f"a step needs {peak_bytes(compiled) / GiB:.2f} GiB, and of that "
    )
    first = jax.devices()[0]
    part = {"gpu": f" ({fraction_note()})", "cpu": " free"}.get(first.platform, "")
    here = f"{devices} {first.device_kind} devices" + (
        f" with {have / GiB:.2f} GiB{part}" if have else ""
    )
    slices = count_slices(list(program.mesh.devices.flat))
    tried = [" ".join(each) for each in remedies(program.experiment, devices, slices)]
    spread = [each for each in tried if each.startswith("--mesh")]
    smaller = [
        next((each for each in tried if kind in each), "")
        for kind in ("remat=full", "accumulate", "batch")
    ]
    ways = spread[:1] if have and state > have else [*filter(None, smaller), *spread[:1]]
    return (
        f"out of memory: on each of {here} {need}the state and a batch need {state / GiB:.2f} GiB: try "
        f"{''.join(f'{way}, or ' for way in ways)}a smaller model, or more devices; `jaxbig plan` says what each needs."
    )
