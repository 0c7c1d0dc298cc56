"""A Transformer with a mixture of experts in flax.linen.

Every expert computes every token, and weights of 0 leave out those that were not chosen: flax.linen
has no layer for experts, and this drops no token, as ours.
"""

from typing import Any

import flax.linen as nn
import flax_transformer
import jax
import jax.numpy as jnp
import numpy as np


class Experts(nn.Module):
    """An MLP for each token, which is the weighted sum of those that its router scores highest."""

    experts: int
    chosen: int
    hidden: int
    balance: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        init = nn.initializers.lecun_normal(batch_axis=0)
        up = self.param("up", init, (self.experts, width, self.hidden))
        down = self.param("down", init, (self.experts, self.hidden, width))
        scores = nn.Dense(self.experts, use_bias=False, name="router")(x)  # [B, L, E]
        best, numbers = jax.lax.top_k(scores, self.chosen)
        taken = jax.nn.one_hot(numbers, self.experts)  # [B, L, K, E]
        weights = jnp.einsum("blk,blke->ble", nn.softmax(best), taken)
        share = taken.sum(2).mean(1) / self.chosen  # [B, E]
        even = self.experts * jnp.sum(share * nn.softmax(scores).mean(1), axis=-1)  # [B]
        self.sow("losses", "balance", self.balance * even.mean())
        y = nn.gelu(jnp.einsum("bld,edf->blef", x, up)) * weights[..., None]
        return jnp.einsum("blef,efd->bld", y, down)


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    vocab: int
    depth: int
    width: int
    heads: int
    max_length: int
    experts: int
    experts_per_token: int
    mlp_width: int
    load_balance_loss: float

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        x = nn.Embed(self.vocab, self.width, name="tokens")(tokens)
        x = x + nn.Embed(self.max_length, self.width, name="positions")(positions)
        mask = nn.make_causal_mask(tokens)
        for i in range(self.depth):
            y = nn.RMSNorm(name=f"attention_norm_{i}")(x)
            x = x + nn.MultiHeadDotProductAttention(
                self.heads, use_bias=False, name=f"attention_{i}"
            )(y, mask=mask)
            y = nn.RMSNorm(name=f"mlp_norm_{i}")(x)
            x = x + Experts(
                self.experts,
                self.experts_per_token,
                self.mlp_width,
                self.load_balance_loss,
                name=f"experts_{i}",
            )(y)
        x = nn.RMSNorm(name="norm")(x)
        return nn.Dense(self.vocab, use_bias=False, name="head")(x)


NAMES = {"router_kernel": "router/kernel", "up_kernel": "up", "down_kernel": "down"}


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    found = {}
    for path, value in flax_transformer.from_ours(ours).items():
        block, *rest = path.split("/")
        if block.startswith("block_"):
            layer, *rest = rest
            last = NAMES.get(rest[-1], rest[-1])
            path = "/".join([f"{layer}_{block.removeprefix('block_')}", *rest[:-1], last])
        found[path] = value
    found["head/kernel"] = found.pop("head/embedding").T
    return found
