"""The device mesh, and the rules that say which mesh axes a logical axis is split over.

Models name logical axes (`batch`, `embed`, `mlp`, ...); moving a run to other hardware changes the `Mesh` of
its experiment and no model.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.errors import Refused
from jaxbig.placement import AXES, place
from jaxbig.state import HOST, leaves

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


def _without_fsdp(axes: MeshAxes) -> MeshAxes:
    return (
        tuple(a for a in axes if a != "fsdp")
        if isinstance(axes, tuple)
        else None
        if axes == "fsdp"
        else axes
    )


def gathered() -> Rules:
    """The active rules for a parameter at work: what `fsdp` stores in pieces is gathered."""
    return tuple((logical, _without_fsdp(axes)) for logical, axes in nn.get_logical_axis_rules())


def spread(names: MeshAxes) -> dict[str, int]:
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
    shape, over = value.shape, math.prod(spread(names).values())
    if count < 0 or shape[at] % (over * count):
        each = f" on each of {over} devices" if over > 1 else ""
        raise Refused(
            f"{count} pieces do not divide {axis} {shape[at]}{each}: choose a divisor, or 0."
        )
    parts = value.reshape(*shape[:at], over, count, -1, *shape[at + 1 :])
    return jnp.moveaxis(parts, at + 1, 0).reshape(
        count, *shape[:at], shape[at] // count, *shape[at + 1 :]
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices each axis takes; one axis may be -1 and takes the rest."""

    data: int = -1
    """Copies of the model, each on its own rows of the batch."""
    fsdp: int = 1
    """Fully sharded data parallel: rows of the batch, and parameters stored in pieces."""
    tensor: int = 1
    """Pieces of each layer's width."""
    sequence: int = 1
    """Pieces of each row's length; attention gathers keys and values, or passes them round (kernel ring)."""
    expert: int = 1
    """Rows of the batch, and the experts of a mixture: each device has some of them."""
    rules: Preset = "standard"
    """Which mesh axes split what: standard; or length_over_tensor, where between the products that `tensor` splits by
    width it splits the length, so that the inputs of layers take less memory (Korthikanti et al., 2022)."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Other axes for some of the rules, each a logical axis and its mesh axes, joined by + or none, as in
    `--mesh.overrides embed none mlp tensor+fsdp`, or `vocab none` for a vocabulary that `tensor` does not divide."""

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The size of each axis in `AXES` on that many devices; `Refused` if they do not fit."""
        asked = [getattr(self, axis) for axis in AXES]
        text = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, asked, strict=True))
        if any(size < 1 and size != -1 for size in asked) or asked.count(-1) > 1:
            raise Refused(
                f"mesh {text}: each axis is 1 or more, and one of them may be -1 (the rest)."
            )
        fixed = math.prod(size for size in asked if size != -1)
        if devices % fixed or (-1 not in asked and fixed != devices):
            needs = f"a multiple of {fixed}" if -1 in asked else f"{fixed}"
            raise Refused(
                f"mesh {text} needs {needs} devices and there are {devices}: change --mesh.data or another axis "
                f"(on CPU, JAX_NUM_CPU_DEVICES={fixed} gives {fixed} devices)."
            )
        return tuple(devices // fixed if size == -1 else size for size in asked)

    def table(self) -> Rules:
        """The preset's rules with this mesh's overrides; `Refused` if they name what there is not."""
        if self.rules not in PRESETS:
            raise Refused(f"--mesh.rules {self.rules!r}: it must be one of {', '.join(PRESETS)}.")
        rules, given = (
            PRESETS[self.rules],
            f"--mesh.overrides {' '.join(map(' '.join, self.overrides))}: ",
        )
        for logical, text in self.overrides:
            names = [name for name, _ in rules]
            if logical in OF_ROWS or logical not in names:
                there = ", ".join(dict.fromkeys(name for name in names if name not in OF_ROWS))
                raise Refused(f"{given}{logical!r} has no rule that can be changed; {there} have.")
            axes = () if text == "none" else tuple(text.split("+"))
            if not set(axes) <= set(AXES) or len(set(axes)) < len(axes):
                raise Refused(
                    f"{given}{text!r} is not none, nor one or more of {', '.join(AXES)}, each once, with +."
                )
            place, chosen = names.index(logical), axes[0] if len(axes) == 1 else axes or None
            # where an activation's rows are over `fsdp` too, the rest of the axes holds
            new = dict.fromkeys([(logical, chosen), (logical, _without_fsdp(chosen))])
            rules = (*rules[:place], *new, *(rule for rule in rules[place:] if rule[0] != logical))
        return rules

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over those devices; all of this run's if not given. `Refused` if they cannot be laid out so."""
        devices = jax.devices() if devices is None else devices
        placed = place(self.sizes(len(devices)), devices)
        return jax.sharding.Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Everything traced inside sees the mesh and the rules (one without the other is silently nothing)."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def in_words(sizes: dict[str, int]) -> str:
    """The axes of a mesh that are split: `data 2, fsdp 4`."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"


def platform() -> str:
    """What is compiled for: "cpu", "gpu" or "tpu". The active mesh's devices say it, which need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over `ROWS`, the other axes whole; fits an array of any rank."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_host(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
    """The shardings of arrays that lie in their hosts' memory, numbers aside; `Refused` if a device cannot reach it."""
    kinds = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST not in kinds:
        raise Refused(
            f"--offload: this platform has no {HOST} memory, only {', '.join(kinds)}: leave it out."
        )
    return jax.tree.map(
        lambda x, at: at.with_memory_kind(HOST) if x.ndim else at, shapes, shardings
    )


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique([np.arange(batch)[index] for index in held if index is not None])


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, those of `local_rows`, as global arrays, rows split over the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    mine = len(local_rows(mesh, parts))

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) // mine * parts
        places = local_rows(mesh, size)

        def part(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(size)
            return rows[slice(*np.searchsorted(places, (begin, end)))]

        return jax.make_array_from_callback((size, *rows.shape[1:]), batch_sharding(mesh), part)

    return {name: place(rows) for name, rows in batch.items()}


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """`Refused` unless the rows of a batch divide over the mesh."""
    over = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch % over:
        text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS if mesh.shape[axis] > 1)
        raise Refused(
            f"--data.batch {batch} does not divide over {text} = {over} devices: "
            f"make it a multiple of {over}, or change the mesh."
        )


def check_length(length: int, mesh: jax.sharding.Mesh) -> None:
    """`Refused` unless the places of a row divide over the mesh."""
    if length % mesh.shape["sequence"]:
        raise Refused(
            f"--data.length {length} does not divide over sequence={mesh.shape['sequence']}: make it a multiple, or "
            f"change the mesh."
        )


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Any:
    """A `NamedSharding` a leaf, from variables boxed with their axes' names; `Refused` if a name has no rule, two axes
    want the same mesh axis, or a size does not divide."""
    logical = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(logical, mesh, rules)
    asked = dict(reversed(rules))  # the first rule of each name
    names, placed = leaves(logical), leaves(shardings)
    box = nn.meta.AxisMetadata
    # `nn.meta.unbox` would place what has no place yet, where another program's mesh is active
    shapes = jax.tree.map(
        lambda x: x.value if isinstance(x, box) else x, boxed, is_leaf=lambda x: isinstance(x, box)
    )  # type: ignore[attr-defined]
    for path, leaf in leaves(shapes).items():
        for size, name, axes in zip(leaf.shape, names[path], placed[path].spec, strict=False):
            said = f"parameter {path} of shape {tuple(leaf.shape)}: its axis '{name}' of {size}"
            if name is not None and name not in asked:
                raise Refused(f"{said} has no rule; {', '.join(asked)} have.")
            if name is not None and asked[name] != axes:
                raise Refused(
                    f"{said} is to be split over {'+'.join(as_tuple(asked[name]))}, some of which another of its axes "
                    f"{', '.join(map(str, names[path]))} takes: change one's rule with --mesh.overrides."
                )
            over = {axis: mesh.shape[axis] for axis in as_tuple(axes)}
            if size % math.prod(over.values()):
                raise Refused(
                    f"{said} does not divide over {' x '.join(f'{axis}={n}' for axis, n in over.items())}: "
                    f"change that size or the mesh."
                )
    return shardings
