"""What a model keeps between calls that give it the next tokens: the collection "cache".

A caller that decodes gives a model the size of the cache each time. Rows of unequal length begin
with padding, so that their last tokens are in one place.

Letters in shape comments: B batch, L length.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Count(nn.Module):
    """Number of tokens in the cache."""

    @nn.compact
    def __call__(self, more: int) -> jax.Array:
        """Adds `more` to the count; returns the count before, []."""
        count = self.variable("cache", "count", lambda: jnp.int32(0))
        before = count.value
        count.value = before + more
        return before


def real_tokens(padding: jax.Array | None, offset: jax.Array, length: int) -> jax.Array | None:
    """Which of the next `length` tokens of each row are not of its first `padding` [B]: bool [B,
    L]; None if all are."""
    if padding is None:
        return None
    return jnp.arange(length)[None] + offset >= padding[:, None]
