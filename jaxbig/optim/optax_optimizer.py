"""`Optax`: any optimizer of optax by its name, as `Optax(name="lion", learning_rate=...)`."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxbig.errors import Refused
from jaxbig.optim.matrix_axes import Axes
from jaxbig.optim.optimizers import Optimizer

MASKS = ("mask", "weight_decay_mask")
"""What optax's functions call the parameters that decay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optax(Optimizer):
    """An optimizer of optax, as `optax.lion`, or a part of one, as `optax.scale_by_lion`.

    It takes the learning rate and the mask of `decayed` if the function has arguments for them;
    else its updates are multiplied by the learning rate.
    """

    name: str
    """Name of the function in optax: lion, adafactor, contrib.muon."""
    arguments: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Its other arguments by name; those that are not given have optax's defaults."""

    def direction(self) -> optax.GradientTransformation:
        return self.transformation()

    def updates(self, steps: int, axes: Axes) -> list[optax.GradientTransformation]:
        if "learning_rate" not in self.parameters():
            return super().updates(steps, axes)
        rate = self.learning_rate.build(steps)
        masks = {each: self.penalized() for each in MASKS if each in self.parameters()}
        return [self.transformation(learning_rate=rate, **masks)]

    def check_fields(self) -> None:
        """Tries the transformation on one small parameter."""
        if "schedule_free" in self.name:
            raise Refused(
                f"name {self.name!r}: evaluation needs its average of the parameters: give "
                f"--optimizer ScheduleFree."
            )
        params = {"kernel": jnp.zeros((2, 2))}
        rate = {"learning_rate": self.learning_rate.build(1)}
        given = rate if "learning_rate" in self.parameters() else {}

        def update() -> Any:
            transformation = self.transformation(**given)
            return transformation.update(params, transformation.init(params), params)

        try:
            jax.eval_shape(update)
        except Refused:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise Refused(
                f"name {self.name!r} does not work as a plain optimizer with a learning rate of "
                f"each step: {type(error).__name__}: {said}; write a class of your own with "
                f"`direction()`."
            ) from error

    def rule(self, path: str, shape: Sequence[int], axes: Axes) -> str:
        return f"optax.{self.name.removeprefix('optax.')}"

    def function(self) -> Callable[..., Any]:
        """The function of optax."""
        known = {name: each for name, each in vars(optax).items() if name[0] != "_"}
        known |= {f"contrib.{name}": each for name, each in vars(optax.contrib).items()}
        name = str(self.name).removeprefix("optax.")
        if not inspect.isfunction(known.get(name)):
            near = difflib.get_close_matches(name, known, n=3)
            nearest = f"; the nearest are {', '.join(near)}" if near else ""
            raise Refused(f"name {self.name!r}: optax has no function of that name{nearest}.")
        return known[name]

    def parameters(self) -> list[str]:
        """Names of the function's arguments."""
        return list(inspect.signature(self.function()).parameters)

    def transformation(self, **given: Any) -> optax.GradientTransformation:
        """What the function returns for `arguments` and those given here."""
        unknown = [name for name in self.arguments if name not in self.parameters()]
        if unknown:
            raise Refused(
                f"arguments {unknown[0]!r}: optax.{self.name} has no argument of that name; it has "
                f"{', '.join(self.parameters())}."
            )
        if twice := [name for name in given if name in self.arguments]:
            raise Refused(
                f"arguments {twice[0]!r}: it is set by --optimizer.learning-rate and "
                f"--optimizer.decayed."
            )
        made = self.function()(**self.arguments, **given)
        if not isinstance(made, optax.GradientTransformation):
            raise Refused(f"name {self.name!r}: it is no gradient transformation of optax.")
        return made
