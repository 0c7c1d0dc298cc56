"""The digest of a state: SHA-256 over its leaves in order of path, on any devices."""

import hashlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxbig.arrays.tree import flatten_with_paths
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


def test_digests_are_hashlibs_over_the_bytes() -> None:
    each, whole = digests(STATE)
    found = {path: np.asarray(leaf).tobytes() for path, leaf in flatten_with_paths(STATE).items()}
    assert each == {path: hashlib.sha256(found[path]).hexdigest() for path in PATHS}
    assert whole == hashlib.sha256(b"".join(found[path] for path in PATHS)).hexdigest()


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


def test_state_has_one_digest_on_any_devices() -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    array = np.random.default_rng(0).standard_normal((8, 6, 4)).astype(np.float32)
    specs = P(), P(("data", "fsdp")), P("fsdp", "tensor"), P(None, "data", ("fsdp", "tensor"))
    placed = [jax.device_put(array, jax.NamedSharding(mesh, spec)) for spec in specs]
    assert {digests({"kernel": each})[1] for each in placed} == {digests({"kernel": array})[1]}
