"""What each objective answers for an example, from outputs that are given by hand."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.objectives.base import Objective, as_numbers
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.ctc import CTC
from jaxbig.objectives.masked_token import MaskedToken
from jaxbig.objectives.next_token import NextToken
from jaxbig.objectives.regression import Regression

KEY = jax.random.key(0)


class Given(nn.Module):
    """A model whose outputs are its inputs."""

    def __call__(self, x: jax.Array, lengths: Any = None, *, train: bool = False) -> jax.Array:
        return x


class Letters(nn.Module):
    """A model that is sure that each token is the third."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, 9.0, -1.0]), (*x.shape, 5))


class Words:
    """Classes a, b, c, ...; tokens are letters too; numbers are in dozens."""

    def class_name(self, number: int) -> str:
        return "abcdefgh"[number]

    def text(self, tokens: np.ndarray) -> str:
        return "".join("_abc?"[token] for token in tokens)

    def in_units(self, targets: np.ndarray) -> np.ndarray:
        return targets * 12


def answers(
    objective: Objective, batch: dict[str, Any], *known: str, model: Any = None, top: int = 2
) -> list[dict[str, Any]]:
    """The answers for a batch; these fields of it are known."""
    batch = {name: jnp.asarray(field) for name, field in batch.items()}

    def predict(forward: nn.Module) -> Any:
        return objective.predict(forward, batch, key=KEY, top=top)

    found = jax.device_get(jax.jit(nn.apply(predict, model or Given()))({}))
    found |= {name: np.asarray(batch[name]) for name in known}
    rows = [{name: field[i] for name, field in found.items()} for i in range(len(batch["mask"]))]
    return [objective.describe(row, Words(), top=top) for row in rows]


def test_a_class_is_named_with_its_probability_and_the_next_likeliest() -> None:
    logits = np.log([[0.1, 0.7, 0.2], [0.25, 0.25, 0.5]]).astype(np.float32)
    batch = {"inputs": logits, "targets": np.array([1, 0]), "mask": np.ones(2)}
    first, second = answers(Classification(classes=3), batch, "targets")
    assert first["class"] == first["target"] == "b"
    assert [each["class"] for each in first["top"]] == ["b", "c"]
    assert first["top"][1]["probability"] == pytest.approx(0.2)
    assert [each["class"] for each in second["top"]] == ["c", "a"] and second["target"] == "a"
    assert "target" not in answers(Classification(classes=3), batch)[0]


def test_labels_that_are_likelier_than_not_are_named() -> None:
    batch = {
        "inputs": np.array([[1.0, -1.0, 0.5]], np.float32),
        "targets": np.array([[0.0, 1.0, 1.0]], np.float32),
        "mask": np.ones(1),
    }
    [row] = answers(Classification(classes=3, multi_label=True), batch, "targets")
    assert row["classes"] == ["a", "c"] and row["target"] == ["b", "c"]
    assert row["top"][0] == {"class": "a", "probability": pytest.approx(1 / (1 + np.exp(-1)))}


def test_classes_of_pixels_are_a_picture_with_the_share_of_each() -> None:
    classes = np.array([[[0, 2], [2, 2]]])
    batch = {
        "inputs": 5 * np.eye(3, dtype=np.float32)[classes],
        "targets": np.array([[[0, 2], [2, 1]]]),
        "mask": np.array([[[1.0, 1.0], [0.0, 1.0]]]),
    }
    [row] = answers(Classification(classes=3), batch, "targets", "mask")
    assert row["shares"] == [{"class": "c", "share": 0.75}, {"class": "a", "share": 0.25}]
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["picture"].dtype == np.uint8 and np.array_equal(row["picture"], classes[0])


def test_classes_of_tokens_are_named_one_by_one() -> None:
    batch = {
        "inputs": np.eye(3, dtype=np.float32)[np.array([[0, 2, 1]])],
        "targets": np.array([[0, 2, 2]]),
        "mask": np.ones((1, 3)),
    }
    [row] = answers(Classification(classes=3), batch, "targets", "mask")
    assert row == {"classes": ["a", "c", "b"], "target": ["a", "c", "c"]}


def test_numbers_are_in_the_units_of_the_records() -> None:
    batch = {
        "inputs": np.array([[0.5], [0.25]], np.float32),
        "targets": np.array([1.0, 0.0], np.float32),
        "mask": np.ones(2),
    }
    rows = answers(Regression(), batch, "targets")
    assert rows == [{"value": 6.0, "target": 12.0}, {"value": 3.0, "target": 0.0}]
    several = {**batch, "inputs": np.ones((2, 3)), "targets": np.zeros((2, 3))}
    assert answers(Regression(), several)[0] == {"value": [12.0, 12.0, 12.0]}


def test_a_transcript_has_no_blanks_no_repeats_and_nothing_after_its_end() -> None:
    best = np.array([[1, 1, 0, 1, 2, 0, 3], [0, 0, 3, 3, 3, 2, 2]])
    batch = {
        "inputs": np.eye(4, dtype=np.float32)[best],
        "lengths": np.array([7, 5]),
        "targets": np.array([[1, 1, 2, 3], [3, 1, 0, 0]]),
        "mask": np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]),
    }
    rows = answers(CTC(classes=4), batch, "targets", "mask")
    assert rows[0] == {"text": "aabc", "target": "aabc", "edits": 0}
    assert rows[1] == {"text": "c", "target": "ca", "edits": 1}
    assert answers(CTC(classes=4), batch)[1] == {"text": "c"}


def test_mask_tokens_of_a_text_are_filled_in() -> None:
    objective = MaskedToken(vocab=5, mask_token=4)
    tokens = np.array([[1, 4, 2, 4, 0, 0], [1, 2, 3, 3, 0, 0]])
    batch = {"inputs": tokens, "mask": (np.arange(6) < 4) * np.ones((2, 1))}
    asked, plain = answers(objective, batch, model=Letters())
    assert asked["text"] == "acbc"
    assert [each["position"] for each in asked["masked"]] == [1, 3]
    assert [each["text"] for each in asked["masked"][0]["top"]] == ["c", "b"]
    assert "target" not in asked["masked"][0] and "accuracy" not in asked
    assert plain["masked"] and "loss" in plain
    for each in plain["masked"]:
        assert each["target"]["token"] == tokens[1, each["position"]]
    right = [each["target"]["token"] == 3 for each in plain["masked"]]
    assert plain["accuracy"] == np.mean(right)


def test_the_perplexity_of_a_text_is_over_its_tokens_alone() -> None:
    batch = {
        "inputs": np.zeros((1, 4), np.int32),
        "targets": np.array([[3, 2, 3, 1]]),
        "mask": np.array([[1.0, 1.0, 0.0, 0.0]]),
    }
    [row] = answers(NextToken(vocab=5), batch, model=Letters())
    logits = np.array([0.0, 1.0, 2.0, 9.0, -1.0])
    losses = np.log(np.exp(logits).sum()) - logits[[3, 2]]
    assert row["tokens"] == 2 and row["accuracy"] == 0.5
    assert row["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert row["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-6)
    assert row["bits_per_token"] == pytest.approx(losses.mean() / np.log(2), rel=1e-6)


def test_numbers_have_the_digits_of_their_dtype() -> None:
    assert as_numbers(np.float32(0.1)) == 0.1
    assert as_numbers(jnp.array([0.1, 3], jnp.bfloat16)) == [0.100097656, 3.0]
    assert as_numbers(np.array([[True], [False]])) == [[True], [False]]
    assert np.float32(as_numbers(np.float32(1) / 3)) == np.float32(1) / 3
