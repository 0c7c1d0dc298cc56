"""The diffusion objective: images of classes from noise, by rectified flow or by DDPM. Pure.

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.batch_mask import batch_mask
from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt, Probability, choose
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Found, Objective, Sums, Words, as_numbers, masked
from jaxbig.objectives.masked_token import fingerprint

Kind = Literal["flow", "ddpm"]
NO_CLASS = -1
DDPM_STEPS = 1000
ALPHA_BAR = np.cumprod(1 - np.concatenate([[0.0], np.linspace(1e-4, 0.02, DDPM_STEPS)]))
"""The image's share of the variance after each step of DDPM (Ho et al., 2020, section 4)."""


@dataclasses.dataclass(frozen=True)
class Diffusion(Objective):
    """The squared error of what the model predicts from noisy images, a mean over their numbers.

    A noisy image is a share of an image, in -1 to 1, plus a share of noise: `flow` is rectified
    flow (Liu et al., 2022), 1 - time of the image and time of the noise, where the model predicts
    noise minus image; `ddpm` (Ho et al., 2020) has 1,000 steps, and the model predicts the noise.
    An evaluation has one time and one noise an image, always the same.

    Reads `inputs` [B, Y, X, C] of 0 to 1 (without `Normalize`), `targets` [B], their classes, and
    `mask` [B]. The model is called with noisy images, times [B] of 0 to 1, and classes [B], below 0
    for none.
    """

    kind: Kind = "flow"
    """flow or ddpm."""
    label_dropout: Probability = 0.1
    """Share of the images whose class the model does not see in training, so that it learns what
    images have in common (Ho and Salimans, 2022)."""
    sample_steps: PositiveInt = 50
    """Of a sample, from noise to image: Euler's for flow, DDIM's for ddpm (Song et al., 2021)."""
    guidance: NonNegativeFloat = 1.5
    """The scale of classifier-free guidance, which multiplies what the class changes in the
    prediction; 1: the class alone, in half the time."""
    eta: Probability = 0.0
    """New noise in a step of a sample (Song et al., 2021, eq. 16): 0 none, so that the first noise
    decides; 1 that of the posterior, as DDPM's own sampler."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        return {"loss": masked(self.losses(forward, batch, key, train), batch["mask"])}

    def losses(self, forward: Any, batch: Batch, key: jax.Array, train: bool) -> jax.Array:
        """The loss of each example [B]. Its time and noise follow from the key and its own pixels,
        in whatever batch, row or mesh it comes."""
        image = self.checked(batch)
        labels = batch["targets"]

        def draw(key: jax.Array) -> tuple[jax.Array, ...]:
            of_time, of_noise = jax.random.split(key)
            noise = jax.random.normal(of_noise, image.shape[1:], image.dtype)
            return (*jax.random.uniform(of_time, (2,), image.dtype), noise)

        time, chance, noise = jax.vmap(draw)(row_keys(key, image))
        image = 2 * image - 1
        if self.kind == "ddpm":
            time = jnp.floor(time * DDPM_STEPS + 1) / DDPM_STEPS  # steps 1 to 1,000
        alpha, sigma = self.shares(time)
        target = noise if self.kind == "ddpm" else noise - image
        if train:
            labels = jnp.where(chance < self.label_dropout, NO_CLASS, labels)
        with batch_mask(batch["mask"]):
            found = forward(alpha * image + sigma * noise, time, labels, train=train)
        return jnp.mean(jnp.square(found - target), axis=(1, 2, 3))

    def checked(self, batch: Batch) -> jax.Array:
        """The images of a batch, in float32 or float64."""
        choose("kind", self.kind, Kind)
        if self.kind == "ddpm" and self.sample_steps > DDPM_STEPS:
            raise Refused(f"sample_steps {self.sample_steps}: ddpm has {DDPM_STEPS} at most.")
        image = batch["inputs"]
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise Refused(f"inputs are {image.dtype}: diffusion needs images of 0.0 to 1.0.")
        if image.ndim != 4 or batch["targets"].ndim != 1:
            raise Refused(
                f"inputs are {list(image.shape)} and targets {list(batch['targets'].shape)}: "
                f"diffusion needs images [B, Y, X, C] with one class each, [B]."
            )
        return upcast(image)

    def shares(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma, how much of the image and of the noise a noisy image has at times of 0
        to 1: [B] -> [B, 1, 1, 1] each."""
        time = time.reshape(-1, 1, 1, 1)
        if self.kind == "flow":
            return 1 - time, time
        step = jnp.round(time * DDPM_STEPS).astype(jnp.int32)
        alpha, sigma = (jnp.asarray(np.sqrt(x), time.dtype) for x in (ALPHA_BAR, 1 - ALPHA_BAR))
        return alpha[step], sigma[step]

    def parts(
        self, noisy: jax.Array, predicted: jax.Array, time: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The image and the noise that the prediction finds in noisy images, [B, Y, X, C] each."""
        alpha, sigma = self.shares(time)
        if self.kind == "flow":
            return noisy - sigma * predicted, noisy + alpha * predicted
        return (noisy - sigma * predicted) / alpha, predicted

    def step_back(
        self, image: jax.Array, noise: jax.Array, new: jax.Array, now: jax.Array, then: jax.Array
    ) -> jax.Array:
        """The noisy images of an earlier time, [B, Y, X, C] (Song et al., 2021, eq. 12 and 16).

        Args:
          image: what is predicted of it.
          noise: likewise.
          new: noise of the step.
          now: times [B].
          then: the earlier times [B].
        """
        a, s = self.shares(now)
        b, r = self.shares(then)
        spread = self.eta * r / s * jnp.sqrt(jnp.maximum(s**2 - (a / b * r) ** 2, 0))
        return b * image + jnp.sqrt(jnp.maximum(r**2 - spread**2, 0)) * noise + spread * new

    def sample(
        self, forward: nn.Module, labels: jax.Array, keys: jax.Array, shape: tuple[int, ...]
    ) -> jax.Array:
        """Images of 0 to 1 from noise, [B, *shape], float32; those of `Digits` are 8, 8, 1.

        Args:
          forward: the model.
          labels: classes [B], below 0 for none.
          keys: of each image's noise, [B].
          shape: of an image.
        """

        def noise(step: Any) -> jax.Array:
            each = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(each)

        def step(model: Any, noisy: jax.Array, at: Any) -> tuple[jax.Array, None]:
            number, now, then = at
            now, then = (jnp.broadcast_to(time, labels.shape) for time in (now, then))
            image, old = self.parts(noisy, self.predicted(model, noisy, now, labels), now)
            new = noise(number) if self.eta else jnp.zeros_like(noisy)
            return self.step_back(image, old, new, now, then), None

        times = jnp.linspace(1, 0, self.sample_steps + 1, dtype=jnp.float32)
        if self.kind == "ddpm":
            times = jnp.round(times * DDPM_STEPS) / DDPM_STEPS
        steps = (jnp.arange(self.sample_steps), times[:-1], times[1:])
        scan = nn.scan(step, variable_broadcast=True, split_rngs={})
        found, _ = scan(forward, noise(self.sample_steps), steps)
        return jnp.clip((found + 1) / 2, 0, 1)

    def predicted(self, model: Any, noisy: jax.Array, now: jax.Array, labels: jax.Array) -> Any:
        """The model's prediction with guidance, [B, Y, X, C]."""
        if self.guidance == 1:
            return model(noisy, now, labels, train=False)
        # pairs of rows, with and without the class: each device has both of its rows
        pairs = jnp.stack([labels, jnp.full_like(labels, NO_CLASS)], axis=1).reshape(-1)  # [2B]
        found = model(jnp.repeat(noisy, 2, axis=0), jnp.repeat(now, 2), pairs, train=False)
        found = found.reshape(-1, 2, *noisy.shape[1:])
        return found[:, 1] + self.guidance * (found[:, 0] - found[:, 1])

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`samples` [B, Y, X, C] of 0 to 1 of the classes `asked` [B]; `losses` [B] of the inputs.

        A sample's noise follows from the key and the pixels of the input.
        """
        image = self.checked(batch)
        losses = self.losses(forward, batch, key, False)
        keys = row_keys(jax.random.fold_in(key, 1), image)
        samples = self.sample(forward, batch["targets"], keys, image.shape[1:])
        return {"samples": samples, "asked": batch["targets"], "losses": losses}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`asked`, the class, and `picture`, uint8 [Y, X, 3]; the `loss` of the input where its
        class is known."""
        row: dict[str, Any] = {"asked": words.class_name(int(found["asked"]))}
        if "targets" in found:
            row["loss"] = as_numbers(found["losses"])
        return row | {"picture": eight_bits(found["samples"])}


def row_keys(key: jax.Array, images: jax.Array) -> jax.Array:
    """A key for each of the images [B, ...], from its own pixels."""
    flat = images.astype(jnp.float32).reshape(len(images), math.prod(images.shape[1:]))
    bits = jax.lax.bitcast_convert_type(flat, jnp.uint32)
    # of images of few levels the low bits are 0, and so would be those of a sum
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # MurmurHash3's last step
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, fingerprint(bits, jnp.ones_like(flat)))


def eight_bits(images: np.ndarray) -> np.ndarray:
    """Images [..., Y, X, C] of 0 to 1 as uint8 [..., Y, X, 3].

    Raises:
      Refused: they have other channels than 1 or 3.
    """
    if images.shape[-1] not in (1, 3):
        raise Refused(f"a sample has {images.shape[-1]} channels, and a picture 1 or 3.")
    levels = np.round(255 * np.asarray(images, np.float32)).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:-1], 3)).copy()
