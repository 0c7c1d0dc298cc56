"""Finds the collectives of a compiled step (all-gather, all-reduce, ...), and what they send."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbig.cost.hardware import Topology
from jaxbig.planning.hlo import Instruction, Module

RAGGED = "ragged-all-to-all"
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", RAGGED, "collective-permute")
Groups = list[list[int]]
MESHED = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?([^)]*\)?)\)?)? ?\{([^}]*)\}"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation that runs `times` times a step.

    `bytes`: of the array on one device, before or after, whichever is larger (ragged: smaller).
    """

    kind: str
    groups: Groups
    bytes: int
    times: int

    def axes(self, mesh: dict[str, int]) -> tuple[str, ...]:
        """The mesh axes along which the members of a group differ."""
        sizes = tuple(mesh.values())
        indices = np.array(np.unravel_index(np.array(self.groups[0]), sizes))  # [axes, members]
        return tuple(axis for axis, index in zip(mesh, indices, strict=True) if len(set(index)) > 1)

    def renumbered(self, chips: Sequence[int]) -> "Collective":
        """The same with mesh positions replaced by chip numbers of the topology."""
        return dataclasses.replace(
            self, groups=[[chips[position] for position in group] for group in self.groups]
        )

    def seconds(self, topology: Topology) -> float:
        """The least time of a ring algorithm, for all runs of a step.

        A chip sends (n - 1) / n of the bytes to gather or scatter over n chips, and twice that to
        all-reduce. Over islands of chips (slices, servers) it first sends inside each island, then
        its share between them.
        """
        group = self.groups[0]
        chip = topology.chip
        far = len({member // topology.island for member in group})
        near = len(group) // far
        passes = 2 if self.kind == "all-reduce" else 1
        near_share = (near - 1) / near
        far_share = (far - 1) / far / near
        if self.kind == "collective-permute":
            near_share = 1.0
            far_share = 1.0
        inside = 0.0
        if near > 1 or far == 1:
            inside = near_share * self.bytes / (chip.interconnect_bandwidth / 2)
        between = 0.0
        if far > 1:
            between = far_share * self.bytes / chip.network_bandwidth
        return self.times * passes * (inside + between)


def find_collectives(module: Module, devices: int, island: int = 0) -> list[Collective]:
    """The collectives between devices; parts of one asynchronous collective count once.

    The compiler may write one collective into several fusions, to run it beside them; these share
    its channel. Elsewhere equal channels are different collectives: all of a shard_map have one.
    """
    found: dict[Any, Collective] = {}
    fused = module.fused()
    for name, times in module.times.items():
        known = {each.name: each for each in module.computations[name]}
        for each in module.computations[name]:
            collective = of_instruction(each, known, devices, island)
            if collective is None:
                continue
            channel = re.search(r"channel_id=(\d+)", each.attributes)
            key = (collective.kind, channel[1]) if channel and name in fused else (name, each.name)
            if key not in found or times > found[key].times:
                found[key] = dataclasses.replace(collective, times=times)
    return list(found.values())


def of_instruction(
    instruction: Instruction, known: dict[str, Instruction], devices: int, island: int = 0
) -> Collective | None:
    """The collective that an instruction runs or starts, once; None if it is none.

    A transfer between slices of `island` chips appears as a send between hosts, from each chip to
    the chip with the same index in the other slices.

    Args:
      instruction: of a computation.
      known: the instructions of that computation by name.
      devices: how many there are.
      island: chips of a slice.
    """
    kind = instruction.opcode.removesuffix("-start")
    attributes = instruction.attributes
    if kind == "send" and (
        between := re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
    ):
        size = known[instruction.operands[0]].bytes
        same_index = [list(range(chip, devices, island)) for chip in range(island)]
        return Collective(between[1].lower().replace("_", "-"), same_index, size, 1)
    if kind not in KINDS:
        return None
    groups = parse_groups(attributes, devices)
    given = sum(known[name].bytes for name in instruction.operands)
    both = instruction.opcode in ("all-gather-start", "collective-permute-start")
    result = instruction.bytes - (given if both else 0)
    if len(groups[0]) == 1:
        return None
    size = max(given, result)
    if kind == RAGGED:  # of its rows and the room that they get, one is for the worst case
        size = min(known[name].bytes for name in instruction.operands[:2])
    return Collective(kind, groups, size, 1)


def table(collectives: Sequence[Collective], mesh: dict[str, int]) -> list[dict[str, Any]]:
    """Count and bytes per step on each device, by kind and mesh axes; the largest first."""
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    size: collections.Counter[tuple[str, str]] = collections.Counter()
    for each in collectives:
        key = each.kind, " x ".join(each.axes(mesh))
        count[key] += each.times
        size[key] += each.times * each.bytes
    rows = [
        {"kind": kind, "axes": axes, "count": count[kind, axes], "bytes": n}
        for (kind, axes), n in size.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def parse_groups(attributes: str, devices: int) -> Groups:
    """The device groups; HLO writes them as a list, a transposed range, mesh axes, or pairs."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        each = [list(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)", pairs[0])]
        return [pair for pair in each if pair[0] != pair[1]] or [[0]]  # the others send nothing
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return [
            list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])
        ]
    if ranged := re.search(
        r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes
    ):
        return _range(ranged[2]).reshape(_numbers(ranged[1])).tolist()
    if meshed := re.search(MESHED, attributes):
        return _along(meshed[1], meshed[2] or "", re.findall(r"'[^']*'(?::\(\d+\)\d+)?", meshed[3]))
    return [list(range(devices))]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _range(text: str) -> np.ndarray:
    """`<=[2,4]T(1,0)`, or without `<=`: 0 ... 7 as [2, 4], transposed, flat; or a list of
    numbers."""
    if "[" not in text:
        return np.array([int(number) for number in re.findall(r"\d+", text)])
    shape, _, order = text.removeprefix("<=").removeprefix("[").partition("]")
    ids = np.arange(np.prod(_numbers(shape))).reshape(_numbers(shape))
    return (ids.transpose(_numbers(order[2:-1])) if order else ids).reshape(-1)


def _along(mesh: str, order: str, axes: list[str]) -> Groups:
    """`mesh['a'=2,'b'=8]` and `'b'`, or `'b':(2)4`: of b taken as 2 x 4 x 1 the middle one."""
    sizes = [(name, int(size)) for name, size in re.findall(r"('[^']*')=(\d+)", mesh)]
    parts: list[
        tuple[int, bool]
    ] = []  # size of each part of each axis, and whether a group spans it
    for name, size in sizes:
        asked = sorted(each for each in axes if each.split(":")[0] == name)
        if not asked or ":" not in asked[0]:
            parts.append((size, bool(asked)))
            continue
        done = 1
        for before, length in sorted(
            map(tuple, (map(int, re.findall(r"\d+", a.split(":")[1])) for a in asked))
        ):
            parts += [(before // done, False), (length, True)]
            done = before * length
        parts.append((size // done, False))
    shape = [size for size, _ in parts]
    ids = (_range(order) if order else np.arange(np.prod(shape))).reshape(shape)
    inside = [i for i, (_, along) in enumerate(parts) if along]
    outside = [i for i in range(len(parts)) if i not in inside]
    members = int(np.prod([shape[i] for i in inside]))
    return ids.transpose(outside + inside).reshape(-1, members).tolist()
