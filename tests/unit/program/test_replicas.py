"""Copies of the state that devices have, and a run in which they differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import jaxbig as jb
from jaxbig.arrays.tree import path_name
from jaxbig.errors import Failed
from jaxbig.program.program import make_program
from jaxbig.program.replicas import checksum, copied_leaves, differing, make_checksums
from jaxbig.train.trainer import Trainer

Tiny = Callable[..., jb.Experiment]
KERNEL = "params/head/kernel"


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]),
    size=st.sampled_from([1, 7, 40]),
    data=st.data(),
)
def test_a_checksum_is_that_by_hand_and_sees_every_bit(dtype: str, size: int, data: Any) -> None:
    x = np.asarray(jax.random.bits(jax.random.key(size), (size,), jnp.uint32))
    values = np.asarray(jnp.asarray(x % 2 if dtype == "bool" else x % 200).astype(dtype))
    width = {4: np.uint32, 2: np.uint16, 1: np.uint8}[values.dtype.itemsize]
    words = values.view(width).copy()
    by_hand = sum(int(word) * (2 * i + 1) for i, word in enumerate(words)) % 2**32
    assert int(checksum(jnp.asarray(values))) == by_hand
    bits = 1 if dtype == "bool" else 8 * words.itemsize
    words[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, bits - 1))
    assert int(checksum(jnp.asarray(words.view(values.dtype)))) != by_hand


def corrupt(x: jax.Array, device: jax.Device) -> jax.Array:
    """The array with one bit of one device's copy flipped."""
    parts = []
    for shard in x.addressable_shards:
        part = np.array(shard.data)
        if shard.device == device:
            part.view(np.uint32).flat[0] ^= 1 << 12
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def with_leaf(state: Any, path: str, change: Callable[[Any], Any]) -> Any:
    def one(keys: Any, leaf: Any) -> Any:
        return change(leaf) if path_name(keys) == path else leaf

    return jax.tree_util.tree_map_with_path(one, state)


@pytest.mark.parametrize(
    ("mesh", "copies"),
    [(jb.Mesh(data=8), 8), (jb.Mesh(data=2, fsdp=4), 2), (jb.Mesh(fsdp=2, tensor=2, data=2), 4)],
)
def test_the_device_that_differs_is_named(tiny: Tiny, mesh: jb.Mesh, copies: int) -> None:
    program = make_program(tiny(mesh=mesh))
    with program.activate():
        state = program.init()
    checksums = make_checksums(program.abstract, program.mesh)
    assert not differing(program.abstract, program.mesh, np.asarray(checksums(state)))
    assert KERNEL in copied_leaves(program.abstract)
    device = program.mesh.devices.flat[5]
    wrong = with_leaf(state, KERNEL, lambda leaf: corrupt(leaf, device))
    found = differing(program.abstract, program.mesh, np.asarray(checksums(wrong)))
    assert list(found) == [KERNEL]
    assert device in found[KERNEL] and len(found[KERNEL]) == (1 if copies > 2 else copies)


def test_what_is_split_over_all_devices_has_no_copies() -> None:
    mesh = jb.Mesh(fsdp=8).build()

    def leaf(*axes: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=sharding)

    state = {"split": leaf("fsdp"), "whole": leaf(), "wide": leaf(None, None)}
    assert list(copied_leaves(state)) == ["whole", "wide"]


def test_a_step_that_lacks_a_sum_over_devices_is_seen() -> None:
    mesh = jb.Mesh(data=8).build()
    whole = NamedSharding(mesh, PartitionSpec())
    state = {"w": jax.device_put(np.ones(3, np.float32), whole)}
    checksums = make_checksums(state, mesh)
    inputs = jax.device_put(np.arange(24, dtype=np.float32).reshape(8, 3), mesh.devices.flat[0])

    def step(summed: bool) -> Any:
        def local(w: jax.Array, x: jax.Array) -> jax.Array:
            gradient = jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
            return w - 1e-3 * (jax.lax.psum(gradient, "data") if summed else gradient)

        specs = PartitionSpec(), PartitionSpec("data")
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
        return {"w": jax.jit(mapped)(state["w"], np.asarray(inputs))}

    assert not differing(state, mesh, np.asarray(checksums(step(summed=True))))
    assert len(differing(state, mesh, np.asarray(checksums(step(summed=False))))["w"]) == 8


@pytest.mark.parametrize(("every", "named"), [(2, "step 4: .* after step 3"), (100, "step 6: ")])
def test_a_run_whose_copies_differ_ends_before_it_is_saved(
    every: int, named: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = jb.Guard(compare_replicas=every)
    experiment = tiny(mesh=jb.Mesh(data=8), steps=8, checkpoint_every=3, guard=guard)
    plain = Trainer.train_step

    def train_step(self: Trainer, step: int, state: Any, batch: Any) -> Any:
        state, metrics = plain(self, step, state, batch)
        if step == 4:
            device = self.program.mesh.devices.flat[2]
            state = with_leaf(state, KERNEL, lambda leaf: corrupt(leaf, device))
        return state, metrics

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Failed, match=named) as failed:
            jb.fit(experiment, tmp_path / "run")
    assert f"the copies of {KERNEL} differ on cpu:2" in str(failed.value)
    assert not (tmp_path / "run" / "checkpoints" / "6").exists()
    assert jb.fit(experiment, tmp_path / "run").step == 8
