"""The order of more examples than a table of their order may hold."""

import tracemalloc

import numpy as np
import pytest

from jaxbig.data.core.permutation import permuted
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.data.pipeline.sampler import MAX_TABLE, epoch_order, train_indices


class Huge:
    """A source of any size; example i is i."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"inputs": indices, "mask": np.ones(len(indices), np.float32)}


def test_a_table_gives_the_order_up_to_its_size_and_the_permutation_beyond() -> None:
    small = train_indices(Huge(MAX_TABLE), 0, seed=3, batch=9)
    large = train_indices(Huge(MAX_TABLE + 1), 0, seed=3, batch=9)
    assert small.tolist() == epoch_order(3, 0, MAX_TABLE)[:9].tolist()
    assert large.tolist() == permuted(np.arange(9), MAX_TABLE + 1, 3, 0).tolist()


def test_an_epoch_beyond_the_table_holds_every_example_once_and_batches_span_epochs() -> None:
    size = MAX_TABLE + 1
    batch = 2**15
    steps = np.concatenate(
        [
            train_indices(Huge(size), step, seed=5, batch=batch)
            for step in range(2 * size // batch + 1)
        ]
    )
    for epoch in range(2):
        assert np.all(np.bincount(steps[epoch * size : (epoch + 1) * size], minlength=size) == 1)
    assert not np.array_equal(steps[:100], steps[size : size + 100])


@pytest.mark.parametrize("size", [10**9, 2**40])
def test_a_billion_examples_cost_no_memory(size: int) -> None:
    tracemalloc.start()
    try:
        batch = train_batch(Huge(size), 10**6, seed=0, batch=1_024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert len(set(batch["inputs"].tolist())) == 1_024 and batch["inputs"].max() < size
    shares = [
        train_batch(Huge(size), 10**6, seed=0, batch=1_024, rows=part)["inputs"]
        for part in np.split(np.arange(1_024), 4)
    ]
    assert np.array_equal(np.concatenate(shares), batch["inputs"])
