"""Time of a compiled TPU step by part of the model, from the compiler's estimates of cycles.

The TPU's compiler writes into its program how many cycles it expects each operation to take. These
do not wait for memory, and a Pallas kernel has none: that counts by its FLOPs.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxbig.arrays.jaxprs import opened
from jaxbig.cost.flops import named_flops
from jaxbig.cost.hardware import Topology
from jaxbig.planning import collectives
from jaxbig.planning.hlo import Instruction, Module, called, trip_count

ATTENTION = "attention"
MLP = "MLP"
VOCABULARY = "vocabulary and loss"
MODEL = "rest of the model"
OPTIMIZER = "optimizer"
REST = "rest"
PARTS = (ATTENTION, MLP, VOCABULARY, MODEL, OPTIMIZER, REST)
KERNEL = "tpu_custom_call"


def part_of(name: str) -> str:
    """The part that an operation belongs to, by its name in the traced program.

    What is not differentiated is the optimizer's; a differentiated operation outside every module
    is the loss's.
    """
    modules = re.split(r"[/()]", name)
    if any(each.startswith(("attention", "cross")) for each in modules):
        return ATTENTION
    if any(each.startswith(("mlp", "experts", "block.mlp")) for each in modules):
        return MLP
    if "jvp()" in name or {"tokens", "positions", "head"} & set(modules):
        return VOCABULARY
    if "jvp(" in name or "blocks" in modules:
        return MODEL
    return OPTIMIZER if name.startswith("jit(") else REST


@dataclasses.dataclass
class Timeline:
    """What one device spends in a step, in seconds.

    `parts`: computing, by part; `exposed`: waiting for collectives; `overlapped`: the rest of what
    these take, beside which the device computes.
    """

    parts: dict[str, float]
    exposed: float
    overlapped: float

    @property
    def communication(self) -> float:
        return self.exposed + self.overlapped

    @property
    def seconds(self) -> float:
        return sum(self.parts.values()) + self.exposed


def kernel_seconds(jaxpr: Any, topology: Topology) -> dict[str, float]:
    """Seconds a step of Pallas kernels and grouped products by part, at the chip's peak FLOP/s."""
    found: collections.Counter[str] = collections.Counter()
    for name, flops in named_flops(opened(jaxpr), ("pallas_call", "ragged_dot")):
        found[part_of(name)] += flops
    peak = topology.devices * topology.chip.peak_flops
    return {part: flops / peak for part, flops in found.items()}


def timeline(module: Module, topology: Topology, kernels: Mapping[str, float]) -> Timeline | None:
    """The time of a step, by part; None if the program has no estimates, as a CPU's.

    Operations run one after another as they are scheduled. A collective starts when those before it
    are done, and its device waits for it where its result is asked for.

    Args:
      module: the compiled step.
      topology: the hardware.
      kernels: seconds of the operations that have no estimate, by part.
    """
    if not any(cycles_of(each) for each, _, _ in module.run()):
        return None
    walk = _Walk(module, topology, kernels)
    walk.duration(module.entry)
    parts = {part: walk.parts[part] for part in PARTS if walk.parts[part]}
    overlapped = walk.communication - walk.exposed
    return Timeline(parts, walk.exposed, overlapped if overlapped > 1e-12 else 0.0)


def cycles_of(instruction: Instruction) -> int:
    """The compiler's estimate for one run; 0 if there is none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a Pallas kernel."""
    return f'custom_call_target="{KERNEL}"' in instruction.attributes


class _Walk:
    """Adds up time over the computations of a module."""

    def __init__(self, module: Module, topology: Topology, kernels: Mapping[str, float]) -> None:
        self.module = module
        self.topology = topology
        self.parts: dict[str, float] = collections.defaultdict(float)
        self.part_of = {name: self._parts(name) for name in module.times}
        runs: collections.Counter[str] = collections.Counter()
        for name, times in module.times.items():
            for each in module.computations[name]:
                runs[self.part_of[name][each.name]] += times * is_kernel(each)
        # the kernels of a part share its seconds
        self.of_kernel = {
            part: kernels.get(part, 0.0) / count for part, count in runs.items() if count
        }
        self.communication = 0.0
        self.exposed = 0.0
        self.known = {
            name: {each.name: each for each in module.computations[name]} for name in module.times
        }
        self.seen: set[str] = set()  # channels of collectives that are in several fusions

    def duration(self, computation: str) -> float:
        """Seconds of one run of a computation; all its runs are added to the sums."""
        times = self.module.times[computation]
        parts = self.part_of[computation]
        now = 0.0
        free = 0.0  # when the collectives that were started are done
        running: dict[str, float] = {}  # when each will be
        prepared: dict[str, float] = {}  # seconds of those that are given their array later
        for each in self.module.computations[computation]:
            if each.opcode in ("while", "conditional", "call"):
                inner = [self.duration(name) for role, name in called(each) if role != "condition"]
                rounds = 1
                if each.opcode == "while":
                    condition = dict(called(each))["condition"]
                    rounds = trip_count(each, self.module.computations[condition])
                now += rounds * (max(inner) if each.opcode == "conditional" else sum(inner))
                continue
            if each.opcode.endswith("-done"):
                ready = running.get(each.operands[0], now)
                running[each.name] = ready
                if not each.opcode.startswith(("copy", "send", "recv")):
                    self.exposed += times * max(ready - now, 0.0)
                    now = max(ready, now)
                continue
            seconds = self._sent(computation, each)
            if each.opcode.endswith("-start") and seconds and not each.operands:
                prepared[each.name] = seconds
                continue
            if each.opcode.endswith("-update"):
                if each.operands[0] in running:
                    running[each.name] = running[each.operands[0]]
                    continue
                seconds = prepared.get(each.operands[0], 0.0)
            if seconds:
                self.communication += times * seconds
                free = max(free, now) + seconds
            waits = seconds > 0
            if each.opcode.endswith(("-start", "-update")):
                running[each.name] = free
                waits = False
            part = parts[each.name]
            seconds = cycles_of(each) / self.topology.chip.clock
            if is_kernel(each):
                seconds = self.of_kernel[part]
            self.parts[part] += times * seconds
            now += seconds
            if waits:  # a fusion works beside the collective inside it, others only wait
                self.exposed += times * max(free - now, 0.0)
                now = max(free, now)
        return now

    def _sent(self, computation: str, instruction: Instruction) -> float:
        """Seconds of the collectives that an instruction runs or starts, itself or inside."""
        inside = [(computation, [instruction])]
        if instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
            inside += [(name, self.module.computations[name]) for _, name in called(instruction)]
        total = 0.0
        for name, candidates in inside:
            known = self.known[name]
            for each in candidates:
                found = collectives.of_instruction(
                    each, known, self.topology.devices, self.topology.island
                )
                if found is None:
                    continue
                channel = re.search(r"channel_id=(\d+)", each.attributes)
                if instruction.opcode == "fusion" and channel:
                    if channel[1] in self.seen:
                        continue
                    self.seen.add(channel[1])
                total += found.seconds(self.topology)
        return total

    def _parts(self, computation: str) -> dict[str, str]:
        """The part of each instruction; one without a name has that of what it is computed for."""
        instructions = self.module.computations[computation]
        users: dict[str, str] = {}
        parts = {}
        for each in reversed(instructions):
            found = re.search(r'op_name="([^"]*)"', each.attributes)
            part = part_of(found[1]) if found else REST
            if part == REST:
                part = users.get(each.name, REST)
            parts[each.name] = part
            if part != REST:
                for operand in each.operands:
                    users[operand] = part
        return parts
