"""A translator that copies: its mixture by NumPy, and nothing of the padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxbig.errors import Refused
from jaxbig.models.language_model import EncoderDecoder

FIELDS: dict[str, Any] = {"vocab": 16, "depth": 1, "width": 8, "heads": 2, "pre_norm": True}


def softmax(x: np.ndarray) -> np.ndarray:
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


def test_copying_is_the_mixture_of_see_et_al() -> None:
    sources = jnp.array([[3, 4, 3, 9], [5, 6, 7, 8]])
    previous = jnp.array([[1, 2], [3, 4]])
    lengths = jnp.array([3, 4])
    model = EncoderDecoder(**FIELDS, copying=True)
    params = meta.unbox(model.init(jax.random.key(0), sources, previous, lengths))["params"]
    found = np.asarray(model.apply({"params": params}, sources, previous, lengths))
    plain = EncoderDecoder(**FIELDS)
    rest = {name: each for name, each in params.items() if name not in ("pointer", "copies")}
    logits, seen = plain.apply(
        {"params": rest}, sources, previous, lengths, capture_intermediates=True, mutable=True
    )
    states = np.asarray(seen["intermediates"]["encoder"]["__call__"][0])
    x = np.asarray(seen["intermediates"]["decoder"]["__call__"][0])
    scores = np.einsum("btd,bsd->bts", x @ np.asarray(params["pointer"]["kernel"]), states) / 8**0.5
    scores = np.where((np.arange(4) < np.array([[3], [4]]))[:, None], scores, -np.inf)
    copied = np.einsum("bts,bsv->btv", softmax(scores), np.eye(16)[np.asarray(sources)])
    gate = x @ np.asarray(params["copies"]["kernel"]) + np.asarray(params["copies"]["bias"])
    share = 1 / (1 + np.exp(-gate))
    expected = share * softmax(np.asarray(logits)) + (1 - share) * copied
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-5)


def test_two_vocabularies_are_refused() -> None:
    model = EncoderDecoder(**FIELDS, copying=True, target_vocab=8)
    tokens = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(Refused, match="target_vocab is 8"):
        model.init(jax.random.key(0), tokens, tokens)
