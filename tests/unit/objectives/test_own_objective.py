"""The usual mistakes in an objective or a model of one's own: each is refused in one sentence."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest
from flax import nnx
from support.experiments import small

from jaxbig.errors import Refused
from jaxbig.objectives.base import Objective, Sum, call, masked
from jaxbig.program.program import make_program


@dataclasses.dataclass(frozen=True)
class Mine(Objective):
    """Returns what a test names."""

    returned: str

    def __call__(self, forward: Any, batch: Any, key: Any, train: bool) -> Any:
        losses = jnp.square(call(forward, batch, train)).mean(axis=-1)
        mask = batch["mask"]
        loss = masked(losses, mask)
        match self.returned:
            case "mean":
                return losses.mean()
            case "mean as loss":
                return {"loss": losses.mean()}
            case "mean as metric":
                return {"loss": loss, "size": losses.mean()}
            case "tuple":
                return loss, {}
            case "no loss":
                return {"size": loss}
            case "not added up":
                return {"loss": Sum(losses, mask.sum())}
            case "masked mean":
                return {"loss": masked(losses.mean(), mask)}
            case "mean in training":
                return losses.mean() if train else {"loss": loss}
        return {"loss": loss}


@dataclasses.dataclass(frozen=True)
class Short(Objective):
    """Leaves out two parameters."""

    def __call__(self, forward: Any, batch: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


class Plain(nn.Module):
    """Takes no `train`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(10)(x.reshape(len(x), -1))


class PlainNnx(nnx.Module):
    """Takes no `train` either."""

    def __init__(self, rngs: Any):
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(x.reshape(len(x), -1))


FIX = r": it must return sums, such as {'loss': masked\(losses, batch\['mask'\]\)}, not a mean"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("mean", r"^Mine.__call__ returns float32 scalar" + FIX),
        ("mean as loss", "returns float32 scalar as 'loss'" + FIX),
        ("mean as metric", "returns float32 scalar as 'size'" + FIX),
        ("tuple", "returns tuple" + FIX),
        ("no loss", r"returns no 'loss' \(it has size\)" + FIX),
        ("not added up", r"'loss' whose total is float32 \[16\].*: both must be scalars"),
        ("masked mean", r"values are float32 scalar, and the mask is float32 \[16\]"),
    ],
)
def test_what_is_no_sums_is_refused_before_anything_is_compiled(
    returned: str, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        make_program(small("digits_convnet", objective=Mine(returned)))


def test_what_is_no_sums_in_training_alone_is_refused() -> None:
    program = make_program(small("digits_convnet", objective=Mine("mean in training")))
    with program.activate(), pytest.raises(Refused, match="returns float32 scalar" + FIX):
        program.train_step.lower(program.abstract, program.batch)


def test_parameters_that_an_objective_lacks_are_named() -> None:
    with pytest.raises(Refused, match=r"^Short.__call__ must take \(self, forward, batch, key, tr"):
        make_program(small("digits_convnet", objective=Short()))


@pytest.mark.parametrize("model", [Plain(), nnx.bridge.ToLinen(PlainNnx)], ids=["linen", "nnx"])
def test_a_model_without_train_is_refused_with_the_parameter(model: Any) -> None:
    name = r"^Plain(Nnx)?.__call__ needs a parameter train: bool = False"
    with pytest.raises(Refused, match=name):
        make_program(small("digits_convnet", model=model))
