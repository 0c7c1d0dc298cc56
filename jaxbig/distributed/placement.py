"""Orders the devices of a mesh so that axes that send most lie on the fastest links.

A TPU slice is a torus and a host's GPUs are connected by NVLink; the network between slices and
between hosts is slow.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from jaxbig.errors import Refused

AXES = ("data", "fsdp", "tensor", "sequence", "expert", "stage")
BETWEEN_HOSTS = ("stage", "data", "fsdp", "expert", "sequence", "tensor")
"""The axes in the order in which they cross hosts: those that send least first."""
Sizes = tuple[int, ...]


def arrange_devices(sizes: Sizes, devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array [data, fsdp, tensor, sequence, expert, stage].

    Raises:
      Refused: TPUs cannot be arranged like this.
    """
    first = devices[0]
    if first.platform == "tpu":
        return _over_slices(sizes, devices)
    if first.platform == "gpu":
        # as jax.make_mesh orders them: XLA numbers GPUs by how they are connected
        devices = sorted(devices, key=lambda device: device.id)
    hosts: dict[int, list[Any]] = {}
    for device in devices:
        hosts.setdefault(_host(device), []).append(device)
    return arrange_over_hosts(sizes, [hosts[host] for host in sorted(hosts)])


def arrange_over_hosts(sizes: Sizes, hosts: Sequence[Sequence[Any]]) -> np.ndarray:
    """All hosts' devices as one array [*sizes]; tensor and others inside a host where possible.

    If hosts have different numbers of devices, the devices keep their order.
    """
    devices = np.array([device for host in hosts for device in host], dtype=object)
    if len({len(host) for host in hosts}) > 1:
        return devices.reshape(sizes)
    between: dict[str, int] = {}
    left = len(hosts)
    for axis in BETWEEN_HOSTS:
        between[axis] = math.gcd(sizes[AXES.index(axis)], left)
        left //= between[axis]
    outer = [between[axis] for axis in AXES]
    inner = [size // count for size, count in zip(sizes, outer, strict=True)]
    return _nested(devices, outer, inner)


def count_slices(devices: Sequence[Any]) -> int:
    """The number of TPU slices of these devices; 1 for GPUs and CPUs on any number of hosts."""
    return len(_slices(devices)) if devices[0].platform == "tpu" else 1


def check_slices(sizes: Sizes, slices: int) -> None:
    """Raises `Refused` unless `stage` and `data` divide over the slices.

    The network between slices is slow, and these send least.
    """
    if sizes[0] % between_slices(sizes, slices)[0]:
        rows = sizes[0] * sizes[1]
        fitting = (slices, math.prod(sizes) // slices, *[1] * (len(AXES) - 2))
        if rows % slices == 0:
            fitting = (slices, rows // slices, *sizes[2:])
        options = " ".join(
            f"--mesh.{axis}={size}" for axis, size in zip(AXES, fitting, strict=True)
        )
        raise Refused(
            f"mesh data={sizes[0]} does not divide over {slices} slices: make it, or stage, a "
            f"multiple of {slices}, as {options}."
        )


def between_slices(sizes: Sizes, slices: int) -> Sizes:
    """How many parts of each axis are on different slices: of `stage` as many as can be, and of
    `data` what is left."""
    stages = math.gcd(sizes[AXES.index("stage")], slices)
    parts = {"data": slices // stages, "stage": stages}
    return tuple(parts.get(axis, 1) for axis in AXES)


def _nested(devices: np.ndarray, outer: Sequence[int], inner: Sequence[int]) -> np.ndarray:
    """Devices in the order [*outer, *inner], as an array with one axis for each pair of those."""
    paired = [axis + offset for axis in range(len(outer)) for offset in (0, len(outer))]
    sizes = [a * b for a, b in zip(outer, inner, strict=True)]
    return devices.reshape(*outer, *inner).transpose(paired).reshape(sizes)


def _host(device: Any) -> int:
    """XLA's number of the slice (GPUs joined by NVLink across hosts are one); else the process."""
    index = getattr(device, "slice_index", None)
    return device.process_index if index is None else index


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """TPUs by slice; the topology of a single slice has no number."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [slices[number] for number in sorted(slices)]


def _over_slices(sizes: Sizes, devices: Sequence[Any]) -> np.ndarray:
    """`stage` and `data` between slices, everything else inside one."""
    slices = _slices(devices)
    check_slices(sizes, len(slices))
    if len({len(chips) for chips in slices}) > 1:
        raise Refused(
            f"the slices have {', '.join(str(len(chips)) for chips in slices)} chips: they must "
            f"have the same number."
        )
    outer = between_slices(sizes, len(slices))
    inside = tuple(size // count for size, count in zip(sizes, outer, strict=True))
    return _nested(np.stack([_over_torus(inside, chips) for chips in slices]), outer, inside)


def _over_torus(sizes: Sizes, chips: Sequence[Any]) -> np.ndarray:
    """Places axes along full sides of a slice's torus where they fit; else splits a side."""
    try:
        return mesh_utils.create_device_mesh(sizes, chips, allow_split_physical_axes=True)
    except (TypeError, ValueError):
        # jax 0.10 drops prime factors of some sides when it splits them, such as 20 or 28
        in_order = sorted(chips, key=lambda chip: tuple(chip.coords))
        return np.array(in_order, dtype=object).reshape(sizes)
    except AssertionError as error:
        raise Refused(
            f"these {len(chips)} {chips[0].device_kind} chips cannot form a mesh: {error}"
        ) from error
