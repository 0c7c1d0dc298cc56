"""Checks that a run fits in the memory of its devices, and explains an out-of-memory error."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jaxbig.cost.hardware import GiB, fraction_note
from jaxbig.cost.memory import available_bytes, bytes_per_device, peak_bytes
from jaxbig.cost.remedies import remat_options, remedies
from jaxbig.distributed.placement import count_slices
from jaxbig.errors import Failed, Refused
from jaxbig.program.program import Program


def check_memory(program: Program, compiled: Any = None) -> None:
    """Raises `Refused` if the state or the compiled step exceeds the memory of a device here."""
    have = available_bytes()
    need = peak_bytes(compiled) if compiled else bytes_per_device(program)["total"]
    if have is not None and need > have:
        raise Refused(lacking(program, compiled))


@contextlib.contextmanager
def enough_memory(program: Program, compiled: Any = None) -> Iterator[None]:
    """Context manager: raises `Failed` with settings to try if a device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Failed(lacking(program, compiled)) from error


def lacking(program: Program, compiled: Any = None) -> str:
    """The out-of-memory message: bytes needed, bytes available, settings to try."""
    state = bytes_per_device(program)["total"]
    have = available_bytes()
    devices = program.mesh.size
    need = ""
    if compiled is not None:
        need = f"a step needs {peak_bytes(compiled) / GiB:.2f} GiB, and of that "
    first = jax.devices()[0]
    note = {"gpu": f" ({fraction_note()})", "cpu": " free"}.get(first.platform, "")
    here = f"{devices} {first.device_kind} devices"
    if have:
        here += f" with {have / GiB:.2f} GiB{note}"
    settings = suggestions(program, prefer_sharding=bool(have) and state > (have or 0))
    return (
        f"out of memory: on each of {here} {need}the state and a batch need {state / GiB:.2f} GiB: "
        f"try {', or '.join([*settings, 'a smaller model'])}, or more devices; "
        f"`jaxbig plan` reports what each needs."
    )


def suggestions(program: Program, prefer_sharding: bool) -> list[str]:
    """Settings to try: the first of each kind that `jaxbig plan` would try.

    Args:
      program: what ran out of memory.
      prefer_sharding: suggest only a mesh that shards the state, if there is one.
    """
    slices = count_slices(list(program.mesh.devices.flat))
    tried = [" ".join(each) for each in remedies(program.experiment, program.mesh.size, slices)]
    sharded = [each for each in tried if each.startswith("--mesh")][:1]
    if prefer_sharding:
        return sharded
    kinds = [*remat_options(program.experiment.model)[-1:], "accumulate", "batch"]
    smaller = [next((each for each in tried if kind in each), "") for kind in kinds]
    return [*filter(None, smaller), *sharded]
