"""Leaves in host memory are copied before they are saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxbig.arrays.tree import HOST, copy_host_leaves
from jaxbig.distributed.mesh import Mesh


@pytest.mark.parametrize("spec", [P(), P("data")])
def test_what_is_saved_of_host_memory_is_a_copy(spec: P) -> None:
    mesh = Mesh().build()
    on_host = jax.sharding.NamedSharding(mesh, spec, memory_kind=HOST)
    state = {"moment": jax.device_put(jnp.arange(16.0), on_host), "parameter": jnp.ones(4)}
    copied = copy_host_leaves(state)
    assert copied["parameter"] is state["parameter"]
    assert copied["moment"].sharding == on_host
    np.testing.assert_array_equal(copied["moment"], state["moment"])
    for old, new in zip(
        state["moment"].addressable_shards, copied["moment"].addressable_shards, strict=True
    ):
        assert old.data.unsafe_buffer_pointer() != new.data.unsafe_buffer_pointer()
