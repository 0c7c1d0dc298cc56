"""The compiled functions that write texts with a model: a prompt at once, then a token a step.

A text must not depend on the texts beside it. So everything is computed in fixed shapes, which are
functions of a row's own prompt and of the number of tokens it has: a fixed number of rows, prompts
with padding before them in one of few lengths, and a cache that doubles when it is full.

Letters in shape comments: R rows, P places of a prompt, N steps, S length of a source, V
vocabulary.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from jaxbig.distributed.logical_axes import ROWS, Rules
from jaxbig.distributed.mesh import activate
from jaxbig.inference.sampling import Sampling
from jaxbig.program import rng

STEPS = 16
"""The most tokens of a row that are written before the host sees them."""
SHORTEST = 16
"""The smallest length to which a prompt is padded."""
CHUNK = 256
"""The most tokens of a prompt that a model reads at once."""
NO_ROWS = -1
"""In place of an axis: there is none."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are written, and where."""

    model: Any
    """A language model or a translator."""
    mesh: jax.sharding.Mesh
    """The devices."""
    rules: Rules
    """Which axes of the mesh split what; empty: each device has all parameters and computes rows by
    itself."""
    batch: int
    """How many rows a device computes at once."""
    sampling: Sampling
    """How a token is chosen."""
    end: int
    """The token that ends a text; -1: there is none."""
    vocab: int
    """Number of different tokens."""

    @property
    def rows(self) -> int:
        """How many rows all devices compute at once."""
        axes = ROWS if self.rules else self.mesh.axis_names
        return self.batch * math.prod(self.mesh.shape[axis] for axis in axes)

    def activate(self) -> contextlib.AbstractContextManager[None]:
        """A context in which its functions are called."""
        return activate(self.mesh, self.rules)


def translates(model: Any) -> bool:
    """Whether a model writes translations, rather than what follows a prompt."""
    return hasattr(model, "encode") and hasattr(model, "decode")


@struct.dataclass
class Rows:
    """What stays the same while texts are written.

    padding: [R], places before each prompt; keys: [R], of each prompt; limits: [R], how many tokens
    a prompt and its text have at most; memory: what a translator made of the sources, or None.
    """

    padding: Any
    keys: Any
    limits: Any
    memory: Any = None


@struct.dataclass
class State:
    """What changes with each token.

    cache: the model's collection; logits: [R, V], of the next token; seen: [R, V], which tokens a
    row has, or [R, 0] where no penalty asks; place: [], how many tokens are in the cache; ended:
    [R].
    """

    cache: Any
    logits: Any
    seen: Any
    place: Any
    ended: Any


def over_devices(
    decoding: Decoding, function: Callable[..., Any], inputs: tuple[Any, ...], outputs: Any
) -> Callable[..., Any]:
    """`function`, on each device with its own rows if the devices work by themselves.

    Args:
      decoding: says whether they do.
      function: of arrays with rows.
      inputs: the axis of the rows in each leaf of each argument, or `NO_ROWS`; a prefix will do.
      outputs: likewise, of what it returns.
    """
    if decoding.rules:
        return function

    def spec(axis: int) -> PartitionSpec:
        if axis == NO_ROWS:
            return PartitionSpec()
        return PartitionSpec(*(None,) * axis, decoding.mesh.axis_names)

    in_specs, out_specs = jax.tree.map(spec, (inputs, outputs))
    return jax.shard_map(
        function, mesh=decoding.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def advance(
    decoding: Decoding, variables: Any, cache: Any, tokens: jax.Array, rows: Rows, *, places: int
) -> tuple[Any, jax.Array]:
    """The cache and the logits [R, V] after the next tokens [R, N].

    Args:
      decoding: has the model.
      variables: its parameters.
      cache: None before the first tokens.
      tokens: [R, N].
      rows: their padding, and the memory of a translator.
      places: the size of the cache.
    """

    def last_logits(model: Any) -> jax.Array:
        if translates(decoding.model):
            return model.decode(tokens, rows.memory, cache=places)[:, -1]
        hidden = model.hidden(tokens, padding=rows.padding, cache=places)
        return model.next_logits(hidden[:, -1])

    given = variables if cache is None else {**variables, "cache": cache}
    apply: Any = nn.apply(last_logits, decoding.model, mutable=["cache"])
    logits, changed = apply(given)
    return changed["cache"], logits


def cache_axes(decoding: Decoding, variables: Any, memory: Any) -> tuple[Any, Any]:
    """The axis of the rows, and that of the places, in each leaf of the model's cache.

    They are those whose sizes differ with the number of rows or places; `NO_ROWS` if none does.
    """

    def shapes(rows: int, places: int) -> Any:
        def first(variables: Any, memory: Any) -> Any:
            zeros = jnp.zeros(rows, jnp.int32)
            given = Rows(padding=zeros, keys=None, limits=None, memory=memory)
            return advance(decoding, variables, None, zeros[:, None], given, places=places)[0]

        some = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), memory
        )
        with nn.logical_axis_rules(()):
            return jax.eval_shape(first, variables, some)

    one = shapes(1, 2)
    return tuple(jax.tree.map(differing_axis, one, each) for each in (shapes(2, 2), shapes(1, 3)))


def differing_axis(one: Any, other: Any) -> int:
    """The axis whose size differs between two shapes, or `NO_ROWS`."""
    return next((i for i, n in enumerate(one.shape) if n != other.shape[i]), NO_ROWS)


@functools.partial(jax.jit, static_argnames="decoding")
def encode(decoding: Decoding, variables: Any, sources: jax.Array, lengths: jax.Array) -> Any:
    """The memory of a translator for sources [R, S] of lengths [R]."""

    def memory(variables: Any, sources: jax.Array, lengths: jax.Array) -> Any:
        return decoding.model.apply(variables, sources, lengths, method="encode")

    return over_devices(decoding, memory, (NO_ROWS, 0, 0), 0)(variables, sources, lengths)


@functools.partial(jax.jit, static_argnames=("decoding", "places"), donate_argnames=("cache",))
def read(
    decoding: Decoding, variables: Any, cache: Any, tokens: jax.Array, rows: Rows, *, places: int
) -> tuple[Any, jax.Array]:
    """`advance` by the next tokens of prompts, compiled."""
    axes, _ = cache_axes(decoding, variables, rows.memory)
    function = functools.partial(advance, decoding, places=places)
    inputs = (NO_ROWS, None if cache is None else axes, 0, 0)
    return over_devices(decoding, function, inputs, (axes, 0))(variables, cache, tokens, rows)


@functools.partial(jax.jit, static_argnames=("decoding", "places"), donate_argnames=("state",))
def write(
    decoding: Decoding, variables: Any, state: State, rows: Rows, count: jax.Array, *, places: int
) -> tuple[State, jax.Array]:
    """The next `count` tokens of each row, [R, STEPS] with 0 beyond and after an end; compiled.

    The cache stays in its place in memory: it is donated, and updated within the loop.
    """

    def several(
        variables: Any, state: State, rows: Rows, count: jax.Array
    ) -> tuple[State, jax.Array]:
        def step(number: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, tokens = carry
            positions = state.place - rows.padding
            token = decoding.sampling.choose(state.logits, state.seen, rows.keys, positions)
            token = jnp.where(state.ended, 0, token)
            ended = state.ended | (token == decoding.end) | (positions + 1 >= rows.limits)
            seen = state.seen
            if seen.shape[1]:
                seen = seen | jax.nn.one_hot(token, seen.shape[1], dtype=bool)
            cache, logits = advance(
                decoding, variables, state.cache, token[:, None], rows, places=places
            )
            after = State(cache=cache, logits=logits, seen=seen, place=state.place + 1, ended=ended)
            return after, tokens.at[:, number].set(token)

        tokens = jnp.zeros((len(state.ended), STEPS), jnp.int32)
        return jax.lax.fori_loop(0, count, step, (state, tokens))

    axes, _ = cache_axes(decoding, variables, rows.memory)
    whole = State(cache=axes, logits=0, seen=0, place=NO_ROWS, ended=0)
    function = over_devices(decoding, several, (NO_ROWS, whole, 0, NO_ROWS), (whole, 0))
    return function(variables, state, rows, count)


@functools.partial(jax.jit, static_argnames=("decoding", "places"))
def grow(decoding: Decoding, variables: Any, cache: Any, memory: Any, *, places: int) -> Any:
    """The cache with `places` places."""
    axes, along = cache_axes(decoding, variables, memory)

    def wider(cache: Any) -> Any:
        def padded(leaf: jax.Array, axis: int) -> jax.Array:
            if axis == NO_ROWS:
                return leaf
            more = [(0, 0)] * leaf.ndim
            more[axis] = (0, places - leaf.shape[axis])
            return jnp.pad(leaf, more)

        return jax.tree.map(padded, cache, along)

    return over_devices(decoding, wider, (axes,), axes)(cache)


def padded_length(count: int) -> int:
    """The length to which a prompt or source of `count` tokens is padded: a power of 2, from
    `SHORTEST` on, or several times `CHUNK`."""
    if count > CHUNK:
        return -(-count // CHUNK) * CHUNK
    return max(SHORTEST, 1 << (count - 1).bit_length())


def padded_rows(prompts: Sequence[np.ndarray], rows: int, length: int, *, before: bool) -> Any:
    """Tokens [R, P] of prompts with zeros before or behind each, and the number of zeros [R].

    Rows without a prompt have one token.
    """
    tokens = np.zeros((rows, length), np.int32)
    padding = np.full(rows, length - 1, np.int32)
    for row, prompt in enumerate(prompts):
        padding[row] = length - len(prompt)
        start = padding[row] if before else 0
        tokens[row, start : start + len(prompt)] = prompt
    return tokens, padding


@functools.partial(jax.jit, static_argnames="name")
def prompt_keys(seed: jax.Array, digests: jax.Array, name: str = "generate") -> jax.Array:
    """The key of each prompt, [R], from its digest uint32 [R, 2]."""

    def key(digest: jax.Array) -> jax.Array:
        first = jax.random.fold_in(rng.stream(seed, name), digest[0])
        return jax.random.fold_in(first, digest[1])

    return jax.vmap(key)(digests)


def digest(prompt: np.ndarray) -> np.ndarray:
    """uint32 [2]: of a prompt's tokens alone."""
    found = hashlib.sha256(np.asarray(prompt, "<i8").tobytes()).digest()
    return np.frombuffer(found[:8], "<u4").astype(np.uint32)


class Writer:
    """Writes the texts of prompts of one padded length, some tokens each time it is asked."""

    def __init__(
        self,
        decoding: Decoding,
        variables: Any,
        prompts: Sequence[np.ndarray],
        *,
        start: int | None = None,
        limits: Sequence[int],
        seed: int = 0,
        cache: int = 256,
    ) -> None:
        """Reads the prompts.

        Args:
          decoding: how and where; the prompts are `decoding.rows` or fewer.
          variables: of the model, on the devices of `decoding`.
          prompts: the tokens [n] of each; a translator's sources.
          start: the token before a translation; None: the model continues its prompts.
          limits: the most tokens of each text.
          seed: of the noise.
          cache: the places of the cache at first.
        """
        self.decoding = decoding
        self.variables = variables
        length = padded_length(max(map(len, prompts)))
        missing = decoding.rows - len(prompts)
        digests = np.stack([*map(digest, prompts), *([np.zeros(2, np.uint32)] * missing)])
        memory = None
        if start is not None:
            sources, padding = padded_rows(prompts, decoding.rows, length, before=False)
            memory = encode(decoding, variables, sources, (length - padding).astype(np.int32))
            prompts = [np.array([start])] * len(prompts)
            length = 1
        tokens, padding = padded_rows(prompts, decoding.rows, length, before=True)
        self.rows = Rows(
            padding=padding,
            keys=prompt_keys(seed, digests),
            limits=np.array(
                [len(p) + n for p, n in zip(prompts, limits, strict=True)] + [0] * missing, np.int32
            ),
            memory=memory,
        )
        self.places = cache
        while self.places <= length:
            self.places *= 2
        kept = logits = None
        for first in range(0, length, CHUNK):
            part = tokens[:, first : first + CHUNK]
            kept, logits = read(decoding, variables, kept, part, self.rows, places=self.places)
        seen = np.zeros((decoding.rows, 0), bool)
        if decoding.sampling.repetition_penalty != 1:
            seen = np.zeros((decoding.rows, decoding.vocab), bool)
            for row, prompt in enumerate(prompts):
                seen[row, prompt] = True
        self.ended = np.arange(decoding.rows) >= len(prompts)
        self.place = length
        self.state = State(
            cache=kept, logits=logits, seen=seen, place=np.int32(length), ended=self.ended.copy()
        )

    def reserve(self, count: int) -> int:
        """How many of the next `count` tokens the cache has places for; it grows if it is full."""
        if self.place == self.places:
            self.places *= 2
            cache = grow(
                self.decoding,
                self.variables,
                self.state.cache,
                self.rows.memory,
                places=self.places,
            )
            self.state = dataclasses.replace(self.state, cache=cache)
        return min(count, self.places - self.place)

    def next(self, count: int = STEPS) -> np.ndarray:
        """The next tokens of each row, [R, N] with N at most `count`; 0 after a row's end."""
        count = self.reserve(min(count, STEPS))
        state = dataclasses.replace(self.state, ended=self.ended)
        self.state, tokens = write(
            self.decoding, self.variables, state, self.rows, np.int32(count), places=self.places
        )
        self.place += count
        self.ended = np.array(self.state.ended)
        return np.asarray(tokens)[:, :count]
