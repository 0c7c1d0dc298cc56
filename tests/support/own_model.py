"""An experiment with a user's model and data, whose fields have names of their own."""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.digits import Digits
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import Linear, cast
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant


class Tower(Model):
    """Residual layers of the same width."""

    labels: int = 10
    blocks: int = 5
    units: int = 4096
    number_type: str = "bfloat16"
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, labels], float32."""
        x = cast(x, self.number_type).reshape(x.shape[0], -1)
        x = constrain(Linear((self.units,), (None, "embed"), name="first")(x), "batch", None)

        def layer(module: nn.Module, x: jax.Array, number: int) -> jax.Array:
            y = Linear((self.units,), ("embed", "mlp"), name=f"block_{number}", parent=module)(x)
            return constrain(x + nn.tanh(y), "batch", None)

        for number in range(self.blocks):
            run = nn.remat(layer, static_argnums=(2,)) if self.recompute else layer
            x = run(self, x, number)
        return ClassifierHead(self.labels, name="head")(x)

    def narrower(self) -> Self:
        return self.clone(units=max(1, self.units // 2))

    def shallower(self, depth: int) -> Self:
        return self.clone(blocks=min(self.blocks, depth))

    def with_dtype(self, dtype: str) -> Self:
        return self.clone(number_type=dtype)

    def remat_choices(self) -> tuple[str, tuple[Any, ...]]:
        return "recompute", (False, True)


def config() -> Experiment:
    return Experiment(
        model=Tower(),
        objective=Classification(classes=10),
        data=Digits(batch=64),
        optimizer=SGD(learning_rate=Constant(0.01)),
        mesh=Mesh(data=-1),
        steps=10,
        evaluate_every=10,
        checkpoint_every=10,
    )


def resized(**fields: Any) -> Experiment:
    """The experiment with these fields of its model."""
    experiment = config()
    return dataclasses.replace(experiment, model=experiment.model.clone(**fields))
