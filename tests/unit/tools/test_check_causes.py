"""`check` passes healthy experiments, and names each planted fault by the question it fails."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from support.experiments import small

from jaxbig.distributed.mesh import Mesh
from jaxbig.models.layers import attention
from jaxbig.models.layers.basic import Linear
from jaxbig.models.layers.parameters import parameter
from jaxbig.objectives.base import Batch, Objective, Sum, Sums, call, cross_entropy, masked
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.next_token import NextToken
from jaxbig.tools.check_causes import causes, check_all

GRADIENT = "each parameter has a gradient"
TERM = "each term of the loss moves it"
LATER = "no later token is seen"
DOCUMENT = "no other document of a row is seen"
PADDING = "padding counts nowhere"
ROW = "no other row is seen"
IMAGES = "digits_convnet"
TEXT = "pytext_transformer"
BATCHES = "metrics do not depend on batches"


def wrong(name: str, **changes: Any) -> dict[str, str]:
    """What is found by each question that an experiment fails."""
    found = causes(small(name, **changes))
    return {each.question: each.found for each in found if each.ok is False}


class Images(nn.Module):
    """Logits of the mean of an image, with a fault."""

    classes: int = 10
    fault: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)
        first = Linear((16,), (None, "hidden"), name="first")(x)
        second = Linear((16,), (None, "hidden"), name="second")(x)
        if self.fault == "unused":
            second = x[:, :16]
        if self.fault == "stopped":
            second = jax.lax.stop_gradient(second)
        y = nn.relu(first) + second
        if self.fault == "row":
            y = y - 0.01 * jnp.mean(y, axis=0, keepdims=True)
        return Linear((self.classes,), ("hidden", "classes"), name="head")(y)


class Tokens(nn.Module):
    """Logits of a sum of the tokens before, with a fault."""

    vocab: int = 256
    fault: str = ""

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        axes: Any = ("vocab", "embed")
        table = parameter(self, "embedding", nn.initializers.normal(1.0), (self.vocab, 8), axes)
        x = table[inputs]
        y = jnp.cumsum(x, axis=1)
        if segments is not None and self.fault != "document":
            same = segments[:, :, None] == segments[:, None]
            seen = same & jnp.tri(inputs.shape[1], dtype=bool)[None]
            y = jnp.einsum("bts,bsd->btd", seen.astype(x.dtype), x)
        if self.fault == "ahead":
            y = y + 0.01 * jnp.roll(x, -1, axis=1)
        if self.fault == "blind":
            y = x
        return Linear((self.vocab,), ("embed", "vocab"), name="head")(jnp.sin(y))


@dataclasses.dataclass(frozen=True)
class Wrong(Classification):
    """Classification with a fault."""

    fault: str = ""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        losses = cross_entropy(call(forward, batch, train), batch["targets"])
        sums = {"loss": masked(losses, batch["mask"])}
        one = jnp.ones(())
        if self.fault == "counted":
            sums["size"] = Sum(jnp.sum(losses), jnp.sum(batch["mask"]))
        if self.fault == "mean":
            sums["nats"] = Sum(sums["loss"].mean_or_zero(), one)
        return sums


@dataclasses.dataclass(frozen=True)
class TwoTerms(NextToken):
    """Next tokens, with a second term that is multiplied by 0 or not."""

    size_weight: float = 0.5
    factor: float = 0.0

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        logits = call(forward, batch, train)
        losses = cross_entropy(logits, batch["targets"])
        size = jnp.mean(jnp.square(logits), axis=-1)
        return {"loss": masked(losses + self.factor * self.size_weight * size, batch["mask"])}


@pytest.mark.parametrize(
    ("fault", "question", "words"),
    [
        ("unused", GRADIENT, "second/"),
        ("stopped", GRADIENT, "second/"),
        ("row", ROW, "loss of a row"),
    ],
)
def test_faults_of_a_model_are_named(fault: str, question: str, words: str) -> None:
    found = wrong(IMAGES, model=Images(classes=10, fault=fault))
    assert words in found[question] and (fault == "row") == (GRADIENT not in found)


def test_a_frozen_parameter_needs_no_gradient() -> None:
    optimizer = dataclasses.replace(small(IMAGES).optimizer, frozen="second")
    assert not wrong(IMAGES, model=Images(classes=10, fault="stopped"), optimizer=optimizer)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("ahead", "position 14 depends on inputs from 15"), ("blind", "does not look back")],
)
def test_a_later_token_that_is_seen_is_named(fault: str, words: str) -> None:
    found = wrong(TEXT, model=Tokens(fault=fault))
    assert words in found[LATER] and set(found) <= {LATER, PADDING}


def test_a_transformer_whose_mask_is_open_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_well = attention.visible
    monkeypatch.setattr(
        attention, "visible", lambda q, k, causal, *more: masked_well(q, k, False, *more)
    )
    assert set(wrong(TEXT)) == {LATER, PADDING}


def test_a_document_that_sees_its_neighbor_is_named() -> None:
    packed = "lm1b_transformer"
    assert set(wrong(packed, model=Tokens(128, "document"), objective=NextToken(128))) == {DOCUMENT}
    assert not wrong(packed, model=Tokens(128), objective=NextToken(128))


def test_a_term_that_is_multiplied_by_0_is_named() -> None:
    found = wrong(TEXT, model=Tokens(), objective=TwoTerms(vocab=256))
    assert set(found) == {TERM} and "objective.size_weight" in found[TERM]
    assert not wrong(TEXT, model=Tokens(), objective=TwoTerms(vocab=256, factor=1.0))


@pytest.mark.parametrize(
    ("fault", "question", "words"),
    [("counted", PADDING, "size depends"), ("mean", BATCHES, "nats (")],
)
def test_faults_of_an_objective_are_named(fault: str, question: str, words: str) -> None:
    objective: Objective = Wrong(classes=10, fault=fault)
    found = wrong(IMAGES, model=Images(classes=10), objective=objective)
    assert words in found[question] and TERM not in found


@pytest.mark.parametrize("name", ["pytext_lstm", "digits_resnet", "pydoc_clip"])
def test_what_ships_is_healthy(name: str) -> None:
    found = causes(small(name))
    assert not [each for each in found if each.ok is False]
    assert sum(each.ok is True for each in found) >= 3
    reasons = {each.question: each.found for each in found if each.ok is None}
    if name == "pydoc_clip":
        assert "Contrastive compares the rows" in reasons[BATCHES]


def test_on_one_device_causes_are_asked_alone() -> None:
    result = check_all(small(IMAGES, model=Images(fault="unused"), mesh=Mesh(data=1)))
    assert (result["mesh"], result["ok"]) == (None, False)
    assert [each["ok"] for each in result["causes"]].count(False) == 1
