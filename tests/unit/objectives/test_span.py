"""Spans: loss and metrics by hand, the best pair by trying all, and only whole words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.questions import Questions
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.errors import Refused
from jaxbig.objectives.span import Span, best_spans

KEY = jax.random.key(0)


class Fixed:
    """A model that gives these scores."""

    def __init__(self, scores: Any):
        self.scores = jnp.asarray(scores, jnp.float32)

    def __call__(self, inputs: Any, types: Any = None, train: bool = False) -> Any:
        return self.scores


def batch(types: Any, targets: Any, mask: Any) -> dict[str, jax.Array]:
    """Rows in which each token is a word."""
    types = jnp.asarray(types, jnp.int32)
    place = np.arange(types.shape[1])
    places = jnp.broadcast_to(np.stack([place, place + 1], axis=1), (*types.shape, 2))
    return {
        "inputs": jnp.zeros_like(types),
        "types": types,
        "offsets": places,
        "targets": jnp.asarray(targets, jnp.int32),
        "mask": jnp.asarray(mask, jnp.float32),
    }


def metrics(objective: Span, scores: Any, rows: Any) -> dict[str, float]:
    forward: Any = Fixed(scores)
    return objective.summarize(objective(forward, rows, KEY, train=False))


def test_loss_and_metrics_are_those_by_hand() -> None:
    """Token 0 is of the question, however well it scores; the second answer is cut away, and the
    last row does not count."""
    start = [9, 1, 4, 0, 0]
    end = [9, 0, 0, 2, 1]
    scores = np.stack([start, end], axis=1)
    types = [[0, 1, 1, 1, 1]] * 3
    rows = batch(types, [[2, 2], [0, 0], [1, 1]], [1, 1, 0])
    found = metrics(Span(), [scores] * 3, rows)
    nats = [np.log(np.exp(each[1:]).sum()) - each[2] for each in (start, end)]
    assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-6)
    # 2 to 3 is found: of its two tokens one is right
    assert found["exact_span"] == 0
    assert found["span_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics(Span(longest=1), [scores] * 3, rows)["exact_span"] == 0.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), longest=st.sampled_from([1, 3, 9]))
def test_the_best_spans_are_the_best_of_all_pairs_of_whole_words(seed: int, longest: int) -> None:
    length = 6
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(length, 2))
    word = np.cumsum(draw.integers(0, 2, length))  # of each token
    found, shares = best_spans(
        jnp.asarray(scores[None], jnp.float32),
        jnp.asarray(np.stack([word, word + 1], axis=1)[None]),
        longest=longest,
        count=3,
    )
    logs = scores - np.log(np.exp(scores).sum(axis=0))
    pairs = {
        (i, j): logs[i, 0] + logs[j, 1]
        for i in range(length)
        for j in range(i, min(length, i + longest))
        if (i == 0 or word[i] != word[i - 1]) and (j == length - 1 or word[j] != word[j + 1])
    }
    best = sorted(pairs, key=lambda pair: -pairs[pair])[:3]
    for place, pair in enumerate(best):
        assert tuple(found[0, place].tolist()) == pair
        assert float(shares[0, place]) == pytest.approx(pairs[pair], rel=1e-5, abs=1e-5)


def test_a_prediction_is_a_part_of_the_context_with_its_place() -> None:
    records = Synthetic(texts=("question", "context"))
    data = Questions(records=records, batch=1, length=24, tokenizer=Bytes(specials=("<end>",)))
    example = data.read_unlabeled({"question": "which?", "context": "a red\n house"})
    assert example["lengths"] == 6 + 1 + 11 + 1  # each word with at most one space
    scores = np.zeros((24, 2))
    scores[9, 0] = scores[12, 1] = 5  # after the question and its end: a, space, r, e, d
    scores[8:12, 0] = [1, 5, 0, 0]
    scores[11, 1] = 6
    rows = {name: jnp.asarray(field)[None] for name, field in example.items()}
    objective = Span()
    forward: Any = Fixed(scores[None])
    arrays = objective.predict(forward, {k: rows[k] for k in ROW}, key=KEY, top=2)
    one = {name: np.asarray(each)[0] for name, each in arrays.items()}
    row = objective.describe(one, data, top=2)
    assert (row["answer"], row["start"]) == ("red", 2)
    assert len(row["top"]) == 2 and row["probability"] >= row["top"][1]["probability"]
    assert "target" not in row
    known = objective.describe({**one, "targets": np.array([7, 7])}, data, top=2)
    assert (known["target"], known["exact_span"]) == ("a", False)


ROW = ("inputs", "types", "offsets", "targets", "mask")


def test_a_model_without_two_scores_for_each_token_is_refused() -> None:
    with pytest.raises(Refused, match=r"two scores for each token, \[1, 2, 2\]"):
        metrics(Span(), [[1.0, 2.0]], batch([[0, 1]], [[1, 1]], [1]))
