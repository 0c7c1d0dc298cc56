"""Beam search over CTC's label sequences: each path counts for the prefix that it spells. Pure.

Letters in shape comments: B batch, L frames, K classes, W prefixes of the beam.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

BLANK = 0


def prefix_search(
    logits: jax.Array, absent: jax.Array, beam: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The likeliest label sequences (Graves et al., 2006, section 3.2, as a beam search: Hannun et
    al., 2014, without a language model).

    Args:
      logits: [B, L, K]; class 0 is the blank.
      absent: frames beyond an example's end, [B, L].
      beam: W, how many prefixes are kept after each frame.

    Returns:
      The sequences [B, W, L], the likeliest first and each padded with 0; how long they are [B, W];
      and their log probabilities [B, W], -inf where there are fewer than W. These are exact where
      no prefix was lost.
    """
    return jax.vmap(functools.partial(_search, beam=beam))(jax.nn.log_softmax(logits), absent)


def _search(
    logs: jax.Array, absent: jax.Array, beam: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same of one example: log probabilities [L, K] and absent [L]."""
    length, classes = logs.shape
    places = jnp.arange(length)
    never = jnp.full(beam, -jnp.inf, logs.dtype)
    # prefixes [W, L] and their sizes [W]; log probabilities [W] of the paths that end in a blank,
    # and of the others
    begin = (
        jnp.zeros((beam, length), jnp.int32),
        jnp.zeros(beam, jnp.int32),
        never.at[0].set(0.0),
        never,
    )

    def step(carry: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        log, gone = now  # [K], []
        prefixes, sizes, blank, other = carry
        total = jnp.logaddexp(blank, other)
        last = jnp.take_along_axis(prefixes, jnp.maximum(sizes - 1, 0)[:, None], axis=1)[:, 0]
        # a label that repeats the last one is a new one only after a blank; [W, K]
        repeats = jnp.arange(classes)[None] == last[:, None]
        longer = log[None] + jnp.where(repeats, blank[:, None], total[:, None])
        longer = longer.at[:, BLANK].set(-jnp.inf)
        # the prefix w, one label longer, is v: its paths are counted there alone; [W, W]
        shortened = jnp.where(places[None] == sizes[:, None] - 1, 0, prefixes)
        leads = jnp.all(prefixes[:, None] == shortened[None], axis=-1) & (sizes > 0)[None]
        leads &= (total > -jnp.inf)[:, None] & (total > -jnp.inf)[None]
        joined = jnp.max(jnp.where(leads, longer[:, last], -jnp.inf), axis=0)
        counted = jnp.any(leads[:, :, None] & repeats[None], axis=1)
        longer = jnp.where(counted, -jnp.inf, longer)
        # the prefixes themselves, then each with each label: [W + W K]
        other = jnp.concatenate([jnp.logaddexp(other + log[last], joined), longer.ravel()])
        blank = jnp.concatenate([total + log[BLANK], jnp.full(longer.size, -jnp.inf, log.dtype)])
        _, best = jax.lax.top_k(jnp.logaddexp(blank, other), beam)
        origin = jnp.where(best < beam, best, (best - beam) // classes)
        grows = best >= beam
        here = grows[:, None] & (places[None] == sizes[origin][:, None])
        label = ((best - beam) % classes).astype(jnp.int32)
        prefixes = jnp.where(here, label[:, None], prefixes[origin])
        after = (prefixes, sizes[origin] + grows, blank[best], other[best])
        return jax.tree.map(lambda old, new: jnp.where(gone, old, new), carry, after), None

    (prefixes, sizes, blank, other), _ = jax.lax.scan(step, begin, (logs, absent))
    return prefixes, sizes, jnp.logaddexp(blank, other)
