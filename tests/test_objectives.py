"""Losses and metrics against SciPy and numbers by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from jaxbig.errors import Refused
from jaxbig.objectives.base import Objective, Sum, cross_entropy, masked
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.next_token import NextToken

KEY = jax.random.key(0)
RANDOM: Any = np.random.default_rng(0)
CLASSIFICATION = Classification(classes=5), RANDOM.standard_normal((8, 5)), RANDOM.integers(0, 5, 8)
NEXT_TOKEN = NextToken(vocab=7), RANDOM.standard_normal((4, 6, 7)), RANDOM.integers(0, 7, (4, 6))
BOTH = pytest.mark.parametrize(
    ("objective", "logits", "targets"), [CLASSIFICATION, NEXT_TOKEN], ids=["classification", "next token"]
)


def outcome(objective: Objective, logits: Any, targets: Any, mask: Any = None, **more: Any) -> dict[str, Sum]:
    """The objective's sums with a model that answers with these logits whatever it sees."""
    mask = np.ones(targets.shape, np.float32) if mask is None else mask
    batch = {"inputs": jnp.zeros(targets.shape), "targets": targets, "mask": mask, **more}
    model: Any = lambda inputs, train, **named: jnp.asarray(logits, jnp.float32)  # noqa: E731
    return objective(model, batch, KEY, True)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_cross_entropy_is_scipys_at_any_size_of_logits(size: float) -> None:
    logits, targets = (size * RANDOM.standard_normal((3, 4, 9))).astype(np.float32), RANDOM.integers(0, 9, (3, 4))
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = logsumexp(np.float64(logits), axis=-1) - chosen
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_cross_entropy_is_softmax_less_one_hot() -> None:
    logits, targets = jnp.asarray(RANDOM.standard_normal((5, 4))), jnp.array([0, 1, 2, 3, 3])
    gradient = jax.grad(lambda logits: cross_entropy(logits, targets).sum())(logits)
    np.testing.assert_allclose(gradient, softmax(logits, axis=-1) - np.eye(4)[targets], atol=1e-6)


def test_cross_entropy_of_bfloat16_is_made_in_float32() -> None:
    logits, targets = jnp.asarray(RANDOM.standard_normal((50, 300)), jnp.bfloat16), RANDOM.integers(0, 300, 50)
    values = cross_entropy(logits, targets)
    assert values.dtype == jnp.float32
    expected = -np.take_along_axis(log_softmax(np.float64(logits), -1), targets[:, None], -1)[:, 0]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@BOTH
def test_loss_and_accuracy_are_means_over_what_the_mask_leaves(objective: Any, logits: Any, targets: Any) -> None:
    mask = RANDOM.integers(0, 2, targets.shape)
    sums = outcome(objective, logits, targets, np.float32(mask))
    kept, chosen = logits[mask == 1], targets[mask == 1]
    losses = [logsumexp(row) - row[target] for row, target in zip(kept, chosen, strict=True)]
    assert set(sums) == {"loss", "accuracy"}
    assert sums["loss"].mean() == pytest.approx(np.mean(losses), rel=1e-5)
    assert sums["accuracy"].mean() == pytest.approx(np.mean(kept.argmax(-1) == chosen), rel=1e-6)
    assert float(sums["loss"].weight) == float(sums["accuracy"].weight) == mask.sum()


@BOTH
def test_what_is_masked_changes_no_bit_of_values_and_gradients(objective: Any, logits: Any, targets: Any) -> None:
    real = np.zeros(targets.shape, bool)
    real[: len(real) // 2] = True
    classes = logits.shape[-1]

    def both(logits: Any, targets: Any) -> Any:
        def loss(logits: Any) -> Any:
            sums = outcome(objective, logits, targets, np.float32(real))
            return sums["loss"].mean(), sums

        return jax.grad(loss, has_aux=True)(jnp.asarray(logits, jnp.float32))

    garbage = np.where(real[..., None], logits, 50 * RANDOM.standard_normal(logits.shape))
    ours, other = both(logits, targets), both(garbage, np.where(real, targets, (targets + 1) % classes))
    jax.tree.map(np.testing.assert_array_equal, ours, other)
    assert not np.any(ours[0][~real]) and np.all(ours[0][real])


def test_accuracy_by_hand() -> None:
    logits, targets = np.array([[3, 1, 2], [0, 5, 1], [1, 2, 9], [4, 0, 3]]), np.array([0, 1, 0, 2])
    sums = outcome(Classification(classes=3), logits, targets)
    assert (float(sums["accuracy"].total), float(sums["accuracy"].weight)) == (2, 4)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_sums_of_parts_give_the_mean_of_the_whole(sizes: list[int]) -> None:
    values: Any = np.arange(sum(sizes), dtype=np.float32) ** 2  # parts of unequal size and mean
    parts: list[Any] = np.split(values, np.cumsum(sizes)[:-1])
    sums = [masked(part, np.ones_like(part)) for part in parts]  # type: ignore[arg-type]
    whole = Sum(sum(each.total for each in sums), sum(each.weight for each in sums))
    assert whole.mean() == pytest.approx(values.mean(), rel=1e-6)


def test_a_mask_of_another_shape_is_an_error() -> None:
    with pytest.raises(AssertionError):
        masked(jnp.ones((4, 6)), jnp.ones((4,)))


def test_to_know_nothing_of_bytes_is_eight_bits_each() -> None:
    objective, targets = NextToken(vocab=256), RANDOM.integers(0, 256, (2, 8))
    loss = float(outcome(objective, np.zeros((2, 8, 256)), targets)["loss"].mean())
    means = objective.summarize({"loss": loss, "accuracy": 0.5})
    assert means["perplexity"] == pytest.approx(256, rel=1e-5)
    assert means["bits_per_byte"] == pytest.approx(8, rel=1e-5)
    assert (means["loss"], means["accuracy"]) == (loss, 0.5)


@pytest.mark.parametrize(
    ("loss", "perplexity"), [(0.0, 1.0), (math.log(10), 10.0), (1e4, math.inf), (math.inf, math.inf)]
)
def test_perplexity_is_e_to_the_loss_and_never_an_error(loss: float, perplexity: float) -> None:
    assert NextToken(vocab=2).summarize({"loss": loss})["perplexity"] == pytest.approx(perplexity)


def test_perplexity_of_no_number_is_no_number() -> None:
    means = NextToken(vocab=2).summarize({"loss": math.nan})
    assert math.isnan(means["perplexity"]) and math.isnan(means["bits_per_byte"])


@BOTH
def test_another_number_of_logits_is_refused_with_both(objective: Any, logits: Any, targets: Any) -> None:
    classes = logits.shape[-1]
    with pytest.raises(Refused, match=rf"\b{classes - 1} logits for {classes} "):
        outcome(objective, logits[..., 1:], targets)


def test_lengths_reach_the_model_where_the_batch_has_them() -> None:
    seen = {}

    def model(inputs: Any, train: bool, **named: Any) -> Any:
        seen.update(named, train=train)
        return jnp.zeros((3, 5))

    batch = {"inputs": jnp.zeros((3, 2)), "targets": jnp.zeros(3, int), "mask": jnp.ones(3)}
    Classification(classes=5)(model, batch, KEY, False)  # type: ignore[arg-type]
    assert seen == {"train": False}
    Classification(classes=5)(model, {**batch, "lengths": jnp.ones(3)}, KEY, True)  # type: ignore[arg-type]
    assert seen["train"] and np.array_equal(seen["lengths"], np.ones(3))


@pytest.mark.parametrize(
    ("objective", "criterion", "higher"),
    [(Classification(classes=2), "accuracy", True), (NextToken(vocab=2), "loss", False)],
)
def test_the_best_is_told_by_a_metric_that_is_there(objective: Objective, criterion: str, higher: bool) -> None:
    assert (objective.criterion, objective.higher_is_better) == (criterion, higher)
    shape = (1,) if isinstance(objective, Classification) else (1, 1)
    assert objective.criterion in outcome(objective, np.zeros((*shape, 2)), np.zeros(shape, int))
