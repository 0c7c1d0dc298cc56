"""Beam search: of several unfinished texts of a prompt the likeliest are continued, not one alone.

It finds what `transformers` finds with the same number of beams and `early_stopping` False.

Letters in shape comments: R rows, K beams a prompt, B prompts (R / K), N tokens, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxbig.inference.decoding import (
    NO_ROWS,
    STEPS,
    Decoding,
    Rows,
    State,
    Writer,
    advance,
    cache_axes,
    over_devices,
)

NEVER = -1e9
"""The score of a text that must not be chosen, as `transformers` has it."""


@struct.dataclass
class Beams:
    """Unfinished and finished texts of each prompt.

    tokens: [B, K, N], of the unfinished texts, and scores: [B, K], the sum of their logarithmic
    probabilities; done: [B, K, N], of the finished ones, done_scores: [B, K], those sums over a
    power of the length, counts: [B, K], their lengths, 0 where there is no text; open: [B], whether
    an unfinished text may still become one of the best; number: [], how many tokens there are.
    """

    tokens: Any
    scores: Any
    done: Any
    done_scores: Any
    counts: Any
    open: Any
    number: Any


def first_beams(prompts: int, beams: int, length: int) -> Beams:
    """Before the first token, all beams of a prompt are equal: only the first one counts."""
    tokens = np.zeros((prompts, beams, length), np.int32)
    scores = np.full((prompts, beams), NEVER, np.float32)
    scores[:, 0] = 0
    return Beams(
        tokens=tokens,
        scores=scores,
        done=tokens.copy(),
        done_scores=np.full((prompts, beams), NEVER, np.float32),
        counts=np.zeros((prompts, beams), np.int32),
        open=np.ones(prompts, bool),
        number=np.int32(0),
    )


def choose(beams: Beams, scores: jax.Array, limits: jax.Array, end: int, power: float) -> Any:
    """The beams after a token, and which beam of its prompt each continues, [B, K].

    Args:
      beams: those before.
      scores: [B, K, V], the logarithmic probabilities of the next token.
      limits: [B], the most tokens of a text.
      end: the token that ends a text.
      power: of the length by which the sum of a finished text is divided.
    """
    size = beams.scores.shape[1]
    vocab = scores.shape[-1]
    total = (scores + beams.scores[..., None]).reshape(len(scores), -1)
    # twice as many as are needed: half of them at most end
    best, places = jax.lax.top_k(total, 2 * size)  # [B, 2 K]
    parents = places // vocab
    token = places % vocab
    tokens = rows_of(beams.tokens, parents).at[:, :, beams.number].set(token)
    count = beams.number + 1
    ends = (token == end) | (count >= limits[:, None])

    scores, kept = jax.lax.top_k(best + jnp.where(ends, NEVER, 0.0), size)
    length = count.astype(jnp.float32) ** power
    finished = ends & (jnp.arange(2 * size) < size)[None]
    new = best / length + jnp.where(finished & beams.open[:, None], 0.0, NEVER)
    counts = jnp.where(finished, count, 0)
    done_scores, order = jax.lax.top_k(jnp.concatenate([beams.done_scores, new], axis=1), size)
    counts = rows_of(jnp.concatenate([beams.counts, counts], axis=1), order)
    worst = jnp.where(counts > 0, jnp.min(done_scores, axis=1, keepdims=True), NEVER)
    improves = jnp.any(scores[:, :1] / length > worst, axis=1)
    after = Beams(
        tokens=rows_of(tokens, kept),
        scores=scores,
        done=rows_of(jnp.concatenate([beams.done, tokens], axis=1), order),
        done_scores=done_scores,
        counts=counts,
        open=beams.open & improves & (count < limits),
        number=count,
    )
    return after, rows_of(parents, kept)


def rows_of(values: jax.Array, places: jax.Array) -> jax.Array:
    """The values [B, M, ...] at places [B, K] -> [B, K, ...]."""
    return jnp.take_along_axis(values, places.reshape(*places.shape, *(1,) * (values.ndim - 2)), 1)


@functools.partial(
    jax.jit, static_argnames=("decoding", "power", "places"), donate_argnames=("state", "beams")
)
def search(
    decoding: Decoding,
    variables: Any,
    state: State,
    beams: Beams,
    rows: Rows,
    count: jax.Array,
    *,
    power: float,
    places: int,
) -> tuple[State, Beams]:
    """The beams after `count` more tokens, compiled."""
    axes, _ = cache_axes(decoding, variables, rows.memory)

    def several(
        variables: Any, state: State, beams: Beams, rows: Rows, count: jax.Array
    ) -> tuple[State, Beams]:
        prompts, size = beams.scores.shape
        prompt = state.place - rows.padding - beams.number  # its tokens, [R]
        limits = (rows.limits - prompt).reshape(prompts, size)[:, 0]

        def step(_: jax.Array, carry: tuple[State, Beams]) -> tuple[State, Beams]:
            state, beams = carry
            scores = decoding.sampling.scores(jax.nn.log_softmax(state.logits), state.seen)
            scores = scores.reshape(prompts, size, -1)
            beams, parents = choose(beams, scores, limits, decoding.end, power)
            of_rows = (parents + jnp.arange(prompts)[:, None] * size).reshape(-1)  # [R]
            token = beams.tokens[:, :, beams.number - 1].reshape(-1)

            def moved(leaf: jax.Array, axis: int) -> jax.Array:
                return leaf if axis == NO_ROWS else jnp.take(leaf, of_rows, axis=axis)

            cache = jax.tree.map(moved, state.cache, axes)
            seen = state.seen[of_rows]
            if seen.shape[1]:
                seen = seen | jax.nn.one_hot(token, seen.shape[1], dtype=bool)
            cache, logits = advance(decoding, variables, cache, token[:, None], rows, places=places)
            after = State(
                cache=cache, logits=logits, seen=seen, place=state.place + 1, ended=state.ended
            )
            return after, beams

        return jax.lax.fori_loop(0, count, step, (state, beams))

    of_state = State(cache=axes, logits=0, seen=0, place=NO_ROWS, ended=0)
    of_beams = Beams(0, 0, 0, 0, 0, 0, NO_ROWS)
    inputs = (NO_ROWS, of_state, of_beams, 0, NO_ROWS)
    function = over_devices(decoding, several, inputs, (of_state, of_beams))
    return function(variables, state, beams, rows, count)


def beam_search(
    decoding: Decoding,
    variables: Any,
    prompts: Sequence[np.ndarray],
    *,
    beams: int,
    power: float,
    start: int | None,
    limits: Sequence[int],
    cache: int,
) -> list[np.ndarray]:
    """The tokens of the best text of each prompt.

    Args:
      decoding: how and where; its rows are a multiple of `beams` on each device.
      variables: of the model, where `decoding` has them.
      prompts: the tokens of each, of one padded length; no more than `decoding.rows / beams`.
      beams: how many unfinished texts of each are continued.
      power: of the length, by which the sum of a text's logarithmic probabilities is divided.
      start: the token before a translation; None: the model continues its prompts.
      limits: the most tokens of each text.
      cache: the places of the cache at first.
    """
    writer = Writer(
        decoding,
        variables,
        [prompt for prompt in prompts for _ in range(beams)],
        start=start,
        limits=[limit for limit in limits for _ in range(beams)],
        cache=cache,
    )
    most = max(limits)
    length = 1 << (most - 1).bit_length()
    found = first_beams(decoding.rows // beams, beams, length)
    for number in range(0, most, STEPS):
        left = min(STEPS, most - number)
        while left:
            count = writer.reserve(left)
            writer.state, found = search(
                decoding,
                variables,
                writer.state,
                found,
                writer.rows,
                np.int32(count),
                power=power,
                places=writer.places,
            )
            writer.place += count
            left -= count
        if not np.asarray(found.open)[: len(prompts)].any():
            break
    tokens = np.asarray(found.done)[:, 0]
    counts = np.asarray(found.counts)[:, 0]
    return [tokens[row, : counts[row]] for row in range(len(prompts))]
