"""Masks: a class for each pixel, by a small convolutional model.

cells/
  images/  1.png 2.png ...
  masks/   1.png 2.png ...   a pixel's number is its class

Letters in shape comments: B batch, Y and X height and width, C channels, K classes.
"""

import flax.linen as nn
import jax

import jaxbig as jb
from jaxbig.models.layers.convolution import Convolution
from jaxbig.models.layers.parameters import constrain


class PixelClassifier(jb.models.Model):
    """Convolutions that keep the size; the last one has a channel for each class."""

    classes: int
    width: int = 32
    depth: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, Y, X, K]."""
        for layer in range(self.depth):
            x = nn.relu(Convolution(self.width, kernel=3, name=f"conv_{layer}")(x))
        x = Convolution(self.classes, kernel=1, name="head")(x)
        return constrain(x, "batch", None, None, None)


def config() -> jb.Experiment:
    data = jb.data.Masks(
        records=jb.data.MaskFolder(folder="cells", eval_share=0.3), size=16, classes=3, batch=8
    )
    return jb.Experiment(
        model=PixelClassifier(classes=3),
        objective=jb.objectives.Classification(classes=3),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=1e-3, warmup=20)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/cells")
    for row in jb.predict(run, split="eval"):  # row["picture"] is the mask, [Y, X]
        print(f"{row['record']}: {row['accuracy']:.0%} of the pixels are right")


if __name__ == "__main__":
    main()
