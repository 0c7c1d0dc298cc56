"""The device mesh of an experiment: its axes, their sizes and the sharding rules.

Models name logical axes (`batch`, `embed`, `mlp`, ...); other hardware needs another `Mesh` in the
experiment, and no change of the model.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxbig.distributed.logical_axes import OF_ROWS, PRESETS, RULES, Preset, Rules, without
from jaxbig.distributed.placement import AXES, arrange_devices
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The size of each mesh axis, in devices; one axis may be -1 and takes the rest."""

    data: int = -1
    """Replicas of the model, each with its own rows of the batch."""
    fsdp: int = 1
    """Fully sharded data parallel: splits the rows of the batch and the stored parameters."""
    tensor: int = 1
    """Tensor parallel: splits each layer's width."""
    sequence: int = 1
    """Splits each row's length; attention all-gathers keys and values, or sends less
    (`--model.attention-kernel` ring, zigzag or ulysses)."""
    expert: int = 1
    """Splits the rows of the batch, and the experts of a mixture."""
    stage: int = 1
    """Pipeline parallel: splits a scanned Transformer's layers, for `--model.microbatches`; outside
    of them the rows of the batch."""
    rules: Preset = "standard"
    """Which mesh axes split what. length_over_tensor: `tensor` also splits the length between the
    products whose width it splits, so that the inputs of layers take less memory (Korthikanti et
    al., 2022)."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Changed rules, each a logical axis and its mesh axes, joined by + or none, as in
    `--mesh.overrides embed none mlp tensor+fsdp`; `vocab none` if `tensor` does not divide the
    vocabulary."""

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The size of each axis in `AXES` on this many devices; `Refused` if they do not fit."""
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
                f"mesh {text} needs {needs} devices and there are {devices}: change --mesh.data or "
                f"another axis (on CPU, JAX_NUM_CPU_DEVICES={fixed} gives {fixed} devices)."
            )
        return tuple(devices // fixed if size == -1 else size for size in asked)

    def table(self) -> Rules:
        """The preset's rules with this mesh's overrides; raises `Refused` for unknown names."""
        if self.rules not in PRESETS:
            raise Refused(f"--mesh.rules {self.rules!r}: it must be one of {', '.join(PRESETS)}.")
        rules = PRESETS[self.rules]
        given = f"--mesh.overrides {' '.join(map(' '.join, self.overrides))}: "
        for logical, text in self.overrides:
            names = [name for name, _ in rules]
            if logical in OF_ROWS or logical not in names:
                known = ", ".join(dict.fromkeys(name for name in names if name not in OF_ROWS))
                raise Refused(f"{given}{logical!r} has no rule that can be changed; {known} have.")
            axes = () if text == "none" else tuple(text.split("+"))
            if not set(axes) <= set(AXES) or len(set(axes)) < len(axes):
                raise Refused(
                    f"{given}{text!r} is not none, nor one or more of {', '.join(AXES)}, "
                    f"each once, joined by +."
                )
            place = names.index(logical)
            chosen = axes[0] if len(axes) == 1 else axes or None
            # the second rule is for activations, whose rows may be split over `fsdp` already
            new = dict.fromkeys([(logical, chosen), (logical, without("fsdp", chosen))])
            rules = (*rules[:place], *new, *(rule for rule in rules[place:] if rule[0] != logical))
        return rules

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over these devices (default: all of this run's).

        Raises:
          Refused: the devices do not fit, or cannot be arranged like this.
        """
        devices = jax.devices() if devices is None else devices
        arranged = arrange_devices(self.sizes(len(devices)), devices)
        kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
        return jax.sharding.Mesh(arranged, AXES, axis_types=kinds)


@contextlib.contextmanager
def activate(mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Sets the mesh and the rules for all that is traced inside; one alone has no effect."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def format_mesh(sizes: dict[str, int]) -> str:
    """The axes larger than 1: `data 2, fsdp 4`."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
