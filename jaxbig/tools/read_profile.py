"""Divides the time of traced steps by kind, module and source line, from a trace and the HLO."""

import collections
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from jaxbig.errors import Refused
from jaxbig.planning.collectives import KINDS as COLLECTIVES
from jaxbig.planning.hlo import Instruction, Module, called, parse
from jaxbig.system.json_files import read_json
from jaxbig.train.step_profiler import FACTS_FILE, HLO_FILE, READS_BATCH, WINDOW

COMPUTE = "compute"
COMMUNICATION = "communication"
DATA = "data"
IDLE = "idle"
ORDER = (COMPUTE, COMMUNICATION, DATA)
"""Of what happens at the same time, the first takes the time."""
COMMUNICATES = re.compile(rf"({'|'.join(COLLECTIVES)}|collective-broadcast|send|recv)\b|nccl|rccl")
ENCLOSES = re.compile(r"(while|call|conditional)(\.[0-9]+)?$")
"""Operations whose time is that of the operations inside, which a trace has too."""
NO_MODULE = re.compile(
    r"p?jit\(.*\)|while|body|cond|branch_\d+_fun|closed_call|checkpoint|remat\d?|"
    r"rematted_computation|shard_map|custom_(jvp|vjp)_call"
)
"""Parts of an operation's name that JAX's transformations add."""


class Operation(NamedTuple):
    """What a span of a device's time is counted as.

    Attributes:
      kind: one of `ORDER`.
      module: the path of Flax modules, as Decoder/block_0/attention.
      phase: forward, backward, or "" for what is outside the gradient, as the optimizer.
      source: file:line; the operation's name in brackets if the compiler made it.
    """

    kind: str
    module: str = ""
    phase: str = ""
    source: str = ""


class Span(NamedTuple):
    """A span of time in nanoseconds."""

    begin: float
    end: float
    operation: Operation


def read_profile(path: Path) -> dict[str, Any]:
    """Where the time of the traced steps went, on the mean of this process's devices.

    Args:
      path: a run's folder, a folder with traces, of which the newest is read, or an .xplane.pb.

    Returns:
      `trace`, the file; `steps`, the first and last, or null; `devices`; `seconds`, of all steps;
      `parts`: the seconds that devices computed, communicated with no computation at the same
      time, waited while the host read a batch, and were idle otherwise, whose sum is `seconds`;
      `hidden_communication_seconds`; `peak_bytes`, as the device counted them since the process
      began, and `step_bytes`, as the compiler did, null if unknown; `operations`: `seconds` by
      `kind`, `module`, `phase` and `source`, whose sums are those of `parts`.

    Raises:
      Refused: there is no trace, or it has no operation of a device.
    """
    with warnings.catch_warnings():
        # jaxlib makes types when they are first used, with a warning of Python 3.12; where warnings
        # are errors, that would abort the process
        warnings.simplefilter("ignore", DeprecationWarning)
        return _read(find_trace(path))


def _read(file: Path) -> dict[str, Any]:
    try:
        planes = list(ProfileData.from_file(str(file)).planes)
    except Exception as error:  # jaxlib's, of no public class
        raise Refused(f"{file} is no trace of JAX's profiler, or a cut one: {error}") from error
    known = operations_of(file.with_name(HLO_FILE))
    devices: dict[str, list[Span]] = collections.defaultdict(list)
    for plane in planes:
        for device, span in device_spans(plane, known):
            devices[device].append(span)
    if not devices:
        raise Refused(f"{file} has no operation of a device: trace at least one whole step.")
    host, windows, steps = host_spans(planes)
    every = [span for spans in devices.values() for span in spans]
    begin, end = windows or (min(each.begin for each in every), max(each.end for each in every))
    total: collections.Counter[Operation] = collections.Counter()
    hidden = 0.0
    for spans in devices.values():
        shares, covered = divide([*spans, *host], begin, end)
        total.update(shares)
        hidden += covered
    scale = 1e-9 / len(devices)
    parts: dict[str, float] = dict.fromkeys((*ORDER, IDLE), 0.0)
    for operation, time in total.items():
        parts[operation.kind] += time * scale
    facts = read_json(file.with_name(FACTS_FILE)) or {}
    return {
        "trace": str(file),
        "steps": facts.get("steps") or ([min(steps), max(steps)] if steps else None),
        "devices": len(devices),
        "seconds": (end - begin) * 1e-9,
        "parts": parts,
        "hidden_communication_seconds": hidden * scale,
        "peak_bytes": facts.get("peak_bytes"),
        "step_bytes": facts.get("step_bytes"),
        "operations": [
            {"seconds": time * scale, **operation._asdict()}
            for operation, time in total.most_common()
        ],
    }


def find_trace(path: Path) -> Path:
    """The trace of a file or folder: a run's newest; raises `Refused` if there is none."""
    if path.is_file():
        return path
    inside = path / "profile" if (path / "profile").is_dir() else path
    found = [each for each in inside.rglob("*.xplane.pb") if ".partial" not in each.parts]
    if not found:
        what = "has no trace (*.xplane.pb)" if path.exists() else "does not exist"
        raise Refused(
            f"{path} {what}: `jaxbig train EXPERIMENT --profile 100:105` writes one into the "
            f"run's folder."
        )
    return max(found, key=lambda each: each.stat().st_mtime)


def operations_of(file: Path) -> tuple[str, dict[str, Operation]]:
    """The name of the program in a file of HLO, and what each of its instructions is.

    Nothing is known if there is no such file.
    """
    if not file.exists():
        return "", {}
    module = parse(file.read_text())
    name = re.search(r"^HloModule ([\w.-]+)", module.header, re.M)
    known = {each.name: describe(module, each) for each, _, _ in module.run()}
    return name[1] if name else "", known


def describe(module: Module, instruction: Instruction) -> Operation:
    """What an instruction is; of a fusion without a name of its own, what it computes last."""
    inside = [
        each
        for _, computation in called(instruction)
        for each in reversed(module.computations[computation])
    ]
    for each in (instruction, *inside):
        if found := re.search(r'op_name="([^"]*)"', each.attributes):
            path, phase = module_and_phase(found[1])
            return Operation(kind_of(instruction.opcode), path, phase, module.source(each))
    return Operation(kind_of(instruction.opcode), source=unnamed(instruction.name))


def unnamed(name: str) -> str:
    """The name of an operation of no known source, without its number, in brackets."""
    return f"({re.sub(r'[.][0-9]+$', '', name)})"


def module_and_phase(op_name: str) -> tuple[str, str]:
    """The path of modules in an operation's name, and whether it is forward or backward.

    `jit(train_step)/transpose(jvp(Decoder))/block/attention/dot_general` gives
    (Decoder/block/attention, backward).
    """
    phase = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else ""
    if ":" in op_name.rstrip(":"):  # the compiler has joined operations, as all-reduces
        return "several modules", phase
    path = []
    for part in op_name.split("/")[:-1]:  # the last is the operation
        while found := re.fullmatch(r"(?:transpose|jvp|vmap|remat|checkpoint)\((.*)\)", part):
            part = found[1]
        if part and not NO_MODULE.fullmatch(part):
            path.append(part)
    return "/".join(path), phase


def kind_of(name: str) -> str:
    """The kind of an operation of that name or opcode."""
    if COMMUNICATES.match(name):
        return COMMUNICATION
    return DATA if name.startswith("MemcpyH2D") else COMPUTE


def device_spans(
    plane: Any, known: tuple[str, Mapping[str, Operation]]
) -> Iterator[tuple[str, Span]]:
    """The operations of a plane of a trace with their devices, in any order.

    A TPU has a line of operations, a GPU a line for each stream; a CPU's operations are among those
    of the host's threads.
    """
    on_host = plane.name == "/host:CPU"
    if not on_host and not plane.name.startswith("/device:"):
        return
    for line in plane.lines:
        if not on_host and line.name != "XLA Ops" and not line.name.startswith("Stream"):
            continue
        for event in line.events:
            if on_host and event.name.startswith(("end: ", "ThreadpoolListener", "$")):
                continue
            facts = dict(event.stats)
            name = str(facts.get("hlo_op") or "")
            if on_host and not name:
                continue
            name = name or event.name.partition(" = ")[0].lstrip("%")
            if ENCLOSES.match(name):
                continue
            operation = lookup(name, str(facts.get("hlo_module") or known[0]), known)
            device = str(facts.get("device_ordinal", 0)) if on_host else plane.name
            yield device, Span(event.start_ns, event.end_ns, operation)


def lookup(name: str, program: str, known: tuple[str, Mapping[str, Operation]]) -> Operation:
    """What an operation is: of the train step as its HLO says, else of another program."""
    step, operations = known
    if step and program != step:
        return Operation(kind_of(name), f"({program})", source=unnamed(name))
    return operations.get(name) or Operation(kind_of(name), source=unnamed(name))


def host_spans(planes: Iterable[Any]) -> tuple[list[Span], tuple[float, float] | None, list[int]]:
    """The reads of batches, the begin and end of the traced steps if marked, and their numbers."""
    reads: list[Span] = []
    window = None
    steps: list[int] = []
    for plane in planes:
        for line in plane.lines if plane.name == "/host:CPU" else ():
            for event in line.events:
                if event.name == READS_BATCH:
                    reads.append(Span(event.start_ns, event.end_ns, Operation(DATA)))
                elif event.name == WINDOW:
                    window = (event.start_ns, event.end_ns)
                elif event.name == "train":
                    steps += [int(value) for key, value in event.stats if key == "step_num"]
    return reads, window, steps


def divide(
    spans: Iterable[Span], begin: float, end: float
) -> tuple[collections.Counter[Operation], float]:
    """Divides a time among what happens in it.

    Each moment belongs to the first kind of `ORDER` that happens, in equal parts to its operations
    (threads or streams work at once), and to `IDLE` if there is none.

    Args:
      spans: of one device and its host, which may overlap.
      begin: of the time, in the spans' unit.
      end: likewise.

    Returns:
      The time of each operation, whose sum is `end - begin`; and the time of communication while
      the device computes.
    """
    edges = []
    for span in spans:
        clipped = (max(span.begin, begin), min(span.end, end))
        if clipped[0] < clipped[1]:
            edges += [(clipped[0], 1, span.operation), (clipped[1], -1, span.operation)]
    edges.sort(key=lambda edge: edge[0])
    now = {kind: collections.Counter[Operation]() for kind in ORDER}
    shares: collections.Counter[Operation] = collections.Counter()
    hidden = 0.0
    last = begin
    for time, change, operation in [*edges, (end, 0, Operation(IDLE))]:
        passed = time - last
        last = time
        if passed:
            going = next((now[kind] for kind in ORDER if now[kind]), {Operation(IDLE): 1})
            several = sum(going.values())
            for each, count in going.items():
                shares[each] += passed * count / several  # type: ignore[assignment]
            hidden += passed if now[COMPUTE] and now[COMMUNICATION] else 0.0
        if change:
            active = now[operation.kind]
            active[operation] += change
            if not active[operation]:
                del active[operation]
    return shares, hidden
