"""Rankings: hit rate and NDCG by hand and by scikit-learn, and what is shown is in none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from jaxbig.data.interactions import Interactions
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.errors import Refused
from jaxbig.objectives.retrieval import Retrieval, ranks

KEY = jax.random.key(0)


class Fixed:
    """A model that gives these scores."""

    def __init__(self, scores: Any):
        self.scores = jnp.asarray(scores, jnp.float32)

    def __call__(self, inputs: Any, lengths: Any = None, train: bool = False) -> Any:
        return self.scores


def batch(inputs: Any, lengths: Any, targets: Any, mask: Any = None) -> dict[str, jax.Array]:
    fields = {"inputs": inputs, "lengths": lengths, "targets": targets}
    return {name: jnp.asarray(each, jnp.int32) for name, each in fields.items()} | {
        "mask": jnp.asarray(mask or [1] * len(targets), jnp.float32)
    }


def metrics(objective: Retrieval, scores: Any, rows: Any) -> dict[str, float]:
    forward: Any = Fixed(scores)
    return objective.summarize(objective(forward, rows, KEY, train=False))


def test_hit_rate_and_ndcg_are_those_by_hand() -> None:
    """Item 4 is shown and scores most; 3 is padding; the last row does not count."""
    scores = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0, 0, 0, 0, 9]]
    rows = batch([[4, 3], [4, 4], [0, 1]], [1, 2, 2], [2, 3, 4], [1, 1, 0])
    found = metrics(Retrieval(items=5, cutoff=2), scores, rows)
    # the targets are second and fourth
    assert found["hit_rate"] == 0.5
    assert found["ndcg"] == pytest.approx(0.5 / np.log2(3))
    losses = [np.log(np.exp([1, 2, 3, 4]).sum()) - 3, np.log(np.exp([5, 4, 3, 2]).sum()) - 2]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    shown_too = metrics(Retrieval(items=5, cutoff=2, exclude_shown=False), scores, rows)
    assert shown_too["hit_rate"] == 0


def test_ndcg_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(40, 30))
    targets = draw.integers(0, 30, 40)
    rows = batch(np.zeros((40, 1)), np.zeros(40), targets)
    found = metrics(Retrieval(items=30), scores, rows)
    assert found["ndcg"] == pytest.approx(ndcg_score(np.eye(30)[targets], scores, k=10), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=6, max_size=6),
    target=st.integers(0, 5),
    constant=st.integers(-100, 100),
)
def test_ranks_are_those_of_a_stable_sort_whatever_is_added(
    scores: list[int], target: int, constant: int
) -> None:
    given_scores = np.array([scores], np.float32)
    order = np.argsort(-given_scores[0], kind="stable")
    for added in (given_scores, given_scores + constant):
        rank = int(ranks(jnp.asarray(added), jnp.array([target]))[0])
        assert rank == 1 + np.flatnonzero(order == target)[0]
        best = jax.lax.top_k(jnp.asarray(added), 6)[1][0]
        assert best[rank - 1] == target


def test_a_target_that_is_shown_keeps_a_finite_loss() -> None:
    found = metrics(Retrieval(items=3), [[1.0, 2.0, 3.0]], batch([[2, 0]], [2], [2]))
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)


def test_scores_that_are_no_numbers_are_never_a_hit() -> None:
    assert ranks(jnp.full((1, 5), jnp.nan), jnp.array([3]))[0] > 5
    assert ranks(jnp.array([[1, 2, jnp.nan, 3]]), jnp.array([2]))[0] > 4
    found = metrics(Retrieval(items=3, cutoff=3), [[jnp.nan] * 3], batch([[2, 0]], [1], [1]))
    assert found["hit_rate"] == 0 == found["ndcg"]


def test_a_prediction_names_items_that_are_not_shown() -> None:
    names = ("a", "b", "c", "d")
    data = Interactions(records=Synthetic(), batch=1, classes=4, most=2, class_names=names)
    objective = Retrieval(items=4)
    forward: Any = Fixed([[1.0, 4.0, 2.0, 3.0]])
    rows = batch([[1, 0]], [1], [2])
    arrays = objective.predict(forward, rows, key=KEY, top=2)
    one = {name: np.asarray(each)[0] for name, each in arrays.items()}
    row = objective.describe({**one, "targets": np.int32(2)}, data, top=2)
    assert [each["item"] for each in row["top"]] == ["d", "c"]
    assert row["top"][0]["probability"] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2)), 1e-5)
    assert (row["target"], row["rank"]) == ("c", 2)
    assert "rank" not in objective.describe(one, data, top=2)


def test_another_number_of_items_is_refused() -> None:
    with pytest.raises(Refused, match="the model gives 3 logits for 4 items"):
        metrics(Retrieval(items=4), [[1.0, 2.0, 3.0]], batch([[2]], [1], [1]))
