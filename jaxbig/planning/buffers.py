"""Lists the largest arrays of a compiled program, and the source lines that create them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxbig.arrays.jaxprs import inner_jaxprs, opened, source_frame
from jaxbig.arrays.tree import HOST, flatten_with_paths
from jaxbig.planning.hlo import Module, arrays, shorter
from jaxbig.planning.roofline import FREE, in_place
from jaxbig.program.program import Program

COUNT = 8
Buffer = dict[str, Any]


def largest(module: Module, program: Program) -> list[Buffer]:
    """The largest arguments and temporaries; they do not all exist at the same time."""
    found = arguments(program)
    fused = module.fused()
    for name in module.times:
        for each in module.computations[name] if name not in fused else ():
            if (
                each.opcode not in FREE
                and not each.opcode.endswith("-done")
                and not in_place(module, each)
            ):
                made = [
                    (shape, size) for shape, size, on_chip in arrays(each.result) if not on_chip
                ]
                found += [
                    {"bytes": size, "array": shape, "source": module.source(each)}
                    for shape, size in made
                ]
    return _top(found)


def largest_traced(jaxpr: Any, program: Program) -> list[Buffer]:
    """The same for a program that could not be compiled, from the values of its jaxpr.

    Each is taken as sharded over all devices; the compiler may never materialize some of them.
    """
    devices = program.mesh.size
    found = arguments(program)
    for value, equation in _values(opened(jaxpr)):
        shape = f"{value.dtype}[{','.join(map(str, value.shape))}] / {devices}"
        size = value.size * value.dtype.itemsize // devices
        found.append({"bytes": size, "array": shape, "source": _line(equation)})
    return _top(found)


def arguments(program: Program) -> list[Buffer]:
    """The state and batch in one device's memory, without what is in host memory."""
    rows = []
    for path, leaf in flatten_with_paths(
        {"state": program.abstract, "batch": program.train_batch}
    ).items():
        if leaf.sharding.memory_kind == HOST:
            continue
        shape = leaf.sharding.shard_shape(leaf.shape)
        size = math.prod(shape) * leaf.dtype.itemsize
        rows.append(
            {"bytes": size, "array": f"{leaf.dtype}[{','.join(map(str, shape))}]", "source": path}
        )
    return rows


def _values(jaxpr: Any) -> Iterator[tuple[Any, Any]]:
    for equation in jaxpr.eqns:
        inner = list(inner_jaxprs(equation))
        if equation.primitive.name != "pallas_call":
            for each in inner:
                yield from _values(each)
        if not inner or equation.primitive.name in ("scan", "while"):
            yield from ((v.aval, equation) for v in equation.outvars if hasattr(v.aval, "dtype"))


def _line(equation: Any) -> str:
    frame = source_frame(equation)
    return "" if frame is None else f"{shorter(frame.file_name)}:{frame.start_line}"


def _top(found: Sequence[Buffer]) -> list[Buffer]:
    """The largest buffers; equal ones once, with their number."""
    rows: dict[tuple[Any, ...], Buffer] = {}
    for each in found:
        row = rows.setdefault((each["bytes"], each["array"], each["source"]), {**each, "count": 0})
        row["count"] += 1
    return sorted(rows.values(), key=lambda row: -row["bytes"])[:COUNT]
