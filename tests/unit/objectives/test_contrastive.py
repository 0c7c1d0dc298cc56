"""Pairs: losses by a plain loop and by PyTorch, ranks by hand, and padding that never counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.errors import Refused
from jaxbig.objectives.contrastive import Contrastive

KEY = jax.random.key(0)


class Given:
    """A model whose vectors are the batch's fields."""

    def __call__(self, inputs: Any, train: bool = False) -> Any:
        return inputs

    def other(self, inputs: Any, train: bool = False) -> Any:
        return inputs


def metrics(within: bool, inputs: Any, other: Any, mask: Any = None) -> dict[str, float]:
    rows = {"inputs": inputs, "other": other, "mask": mask or [1] * len(inputs)}
    batch = {name: jnp.asarray(each, jnp.float32) for name, each in rows.items()}
    objective = Contrastive(within=within)
    forward: Any = Given()
    return objective.summarize(objective(forward, batch, KEY, train=True))


def drawn(seed: int, rows: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((rows, 3)).astype(np.float32) for _ in range(2)]


def nt_xent(inputs: np.ndarray, other: np.ndarray) -> float:
    """Equation 1 of Chen et al. (2020) as it is written, of vectors whose products are scores."""
    z = np.stack([inputs, other], axis=1).reshape(-1, inputs.shape[1]).astype(np.float64)
    losses = []
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum(np.exp(z[i] @ z[k]) for k in range(len(z)) if k != i)
        losses.append(-np.log(np.exp(z[i] @ z[j]) / others))
    return float(np.mean(losses))


def clip(inputs: np.ndarray, other: np.ndarray) -> float:
    """The loss of Radford et al. (2021), figure 3, by PyTorch."""
    scores = torch.from_numpy(inputs) @ torch.from_numpy(other).T
    own = torch.arange(len(inputs))
    entropy = torch.nn.functional.cross_entropy
    return float((entropy(scores, own) + entropy(scores.T, own)) / 2)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), padding=st.sampled_from([0, 3]))
def test_losses_are_those_of_the_papers_whatever_the_padding(seed: int, padding: int) -> None:
    rows = 5
    inputs, other = drawn(seed, rows)
    padded = [np.concatenate([each, 9 * np.ones((padding, 3))]) for each in (inputs, other)]
    mask = [1] * rows + [0] * padding
    for within, loss in ((True, nt_xent), (False, clip)):
        found = metrics(within, *padded, mask)["loss"]
        assert found == pytest.approx(loss(inputs, other), rel=1e-5, abs=1e-6)


def test_accuracy_is_that_by_hand() -> None:
    inputs = [[1, 0], [0, 1], [0, 3]]
    other = [[2, 0], [0, 1], [0, 2]]
    # in both directions 0 finds 0, 1 finds 2, and 2 finds 2
    assert metrics(False, inputs, other)["accuracy"] == pytest.approx(2 / 3)
    inputs = [[9, 0], [8, 0]]
    other = [[1, 0], [0, 1]]
    # 0 and 1 of the inputs find 0; of the others 0 finds 0, and 1 has equal scores
    assert metrics(False, inputs, other)["accuracy"] == 0.5
    # both inputs find each other
    assert metrics(True, inputs, other)["accuracy"] == 0.25


def test_a_batch_of_padding_is_finite() -> None:
    inputs, other = drawn(0, 2)
    rows = {"inputs": inputs, "other": other, "mask": np.zeros(2, np.float32)}
    batch = {name: jnp.asarray(each) for name, each in rows.items()}
    forward: Any = Given()
    assert Contrastive()(forward, batch, KEY, train=True)["loss"].mean_or_zero() == 0


def test_data_without_pairs_is_refused() -> None:
    forward: Any = Given()
    with pytest.raises(Refused, match="needs pairs"):
        Contrastive()(forward, {"inputs": jnp.ones((2, 3)), "mask": jnp.ones(2)}, KEY, train=True)
