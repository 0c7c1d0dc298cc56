"""Sharding rules: which mesh axes split each logical axis (`batch`, `embed`, `mlp`, ...)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused

STAGE = "stage"
ROWS = ("data", "fsdp", "expert", STAGE)
"""The axes that split the rows of a batch."""
MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]
Preset = Literal["standard", "length_over_tensor"]

# logical axis -> mesh axes. `fsdp` also splits stored parameters (all-gathered when used), `tensor`
# the work inside a layer, `sequence` the positions of each row, `expert` the experts of a mixture,
# `stage` the layers of a stack.
RULES: Rules = (
    ("batch", ROWS),
    ("copy", ("data", "expert", STAGE)),  # rows, where `fsdp` splits something else
    ("length", "sequence"),
    ("layers", STAGE),
    ("embed", "fsdp"),
    # a convolution has few input channels, so its outputs are split twice
    ("channels", ("tensor", "fsdp")),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("hidden", "tensor"),
    ("classes", None),
    ("experts", "expert"),
    ("rank", None),  # of adapters
)
OF_ROWS = ("batch", "copy")
"""Follow the rows of the batch as they are read, so they cannot be overridden."""
PRESETS: dict[str, Rules] = {
    "standard": RULES,
    # where another axis of the same array takes a rule's mesh axes, the next rule applies
    "length_over_tensor": (
        *(rule for rule in RULES if rule[0] != "length"),
        ("length", ("sequence", "tensor")),
        ("length", "sequence"),
    ),
}


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    """A rule's mesh axes as a tuple."""
    return (axes,) if isinstance(axes, str) else axes or ()


def without(name: str, axes: MeshAxes) -> MeshAxes:
    """These mesh axes but one."""
    if isinstance(axes, tuple):
        return tuple(axis for axis in axes if axis != name)
    return None if axes == name else axes


def rules_without_fsdp() -> Rules:
    """The active rules for a parameter that is used: all-gathered over `fsdp`."""
    return rules_without("fsdp")


def rules_without(name: str) -> Rules:
    """The active rules without one mesh axis."""
    return tuple((logical, without(name, axes)) for logical, axes in nn.get_logical_axis_rules())


def active_axes(names: MeshAxes) -> dict[str, int]:
    """The size of each of these mesh axes that is active here and larger than 1."""
    mesh = jax.sharding.get_abstract_mesh()
    here = [
        name for name in as_tuple(names) if name in mesh.axis_names and name not in mesh.manual_axes
    ]
    return {name: mesh.shape[name] for name in here if mesh.shape[name] > 1}


def split(value: jax.Array, at: int, axis: str, count: int) -> jax.Array:
    """Splits an axis into chunks, [..., F, ...] -> [C, ..., F/C, ...], sharded like the axis.

    Each device has its part of every chunk.

    Args:
      value: an array.
      at: the axis to split.
      axis: its logical name.
      count: the number of chunks C.

    Raises:
      Refused: F is not a multiple of C on each of the devices that share it.
    """
    [names] = nn.logical_to_mesh_axes((axis,)) or (None,)
    shape = value.shape
    over = math.prod(active_axes(names).values())
    if count < 0 or shape[at] % (over * count):
        each = f" on each of {over} devices" if over > 1 else ""
        raise Refused(
            f"{count} chunks do not divide {axis} {shape[at]}{each}: choose a divisor, or 0."
        )
    parts = value.reshape(*shape[:at], over, count, -1, *shape[at + 1 :])
    return jnp.moveaxis(parts, at + 1, 0).reshape(
        count, *shape[:at], shape[at] // count, *shape[at + 1 :]
    )


def platform() -> str:
    """The platform of the active mesh, whose devices need not be here: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
