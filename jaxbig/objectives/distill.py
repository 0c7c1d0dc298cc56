"""Distillation: another model's outputs as targets, besides the data's own.

Letters in shape comments: K classes or tokens.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveFloat, Probability
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Found, Objective, Sum, Sums, Words, masked

Teacher = Callable[..., jax.Array]
"""Called with what the model was called with; gives the teacher's outputs."""
_teachers: list[Teacher] = []


@contextlib.contextmanager
def taught_by(teacher: Teacher | None) -> Iterator[None]:
    """A context in which `Distill` is traced with this teacher, if any."""
    given = [] if teacher is None else [teacher]
    _teachers.extend(given)
    try:
        yield
    finally:
        del _teachers[len(_teachers) - len(given) :]


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
    """An objective, and the outputs of a trained run's model (Hinton et al., 2015).

    The loss is `hard_weight` times the objective's own, and for the rest temperature^2 times the
    Kullback-Leibler divergence of the model's softmax from the teacher's, both at the temperature.
    Teacher and model may be of any two kinds that give logits [..., K] for the same inputs. An
    evaluation is that of the objective alone, and needs no teacher.
    """

    objective: Objective
    """What is learned from the data's own targets."""
    teacher: str
    """The folder of the teacher's run; its best checkpoint is used."""
    temperature: PositiveFloat = 2.0
    """Both models' logits are divided by this."""
    hard_weight: Probability = 0.1
    """The weight of the objective's own loss; the rest is the teacher's."""

    @property
    def criterion(self) -> str:  # type: ignore[override]
        return self.objective.criterion

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.objective.higher_is_better

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in Distill.__dataclass_fields__:
            raise AttributeError(name)
        return getattr(self.objective, name)  # such as the number of classes

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        if not train:
            return self.objective(forward, batch, key, train)
        if not _teachers:
            raise no_teacher(self.teacher)
        calls: list[tuple[Any, Any, Any]] = []
        with recording(calls):
            sums = self.objective(forward, batch, key, train)
        if not calls:
            raise Refused(
                f"objective.objective {type(self.objective).__name__} does not call the model as a "
                f"whole, so there are no logits to compare with the teacher's: set its chunks to 0."
            )
        arguments, named, logits = calls[-1]
        expected = _teachers[-1](*arguments, **{**named, "train": False})
        if expected.shape != logits.shape:
            raise Refused(
                f"--objective.teacher {self.teacher}: it gives outputs of the shape "
                f"{list(expected.shape)}, the model {list(logits.shape)}: they must be equal."
            )
        if batch["mask"].shape != logits.shape[:-1]:
            raise Refused(
                f"the model gives outputs of the shape {list(logits.shape)} for a mask "
                f"{list(batch['mask'].shape)}: a teacher needs logits of classes or tokens."
            )
        losses = divergence(logits, jax.lax.stop_gradient(expected), self.temperature)
        soft = masked(losses, batch["mask"])
        hard = sums["loss"]
        share = hard.weight / jnp.maximum(soft.weight, 1)  # the two may weigh differently
        total = self.hard_weight * hard.total + (1 - self.hard_weight) * soft.total * share
        return {
            "cross_entropy": hard,
            **sums,
            "loss": Sum(total, hard.weight),
            "distillation": soft,
        }

    def summarize(self, sums: Sums) -> dict[str, float]:
        extra = {name: float(each.mean()) for name, each in sums.items() if name == "distillation"}
        own = {name: each for name, each in sums.items() if name not in extra}
        return self.objective.summarize(own) | extra

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """What the objective predicts."""
        return self.objective.predict(forward, batch, key=key, top=top)

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """That in the objective's words."""
        return self.objective.describe(found, words, top=top)


def no_teacher(folder: str, command: str = "") -> Refused:
    """The error for a teacher that is not there; `command` says how to train it."""
    return Refused(
        f"--objective.teacher {folder!r}: there is no run with a checkpoint: train it first"
        f"{command}, or name another folder."
    )


def divergence(logits: jax.Array, expected: jax.Array, temperature: float) -> jax.Array:
    """temperature^2 * KL(softmax(expected / temperature) || softmax(logits / temperature)).

    Args:
      logits: [..., K].
      expected: [..., K], the teacher's.
      temperature: of both.

    Returns:
      [...], in nats.
    """
    ours = jax.nn.log_softmax(upcast(logits) / temperature)
    theirs = jax.nn.log_softmax(upcast(expected) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def recording(calls: list[tuple[Any, Any, Any]]) -> contextlib.AbstractContextManager[None]:
    """A context in which each call of the model as a whole is appended to a list: its arguments,
    its named arguments, and what it returned."""

    def call(method: Any, arguments: Any, named: Any, context: Any) -> Any:
        returned = method(*arguments, **named)
        if not context.module.path and context.method_name == "__call__":
            calls.append((arguments, named, returned))
        return returned

    return nn.intercept_methods(call)
