"""Whether a run fits the devices that are here: said before its first step, or in words when a device runs out."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jaxbig.cost.hardware import GiB, fraction_note
from jaxbig.cost.memory import available_bytes, bytes_per_device, peak_bytes
from jaxbig.cost.remedies import remedies
from jaxbig.distributed.placement import count_slices
from jaxbig.errors import Failed, Refused
from jaxbig.program.program import Program


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
