"""Learning-rate schedules over the steps of a run."""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxbig.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, choose

Shape = Literal["root", "line"]


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """A learning rate a step."""

    @abc.abstractmethod
    def build(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, in a run of `steps` steps."""


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step."""

    peak: NonNegativeFloat
    """The rate."""

    def build(self, steps: int) -> optax.Schedule:
        return lambda step: jnp.asarray(self.peak, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """From 0 up to `peak` in `warmup` steps, then down to `end` after the last step."""

    peak: NonNegativeFloat
    """The highest rate."""
    warmup: NonNegativeInt = 0
    """How many steps it takes to get there, or all of a shorter run."""
    end: NonNegativeFloat = 0.0
    """The rate at the end of the run."""

    def build(self, steps: int) -> optax.Schedule:
        warmup = min(self.warmup, steps)
        rise = optax.linear_schedule(0.0, self.peak, warmup)
        return optax.join_schedules([rise, self.fall(steps - warmup)], [warmup])

    @abc.abstractmethod
    def fall(self, steps: int) -> optax.Schedule:
        """From `peak` to `end` in `steps` steps."""


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Warmup):
    """Up in a line, down along half a cosine (Loshchilov and Hutter, 2017, without restarts)."""

    def fall(self, steps: int) -> optax.Schedule:
        alpha = self.end / self.peak if self.peak else 0.0
        return optax.cosine_decay_schedule(self.peak, max(steps, 1), alpha)


@dataclasses.dataclass(frozen=True)
class WarmupLinear(Warmup):
    """Up in a line, down in a line."""

    def fall(self, steps: int) -> optax.Schedule:
        return optax.linear_schedule(self.peak, self.end, max(steps, 1))


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Warmup):
    """Up in a line, constant, and down at the end (Hu et al., 2024; Hägele et al., 2024).

    A run may be continued from a checkpoint of the constant part for as long as one likes.
    """

    decay: Probability = 0.2
    """The share of the run in which the rate falls, or less where the warmup takes the rest."""
    shape: Shape = "root"
    """How it falls: with the root of the time, as 1 - sqrt(t), or in a line."""

    def check_fields(self) -> None:
        choose("shape", self.shape, Shape)

    def build(self, steps: int) -> optax.Schedule:
        warmup = min(self.warmup, steps)
        down = min(round(self.decay * steps), steps - warmup)
        rise = optax.linear_schedule(0.0, self.peak, warmup)
        constant = optax.constant_schedule(self.peak)
        return optax.join_schedules([rise, constant, self.fall(down)], [warmup, steps - down])

    def fall(self, steps: int) -> optax.Schedule:
        def rate(step: Any) -> jax.Array:
            share = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0, 1)
            share = jnp.sqrt(share) if self.shape == "root" else share
            return self.peak + (self.end - self.peak) * share

        return rate


@dataclasses.dataclass(frozen=True)
class WarmupInverseRoot(Schedule):
    """Up in a line, then down with the inverse root of the step (Vaswani et al., 2017, eq. 3).

    The paper's rate for width D is `peak = (D * warmup) ** -0.5`.
    """

    peak: NonNegativeFloat
    """The highest rate."""
    warmup: NonNegativeInt
    """How many steps it takes to get there."""

    def build(self, steps: int) -> optax.Schedule:
        def rate(step: Any) -> jax.Array:
            made = jnp.asarray(step, jnp.float32) + 1
            warmup = max(self.warmup, 1)
            return self.peak * jnp.minimum(made / warmup, jnp.sqrt(warmup / made))

        return rate


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """From `start` to `end`, times the same factor each step, as a learning-rate finder needs."""

    start: PositiveFloat
    """The rate of the first step."""
    end: PositiveFloat
    """The rate of the last step."""

    def build(self, steps: int) -> optax.Schedule:
        factor = (self.end / self.start) ** (1 / max(steps - 1, 1))
        return lambda step: jnp.asarray(self.start * factor**step, jnp.float32)
