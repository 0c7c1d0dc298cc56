"""The regression objective: squared, absolute or Huber loss in the step; R2 on the host. Pure.

Letters in shape comments: B batch, K numbers an example.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveFloat, validate
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sum,
    Sums,
    Words,
    as_numbers,
    call,
    masked,
)

COLUMNS = ("squared_error", "target", "target_square")


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """The loss that was chosen, mean squared error, mean absolute error and, in evaluation, R2.

    Reads `inputs` [B, ...], `targets` [B] or [B, K], `mask` [B], and what else the model takes. The
    model gives the targets' shape, or [B, 1] for [B]. Errors are means over the K; R2 is 1 -
    (squared error) / (squared distance from the mean) of each of the K, then their mean.
    """

    loss: Literal["mse", "mae", "huber"] = "mse"
    """Mean squared error, mean absolute error, or Huber's (1964)."""
    delta: PositiveFloat = 1.0
    """Errors up to this are squared and halved by "huber", larger ones grow linearly."""
    center: tuple[float, ...] = ()
    """One of each of the K: R2's sums are of targets less these (none: less 0). Give numbers near
    the means if those are large against the spread: float32 sums of squares lose the difference."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        if self.loss not in ("mse", "mae", "huber"):
            raise Refused(f"loss {self.loss!r}: it must be one of mse, mae, huber.")
        validate(self)
        given = self._outputs(forward, batch, train)
        targets = upcast(batch["targets"])
        mask = upcast(batch["mask"])
        error = (given - targets).reshape(len(targets), -1)  # [B, K]
        squares = jnp.square(error)
        sizes = jnp.abs(error)
        huber = jnp.where(sizes < self.delta, squares / 2, self.delta * (sizes - self.delta / 2))
        values = {"mse": squares, "mae": sizes}
        values["loss"] = {**values, "huber": huber}[self.loss]
        sums = {name: masked(jnp.mean(each, axis=1), mask) for name, each in values.items()}
        if self.center and len(self.center) != error.shape[1]:
            raise Refused(
                f"center has {len(self.center)} numbers for {error.shape[1]} targets: make them "
                f"equal."
            )
        if not train:
            y = targets.reshape(error.shape) - jnp.broadcast_to(
                jnp.array(self.center or (0.0,)), error.shape
            )
            for name, each in zip(COLUMNS, (squares, y, jnp.square(y)), strict=True):
                sums[name] = Sum(
                    jnp.sum(each * jnp.broadcast_to(mask[:, None], each.shape), axis=0),
                    jnp.sum(mask),
                )
        return sums

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(
            {name: each for name, each in sums.items() if name not in COLUMNS}
        )
        if COLUMNS[0] not in sums:
            return metrics
        error, mean, square = (
            np.asarray(sums[name].mean(), np.float64) for name in COLUMNS
        )  # [K] each
        variance = np.maximum(square - mean**2, 0)
        constant = variance == 0  # as scikit-learn: 1 for a perfect answer to a constant, else 0
        r2 = np.where(constant, error == 0, 1 - error / np.where(constant, 1, variance))
        return metrics | {"r2": float(r2.mean())}

    def _outputs(self, forward: nn.Module, batch: Batch, train: bool) -> jax.Array:
        """What the model gives, in the targets' shape."""
        given = upcast(call(forward, batch, train))
        shape = batch["targets"].shape
        given = given[:, 0] if given.shape == (*shape, 1) else given
        if given.shape != shape:
            raise Refused(f"the model gives {given.shape} for targets {shape}: make them equal.")
        return given

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`value` [B], or [B, K]."""
        return {"value": self._outputs(forward, batch, train=False)}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`value`, and `target` if it is known, in the units of the records."""
        row = {"value": as_numbers(words.in_units(found["value"]))}
        if "targets" in found:
            row["target"] = as_numbers(words.in_units(found["targets"]))
        return row
