"""The table of names and reshapes: read both ways, a part at a time, each number once."""

import numpy as np
import pytest

from jaxbig.pretrained.weight_table import Row, Table

ROWS = (
    Row("b/block_*/query", "h.*.attention.weight", "d (0 h k) -> d h k"),
    Row("b/block_*/key_value", "h.*.attention.weight", "d (1 h k) -> d 0 h k"),
    Row("b/block_*/key_value", "h.*.attention.weight", "d (2 h k) -> d 1 h k"),
    Row("b/block_*/up", "h.*.up.weight", "f d -> d f"),
    Row("b/block_*/experts", "h.*.expert.#.weight", "f d -> # d f"),
    Row("b/block_*/norm", "h.*.norm.weight"),
    Row("positions", "positions.weight", skip=2),
    Row("patches", "patches.weight", "d c y x -> (y x c) d", sizes={"y": 2, "x": 2, "c": 3}),
    Row("token", "token", "0 0 d -> 0 d"),
    Row("of_another_model", "other.weight"),
)
BLOCK = {
    "query": (6, 2, 3),
    "key_value": (6, 2, 2, 3),
    "up": (6, 8),
    "experts": (3, 6, 4),
    "norm": (6,),
}
OTHERS = {"positions": (5, 6), "patches": (12, 6), "token": (1, 6)}
UNROLLED = OTHERS | {f"b/block_{n}/{name}": each for n in range(2) for name, each in BLOCK.items()}
SCANNED = OTHERS | {f"b/block/{name}": (2, *each) for name, each in BLOCK.items()}


def arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("shapes", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_part_of_a_leaf_is_read_from_the_tensors_that_the_leaves_make(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    table = Table(ROWS, shapes)
    leaves = arrays(shapes)
    tensors = {
        name: table.make(name, lambda leaf, slot: leaves[leaf][slot]) for name in table.shapes
    }
    assert {name: each.shape for name, each in tensors.items()} == table.shapes
    rng = np.random.default_rng(1)
    for name, shape in shapes.items():
        whole = tuple(slice(None) for _ in shape)
        parts = [
            tuple(slice(first, first + 1 + rng.integers(size - first)) for size, first in pairs)
            for pairs in ([(size, rng.integers(size)) for size in shape] for _ in range(20))
        ]
        for index in (whole, *parts):
            part = table.read(name, index, lambda tensor, at: tensors[tensor][at])
            np.testing.assert_array_equal(part, leaves[name][index])


def test_scanned_and_unrolled_layers_have_the_same_tensors() -> None:
    one = Table(ROWS, UNROLLED)
    other = Table(ROWS, SCANNED)
    assert one.shapes == other.shapes
    leaves = arrays(UNROLLED)
    stacked = {
        name: leaves.get(
            name, np.stack([leaves.get(name.replace("block/", f"block_{n}/"), 0) for n in (0, 1)])
        )
        for name in SCANNED
    }
    for name in one.shapes:
        np.testing.assert_array_equal(
            one.make(name, lambda leaf, slot: leaves[leaf][slot]),
            other.make(name, lambda leaf, slot: stacked[leaf][slot]),
        )


def test_tensor_has_the_numbers_where_its_axes_say() -> None:
    table = Table(ROWS[:3], {"b/block_0/query": (4, 2, 3), "b/block_0/key_value": (4, 2, 2, 3)})
    leaves = arrays(table.leaves)
    made = table.make("h.0.attention.weight", lambda leaf, slot: leaves[leaf][slot])
    expected = [
        leaves["b/block_0/query"].reshape(4, 6),
        leaves["b/block_0/key_value"][:, 0].reshape(4, 6),
        leaves["b/block_0/key_value"][:, 1].reshape(4, 6),
    ]
    np.testing.assert_array_equal(made, np.concatenate(expected, axis=1))


def test_part_of_a_leaf_reads_only_its_part_of_the_tensor() -> None:
    table = Table(ROWS[3:4], {"b/block/up": (2, 6, 8)})
    sizes = []

    def read(tensor: str, index: tuple[slice, ...]) -> np.ndarray:
        sizes.append([each.stop - each.start for each in index])
        return np.zeros(sizes[-1])

    table.read("b/block/up", (slice(1, 2), slice(0, 6), slice(2, 4)), read)
    assert sizes == [[2, 6]]  # of one layer, two of its eight outputs


@pytest.mark.parametrize("rows", [ROWS[:2], (*ROWS[:3], ROWS[2])], ids=["a part less", "twice"])
def test_table_that_does_not_cover_a_leaf_once_is_an_error(rows: tuple[Row, ...]) -> None:
    with pytest.raises(AssertionError, match="not covered once"):
        Table(rows, UNROLLED)
