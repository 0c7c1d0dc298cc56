"""Layer-wise decay of the learning rate: lower layers of a trained model change less."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.errors import Refused

NUMBERED = re.compile(r"(?:^|/)[a-z]+(?:_[a-z]+)*_(\d+(?:_\d+)*)(?=/|_|$)")
"""The first part of a path that has a layer's number, as `block_3` or `block_1_0`."""
STACKED = re.compile(r"(?:^|/)block(?=/)")
"""The part of a path whose arrays have the layers as first axis."""
FIRST = re.compile(r"^(target_)?(tokens?|positions|types|patches|stem(_norm|_\d+)?|embedding)(/|$)")
"""Paths of what comes before all layers."""
Layers = dict[tuple[str, tuple[int, ...]], int]
"""How far each numbered layer is from the top, by the path above it and its number."""


def decay_by_layer(decay: float, paths: Iterable[str] = ()) -> optax.GradientTransformation:
    """The updates times `decay` to the power of the number of layers above (Clark et al., 2020).

    What is above all layers, such as a head, keeps its updates; what is below, such as an
    embedding, counts as a layer of its own.

    Args:
      decay: the factor from a layer to the one below.
      paths: of the model's parameters, also of those without updates, whose layers count too.
    """

    def scaled(updates: Any, params: Any) -> Any:
        leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
        named = {path_name(path): leaf for path, leaf in leaves}
        below = distances(named, paths)
        return jax.tree.unflatten(
            structure, [leaf * factors(decay, leaf, below[path]) for path, leaf in named.items()]
        )

    return optax.stateless(scaled)


def distances(leaves: dict[str, Any], paths: Iterable[str] = ()) -> dict[str, int | range]:
    """The number of layers from each parameter to the top, by path: 0 for a head.

    It is a range for stacked layers, from the first to the last. Layers of `paths` count too.

    Raises:
      Refused: no path has a layer's number.
    """
    numbers: dict[str, tuple[str, tuple[int, ...]]] = {}
    stacked: dict[str, str] = {}
    for path in [*leaves, *paths]:
        if FIRST.search(path):
            continue
        if match := NUMBERED.search(path):
            numbers[path] = (path[: match.start()], tuple(map(int, match[1].split("_"))))
        elif path in leaves and (match := STACKED.search(path)):
            stacked[path] = path[: match.start()]
    stacks: dict[str, list[tuple[int, ...]]] = {}
    for above, number in sorted(set(numbers.values())):
        stacks.setdefault(above, []).append(number)
    depths = [len(each) for each in stacks.values()]
    depths += [leaves[path].shape[0] for path in stacked]
    if not depths:
        raise Refused(
            "--optimizer.layer-decay: no parameter's path has the number of its layer, as block_3 "
            "has: use 1."
        )
    lowest = max(depths) + 1
    found: dict[str, int | range] = {}
    for path, leaf in leaves.items():
        if path in numbers:
            above, number = numbers[path]
            found[path] = len(stacks[above]) - stacks[above].index(number)
        elif path in stacked:
            found[path] = range(leaf.shape[0], 0, -1)
        else:
            found[path] = lowest if FIRST.search(path) else 0
    return found


def factors(decay: float, leaf: jax.Array, distance: int | range) -> Any:
    """What a parameter's update is multiplied by: a number, or an array for stacked layers."""
    if isinstance(distance, int):
        return decay**distance
    each = jnp.array([decay**layer for layer in distance], leaf.dtype)
    return jnp.broadcast_to(each.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf.shape)
