"""Low-rank adapters (LoRA): made beside a model's parameters, and merged into them.

An adapter of `blocks/attention/query/kernel` is `blocks/attention/query/lora_a/kernel` and
`.../lora_b/kernel`. The model never sees them: it is called with merged kernels, so any model,
scanned or not, can have some. A kernel [*stack, *in, *out], where the stack is that of layers or
experts, has A [*stack, *in, rank] and B [*stack, rank, *out].
"""

import math
import re
import string
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxbig.config.lora import LoRA
from jaxbig.errors import Refused

A = "lora_a"
B = "lora_b"
STACKED = ("layers", "experts")
"""Logical axes of a kernel that is many matrices."""
Path = tuple[str, ...]


def split(lora: LoRA, params: Any, key: jax.Array) -> tuple[Any, Any]:
    """New adapters of a model, and what they leave frozen.

    Args:
      lora: its rank is 1 or more.
      params: the model's parameters, boxed with their logical axes.
      key: of the initial values.

    Returns:
      What is trained, boxed: the adapters, and the parameters that `lora.trained` matches. And the
      other parameters.

    Raises:
      Refused: a pattern matches nothing, or the rank is too large for a matrix.
    """
    flat: dict[Path, Any] = flatten_dict(params)
    full = {
        path for path in flat if lora.trained is not None and re.search(lora.trained, _name(path))
    }
    if lora.trained is not None and not full:
        raise no_match("trained", lora.trained)
    trained: dict[Path, Any] = {path: flat[path] for path in full}
    for path, box in flat.items():
        if path in full or not re.search(lora.pattern, _name(path)):
            continue
        boxed = isinstance(box, nn.LogicallyPartitioned)
        value = box.value if boxed else box
        names = tuple(box.names) if boxed else (None,) * value.ndim
        stack, inputs = layout(names)
        if value.ndim - stack < 2:
            continue
        own = jax.random.fold_in(key, zlib.crc32(_name(path).encode()))
        trained |= adapter(
            lora.rank, path, value.shape, names=names, stack=stack, inputs=inputs, key=own
        )
    if len(trained) == len(full):
        raise no_match("pattern", lora.pattern)
    frozen = {path: box for path, box in flat.items() if path not in full}
    return unflatten_dict(trained), unflatten_dict(frozen)


def no_match(field: str, pattern: str) -> Refused:
    """The error for a pattern that matches no parameter."""
    what = "no matrix or convolution" if field == "pattern" else "no parameter"
    return Refused(
        f"--lora.{field} {pattern!r} matches {what} of the model; `jaxbig show` lists the paths of "
        f"its parameters."
    )


def layout(names: tuple[str | None, ...]) -> tuple[int, int]:
    """The number of axes of a kernel's stack, and of its inputs, by the names of its axes.

    A kernel from the residual stream, `embed`, has that alone as input, as [D, heads, K] of a
    query; else all axes but the last are inputs, as of a convolution.
    """
    stack = 0
    while stack < len(names) and names[stack] in STACKED:
        stack += 1
    rest = names[stack:]
    return stack, 1 if rest[:1] == ("embed",) else len(rest) - 1


def adapter(
    rank: int,
    path: Path,
    shape: tuple[int, ...],
    *,
    names: tuple[str | None, ...],
    stack: int,
    inputs: int,
    key: jax.Array,
) -> dict[Path, Any]:
    """A, uniform as in a linear layer of the same input, and B, zero; boxed, by path."""
    middle = stack + inputs
    fan_in = math.prod(shape[stack:middle])
    fan_out = math.prod(shape[middle:])
    if rank > min(fan_in, fan_out):
        raise Refused(
            f"--lora.rank {rank}: {_name(path)} is a matrix of {fan_in} x {fan_out}, whose rank is "
            f"at most {min(fan_in, fan_out)}: give a lower rank, or a --lora.pattern without it."
        )
    bound = fan_in**-0.5
    a = jax.random.uniform(key, (*shape[:middle], rank), float, -bound, bound)
    b = jnp.zeros((*shape[:stack], rank, *shape[middle:]))
    *above, leaf = path
    return {
        (*above, A, leaf): nn.LogicallyPartitioned(a, (*names[:middle], "rank")),
        (*above, B, leaf): nn.LogicallyPartitioned(b, (*names[:stack], "rank", *names[middle:])),
    }


def merge(
    trained: Any, frozen: Any, scale: float, *, dropout: float = 0.0, key: jax.Array | None = None
) -> Any:
    """The parameters of the plain model: each frozen matrix with its adapter added.

    Args:
      trained: adapters, and parameters that are trained in full.
      frozen: the other parameters.
      scale: alpha / rank.
      dropout: the share of input features that an adapter does not see.
      key: of the dropout; None: no dropout.
    """
    flat: dict[Path, Any] = flatten_dict(frozen) | flatten_dict(trained)
    merged: dict[Path, Any] = {}
    for path, value in flat.items():
        if path[-2:-1] in ((A,), (B,)):
            continue
        *above, leaf = path
        a = flat.get((*above, A, leaf))
        if a is None:
            merged[path] = value
            continue
        b = flat[(*above, B, leaf)]
        if key is not None and dropout:
            stream = jax.random.fold_in(key, zlib.crc32(_name(path).encode()))
            kept = jax.random.bernoulli(stream, 1 - dropout, (*a.shape[:-1], 1))
            a = a * (kept / (1 - dropout)).astype(a.dtype)
        merged[path] = (value + scale * product(a, b, value.ndim)).astype(value.dtype)
    return unflatten_dict(merged)


def product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
    """A [*stack, *in, r] times B [*stack, r, *out] -> [*stack, *in, *out], of `ndim` axes."""
    stack = a.ndim + b.ndim - 2 - ndim
    letters = string.ascii_lowercase
    of_a = letters[: a.ndim - 1]
    of_b = letters[a.ndim - 1 : ndim]
    equation = f"{of_a}z,{of_a[:stack]}z{of_b}->{of_a}{of_b}"
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def scale_of(described: Mapping[str, Any] | None) -> float:
    """alpha / rank of an experiment's JSON; 0 where it has no adapters."""
    lora = (described or {}).get("lora") or {}
    return lora["alpha"] / lora["rank"] if lora.get("rank") else 0.0


def _name(path: Path) -> str:
    return "/".join(path)
