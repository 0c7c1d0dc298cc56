"""A model of your own: an MLP-Mixer (Tolstikhin et al., 2021) over the rows of an image.

Letters in shape comments: B batch, Y and X height and width, C channels, D width.
"""

import flax.linen as nn
import jax

import jaxbig as jb
from jaxbig.models.layers.basic import LayerNorm, Linear
from jaxbig.models.layers.parameters import constrain


class Mixer(jb.models.Model):
    """Rows are mixed with each other, then each within itself."""

    classes: int
    depth: int = 2
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes]."""
        x = x.reshape(*x.shape[:2], -1)
        x = Linear((self.width,), (None, "embed"), name="rows")(x)  # [B, Y, D]
        for layer in range(self.depth):
            y = LayerNorm(name=f"norm_{layer}_between")(x).swapaxes(1, 2)  # [B, D, Y]
            y = Linear(y.shape[-1:], (None, None), name=f"between_{layer}")(nn.gelu(y))
            x = constrain(x + y.swapaxes(1, 2), "batch", None, None)
            y = LayerNorm(name=f"norm_{layer}")(x)
            y = Linear((2 * self.width,), ("embed", "mlp"), name=f"up_{layer}")(y)
            y = Linear((self.width,), ("mlp", "embed"), name=f"down_{layer}")(nn.gelu(y))
            x = constrain(x + y, "batch", None, None)
        x = constrain(x.mean(axis=1), "batch", None)
        x = Linear((self.classes,), ("embed", "classes"), name="head")(x)
        return constrain(x, "batch", None)


def config() -> jb.Experiment:
    return jb.load("digits_convnet").replace(model=Mixer(classes=10), steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/mixer")
    for row in jb.predict(run, split="eval")[:4]:
        print(f"is {row['target']}, predicted {row['class']}")


if __name__ == "__main__":
    main()
