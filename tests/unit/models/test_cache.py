"""The caches of language models: the next tokens alone, after rows of unequal length."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.models.deltanet import DeltaNet
from jaxbig.models.griffin import Griffin
from jaxbig.models.language_model import Decoder
from jaxbig.models.rnn import RNNLanguageModel

TOKENS = np.random.RandomState(0).randint(0, 20, (3, 12))
PADDING = np.array([0, 3, 9])
CALLS = (0, 8, 10, 11, 12)  # the padding of the last row ends in the second call
MODELS = {
    "rotary": Decoder(vocab=20, depth=2, width=16, heads=2, kv_heads=1, window=6),
    "learned": Decoder(
        vocab=20, depth=2, width=16, heads=2, positions="learned", max_length=12, scan=True
    ),
    "relative": Decoder(vocab=20, depth=1, width=16, heads=2, positions="relative"),
    "experts": Decoder(vocab=20, depth=1, width=16, heads=2, experts=4),
    "griffin": Griffin(vocab=20, depth=3, width=16, heads=2, window=5),
    "lru": Griffin(vocab=20, depth=1, width=16, heads=2, recurrence="lru"),
    "delta": DeltaNet(vocab=20, depth=2, width=16, heads=2, key_width=4, value_width=8, chunk=3),
    "lstm": RNNLanguageModel(vocab=20, width=16, layers=2),
    "gru": RNNLanguageModel(vocab=20, width=16, cell="gru"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_padded_rows_with_a_cache_have_the_logits_of_each_row_alone(name: str) -> None:
    model = MODELS[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    draw = np.random.RandomState(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(0.1, 0.3, leaf.shape), jnp.float32),
        {"params": nn.meta.unbox(shapes)["params"]},
    )

    @jax.jit
    def several_calls(tokens: jax.Array) -> jax.Array:
        cache = {}
        logits = []
        for start, end in itertools.pairwise(CALLS):
            variables = {**params, **cache}
            given = {"padding": PADDING, "cache": 16, "mutable": ["cache"]}
            part, cache = model.apply(variables, tokens[:, start:end], **given)
            logits.append(part)
        return jnp.concatenate(logits, axis=1)

    found = several_calls(TOKENS)
    # no token sees a later one, so that padding behind a row changes nothing
    moved = np.stack([np.roll(row, -count) for row, count in zip(TOKENS, PADDING, strict=True)])
    wanted = jax.jit(model.apply)(params, moved)
    for row, count in enumerate(PADDING):
        np.testing.assert_allclose(found[row, count:], wanted[row, : 12 - count], atol=1e-4)
