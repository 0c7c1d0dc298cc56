"""Two towers or one: vectors by NumPy, the learned temperature, and features before a head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxbig.constraints import validate
from jaxbig.errors import Refused
from jaxbig.models.bag_of_tokens import BagOfTokens
from jaxbig.models.base import head_input
from jaxbig.models.dual_encoder import DualEncoder
from jaxbig.models.language_model import Encoder
from jaxbig.models.vit import ViT

IMAGES = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
TOKENS = jnp.array([[1, 2, 3], [4, 5, 0]])
LENGTHS = jnp.array([3, 2])
VIT = ViT(classes=6, patch=2, depth=1, width=8, heads=2)
TEXT = Encoder(vocab=7, classes=6, depth=1, width=8, heads=2, pooling="mean")


def both(model: DualEncoder, inputs: Any, other: Any, lengths: Any = None) -> tuple[Any, Any]:
    """Parameters, and the vectors of both sides."""

    def sides(module: Any) -> Any:
        return module(inputs), module.other(other, lengths)

    variables = meta.unbox(model.init(jax.random.key(0), method=sides))
    found = model.apply(variables, method=sides)
    return variables["params"], jax.tree.map(np.asarray, found)


def test_clip_is_an_image_and_a_text_tower_and_a_learned_temperature() -> None:
    model = DualEncoder(tower=VIT, other_tower=TEXT, temperature=0.25)
    params, found = both(model, IMAGES, TOKENS, LENGTHS)
    assert params["log_scale"] == pytest.approx(np.log(4))
    towers = (
        VIT.apply({"params": params["tower"]}, IMAGES),
        TEXT.apply({"params": params["other_tower"]}, TOKENS, LENGTHS),
    )
    for vectors, tower in zip(found, towers, strict=True):
        unit = np.asarray(tower) / np.linalg.norm(tower, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, 2 * unit, rtol=1e-5, atol=1e-6)
    hot = {**params, "log_scale": jnp.float32(9)}
    np.testing.assert_allclose(
        np.linalg.norm(model.apply({"params": hot}, IMAGES), axis=1), 10, rtol=1e-5
    )


def test_simclr_is_one_tower_with_a_projection() -> None:
    model = DualEncoder(tower=VIT, projection=(5,), temperature=0.5, learned_temperature=False)
    params, (first, second) = both(model, IMAGES, IMAGES)
    assert set(params) == {"tower", "projection_0"}
    np.testing.assert_array_equal(first, second)
    hidden = np.maximum(VIT.apply({"params": params["tower"]}, IMAGES), 0)
    layer = params["projection_0"]
    expected = hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(first, 2**0.5 * expected, rtol=1e-5, atol=1e-6)
    features = model.apply({"params": params}, IMAGES, method=DualEncoder.features)
    expected = VIT.apply({"params": params["tower"]}, IMAGES, method=head_input)
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_copies_change_both_towers() -> None:
    model: Any = DualEncoder(tower=VIT, other_tower=TEXT.clone(depth=3))
    assert model.shallower(2).other_tower.depth == 2
    narrower = model.narrower()
    assert (narrower.tower.width, narrower.other_tower.width) == (4, 4)
    assert model.with_dtype("float64").tower.dtype == "float64"
    odd = DualEncoder(tower=VIT.clone(width=7))
    assert odd.narrower() is None


def test_a_tower_without_one_vector_an_example_is_refused() -> None:
    model = DualEncoder(tower=TEXT.clone(pooling="none"))
    with pytest.raises(Refused, match="must give"):
        model.init(jax.random.key(0), TOKENS)


def test_a_shared_tower_is_left_out_and_a_learned_temperature_is_not_too_low() -> None:
    with pytest.raises(Refused, match="is tower itself: leave it out"):
        validate(DualEncoder(tower=TEXT, other_tower=TEXT))
    with pytest.raises(Refused, match=r"temperature 0.001: a learned one is 0.01 or more"):
        validate(DualEncoder(tower=TEXT, temperature=0.001))
    validate(DualEncoder(tower=TEXT, temperature=0.001, learned_temperature=False))


def test_a_temperature_at_its_least_can_still_be_learned() -> None:
    model = DualEncoder(tower=BagOfTokens(vocab=16, width=4), temperature=0.01)
    variables = meta.unbox(model.init(jax.random.key(0), TOKENS))
    variables["params"]["log_scale"] += 1  # e times the most

    def length(params: Any) -> jax.Array:
        return jnp.linalg.norm(model.apply({"params": params}, TOKENS)[0])

    np.testing.assert_allclose(length(variables["params"]), 10, rtol=1e-5)
    assert jax.grad(length)(variables["params"])["log_scale"] > 1
