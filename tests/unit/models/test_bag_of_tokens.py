"""A sum of embeddings: by NumPy, whatever is behind a text, and dropout of whole tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxbig.errors import Refused
from jaxbig.models.bag_of_tokens import BagOfTokens

TOKENS = jnp.array([[1, 2, 2], [4, 0, 3]])
MODEL = BagOfTokens(vocab=5, width=4, max_length=3)


def test_it_is_the_sum_of_the_embeddings_times_their_places() -> None:
    params = meta.unbox(MODEL.init(jax.random.key(0), TOKENS))["params"]
    assert np.array_equal(params["places"], np.ones(3))
    params["places"] = jnp.array([0.5, 2, -1])
    [table] = jax.tree.leaves(params["tokens"])
    lengths = np.array([3, 1])
    found = MODEL.apply({"params": params}, TOKENS, lengths)
    first = 0.5 * table[1] + 2 * table[2] - table[2]
    np.testing.assert_allclose(found, np.stack([first, 0.5 * table[4]]), rtol=1e-6)
    other = MODEL.apply({"params": params}, TOKENS.at[1, 1:].set(2), lengths)
    assert np.array_equal(found, other)


def test_dropout_leaves_out_whole_tokens() -> None:
    model = MODEL.clone(dropout=0.5)
    variables = meta.unbox(model.init(jax.random.key(0), TOKENS))
    one = TOKENS[:1, :1]
    whole = np.asarray(model.apply(variables, one))
    for seed in range(8):
        found = model.apply(variables, one, train=True, rngs={"dropout": jax.random.key(seed)})
        assert np.allclose(found, 2 * whole) or np.allclose(found, 0)


def test_more_tokens_than_places_are_refused() -> None:
    with pytest.raises(Refused, match="4 tokens: make max_length 3 4 or more"):
        MODEL.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
