"""Data sheets of accelerators (FLOP/s, memory, bandwidth) and of their topologies, by name.

FLOP/s are dense bf16. Interconnect bandwidth is what one chip sends and receives together, so one
direction has half of it.
"""

import dataclasses
import math
import os
import re

from jaxbig.errors import Refused

GiB = 2**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/{}"
NVIDIA = "NVIDIA {} Tensor Core GPU datasheet, SXM"
RACK = "NVIDIA {} NVL72 datasheet, a 72nd of the rack"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What bounds a step; `source` says where the numbers are from.

    All are of one device of JAX's: a whole chip, but half a v7x, which is two devices.
    """

    peak_flops: float
    """bf16 FLOP/s."""
    memory_bytes: int
    """HBM. For a TPU: what a program may use, as libtpu 0.0.42 reports if it is too large. For a
    GPU: all that CUDA reports, of which JAX takes a part (`available_bytes`)."""
    memory_bandwidth: float
    """HBM bytes/s."""
    interconnect_bandwidth: float
    """Bytes/s over all links of a chip within a slice (ICI) or server (NVLink, Infinity Fabric),
    both directions."""
    network_bandwidth: float
    """Bytes/s of a chip between slices or servers, one direction."""
    source: str
    dimensions: int = 0
    """Of a TPU's topology; 0: a GPU, which has none."""
    clock: float = 0.0
    """A TPU's cycles/s: FLOP/s over the FLOPs that its matrix units do in a cycle."""
    devices: int = 1
    """JAX's devices of one chip."""
    server: int = 8
    """GPUs that NVLink or Infinity Fabric joins."""

    @property
    def available_bytes(self) -> int:
        """What a program may use: the `bytes_limit` that the devices of a run report."""
        return self.memory_bytes if self.dimensions else int(self.memory_bytes * gpu_fraction())


CHIPS = {
    "v4": Chip(275e12, int(30.75 * GiB), 1200e9, 600e9, 3.1e9, GOOGLE.format("v4"), 3, 1.05e9),
    "v5e": Chip(197e12, int(15.75 * GiB), 819e9, 400e9, 3.1e9, GOOGLE.format("v5e"), 2, 1.5e9),
    "v5p": Chip(459e12, int(95.74 * GiB), 2765e9, 1200e9, 6.2e9, GOOGLE.format("v5p"), 3, 1.75e9),
    "v6e": Chip(918e12, int(31.25 * GiB), 1638e9, 800e9, 12.5e9, GOOGLE.format("v6e"), 2, 1.75e9),
    "v7x": Chip(
        1153.5e12, int(94.75 * GiB), 3690e9, 600e9, 6.2e9, GOOGLE.format("tpu7x"), 3, 2.2e9, 2
    ),
    "a100": Chip(312e12, int(79.18 * GiB), 2039e9, 600e9, 25e9, NVIDIA.format("A100 80GB")),
    "h100": Chip(989e12, int(79.18 * GiB), 3350e9, 900e9, 50e9, NVIDIA.format("H100")),
    "h200": Chip(989e12, int(139.80 * GiB), 4800e9, 900e9, 50e9, NVIDIA.format("H200")),
    "b200": Chip(2250e12, int(180e9), 8000e9, 1800e9, 50e9, "NVIDIA DGX B200 datasheet, an eighth"),
    "gb200": Chip(2500e12, int(186e9), 8000e9, 1800e9, 50e9, RACK.format("GB200"), server=72),
    "gb300": Chip(2500e12, int(279e9), 8000e9, 1800e9, 100e9, RACK.format("GB300"), server=72),
    "mi355x": Chip(2516e12, int(288e9), 8000e9, 1075e9, 50e9, "AMD Instinct MI355X GPU datasheet"),
}
# JAX's names for them, as patterns
KINDS = {"v4": "TPU v4", "v5e": "TPU v5 ?(lite|e)", "v5p": "TPU v5p?$", "v6e": "TPU v6 ?(lite|e)"}
KINDS |= {"v7x": "TPU ?v?7x?$", "a100": "A100", "h100": "H100", "h200": "H200"}
KINDS |= {"b200": r"\bB200", "gb200": "GB200", "gb300": "GB300", "mi355x": "MI355X"}
# Between hosts: a v5p chip 50 Gbit/s, v5e 6.4 and v6e 25.6 Tbit/s a pod of 256 (same pages), v4
# taken as v5e; a GPU its own 200 (A100) or 400 Gbit/s adapter, as in NVIDIA's DGX A100, H100 and
# H200 datasheets. Compared again with Google's pages: FLOP/s and HBM of all TPUs, what v5e and v5p
# send between hosts. Not found there: the v4's interconnect and the v6e's 25.6 Tbit/s. NVIDIA's
# sheets were not at hand. Memory of GPUs: as CUDA reports it on an H100 and an H200 (driver 580;
# jax 0.11.2 gave 0.75 of it as `bytes_limit`), the A100 taken as the H100; that of the newer ones
# is the data sheet's, in 10^9 bytes, which is no more than a driver reports. NVIDIA's sheets of
# racks give sparse FLOP/s: these are half. The network of an MI355X is taken as 400 Gbit/s, one
# adapter a GPU, as in AMD's reference servers.
SERVER = Chip.server
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def gpu_fraction() -> float:
    """The fraction of a GPU's memory that JAX takes: from the environment, else XLA's 0.75."""
    for name in FRACTIONS:
        if text := os.environ.get(name):
            if not re.fullmatch(r"\d*\.?\d+", text) or float(text) == 0:
                raise Refused(
                    f"{name}={text!r}: it must be the fraction of a GPU's memory to use, as in 0.9."
                )
            return float(text)
    return 0.75


def fraction_note() -> str:
    """A note for messages about a GPU's memory."""
    return f"JAX takes {gpu_fraction():g} of a GPU's memory: {FRACTIONS[0]}=0.9 makes it more"


def peak_of(device_kind: str) -> float | None:
    """bf16 FLOP/s by JAX's name of a device; None for one not in the table, such as a CPU."""
    return next(
        (CHIPS[name].peak_flops for name, kind in KINDS.items() if re.search(kind, device_kind)),
        None,
    )


@dataclasses.dataclass(frozen=True)
class Topology:
    """`v5p:4x4x8` is 128 chips of a TPU slice, `h100:64` that many GPUs in servers of eight."""

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        return self.chip.dimensions > 0

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices * self.chip.devices

    @property
    def island(self) -> int:
        """Number of chips connected by the fast interconnect."""
        if not self.is_tpu:
            return self.chip.server
        return math.prod(self.shape) * self.chip.devices

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Of each side, whether its ends are linked, which makes the slice a torus.

        v4, v5p and v7x slices are made of cubes of 4 x 4 x 4 chips and are tori where all sides are
        multiples of 4; a v5e or v6e pod is one of 16 x 16, along whole sides of which the ends are.
        """
        if self.chip.dimensions == 3:
            return (all(side % 4 == 0 for side in self.shape),) * 3
        return (*(side == 16 for side in self.shape), False)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology of that name.

    Raises:
      Refused: there is none; the message gives the chips.
    """
    kind, _, size = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", size):
        raise Refused(
            f"--topology {name!r}: write a chip and how many, as in v5e:4x4, v5p:4x4x8 or h100:64; "
            f"the chips are {', '.join(CHIPS)}."
        )
    shape = tuple(map(int, size.split("x")))
    sides = CHIPS[kind].dimensions or 1
    if len(shape) != sides or 0 in shape:
        example = "64"
        noun = "side"
        if sides > 1:
            example = "x".join(["4"] * sides)
            noun = "sides"
        raise Refused(f"--topology {name!r}: a {kind} has {sides} {noun}, as in {kind}:{example}.")
    if slices < 1 or (slices > 1 and sides == 1):
        raise Refused(f"--slices {slices}: it must be 1 or more, and more than 1 for TPUs alone.")
    return Topology(name, kind, shape, slices)
