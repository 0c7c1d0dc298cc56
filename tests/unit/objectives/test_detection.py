"""The detection objective: matching, losses by hand, predictions in words and pictures."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from jaxbig.errors import Refused
from jaxbig.objectives.detection import Detection, matched

QUERIES = 7
OBJECTS = 4
CLASSES = 3
OBJECTIVE = Detection(classes=CLASSES)
KEY = jax.random.key(0)


class Given(nn.Module):
    """A model that gives what its parameters are."""

    outputs: Any

    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        return self.outputs


def case(seed: int, images: int = 3, layers: int = 2) -> tuple[dict[str, jax.Array], Any]:
    """Outputs of a model, and a batch."""
    draw = np.random.default_rng(seed)

    def boxes(*shape: int) -> np.ndarray:
        middles = draw.uniform(0.2, 0.8, (*shape, 2))
        return np.concatenate([middles, draw.uniform(0.05, 0.4, (*shape, 2))], axis=-1)

    outputs = {
        "logits": draw.standard_normal((images, layers, QUERIES, CLASSES)),
        "boxes": boxes(images, layers, QUERIES),
    }
    batch = {
        "inputs": np.zeros((images, 8, 8, 3)),
        "targets": draw.integers(0, CLASSES, (images, OBJECTS)),
        "boxes": boxes(images, OBJECTS),
        "present": np.arange(OBJECTS) < draw.integers(0, OBJECTS + 1, (images, 1)),
        "mask": np.ones(images),
    }
    single = {name: jnp.asarray(each, jnp.float32) for name, each in outputs.items()}
    kinds = {"targets": jnp.int32}
    rows = {name: jnp.asarray(v, kinds.get(name, jnp.float32)) for name, v in batch.items()}
    return single, rows


@jax.jit
def sums(outputs: Any, batch: Any) -> Any:
    return OBJECTIVE(Given(outputs), batch, KEY, True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, OBJECTS))
def test_matching_is_scipys_whatever_is_absent(seed: int, present: int) -> None:
    costs = np.random.default_rng(seed).normal(0, 3, (1, 1, OBJECTS, QUERIES)).astype(np.float32)
    there = np.arange(OBJECTS)[None] < present
    [[found]] = np.asarray(jax.jit(matched)(costs, there))
    assert len(set(found.tolist())) == OBJECTS
    kept = costs[0, 0, :present]
    rows, columns = linear_sum_assignment(kept)
    assert kept[rows, found[:present]].sum() == pytest.approx(
        kept[rows, columns].sum(), rel=1e-5, abs=1e-5
    )


def test_costs_that_are_no_numbers_are_matched_too() -> None:
    costs = np.full((1, 1, OBJECTS, QUERIES), np.nan, np.float32)
    costs[..., 0] = -np.inf
    found = jax.jit(matched)(costs, np.ones((1, OBJECTS)))
    assert len(set(np.asarray(found).ravel().tolist())) == OBJECTS


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_loss_does_not_depend_on_the_order_of_the_objects(seed: int) -> None:
    outputs, batch = case(seed)
    order = np.random.default_rng(seed).permutation(OBJECTS)
    turned = {**batch, **{k: batch[k][:, order] for k in ("targets", "boxes", "present")}}
    before = sums(outputs, batch)
    after = sums(outputs, turned)
    for name in before:
        np.testing.assert_allclose(before[name].total, after[name].total, rtol=1e-4, atol=1e-4)


def test_batch_without_an_object_has_a_loss_and_a_gradient_of_its_classes_alone() -> None:
    outputs, batch = case(0)
    batch["present"] = jnp.zeros_like(batch["present"])
    batch["boxes"] = jnp.zeros_like(batch["boxes"])  # as `Boxes` pads

    def loss(outputs: Any) -> jax.Array:
        return sums(outputs, batch)["loss"].mean()

    gradient = jax.grad(loss)(outputs)
    assert np.isfinite(loss(outputs)) and (np.asarray(gradient["logits"]) > 0).all()
    assert not gradient["boxes"].any()
    boxes = jnp.zeros_like(outputs["boxes"])  # of no size
    assert np.isfinite(jax.grad(loss)({**outputs, "boxes": boxes})["boxes"]).all()


def test_a_model_that_does_not_fit_is_refused() -> None:
    outputs, batch = case(0)
    with pytest.raises(Refused, match="needs a model that gives `logits` and `boxes`"):
        sums(outputs["logits"], batch)
    few = {name: each[:, :, :2] for name, each in outputs.items()}
    with pytest.raises(Refused, match="2 queries for up to 4 objects"):
        sums(few, batch)
    with pytest.raises(Refused, match="3 logits for 5 classes"):
        Detection(classes=5)(Given(outputs), batch, KEY, True)  # type: ignore[arg-type]


class Names:
    """The words of a data set."""

    def class_name(self, number: int) -> str:
        return "abc"[number]


def test_predictions_are_the_best_pairs_with_a_picture_of_them() -> None:
    outputs, batch = case(2)

    @jax.jit
    def predict(outputs: Any) -> Any:
        return OBJECTIVE.predict(Given(outputs), batch, key=KEY, top=3)

    found = predict(outputs)
    scores = 1 / (1 + np.exp(-np.asarray(outputs["logits"][:, -1])))
    best = np.sort(scores.reshape(3, -1), axis=1)[:, ::-1][:, :3]
    np.testing.assert_allclose(found["scores"], best, rtol=1e-5)
    one = {name: np.array(each[0]) for name, each in found.items()}
    one |= {"scores": np.array([0.9, 0.4, 0.2]), "inputs": np.zeros((8, 8, 3), np.uint8)}
    one["found"][0] = (0.5, 0.5, 0.5, 0.25)
    row = OBJECTIVE.describe(one, Names(), top=3)  # type: ignore[arg-type]
    assert [each["score"] for each in row["objects"]] == [0.9, 0.4] and "targets" not in row
    assert row["objects"][0]["class"] == "abc"[one["classes"][0]]
    assert row["objects"][0]["box"] == [0.25, 0.375, 0.75, 0.625]
    assert row["picture"].shape == (256, 256, 3) and row["picture"].any()
    known = {name: np.asarray(batch[name][0]) for name in ("targets", "boxes", "present", "mask")}
    row = OBJECTIVE.describe(one | known, Names(), top=3)  # type: ignore[arg-type]
    assert len(row["targets"]) == known["present"].sum()
