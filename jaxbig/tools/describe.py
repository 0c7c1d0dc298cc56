"""Describes an experiment without data: parameters, their sharding, and bytes per device."""

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import to_json
from jaxbig.cost.memory import bytes_per_device
from jaxbig.program.program import make_program


def show(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment, its parameters (path, shape, logical and mesh axes), and bytes on
    each device."""
    program = make_program(experiment)
    logical = flatten_with_paths(nn.get_partition_spec(program.boxed["params"]))
    rows = [
        {
            "parameter": path,
            "shape": " x ".join(map(str, leaf.shape)),
            "numbers": math.prod(leaf.shape),
            "logical axes": _axes(logical[path]),
            "split over": _axes(leaf.sharding.spec),
        }
        for path, leaf in flatten_with_paths(program.abstract.params).items()
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


def _axes(spec: Iterable[str | tuple[str, ...] | None]) -> str:
    return ", ".join(
        "-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec
    )
