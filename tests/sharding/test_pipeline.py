"""Blocks in stages: what they compute, which rows a microbatch has, what they send, what they
refuse."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.experiments import small

from jaxbig.arrays.row_parts import strided, unstrided
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.errors import Refused
from jaxbig.models.language_model import Decoder, Encoder, EncoderDecoder
from jaxbig.models.layers.mixture_of_experts import LOSSES
from jaxbig.planning import collectives, hlo
from jaxbig.program.program import make_program

ROWS = 8
LENGTH = 12
FIELDS: dict[str, Any] = {"vocab": 11, "depth": 4, "width": 16, "heads": 2, "scan": True}
DRAW = np.random.default_rng(0)
TOKENS = jnp.asarray(DRAW.integers(1, 11, (ROWS, LENGTH)), jnp.int32)
LENGTHS = jnp.asarray(DRAW.integers(2, LENGTH + 1, ROWS), jnp.int32)
SEGMENTS = jnp.asarray(np.sort(DRAW.integers(1, 4, (ROWS, LENGTH))), jnp.int32)
PLACES = jnp.asarray(DRAW.integers(0, LENGTH, (ROWS, LENGTH)), jnp.int32)
CASES: dict[str, tuple[nn.Module, tuple[jax.Array, ...]]] = {
    "packed": (Decoder(**FIELDS), (TOKENS, SEGMENTS, PLACES)),
    "padded": (Encoder(**FIELDS, max_length=LENGTH), (TOKENS, LENGTHS)),
    "memory": (EncoderDecoder(**FIELDS), (TOKENS, TOKENS[:, ::-1], LENGTHS)),
    "relative": (Decoder(**FIELDS, positions="relative"), (TOKENS,)),
    "windows": (Decoder(**FIELDS, window=4, window_pattern=(True, False)), (TOKENS,)),
    "experts": (Decoder(**FIELDS, experts=4, router_z_loss=0.1), (TOKENS, SEGMENTS)),
}


def outcome(model: nn.Module, inputs: Any, mesh: Mesh | None = None) -> Any:
    """The loss and the gradient of each parameter, without dropout, over a mesh or on a device."""
    built = mesh.build(jax.devices()[: np.prod(mesh.sizes(8))]) if mesh else None
    built = built or Mesh(data=1).build(jax.devices()[:1])
    with activate(Mesh(data=1).build(jax.devices()[:1])):
        params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), *inputs))["params"]

    def total(params: Any) -> Any:
        y, changed = model.apply({"params": params}, *inputs, mutable=[LOSSES])
        return jnp.mean(jnp.sin(3 * y)) + sum(map(jnp.sum, jax.tree.leaves(changed)))

    whole = NamedSharding(built, PartitionSpec())
    with activate(built):
        found = jax.jit(jax.value_and_grad(total), in_shardings=whole, out_shardings=whole)(
            jax.device_put(params, whole)
        )
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    "case", ["packed", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:])]
)
def test_microbatches_in_stages_compute_what_the_whole_batch_does(case: str) -> None:
    model, inputs = CASES[case]
    # experts do not run in stages: their microbatches follow one another on one device
    mesh = Mesh(data=2, stage=4) if case != "experts" else None
    loss, gradient = outcome(model, inputs)
    found_loss, found = outcome(model.clone(microbatches=4), inputs, mesh)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    least = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradient)) / 300
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = found
        for key in path:
            other = other[key.key]
        error = np.linalg.norm(other - leaf) / max(np.linalg.norm(leaf), least)
        assert error < 1e-5, (path, error)


@pytest.mark.parametrize(("rows", "count"), [(12, 3), (8, 4), (6, 6), (5, 1)])
def test_parts_of_rows_have_each_row_once(rows: int, count: int) -> None:
    x = jnp.arange(rows * 2).reshape(rows, 2)
    parts = strided(count, x)
    assert parts.shape == (count, rows // count, 2) and np.array_equal(unstrided(parts), x)


@pytest.mark.slow
def test_bytes_between_stages_are_those_of_the_theory() -> None:
    data = 2
    stages = 4
    microbatches = 8
    rows = 2 * data * microbatches
    mesh = Mesh(data=data, stage=stages).build()
    model = Decoder(**FIELDS, microbatches=microbatches, remat="full")
    tokens = jnp.ones((rows, LENGTH), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    shapes = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), tokens)["params"]))
    with activate(mesh):
        at = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh)
        gradient = jax.jit(
            jax.grad(lambda p, tokens: jnp.sum(jnp.sin(model.apply({"params": p}, tokens)))),
            in_shardings=(at, NamedSharding(mesh, PartitionSpec(("data", "stage")))),
            out_shardings=at,
        )
        module = hlo.parse(gradient.lower(shapes, tokens).compile().as_text())
    sent = collectives.table(collectives.find_collectives(module, 8), dict(mesh.shape))
    of_stages = [row for row in sent if row["axes"] == "stage"]
    microbatch = 2 * LENGTH * FIELDS["width"] * 4
    ticks = microbatches + stages - 1
    [permute] = [row["bytes"] for row in of_stages if row["kind"] == "collective-permute"]
    assert permute == 2 * ticks * microbatch  # forward and backward


@pytest.mark.parametrize(
    ("name", "fields", "mesh", "words"),
    [
        ("digits_convnet", {}, Mesh(data=4, stage=2), "ConvNet does not run in stages"),
        ("pytext_llama", {"scan": True}, Mesh(data=4, stage=2), "--model.microbatches 8"),
        ("pytext_llama", {"microbatches": 2}, Mesh(data=4, stage=2), "turn on scan"),
        (
            "pytext_llama",
            {"scan": True, "microbatches": 2, "depth": 3},
            Mesh(data=4, stage=2),
            "depth 3 does not divide over stage=2",
        ),
        (
            "pytext_moe",
            {"scan": True, "microbatches": 2},
            Mesh(data=4, stage=2),
            "experts 8 do not run in stages",
        ),
        (
            "pytext_llama",
            {"scan": True, "microbatches": 8},
            Mesh(data=4, stage=2),
            "--data.batch 16 does not divide into --model.microbatches 8 .* a multiple of 32",
        ),
    ],
)
def test_what_cannot_be_in_stages_is_refused_before_it_is_compiled(
    name: str, fields: Any, mesh: Mesh, words: str
) -> None:
    experiment = small(name)
    model = dataclasses.replace(experiment.model, **fields)
    with pytest.raises(Refused, match=words):
        make_program(dataclasses.replace(experiment, model=model, mesh=mesh))
