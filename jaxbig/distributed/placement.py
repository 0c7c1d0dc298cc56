"""Which device is at which place of a mesh: axes that send much are laid where the network is fast.

A slice of TPUs is a torus, a host's GPUs are joined by NVLink; between slices and between hosts the network is slow.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from jaxbig.errors import Refused

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
BETWEEN_HOSTS = ("data", "fsdp", "expert", "sequence", "tensor")
"""Which axes cross hosts first: those that send least."""
Sizes = tuple[int, ...]


def arrange_devices(sizes: Sizes, devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array [data, fsdp, tensor, sequence, expert]; `Refused` if TPUs cannot be laid out so."""
    first = devices[0]
    if first.platform == "tpu":
        return _over_slices(sizes, devices)
    hosts: dict[int, list[Any]] = {}
    # as jax.make_mesh orders them: XLA numbers GPUs by how they are connected
    for device in (
        sorted(devices, key=lambda device: device.id) if first.platform == "gpu" else devices
    ):
        hosts.setdefault(_host(device), []).append(device)
    return arrange_over_hosts(sizes, [hosts[host] for host in sorted(hosts)])


def arrange_over_hosts(sizes: Sizes, hosts: Sequence[Sequence[Any]]) -> np.ndarray:
    """Each host's devices as one array [*sizes]: as much of the axes inside a host as they allow, tensor before all.

    Where hosts have different numbers of devices: all in their order.
    """
    devices = np.array([device for host in hosts for device in host], dtype=object)
    if len({len(host) for host in hosts}) > 1:
        return devices.reshape(sizes)
    between, left = {}, len(hosts)
    for axis in BETWEEN_HOSTS:
        between[axis] = math.gcd(sizes[AXES.index(axis)], left)
        left //= between[axis]
    outer = [between[axis] for axis in AXES]
    inner = [size // count for size, count in zip(sizes, outer, strict=True)]
    paired = [axis + offset for axis in range(len(AXES)) for offset in (0, len(AXES))]
    return devices.reshape(*outer, *inner).transpose(paired).reshape(sizes)


def count_slices(devices: Sequence[Any]) -> int:
    """How many TPU slices these devices are; GPUs and CPUs count as one, on as many hosts as they may be."""
    return len(_slices(devices)) if devices[0].platform == "tpu" else 1


def check_slices(sizes: Sizes, slices: int) -> None:
    """`Refused` unless every slice has the same number of copies of the model: between slices the network is slow,
    and copies send least."""
    if sizes[0] % slices:
        rows = sizes[0] * sizes[1]
        fitting = (slices, math.prod(sizes) // slices, 1, 1, 1)
        if rows % slices == 0:
            fitting = (slices, rows // slices, *sizes[2:])
        options = " ".join(
            f"--mesh.{axis}={size}" for axis, size in zip(AXES, fitting, strict=True)
        )
        raise Refused(
            f"mesh data={sizes[0]} does not divide over {slices} slices: make it a multiple of {slices}, as {options}."
        )


def _host(device: Any) -> int:
    """XLA numbers hosts as it numbers slices, and GPUs that NVLink joins across hosts as one; else the process."""
    index = getattr(device, "slice_index", None)
    return device.process_index if index is None else index


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """TPUs by their slice; the topology of one slice alone has no number."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [slices[number] for number in sorted(slices)]


def _over_slices(sizes: Sizes, devices: Sequence[Any]) -> np.ndarray:
    """`data` between slices, everything else inside one."""
    slices = _slices(devices)
    check_slices(sizes, len(slices))
    if len({len(chips) for chips in slices}) > 1:
        raise Refused(
            f"the slices have {', '.join(str(len(chips)) for chips in slices)} chips: they must be alike."
        )
    inside = (sizes[0] // len(slices), *sizes[1:])
    return np.concatenate([_over_torus(inside, chips) for chips in slices])


def _over_torus(sizes: Sizes, chips: Sequence[Any]) -> np.ndarray:
    """Axes over whole sides of a slice's torus where they fit; else a side is split over several axes."""
    try:
        return mesh_utils.create_device_mesh(sizes, chips, allow_split_physical_axes=True)
    except (
        TypeError,
        ValueError,
    ):  # jax 0.10 drops prime factors of some sides when it splits them, such as 20 or 28
        return np.array(sorted(chips, key=lambda chip: tuple(chip.coords)), dtype=object).reshape(
            sizes
        )
    except AssertionError as error:
        raise Refused(
            f"these {len(chips)} {chips[0].device_kind} chips cannot form a mesh: {error}"
        ) from error
