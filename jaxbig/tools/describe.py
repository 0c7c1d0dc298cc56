"""Describes an experiment without data: parameters, their sharding, and bytes per device."""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import to_json
from jaxbig.cost.memory import bytes_per_device
from jaxbig.program.program import Program, all_parameters, logical_axes, make_program


def show(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment, its parameters (path, shape, logical and mesh axes, what updates
    them), and bytes on each device; of adapters also how many numbers are trained."""
    program = make_program(experiment)
    logical = logical_axes(program)
    rules = update_rules(program)
    rows = [
        {
            "parameter": path,
            "shape": " x ".join(map(str, leaf.shape)),
            "numbers": math.prod(leaf.shape),
            "logical axes": _axes(logical[path]),
            "split over": _axes(leaf.sharding.spec),
            "update": rules[path],
        }
        for path, leaf in all_parameters(program).items()
    ]
    devices = {
        "count": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
    }
    return {
        "experiment": to_json(experiment),
        "parameters": sum(row["numbers"] for row in rows),
        **({"trained": count(program.abstract.params)} if experiment.lora.rank else {}),
        "devices": devices,
        "bytes_per_device": bytes_per_device(program),
        "table": rows,
    }


def update_rules(program: Program) -> dict[str, str]:
    """What updates each parameter: an optimizer with its matrices; or that it is frozen."""
    optimizer = program.experiment.optimizer
    axes = logical_axes(program)
    trained = flatten_with_paths(program.abstract.params)

    def rule(path: str, shape: Any) -> str:
        frozen = optimizer.frozen is not None and re.search(optimizer.frozen, path)
        if path not in trained or frozen:
            return "frozen"
        decayed = getattr(optimizer, "weight_decay", 0) and re.search(optimizer.decayed, path)
        return optimizer.rule(path, shape, axes) + (", decayed" if decayed else "")

    return {path: rule(path, leaf.shape) for path, leaf in all_parameters(program).items()}


def count(tree: Any) -> int:
    """The numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _axes(spec: Iterable[str | tuple[str, ...] | None]) -> str:
    return ", ".join(
        "-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec
    )
