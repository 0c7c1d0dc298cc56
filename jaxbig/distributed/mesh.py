"""The device mesh, and the rules that say which mesh axes a logical axis is split over.

Models name logical axes (`batch`, `embed`, `mlp`, ...); moving a run to other hardware changes the `Mesh` of
its experiment and no model.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxbig.distributed.logical_axes import OF_ROWS, PRESETS, RULES, Preset, Rules, without_fsdp
from jaxbig.distributed.placement import AXES, arrange_devices
from jaxbig.errors import Refused


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
            new = dict.fromkeys([(logical, chosen), (logical, without_fsdp(chosen))])
            rules = (*rules[:place], *new, *(rule for rule in rules[place:] if rule[0] != logical))
        return rules

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over those devices; all of this run's if not given. `Refused` if they cannot be laid out so."""
        devices = jax.devices() if devices is None else devices
        placed = arrange_devices(self.sizes(len(devices)), devices)
        return jax.sharding.Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Everything traced inside sees the mesh and the rules (one without the other is silently nothing)."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def format_mesh(sizes: dict[str, int]) -> str:
    """The axes of a mesh that are split: `data 2, fsdp 4`."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
