"""The base class of models: how tools make a model smaller, and what they read of it.

`train --smoke` and `check` run a small copy of a model, `check` computes in float64 where the model
can, and `plan` tries what the backward pass recomputes. They ask the model's class by the methods
of `Model`.
"""

import abc
import dataclasses
from typing import Any, Literal, Self, get_args

import flax.linen as nn
import jax

from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.models.layers.heads import ClassifierHead

Remat = Literal["none", "attention", "dots", "projections", "full"]
"""In the order of what they save."""


class Model(nn.Module):
    """A Flax module with methods for the tools.

    The defaults read fields with the usual names, and change nothing where there are none. A model
    whose fields have other names overrides them.
    """

    @nn.nowrap
    def narrower(self) -> Self | None:
        """A copy with half the width; None if it cannot be halved.

        By default the fields `width` and `mlp_width`, unless one of them is odd.
        """
        names = ("width", "mlp_width")
        widths = {name: value for name in names if (value := getattr(self, name, None))}
        if not widths or any(width % 2 for width in widths.values()):
            return None
        return replaced(self, {name: width // 2 for name, width in widths.items()})

    @nn.nowrap
    def shallower(self, depth: int) -> Self:
        """A copy with at most this many layers, and one block a stage.

        By default the fields `depth` and `stages`; `remat_group` is kept where it divides the new
        depth.
        """
        depth = min(getattr(self, "depth", 1), depth)
        group = getattr(self, "remat_group", 1)
        fields = {
            "depth": depth,
            "remat_group": 1 if depth % group else group,
            "stages": (1,) * len(getattr(self, "stages", ())),
        }
        return replaced(self, fields)

    @nn.nowrap
    def with_dtype(self, dtype: str) -> Self | None:
        """A copy that computes in this dtype; None if it cannot. By default the field `dtype`."""
        return replaced(self, {"dtype": dtype}) if hasattr(self, "dtype") else None

    @nn.nowrap
    def remat_choices(self) -> tuple[str, tuple[Any, ...]]:
        """The field that says what the backward pass recomputes, and its values.

        The values are in the order of the memory that they save; the first recomputes nothing.
        There are none if the model has no such field. By default `remat`, with those of `Remat`.
        """
        return "remat", get_args(Remat) if hasattr(self, "remat") else ()

    @nn.nowrap
    def microbatch_count(self) -> int | None:
        """How many parts of a batch pass the mesh's `stage` one after another.

        0: the whole batch at once; None: the model does not run in stages. By default the field
        `microbatches`.
        """
        return getattr(self, "microbatches", None)

    @nn.nowrap
    def features(self, *arguments: Any, **named: Any) -> jax.Array:
        """The features of each example [B, D], to fit something else on the frozen model.

        By default the input of the `ClassifierHead`, when the model is called with these arguments.

        Raises:
          Refused: the model has no such head.
        """
        return head_input(self, *arguments, **named)


class Classifier(Model):
    """Base class of models that give a logit a class."""

    classes: PositiveInt
    """Number of classes."""


class Translator(Model):
    """Base class of encoder-decoders: logits of a target from a source."""

    @abc.abstractmethod
    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> Any:
        """Source tokens [B, S], lengths [B] -> the memory, which `decode` reads."""

    @abc.abstractmethod
    def decode(
        self, previous: jax.Array, memory: Any, train: bool = False, cache: int = 0
    ) -> jax.Array:
        """Target tokens before each position [B, T] -> logits [B, T, V], float32."""

    @nn.nowrap
    def features(self, *arguments: Any, **named: Any) -> jax.Array:
        """Raises `Refused`: a translator has no classifier head."""
        raise without_features(self)

    def __call__(
        self,
        inputs: jax.Array,
        previous: jax.Array,
        lengths: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Source tokens [B, S], target tokens before each position [B, T], lengths [B] -> logits
        [B, T, V], float32."""
        return self.decode(previous, self.encode(inputs, lengths, train), train)


def head_input(model: Any, *arguments: Any, **named: Any) -> jax.Array:
    """What a model that is bound to its variables gives to its `ClassifierHead`, when called."""
    seen: list[jax.Array] = []

    def keep(method: Any, given: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, ClassifierHead) and context.method_name == "__call__":
            seen.append(given[0])
        return method(*given, **options)

    with nn.intercept_methods(keep):
        model(*arguments, **named)
    if not seen:
        raise without_features(model)
    return seen[-1]


def without_features(model: nn.Module) -> Refused:
    """The error for a model whose features are not known."""
    return Refused(
        f"{type(model).__name__} has no ClassifierHead, whose input would be its features: give it "
        f"a method features(self, inputs, train=False) that returns them [B, D]."
    )


def model_class(model: nn.Module) -> Any:
    """The class whose methods apply to a model: its own, or `Model` for a plain Flax module.

    Called as in `model_class(model).narrower(model)`.
    """
    return type(model) if isinstance(model, Model) else Model


def replaced(value: Any, fields: dict[str, Any]) -> Any:
    """The dataclass with these fields replaced; fields that it does not have are ignored."""
    names = {field.name for field in dataclasses.fields(value)}
    return dataclasses.replace(
        value, **{name: new for name, new in fields.items() if name in names}
    )
