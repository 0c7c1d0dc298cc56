"""Two towers: their scores against NumPy, and tables that are split over a mesh."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxbig.config.discover import load
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.two_tower import TwoTower
from jaxbig.program.program import make_program

INPUTS = np.array([[3, 1, 0], [2, 2, 4]])
LENGTHS = np.array([2, 3])


def initial(model: TwoTower) -> Any:
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), INPUTS, LENGTHS))["params"]
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, params)  # biases are not 0


def mlp(p: Any, x: np.ndarray) -> np.ndarray:
    x = np.maximum(x @ p["linear_0"]["kernel"] + p["linear_0"]["bias"], 0)
    return x @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize("item_widths", [(), (6,)])
def test_scores_are_numpys(item_widths: tuple[int, ...]) -> None:
    model = TwoTower(vocab=5, items=7, width=4, query_widths=(8,), item_widths=item_widths)
    p = initial(model)
    table = p["inputs"]["embedding"]
    means = np.stack([table[[3, 1]].mean(axis=0), table[[2, 2, 4]].mean(axis=0)])
    items = p["catalog"]["embedding"]
    items = mlp(p["item_mlp"], items) if item_widths else items
    expected = mlp(p["query_mlp"], means) @ items.T + p["bias"]
    found = model.apply({"params": p}, INPUTS, LENGTHS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_lengths_all_inputs_count() -> None:
    model = TwoTower(vocab=5, items=7, width=4)
    p = {"params": initial(model)}
    found = model.apply(p, INPUTS)
    np.testing.assert_array_equal(found, model.apply(p, INPUTS, np.array([3, 3])))
    assert not np.allclose(found[0], model.apply(p, INPUTS, LENGTHS)[0])  # type: ignore[index]


@pytest.mark.parametrize("name", ["movielens_two_tower", "criteo_dlrm"])
def test_tables_are_split_over_the_mesh(name: str) -> None:
    program = make_program(load(name).replace(mesh=Mesh(data=1, fsdp=2, tensor=4)))
    params: Any = program.abstract.params
    tables = {"movielens_two_tower": ("inputs", "catalog"), "criteo_dlrm": ("table",)}[name]
    for table in tables:
        leaf = params[table]["embedding"]
        rows, width = leaf.shape
        assert leaf.sharding.shard_shape(leaf.shape) == (rows // 4, width // 2)
