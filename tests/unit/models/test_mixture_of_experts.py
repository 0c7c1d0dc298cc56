"""A mixture of experts is what a loop over tokens and experts says, drops nobody, and adds its
terms as sums."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.griffin import LRU, RGLRU
from jaxbig.models.layers import mixture_of_experts
from jaxbig.models.layers.mixture_of_experts import LOSSES, Experts, route
from jaxbig.planning import collectives, hlo
from jaxbig.program.gradient import make_gradient
from jaxbig.tools.shrink import random_batch

FIELDS: dict[str, Any] = {
    "experts": 4,
    "chosen": 2,
    "hidden": 12,
    "activation": "silu",
    "gated": True,
}


def made(rows: int = 2, length: int = 24, **fields: Any) -> tuple[Experts, Any, jax.Array]:
    model = Experts(**{**FIELDS, **fields})
    x = jax.random.normal(jax.random.key(1), (rows, length, 8))
    return model, meta.unbox(model.init(jax.random.key(0), x))["params"], x


def one_by_one(model: Experts, params: Any, x: np.ndarray) -> np.ndarray:
    """The same in NumPy, a token and an expert at a time, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:2]):
        token = x[place].astype(np.float64)
        scores = token @ p["router_kernel"]
        best = np.argsort(-scores)[: model.chosen]
        weights = np.exp(scores[best] - scores[best].max())
        for weight, expert in zip(weights / weights.sum(), best, strict=True):
            hidden = token @ p["up_kernel"][expert]
            gate = token @ p["gate_kernel"][expert] if model.gated else hidden
            gate = gate / (1 + np.exp(-gate))
            y[place] += weight * (
                (hidden * gate if model.gated else gate) @ p["down_kernel"][expert]
            )
    return y


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("chosen", [1, 2, 4])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_mixture_is_what_a_loop_says(
    chosen: int, gated: bool, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tiles of a CPU, and with the ragged product of the other platforms."""
    if ragged:
        monkeypatch.setattr(mixture_of_experts, "platform", lambda: "tpu")
    model, params, x = made(chosen=chosen, gated=gated)
    np.testing.assert_allclose(
        model.apply({"params": params}, x),
        one_by_one(model, params, np.asarray(x)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_tiles_and_the_ragged_product_have_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, x = made()
    aim = jax.random.normal(jax.random.key(2), x.shape)

    def gradient() -> Any:
        return jax.grad(lambda p, x: jnp.sum(model.apply({"params": p}, x) * aim), (0, 1))(
            params, x
        )

    tiled = flatten_with_paths(gradient())
    monkeypatch.setattr(mixture_of_experts, "platform", lambda: "tpu")
    for path, leaf in flatten_with_paths(gradient()).items():
        np.testing.assert_allclose(leaf, tiled[path], rtol=1e-4, atol=1e-5, err_msg=path)


def emulated(
    rows: Any, room: Any, starts: Any, sent: Any, to: Any, received: Any, *, axis_name: str
) -> jax.Array:
    """`jax.lax.ragged_all_to_all`, not a number where nothing arrives or the sizes do not agree."""
    every = [jax.lax.all_gather(each, axis_name) for each in (rows, starts, sent, to)]
    here = jax.lax.axis_index(axis_name)
    at = jnp.arange(room.shape[0])
    result = jnp.full_like(room, jnp.nan)
    agreed = jnp.all(every[2][:, here] == received)
    for values, start, size, first in zip(*every, strict=True):
        number = at - first[here]
        inside = (number >= 0) & (number < size[here]) & agreed
        found = jnp.take(values, start[here] + number, axis=0, mode="clip")
        result = jnp.where(inside[:, None], found, result)
    return result


@pytest.mark.parametrize("ragged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_sent_to_its_experts_is_what_one_device_makes_of_it(
    ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, params, x = made(rows=4, experts=8, chosen=3)
    real = jnp.arange(24)[None] < jnp.array([24, 5, 0, 17])[:, None]  # one row with none at all

    def gradients(model: Experts) -> Any:
        def total(params: Any, x: jax.Array) -> Any:
            y = model.apply({"params": params}, x, real.astype(jnp.int32))
            return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), y  # type: ignore

        found = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x)
        return jax.tree.leaves(found[0][1]) + jax.tree.leaves(found[1])

    expected = gradients(model)
    if ragged:
        monkeypatch.setattr(mixture_of_experts, "platform", lambda: "tpu")
        monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated)
    with activate(Mesh(data=1, expert=4, tensor=2).build()):
        found = gradients(model.clone(dispatch="all_to_all"))
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)


@pytest.mark.parametrize("dispatch", ["gather", "all_to_all"])
def test_bytes_that_are_sent_to_experts_are_those_of_the_theory(dispatch: Any) -> None:
    mesh = Mesh(data=2, expert=4).build()
    model, params, x = made(rows=16, dispatch=dispatch)
    at = NamedSharding(mesh, PartitionSpec(("data", "expert")))
    by_expert = NamedSharding(mesh, PartitionSpec("expert"))
    kernels = {name: by_expert if "router" not in name else None for name in params}

    def total(params: Any, x: jax.Array) -> Any:
        return jnp.sum(jnp.sin(model.apply({"params": params}, x)))  # type: ignore[arg-type]

    with activate(mesh):
        gradient = jax.jit(jax.grad(total, (0, 1)), in_shardings=(kernels, at))
        module = hlo.parse(gradient.lower(params, x).compile().as_text())
    rows = collectives.table(collectives.find_collectives(module, 8), dict(mesh.shape))
    sent = {row["kind"]: row["bytes"] for row in rows if row["axes"] == "expert"}
    devices = 4
    width = 8
    number = 4
    tokens = 16 * 24 // 8
    if dispatch == "gather":  # x, y and their gradients; with x weights and numbers
        gathered = devices * tokens * number
        assert sent["all-gather"] == gathered * (2 * width + 2 * model.chosen)
        assert sent["reduce-scatter"] == gathered * (2 * width + model.chosen)
    else:  # Lepikhin et al. (2020), section 3.2; on a CPU each copy has room on each device
        copies = tokens * model.chosen * number
        assert sent["all-to-all"] == 4 * devices * copies * width + model.experts * number


@pytest.mark.parametrize("ragged", [False, True])
def test_hidden_activations_or_the_output_may_be_weighed(
    ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is linear in them: values and gradients, also of the router, are the same."""
    if ragged:
        monkeypatch.setattr(mixture_of_experts, "platform", lambda: "tpu")
    model, params, x = made()

    def by(model: Experts) -> Any:
        return jax.value_and_grad(
            lambda p, x: jnp.sum(jnp.sin(model.apply({"params": p}, x))), (0, 1)
        )(params, x)

    found = [
        by(model),
        by(model.clone(weigh_hidden=True)),
        by(model.clone(weigh_hidden=True, chunks=2)),
    ]
    for other in found[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0], other
        )


def test_nothing_is_dropped_where_all_choose_the_same() -> None:
    model, params, x = made(chosen=1)
    params["router_kernel"] = jnp.zeros_like(params["router_kernel"])  # ties: top_k takes the first
    only = {
        **params,
        **{
            name: params[name].at[1:].set(0) for name in ("up_kernel", "gate_kernel", "down_kernel")
        },
    }
    y = model.apply({"params": params}, x)
    np.testing.assert_array_equal(y, model.apply({"params": only}, x))
    assert jnp.all(jnp.any(y != 0, axis=-1))


@pytest.mark.parametrize("tile", [1, 4, 32])
def test_copies_are_sorted_by_expert_in_whole_tiles(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture_of_experts, "TILE", tile)
    numbers = jnp.array([2, 0, 2, 5, -1, 2, 0])  # 5 and -1 are elsewhere
    places, here, sizes, count = route(numbers, 3)
    assert here.tolist() == [True, True, True, False, False, True, True]
    assert sizes.tolist() == [-(-2 // tile) * tile, 0, -(-3 // tile) * tile]
    begin = int(sizes[0])
    assert (
        places.tolist()[:3] == [begin, 0, begin + 1] and places[5] == begin + 2 and places[6] == 1
    )
    assert len(set(places.tolist())) == 7 and max(places.tolist()) < count and count % tile == 0
    assert min(places[3], places[4]) >= jnp.sum(sizes)


def added(model: Experts, params: Any, x: jax.Array, segments: Any = None) -> float:
    _, variables = model.apply({"params": params}, x, segments, mutable=[LOSSES])
    return float(variables[LOSSES]["router"])  # type: ignore[index]


def test_the_balance_is_1_a_token_where_even_and_more_where_not() -> None:
    model, params, x = made(load_balance_loss=1.0, chosen=1)
    even = {**params, "router_kernel": jnp.eye(8, 4) * 1e-6}
    x = jnp.eye(8)[jnp.arange(24) % 4][None].repeat(2, 0)  # a quarter of the tokens to each
    assert added(model, even, x) == pytest.approx(48, rel=1e-4)
    one = {
        **params,
        "router_kernel": jnp.zeros((8, 4)).at[:, 0].set(100.0),
    }  # all to the first, surely
    assert added(model, one, x) == pytest.approx(4 * 48, rel=1e-4)


def test_the_added_terms_are_computed_by_hand_and_leave_padding_out() -> None:
    model, params, x = made(load_balance_loss=0.5, router_z_loss=0.25)
    segments = jnp.array([[1] * 24, [1] * 10 + [0] * 14])
    expected = 0.0
    for row, count in enumerate([24, 10]):
        scores = np.asarray(x[row, :count] @ params["router_kernel"], np.float64)
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        taken = np.bincount(np.argsort(-scores, axis=1)[:, :2].reshape(-1), minlength=4)
        expected += 0.5 * np.sum(taken / count * 4 / 2 * chances.mean(0)) * count
        expected += 0.25 * np.sum(np.log(np.exp(scores).sum(1)) ** 2)
    assert added(model, params, x, segments) == pytest.approx(expected, rel=1e-5)


def test_nothing_is_added_in_an_evaluation_or_kept_in_the_state() -> None:
    model, params, x = made(load_balance_loss=1.0)
    assert isinstance(model.apply({"params": params}, x), jax.Array)
    assert set(model.init(jax.random.key(0), x)) == {"params"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "setting"),
    [({"accumulate": 4}, {"scan": True, "remat": "full"}), ({"reproducible": 8}, {})],
    ids=["accumulate, scanned", "reproducible, unrolled"],
)
def test_parts_of_a_batch_have_the_loss_and_gradient_of_the_whole(parts: Any, setting: Any) -> None:
    experiment = small("pytext_moe", mesh=Mesh(data=1))
    experiment = dataclasses.replace(
        experiment, model=experiment.model.clone(router_z_loss=1e-2, **setting)
    )
    mesh = experiment.mesh.build(jax.devices()[:1])
    rows = random_batch(experiment)

    def gradient(experiment: Any) -> tuple[Any, Any]:
        with activate(mesh):
            init = nn.init(lambda forward: forward(jnp.zeros((1, 8), jnp.int32)), experiment.model)
            params = meta.unbox(jax.jit(init)({"params": jax.random.key(0)}))["params"]
            found = jax.jit(make_gradient(experiment, mesh))
            return found(params, {}, device_put_batch(rows, mesh), jnp.int32(0))[:2]

    (whole, sums) = gradient(experiment)
    (found, other) = gradient(dataclasses.replace(experiment, **parts))
    assert sums["loss"].mean() > sums["cross_entropy"].mean() > 0
    for name in ("loss", "cross_entropy", "auxiliary_loss"):
        np.testing.assert_allclose(other[name].mean(), sums[name].mean(), rtol=1e-6, err_msg=name)
    for path, leaf in flatten_with_paths(whole).items():
        np.testing.assert_allclose(
            flatten_with_paths(found)[path], leaf, rtol=1e-4, atol=2e-6, err_msg=path
        )


@pytest.mark.parametrize(
    ("layer", "count"), [(Experts(**FIELDS), 1), (LRU(width=6), 3), (RGLRU(heads=2), 1)]
)
def test_products_of_routers_and_recurrences_are_float32_on_every_platform(
    layer: Any, count: int
) -> None:
    """An accelerator rounds what is multiplied to 8 or 10 bits, unless a product asks for the
    highest precision."""
    x = jnp.ones((1, 4, 8))
    traced = jax.make_jaxpr(layer.apply)(jax.eval_shape(layer.init, jax.random.key(0), x), x).jaxpr
    asked = [equation.params["precision"] for equation in products(traced)]
    assert asked.count((jax.lax.Precision.HIGHEST,) * 2) == count


def products(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a closed one
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("chosen", [0, 5])
def test_more_experts_a_token_than_there_are_is_refused(chosen: int) -> None:
    with pytest.raises(Refused, match=f"experts_per_token {chosen} of experts 4: make it 1 to 4"):
        made(chosen=chosen)
