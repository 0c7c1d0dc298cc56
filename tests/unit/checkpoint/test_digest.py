"""The digest of a state: a tree of hashes of its chunks, equal on any devices."""

import hashlib
from typing import Any
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint import digest
from jaxbig.checkpoint.digest import digests
from jaxbig.distributed.mesh import Mesh
from jaxbig.program.state import TrainState

few = settings(max_examples=50, deadline=None)

STATE = TrainState(
    step=np.int32(7),
    params={
        "layers_10": {"kernel": np.array([[1, -0.0], [np.nan, np.inf]], np.float32)},
        "layers_2": {
            "kernel": np.arange(3, dtype=ml_dtypes.bfloat16),
            "on": np.array([True, False]),
        },
    },
    variables={"empty": np.zeros((0, 3), np.float32)},
    opt_state=({"count": np.int64(3)}, np.array([1.5], np.float16)),
)
PATHS = [
    "opt_state/0/count",
    "opt_state/1",
    "params/layers_10/kernel",
    "params/layers_2/kernel",
    "params/layers_2/on",
    "step",
    "variables/empty",
]


def test_leaves_are_in_order_of_path() -> None:
    assert list(flatten_with_paths(STATE)) == PATHS


def test_digests_of_small_leaves_are_of_their_bytes() -> None:
    each, whole = digests(STATE)
    found = {path: np.asarray(leaf).tobytes() for path, leaf in flatten_with_paths(STATE).items()}
    expected = {path: sha256(blake3(found[path]).digest()) for path in PATHS}
    expected["variables/empty"] = sha256(b"")
    assert each == expected
    assert whole == sha256("".join(each[path] for path in PATHS).encode())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_large_leaf_is_hashed_by_chunks_that_halve_its_longest_axis() -> None:
    array = np.arange(60, dtype=np.float32).reshape(6, 10)
    chunks = array[:3, :5], array[:3, 5:], array[3:, :5], array[3:, 5:]
    hashes = [blake3(chunk.tobytes()).digest() for chunk in chunks]
    with mock.patch.object(digest, "CHUNK", 64):
        assert digest.chunk_shape((6, 10), 4) == (3, 5)
        assert digests({"x": array})[0] == {"x": sha256(b"".join(hashes))}
    assert digest.chunk_shape((80, 8192, 28672), 4) == (5, 64, 112)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((8, 4096, 14336), (8, 32, 32)),  # experts
        ((80, 8192, 28672), (16, 128, 256)),  # a stack of layers
        ((12, 768, 3072), (4, 8, 16)),
        ((50304, 768), (32, 32)),  # vocabularies
        ((128256, 4096), (128, 64)),
        ((50257, 768), (1, 32)),
        ((8192, 28672), (64, 64)),
    ],
)
def test_parts_of_large_leaves_are_whole_chunks(
    shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    chunk = digest.chunk_shape(shape, 4)
    assert 64 * 2**10 <= 4 * np.prod(chunk) <= digest.CHUNK
    for axis, most in enumerate(parts):
        for count in (2**i for i in range(most.bit_length())):
            assert shape[axis] // count % chunk[axis] == 0 or count == 1


def test_parts_that_cut_chunks_are_joined_with_neighbors_alone() -> None:
    mesh = Mesh(fsdp=8).build()
    array = jax.device_put(np.zeros((16, 16), np.float32), jax.NamedSharding(mesh, P("fsdp")))
    with mock.patch.object(digest, "CHUNK", 256):  # 8 x 8, of which a device has 2 x 16
        held = digest.local_parts({"w": array}, replicas=True)
    assert sorted(part.start for part in held) == [(0, 0), (8, 0)]
    assert {part.data.shape for part in held} == {(8, 16)}


@given(st.sampled_from([path for path in PATHS if path != "variables/empty"]), st.data())
@few
def test_a_changed_bit_changes_the_digest_of_its_leaf_and_the_whole(
    path: str, draw: st.DataObject
) -> None:
    def flip(name: str, leaf: Any) -> Any:
        if name != path:
            return leaf
        raw = bytearray(np.asarray(leaf).tobytes())
        bit = draw.draw(st.integers(0, 8 * len(raw) - 1)) if leaf.dtype != bool else 0
        raw[bit // 8] ^= 1 << bit % 8
        return np.frombuffer(raw, leaf.dtype).reshape(leaf.shape)

    changed = [flip(name, leaf) for name, leaf in flatten_with_paths(STATE).items()]
    before, whole = digests(STATE)
    after, other = digests(dict(zip(PATHS, changed, strict=True)))
    assert {name for name in PATHS if before[name] != after[name]} == {path}
    assert whole != other


MESH = Mesh(data=2, fsdp=2, tensor=2).build()
SPECS = [
    P(),
    P(("data", "fsdp")),
    P("fsdp", "tensor"),
    P(None, "data", ("fsdp", "tensor")),
    P("tensor", None, ("data", "fsdp")),
]


@given(
    st.tuples(st.sampled_from([4, 12, 16]), st.sampled_from([2, 6, 8]), st.sampled_from([4, 20])),
    st.sampled_from([4, 64, 100, 4096]),
    st.sampled_from(SPECS),
    st.sampled_from(["float32", "bfloat16", "bool"]),
)
@few
def test_state_has_one_digest_on_any_devices(
    shape: tuple[int, ...], chunk: int, spec: P, dtype: str
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    placed = jax.device_put(array, jax.NamedSharding(MESH, spec))
    with mock.patch.object(digest, "CHUNK", chunk):
        assert digests({"kernel": placed}) == digests({"kernel": array})
        held = digest.local_parts({"kernel": placed})
    assert sum(part.data.size for part in held) == array.size  # each element once


@given(st.integers(0, 12 * 6 * 20 - 1), st.sampled_from(SPECS), st.sampled_from([4, 100, 10_000]))
@few
def test_the_chunk_with_a_changed_element_is_named(at: int, spec: P, chunk: int) -> None:
    array = np.random.default_rng(0).standard_normal((12, 6, 20)).astype(np.float32)
    changed = array.copy()
    changed.flat[at] += 1
    placed = jax.device_put(changed, jax.NamedSharding(MESH, spec))
    with mock.patch.object(digest, "CHUNK", chunk):
        saved = {"w": b"".join(digest.hash_chunks(digest.local_parts({"w": array}))["w"].values())}
        parts = digest.local_parts({"w": placed}, replicas=True)
        text = digest.first_changed(parts, digest.hash_chunks(parts), saved)
    spans = [[int(edge) for edge in span.split(":")] for span in text[2:-1].split(", ")]
    place = np.unravel_index(at, array.shape)
    assert text.startswith("w[")
    assert all(first <= i < last for i, (first, last) in zip(place, spans, strict=True))
    assert np.prod([last - first for first, last in spans]) <= max(chunk // 4, 3 * 3 * 5)
