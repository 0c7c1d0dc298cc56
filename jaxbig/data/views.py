"""Data set of two views of each image, each with random augmentation of its own."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbig.data.core.dataset import Batch
from jaxbig.data.images import Images, fold_in_each
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views(Images):
    """Images as pairs: in training two views, `inputs` and `other` [B, size, size, channels], each
    of them changed by `augment` (Chen et al., 2020, section 2.1); `targets` are classes [B].

    In evaluation `inputs` is the image as it is, so that features are those of whole images, and
    `other` a view that follows from its pixels alone.
    """

    def check_fields(self) -> None:
        if self.mix:
            raise Refused("mix: views are pairs of one image, which cannot be mixed with others.")

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        if not train:
            sums = jnp.sum(batch["inputs"], axis=(1, 2, 3), dtype=jnp.uint32)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), sums)
        first = super().transform(batch, fold_in_each(keys, 0), train)
        second = super().transform(batch, fold_in_each(keys, 1), True)
        return {**first, "other": second["inputs"]}
