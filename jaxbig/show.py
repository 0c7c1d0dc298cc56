"""What an experiment is, before any data or step: parameters, where each is put, and bytes a device."""

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from jaxbig.experiment import Experiment, to_json
from jaxbig.state import HOST, leaves
from jaxbig.step import Program, make_program


def show(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment, its parameters (path, shape, logical and mesh axes), and bytes on each device."""
    program = make_program(experiment)
    logical = leaves(nn.get_partition_spec(program.boxed["params"]))
    rows = [
        {
            "parameter": path,
            "shape": " x ".join(map(str, leaf.shape)),
            "numbers": math.prod(leaf.shape),
            "logical axes": _axes(logical[path]),
            "split over": _axes(leaf.sharding.spec),
        }
        for path, leaf in leaves(program.abstract.params).items()
    ]
    devices = {
        "count": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
    }
    return {
        "experiment": to_json(experiment),
        "parameters": sum(row["numbers"] for row in rows),
        "devices": devices,
        "bytes_per_device": bytes_per_device(program),
        "table": rows,
    }


def bytes_per_device(program: Program) -> dict[str, int]:
    """Bytes that one device holds of the state's parts, and of one batch; `host`: what its host holds for it, where
    that is something."""

    def size(tree: Any, on_host: bool = False) -> int:
        held = [
            leaf for leaf in jax.tree.leaves(tree) if (leaf.sharding.memory_kind == HOST) == on_host
        ]
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in held
        )

    state = program.abstract
    parts = {"parameters": state.params, "variables": state.variables, "optimizer": state.opt_state}
    sizes = {name: size(tree) for name, tree in {**parts, "batch": program.batch}.items()}
    host = size(state, on_host=True)
    return {**sizes, "total": sum(sizes.values()), **({"host": host} if host else {})}


def _axes(spec: Iterable[str | tuple[str, ...] | None]) -> str:
    return ", ".join(
        "-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec
    )
