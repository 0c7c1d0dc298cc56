"""Estimates the least time of a step: the longest of compute, memory traffic and communication."""

from collections.abc import Sequence

from jaxbig.cost.hardware import Topology
from jaxbig.planning.collectives import Collective
from jaxbig.planning.hlo import Instruction, Module, called

SLICES = ("dynamic-slice", "gather")
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
)


def seconds(
    flops: int, traffic: int, collectives: Sequence[Collective], topology: Topology
) -> dict[str, float]:
    """Seconds of one step for each bound, if every chip works at its peak without waiting.

    Args:
      flops: over all devices.
      traffic: bytes of memory read and written by one device.
      collectives: of a step.
      topology: the hardware.
    """
    return {
        "compute": flops / topology.devices / topology.chip.peak_flops,
        "memory": traffic / topology.chip.memory_bandwidth,
        "interconnect": sum(each.seconds(topology) for each in collectives),
    }


def memory_traffic(module: Module) -> int:
    """Bytes of its memory that a device reads and writes in a step, over all instructions.

    Values inside a fusion never reach memory, a slice reads only its part, and values on the chip
    are free.
    """
    fused = module.fused()
    total = 0
    for name, times in module.times.items():
        known = {each.name: each for each in module.computations[name]}
        for each in module.computations[name] if name not in fused else ():
            if each.opcode not in FREE and not each.opcode.endswith("-done"):
                total += times * (_written(module, each) + _read(module, each, known))
    return total


def _read(module: Module, instruction: Instruction, known: dict[str, Instruction]) -> int:
    if instruction.opcode in SLICES:
        return instruction.memory_bytes
    given = [(i, known[name].memory_bytes) for i, name in enumerate(instruction.operands)]
    if instruction.opcode == "dynamic-update-slice":
        return given[1][1]
    inner = (
        next((name for _, name in called(instruction)), None)
        if instruction.opcode == "fusion"
        else None
    )
    return sum(min(size, _used(module, inner, i)) if inner and size else size for i, size in given)


def _used(module: Module, computation: str, number: int) -> int:
    """Bytes that a fusion reads of one of its parameters: all, or only its slices."""
    inside = module.computations[computation]
    names = {
        each.name
        for each in inside
        if each.opcode == "parameter" and each.operands == (str(number),)
    }
    used = 0
    for each in inside:  # in the order of computation
        if not names & set(each.operands) or each.opcode == "parameter":
            continue
        if each.opcode == "bitcast":
            names.add(each.name)
        elif each.opcode in SLICES:
            used += each.bytes
        elif each.opcode == "fusion":
            inner = next(name for _, name in called(each))
            used += sum(
                _used(module, inner, i) for i, name in enumerate(each.operands) if name in names
            )
        # an update of the parameter is done in place
        elif not (each.opcode == "dynamic-update-slice" and each.operands[0] in names):
            return max(known.bytes for known in inside if known.name in names)
    return used


def _written(module: Module, instruction: Instruction) -> int:
    inner = (
        next((name for _, name in called(instruction)), None)
        if instruction.opcode == "fusion"
        else None
    )
    if instruction.opcode == "dynamic-update-slice" or (inner and _root(module, inner) is not None):
        return 0 if not instruction.memory_bytes else _update(module, instruction, inner)
    return instruction.memory_bytes


def _root(module: Module, computation: str) -> Instruction | None:
    """The in-place update that a fusion ends with, if there is one."""
    known = {each.name: each for each in module.computations[computation]}
    last = next(each for each in known.values() if each.root)
    while last.opcode == "bitcast":
        last = known[last.operands[0]]
    return last if last.opcode == "dynamic-update-slice" else None


def _update(module: Module, instruction: Instruction, inner: str | None) -> int:
    root = _root(module, inner) if inner else None
    if root is None or inner is None:
        return 0  # counted as read
    return next(each.bytes for each in module.computations[inner] if each.name == root.operands[1])


def in_place(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction writes into an existing buffer."""
    if instruction.opcode == "fusion":
        return _root(module, next(name for _, name in called(instruction))) is not None
    return instruction.opcode in ("dynamic-update-slice", "scatter")
