"""Where cuDNN's fused attention is taken: on CPU devices, with its own partition rule, which says
what it accepts."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import batch_sharding, replicated
from jaxbig.errors import Refused
from jaxbig.models.layers import attention
from jaxbig.models.layers.attention import Attention, attend, has_cudnn

MESHES: dict[str, Any] = {
    "data": {"mesh": Mesh(data=8)},
    "fsdp and tensor, segments": {"mesh": Mesh(data=1, fsdp=4, tensor=2), "segments": True},
    "tensor": {"mesh": Mesh(data=4, tensor=2)},
    "tensor, grouped heads": {"mesh": Mesh(data=4, tensor=2), "kv_heads": 2},
    "tensor, one key head": {"mesh": Mesh(data=4, tensor=2), "kv_heads": 1},
    "tensor 4, one key head, segments": {
        "mesh": Mesh(data=2, tensor=4),
        "kv_heads": 1,
        "segments": True,
    },
    "sequence": {"mesh": Mesh(data=4, sequence=2)},
    "length over tensor": {"mesh": Mesh(data=4, tensor=2, rules="length_over_tensor")},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """jaxbig takes these CPU devices for GPUs; a list of the shapes that cuDNN's partition rule was
    asked about."""
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    asked: list[Any] = []
    check = cudnn._check_qkv_bias_mask_spec

    def noting(query: Any, key: Any, *rest: Any) -> None:
        check(query, key, *rest)
        asked.append((query, key))

    monkeypatch.setattr(cudnn, "_check_qkv_bias_mask_spec", noting)
    return asked


@pytest.mark.parametrize("case", MESHES.values(), ids=MESHES)
def test_partition_rule_takes_what_auto_gives_it(case: dict[str, Any], gpu: list[Any]) -> None:
    layer = Attention(heads=4, kv_heads=case.get("kv_heads"), causal=True, rotary=True)
    mesh = case["mesh"].build()
    rules = case["mesh"].table()
    x = jax.ShapeDtypeStruct((8, 64, 64), jnp.bfloat16, sharding=batch_sharding(mesh))
    segments = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=batch_sharding(mesh))

    def loss(params: Any, x: Any, segments: Any) -> jax.Array:
        y = layer.apply(params, x, segments=segments if case.get("segments") else None)
        return y.astype(jnp.float32).sum()

    with activate(mesh, rules):
        zeros = jnp.zeros(x.shape, x.dtype)
        shapes = jax.eval_shape(lambda: nn.meta.unbox(layer.init(jax.random.key(0), zeros)))
        params = jax.tree.map(lambda leaf: leaf.update(sharding=replicated(mesh)), shapes)
        lowered = jax.jit(jax.grad(loss)).lower(params, x, segments)
        if "sequence" in str(case["mesh"]) and case["mesh"].sequence > 1:
            assert (
                "CustomSPMDPartitioning" not in lowered.as_text()
            )  # plain, as the rule takes no split length
            return
        assert "CustomSPMDPartitioning" in lowered.as_text()
        # no CPU has the kernel: what fails must be nothing before it
        with pytest.raises(Exception) as error:
            lowered.compile()
    assert "same sharding" not in str(error.value) and "not allowed" not in str(error.value)
    assert gpu, "the partition rule was not asked"
    assert all(query[-2] == key[-2] for query, key in gpu)  # heads are split the same way


def test_one_key_head_for_each_device_gives_the_values_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key, value = (
        jax.random.normal(jax.random.key(n), (4, 8, heads, 16))
        for n, heads in ((0, 4), (1, 1), (2, 1))
    )
    expected = attend(query, key, value, causal=True, kernel="plain")
    with activate(Mesh(data=4, tensor=2).build(), Mesh().table()):

        @jax.jit
        def repeated(query: Any, key: Any, value: Any) -> Any:
            key, value = (attention.one_for_each_device(x, 4) for x in (key, value))
            assert key.shape == (4, 8, 2, 16)
            return attend(query, key, value, causal=True, kernel="plain")

        found = repeated(query, key, value)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "there"),
    [("9.0", True), ("8.0", True), ("12.0", True), ("7.5", False), ("gfx90a", False)],
)
def test_fused_attention_needs_nvidia_ampere_or_newer(
    capability: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda *_: [Device()])
    assert has_cudnn() == there
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    assert not has_cudnn()


def test_fused_attention_that_cannot_be_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "has_cudnn", lambda: False)
    x = jnp.zeros((2, 8, 4, 16), jnp.bfloat16)
    with pytest.raises(Refused, match=r"compute capability 8\.0"):
        attend(x, x, x, causal=True, kernel="fused")
    assert attend(x, x, x, causal=True).shape == x.shape  # auto takes the plain one


def test_scores_with_a_soft_cap_are_computed_by_the_plain_kernel(gpu: list[Any]) -> None:
    x = jnp.zeros((2, 8, 4, 16), jnp.bfloat16)

    def program(**options: Any) -> str:
        return str(jax.make_jaxpr(lambda x: attend(x, x, x, causal=True, **options))(x))

    assert "tanh" not in program() and "dot_product_attention" in program()
    assert "tanh" in program(cap=9.0) and "dot_product_attention" not in program(cap=9.0)
    with pytest.raises(Refused, match="no soft cap"):
        program(cap=9.0, kernel="fused")
