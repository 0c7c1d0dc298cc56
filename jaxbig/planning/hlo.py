"""Parses the text of a compiled program (HLO): computations, how often each runs, sizes."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path

# S(1): memory on the chip
SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{[^{}]*?(S\([1-9]\d*\))?\})?")
CALLED = re.compile(
    r"(calls|body|condition|branch_computations|called_computations|to_apply)=(\{[^}]*\}|%[\w.-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = result opcode(operands), attributes`."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def bytes(self) -> int:
        return sum(size for _, size, _ in arrays(self.result))

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Bytes in the device's memory (HBM), without those on the chip."""
        return sum(size for _, size, on_chip in arrays(self.result) if not on_chip)


def shorter(file: str) -> str:
    """A path relative to the folder that contains jaxbig, if it is inside."""
    path = Path(file)
    root = Path(__file__).parents[2]
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def arrays(text: str) -> Iterator[tuple[str, int, bool]]:
    """Each array in a type: its type, bytes without padding, and whether it is on the chip."""
    for kind, dimensions, on_chip in SHAPE.findall(text):
        bits = re.search(r"\d+", kind)
        width = 1 if kind == "pred" else 0
        if bits:
            width = int(bits[0]) / 8
        size = int(width * math.prod(int(n) for n in dimensions.split(",") if n))
        yield f"{kind}[{dimensions}]", size, bool(on_chip)


@dataclasses.dataclass(frozen=True)
class Module:
    """computations: the instructions of each by name; times: how often each runs in one step;
    entry: the computation that is the step."""

    computations: dict[str, list[Instruction]]
    times: dict[str, int]
    header: str
    entry: str

    def fused(self) -> set[str]:
        """The computations inside fusions, whose values never reach memory."""
        fusions = (each for each, _, _ in self.run() if each.opcode == "fusion")
        return {name for each in fusions for _, name in called(each)}

    def run(self) -> Iterator[tuple[Instruction, int, dict[str, Instruction]]]:
        """Each instruction that runs, how often, and the instructions of its computation by
        name."""
        for name, times in self.times.items():
            known = {each.name: each for each in self.computations[name]}
            for each in self.computations[name]:
                yield each, times, known

    def source(self, instruction: Instruction) -> str:
        """`file:line` of the source of a value: the innermost frame outside installed libraries."""
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        at = int(frame[1]) if frame else 0
        while at in self.frames:
            location, parent = self.frames[at]
            file, line = self.locations[location]
            if "site-packages" not in file:
                return f"{shorter(file)}:{line}"
            at = parent - 1  # XLA writes parents one too high, and 1 for none
        return ""

    @functools.cached_property
    def frames(self) -> dict[int, tuple[int, int]]:
        found = re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", self.header, re.M
        )
        return {int(frame): (int(location), int(parent or 1)) for frame, location, parent in found}

    @functools.cached_property
    def locations(self) -> dict[int, tuple[str, int]]:
        names = self.header.partition("FileNames")[2].partition("FunctionNames")[0]
        files = dict(re.findall(r'^(\d+) "(.*)"$', names, re.M))
        found = re.findall(
            r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", self.header, re.M
        )
        return {int(location): (files[file], int(line)) for location, file, line in found}


def parse(text: str) -> Module:
    """Reads the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    now: list[Instruction] = []
    header: list[str] = []
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            now = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif not computations:
            header.append(line)
        elif instruction := _instruction(line):
            now.append(instruction)
    times: collections.Counter[str] = collections.Counter()
    _count(computations, entry, 1, times)
    return Module(computations, dict(times), "\n".join(header), entry)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.-]+) = (.*)", line)
    if not found:
        return None
    rest = found[3]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    result = rest[:end]
    rest = rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands = tuple(re.findall(r"%([\w.-]+)", rest[len(opcode) : end]))
    if opcode in ("constant", "parameter"):
        operands = (rest[len(opcode) + 1 : end - 1],)
    return Instruction(found[2], result, opcode, operands, rest[end:], bool(found[1]))


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.end()
    return len(text)


def called(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """(role, computation) of what an instruction runs; not the scalar function of a reduction."""
    for role, names in CALLED.findall(instruction.attributes):
        if role != "to_apply" or instruction.opcode == "call":
            yield from ((role, name) for name in re.findall(r"%([\w.-]+)", names))


def _count(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    total: collections.Counter[str],
) -> None:
    total[name] += times
    for instruction in computations[name]:
        inner = list(called(instruction))
        again = times
        if instruction.opcode == "while":
            again *= trip_count(instruction, computations[dict(inner)["condition"]])
        for _, computation in inner:
            _count(computations, computation, again, total)


def trip_count(loop: Instruction, condition: list[Instruction]) -> int:
    """Iterations of a while loop: the compiler's count, or the bound of its counter; else 1."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    numbers = [
        int(each.operands[0])
        for each in condition
        if each.opcode == "constant" and each.result[:3] == "s32"
    ]
    return max(numbers, default=1)
