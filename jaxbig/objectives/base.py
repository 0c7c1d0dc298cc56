"""The base class of objectives: calls the model on a batch, returns sums of losses and metrics."""

import abc
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxbig.arrays.batch_mask import Batch, batch_mask, of_rows
from jaxbig.arrays.dtypes import upcast
from jaxbig.errors import Refused

SIDE = ("lengths", "segments", "positions", "starts", "types", "numbers")
"""What a batch may hold besides inputs that a model wants to see."""


@struct.dataclass
class Sum:
    """A weighted sum and its weight, so that means over batches and devices are never means of
    means.

    total: a scalar, or an array such as one count a class; weight: a scalar.
    """

    total: Any
    weight: Any

    def mean(self) -> Any:
        """NaN over nothing."""
        with np.errstate(invalid="ignore"):
            return self.total / self.weight

    def mean_or_zero(self) -> Any:
        """The same, 0 over nothing: for what is differentiated."""
        return self.total / (self.weight + (self.weight == 0))


Sums = dict[str, Sum]
Found = Mapping[str, np.ndarray]
"""What `Objective.predict` gives for one example, [...] each by name."""


class Words(Protocol):
    """What a data set says of the numbers of its targets."""

    def class_name(self, number: int) -> str:
        """The name of a class."""
        ...

    def text(self, tokens: np.ndarray) -> str:
        """Tokens [L] as a text."""
        ...

    def in_units(self, targets: np.ndarray) -> np.ndarray:
        """Targets that are numbers, in the units of the records."""
        ...


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What is learned: calls the model (so that it may call it twice, or corrupt first) and gives
    sums."""

    criterion = "loss"
    """Evaluation metric that selects the best checkpoint."""
    higher_is_better = False
    criterion_of: ClassVar[str] = ""
    """The class of the metric that gives the criterion, where the objective does not."""
    feeds_inputs: ClassVar[bool] = True
    """Whether the model is called on a batch's `inputs`; if not, what does so itself is refused."""
    mixes_rows: ClassVar[bool] = False
    """Whether an example's loss depends by design on the other examples of its batch, such as its
    negatives."""
    ordered: ClassVar[str] = ""
    """The field [B, L] of which a position's loss may depend on nothing later; empty: none."""
    described: ClassVar[tuple[str, ...]] = ("targets", "mask")
    """The fields of an example that `describe` gets beside what `predict` returned; but for
    `inputs`, only where the answer is known."""

    @abc.abstractmethod
    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        """forward: the model bound to parameters and variables; batch: arrays [B, ...] with `mask`,
        0 for padding; key: for the objective's own randomness. Gives `loss` (its mean is minimized)
        and metrics; totals are scalars in training.
        """

    def summarize(self, sums: Sums) -> dict[str, float]:
        """The means over an evaluation, or of a training step, with what follows from them, such as
        perplexity."""
        return {name: float(each.mean()) for name, each in sums.items()}

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """What is predicted for each example, arrays [B, ...] by name; compiled, and pure.

        By default the model's `outputs`. An example's numbers may depend on no other's.

        Args:
          forward: the model, as `__call__` gets it.
          batch: likewise; the `targets` mean nothing where the answer is not known.
          key: that of an evaluation.
          top: how many of many answers to report.
        """
        return {"outputs": call(forward, batch, train=False)}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """A prediction in words: names with plain values, as a line of JSON has them.

        By default all that `predict` returned, as numbers.

        Args:
          found: what `predict` returned for an example, and the fields of it that `described`
            names, as they are read from the data.
          words: the data.
          top: how many of many answers to report.
        """
        return {name: as_numbers(each) for name, each in found.items()}


def as_numbers(array: Any) -> Any:
    """An array [...] as a number or nested lists, each float with as few digits as identify it."""
    array = np.asarray(array)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype != np.float64:  # bfloat16 among them
        array = array.astype(np.float32)
    return array.astype(str).astype(np.float64).tolist()


def sums_of(
    objective: Objective, forward: nn.Module, batch: Batch, *, key: jax.Array, train: bool
) -> Sums:
    """What an objective gives for a batch; raises `Refused` if these are no sums."""
    where = f"{type(objective).__name__}.__call__"
    try:
        inspect.signature(objective).bind(forward, batch, key, train)
    except TypeError:
        raise Refused(f"{where} must take (self, forward, batch, key, train).") from None
    sums: Any = objective(forward, batch, key, train)
    fix = "it must return sums, such as {'loss': masked(losses, batch['mask'])}, not a mean."
    if not isinstance(sums, Mapping):
        raise Refused(f"{where} returns {in_words(sums)}: {fix}")
    if "loss" not in sums:
        raise Refused(f"{where} returns no 'loss' (it has {', '.join(sums) or 'nothing'}): {fix}")
    for name, each in sums.items():
        if not isinstance(each, Sum):
            raise Refused(f"{where} returns {in_words(each)} as {name!r}: {fix}")
        if (train or name == "loss") and (jnp.shape(each.total) or jnp.shape(each.weight)):
            raise Refused(
                f"{where} returns a {name!r} whose total is {in_words(each.total)} and whose "
                f"weight is {in_words(each.weight)}: both must be scalars; masked(...) adds up."
            )
    return cast(Sums, sums)


def in_words(value: Any) -> str:
    """An array by its dtype and shape, as `float32 [8, 10]`; anything else by its type."""
    if not hasattr(value, "dtype"):
        return type(value).__name__
    return f"{value.dtype} {list(value.shape) or 'scalar'}"


def call(
    forward: nn.Module, batch: Batch, train: bool, method: str | Callable[..., Any] = "__call__"
) -> jax.Array:
    """The model, or a method of it, on a batch's inputs and on what else of `SIDE` the batch
    holds; a method may be a function that takes the model first."""
    side = {name: batch[name] for name in SIDE if name in batch}
    owner = getattr(forward, "nnx_class", type(forward))
    function = getattr(owner, method) if isinstance(method, str) else method
    taken = inspect.signature(function).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        if "train" not in taken:
            raise Refused(
                f"{owner.__name__}.{function.__name__} needs a parameter train: bool = False."
            )
        for name in side:
            if name not in taken:
                raise Refused(
                    f"the data gives {name}, which {owner.__name__} does not take: change one of "
                    f"them."
                )
    inputs = batch["inputs"]
    mask = batch["mask"]
    with batch_mask(mask if mask.shape == inputs.shape else of_rows(mask)):
        bound = getattr(forward, method) if isinstance(method, str) else partial(method, forward)
        return bound(inputs, **side, train=train)


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log softmax(logits)[targets] in nats, computed in float32 for accuracy.

    Args:
      logits: [..., K].
      targets: [...], class numbers.
      smoothing: label smoothing, the share of each target spread evenly over the K classes
        (Szegedy et al., 2016).

    Returns:
      [...].
    """
    logits = upcast(logits)
    expected = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * jnp.mean(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def check_logits(logits: jax.Array, kinds: int, name: str) -> None:
    """`Refused` unless logits [..., K] are as many as there are kinds."""
    if logits.shape[-1] != kinds:
        raise Refused(
            f"the model gives {logits.shape[-1]} logits for {kinds} {name}: make them equal."
        )


def masked(values: jax.Array, mask: jax.Array) -> Sum:
    """The sum of `values` where `mask` is 1, and how many those are; both of one shape."""
    try:
        chex.assert_equal_shape([values, mask])
    except AssertionError:
        raise Refused(
            f"masked(values, mask): values are {in_words(values)}, and the mask is "
            f"{in_words(mask)}: give a value for each number of the mask."
        ) from None
    values = upcast(values)
    mask = mask.astype(values.dtype)
    return Sum(jnp.sum(values * mask), jnp.sum(mask))


def exponential(nats: float) -> float:
    """Perplexity from nats; infinite where it is too large for a float, and never an error."""
    return math.inf if nats > 700 else math.exp(nats)  # the exponential of NaN is NaN
