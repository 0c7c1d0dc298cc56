"""The device mesh, and the rules that say which mesh axes a logical axis is split over.

Models name logical axes (`batch`, `embed`, `mlp`, ...); moving a run to other hardware changes the `Mesh` of
its experiment and no model.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused

ROWS = ("data", "fsdp", "expert")
"""The axes that split the rows of a batch."""
MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]
Preset = Literal["standard", "length_over_tensor"]

# logical axis -> mesh axes. `fsdp` also splits what is stored (gathered when used), `tensor` splits the work inside a
# layer, `sequence` the places of each row, `expert` which experts of a mixture are here.
RULES: Rules = (
    ("batch", ROWS),
    ("copy", ("data", "expert")),  # rows, where `fsdp` splits something else
    ("length", "sequence"),
    ("layers", None),
    ("embed", "fsdp"),
    (
        "channels",
        ("tensor", "fsdp"),
    ),  # a convolution has few input channels, so its outputs are split twice
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("hidden", "tensor"),
    ("classes", None),
    ("experts", "expert"),
)
OF_ROWS = ("batch", "copy")
"""What lies where the rows of a batch are read, and cannot be overridden."""
PRESETS: dict[str, Rules] = {
    "standard": RULES,
    # where a rule's axes are taken by another axis of the same array, as by the heads, the next one holds
    "length_over_tensor": (
        *(rule for rule in RULES if rule[0] != "length"),
        ("length", ("sequence", "tensor")),
        ("length", "sequence"),
    ),
}


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    """A rule's mesh axes, none or more."""
    return (axes,) if isinstance(axes, str) else axes or ()


def without_fsdp(axes: MeshAxes) -> MeshAxes:
    return (
        tuple(a for a in axes if a != "fsdp")
        if isinstance(axes, tuple)
        else None
        if axes == "fsdp"
        else axes
    )


def rules_without_fsdp() -> Rules:
    """The active rules for a parameter at work: what `fsdp` stores in pieces is gathered."""
    return tuple((logical, without_fsdp(axes)) for logical, axes in nn.get_logical_axis_rules())


def active_axes(names: MeshAxes) -> dict[str, int]:
    """Of these mesh axes those that split something here, and into how many pieces."""
    mesh = jax.sharding.get_abstract_mesh()
    here = [
        name for name in as_tuple(names) if name in mesh.axis_names and name not in mesh.manual_axes
    ]
    return {name: mesh.shape[name] for name in here if mesh.shape[name] > 1}


def split(value: jax.Array, at: int, axis: str, count: int) -> jax.Array:
    """[..., F, ...] -> [C, ..., F/C, ...], at an axis of that logical name: each device has its part of every piece.

    `Refused` if F is not a multiple of C on each of the devices it is spread over.
    """
    [names] = nn.logical_to_mesh_axes((axis,)) or (None,)
    shape, over = value.shape, math.prod(active_axes(names).values())
    if count < 0 or shape[at] % (over * count):
        each = f" on each of {over} devices" if over > 1 else ""
        raise Refused(
            f"{count} pieces do not divide {axis} {shape[at]}{each}: choose a divisor, or 0."
        )
    parts = value.reshape(*shape[:at], over, count, -1, *shape[at + 1 :])
    return jnp.moveaxis(parts, at + 1, 0).reshape(
        count, *shape[:at], shape[at] // count, *shape[at + 1 :]
    )


def platform() -> str:
    """What is compiled for: "cpu", "gpu" or "tpu". The active mesh's devices say it, which need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
