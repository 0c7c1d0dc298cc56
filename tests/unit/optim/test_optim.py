"""Optimizers against optax's own and numbers by hand; schedules at points by hand."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from support.experiments import EXPERIMENTS, small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.constraints import validate
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP
from jaxbig.optim.optax_optimizer import Optax
from jaxbig.optim.optimizers import SGD, Adam, AdamW, Optimizer, chosen
from jaxbig.optim.schedules import Constant, Schedule, WarmupCosine, WarmupLinear, WarmupStableDecay
from jaxbig.program.program import make_init, make_program

float32 = functools.partial(np.array, dtype=np.float32)
RATE = WarmupCosine(peak=0.1, warmup=5, end=0.01)
PARAMS = {
    "block_0": {
        "up": {"kernel": float32([[1, -2], [3, 0.25]])},
        "norm_1": {"scale": float32([1, 2])},
    },
    "embedding": float32([[0.5, -0.5]]),
    "kernel_free": {"bias": float32([1, -1])},
    "lstm_0": {"recurrent": float32([-4]), "bias": float32([2])},
}
DECAYED = {"block_0/up/kernel", "embedding", "lstm_0/recurrent"}


def run(transformation: optax.GradientTransformation, steps: int = 20) -> Any:
    """The parameters after `steps` updates by gradients that differ from step to step."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = transformation.init(PARAMS)
    update = jax.jit(transformation.update)
    for step in range(steps):
        gradient = jax.tree.map(lambda w, step=step: jnp.cos(3 * w + step), params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def first_update(optimizer: Optimizer, gradient: Any) -> Any:
    transformation = optimizer.build(10)
    return transformation.update(gradient, transformation.init(PARAMS), PARAMS)[0]


def mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "recurrent", "embedding"), params
    )


RIVALS: dict[str, tuple[Optimizer, Callable[..., optax.GradientTransformation]]] = {
    "plain": (SGD(learning_rate=RATE, momentum=0.0), optax.sgd),
    "momentum": (SGD(learning_rate=RATE), lambda rate: optax.sgd(rate, 0.9)),
    "nesterov": (
        SGD(learning_rate=RATE, momentum=0.8, nesterov=True),
        lambda rate: optax.sgd(rate, 0.8, nesterov=True),
    ),
    "adam": (Adam(learning_rate=RATE), optax.adam),
    "adam, other numbers": (
        Adam(learning_rate=RATE, b1=0.8, b2=0.95, epsilon=1e-3),
        lambda rate: optax.adam(rate, 0.8, 0.95, 1e-3),
    ),
    "adamw": (
        AdamW(learning_rate=RATE, weight_decay=0.3),
        lambda rate: optax.adamw(rate, weight_decay=0.3, mask=mask),
    ),
    "lion of optax": (
        Optax(name="lion", learning_rate=RATE, arguments={"b1": 0.8, "weight_decay": 0.3}),
        lambda rate: optax.lion(rate, 0.8, weight_decay=0.3, mask=mask),
    ),
    "a part of optax": (
        Optax(name="optax.scale_by_lion", learning_rate=RATE, arguments={"b2": 0.5}),
        lambda rate: optax.chain(optax.scale_by_lion(b2=0.5), optax.scale_by_learning_rate(rate)),
    ),
    "adam clipped by value": (
        Adam(learning_rate=RATE, clip_value=0.5, clip_norm=1.0),
        lambda rate: optax.chain(optax.clip(0.5), optax.clip_by_global_norm(1.0), optax.adam(rate)),
    ),
    "clipped adamw": (
        AdamW(learning_rate=RATE, clip_norm=0.5),
        lambda rate: optax.chain(
            optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.01, mask=mask)
        ),
    ),
}


@pytest.mark.parametrize("name", RIVALS)
def test_twenty_steps_are_those_of_optax(name: str) -> None:
    ours, rival = RIVALS[name]
    expected = rival(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.01))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(ours.build(20)), run(expected)
    )


def test_adamw_is_the_algorithm_of_the_paper() -> None:
    """Loshchilov and Hutter (2019), algorithm 2, with the decay times the rate, in NumPy."""
    theta = PARAMS["embedding"].astype(np.float64)
    m = v = np.zeros_like(theta)
    for t in range(1, 21):
        g = np.cos(3 * theta + (t - 1))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        theta = theta - 0.05 * (direction + 0.2 * theta)
    ours = run(AdamW(learning_rate=Constant(0.05), weight_decay=0.2).build(20))
    np.testing.assert_allclose(ours["embedding"], theta, rtol=1e-5)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 1 / 13), (13.0, 1.0), (100.0, 1.0), (None, 1.0)])
def test_a_gradient_is_clipped_to_its_global_norm(clip: float | None, scale: float) -> None:
    gradient = jax.tree.map(np.zeros_like, PARAMS)
    # norm 13
    gradient["embedding"] = float32([[3, 4]])
    gradient["lstm_0"]["bias"] = float32([12])
    update = first_update(SGD(learning_rate=Constant(0.5), momentum=0.0, clip_norm=clip), gradient)
    np.testing.assert_allclose(update["embedding"], [[-1.5 * scale, -2 * scale]], rtol=1e-6)
    np.testing.assert_allclose(update["lstm_0"]["bias"], [-6 * scale], rtol=1e-6)


def test_each_number_of_a_gradient_is_clipped_to_a_value() -> None:
    gradient = jax.tree.map(np.zeros_like, PARAMS)
    gradient["embedding"] = float32([[0.3, -4]])
    update = first_update(SGD(learning_rate=Constant(0.5), momentum=0, clip_value=1.0), gradient)
    np.testing.assert_allclose(update["embedding"], [[-0.15, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("lyon", {}, r"--name 'lyon': optax has no function of that name; the nearest are lion"),
        ("lion", {"beta": 0.9}, "--arguments 'beta': optax.lion has no argument of that name; it"),
        ("lion", {"learning_rate": 1.0}, "--arguments 'learning_rate': it is set by --optimizer.l"),
        ("lion", {"b1": "x"}, "--name 'lion' does not work as a plain optimizer"),
        ("contrib.schedule_free_sgd", {}, "evaluation needs its average .* --optimizer Schedul"),
        ("lbfgs", {}, "--name 'lbfgs' does not work as a plain optimizer"),
        ("cosine_decay_schedule", {"init_value": 1.0, "decay_steps": 2}, "is no gradient transfor"),
        (optax.lion(0.1), {}, "optax has no function of that name"),
    ],
)
def test_what_is_no_optimizer_of_optax_is_refused(name: Any, arguments: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        validate(Optax(name=name, learning_rate=RATE, arguments=arguments))


def test_moments_of_other_shapes_are_on_every_device() -> None:
    optimizer = Optax(name="adafactor", learning_rate=RATE, arguments={"factored": False})
    changes = {"model": MLP(widths=(32,), outputs=10), "mesh": Mesh(fsdp=2, data=4)}
    program = make_program(small("digits_convnet", optimizer=optimizer, **changes))
    leaves = flatten_with_paths(program.abstract.opt_state).values()
    specs = {leaf.shape: leaf.sharding.spec for leaf in leaves}
    assert specs[(32, 10)] == PartitionSpec("fsdp", None)
    assert specs[(1,)] == PartitionSpec()  # in place of the rows and columns of a matrix


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_l1_and_l2_are_the_gradient_of_their_penalty(
    l1: float, l2: float, clip: float | None
) -> None:
    def loss(params: Any) -> Any:
        return sum(jnp.sum(jnp.sin(3 * w)) for w in flatten_with_paths(params).values())

    def penalized(params: Any) -> Any:
        weights = [w for path, w in flatten_with_paths(params).items() if path in DECAYED]
        return loss(params) + sum(
            l1 * jnp.sum(jnp.abs(w)) + l2 / 2 * jnp.sum(w**2) for w in weights
        )

    update = first_update(
        SGD(learning_rate=Constant(1.0), momentum=0.0, l1=l1, l2=l2, clip_norm=clip),
        jax.grad(loss)(PARAMS),
    )
    gradient = jax.grad(penalized)(PARAMS)
    norm = np.sqrt(sum(np.sum(g**2) for g in flatten_with_paths(gradient).values()))
    scale = (
        1 if clip is None else clip / norm
    )  # the penalty is part of the loss, so it is clipped with it
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, -scale * b, rtol=1e-5, atol=1e-7),
        update,
        gradient,
    )


def test_l1_leaves_a_weight_at_zero_where_it_is() -> None:
    optimizer = SGD(learning_rate=Constant(1.0), l1=0.3).build(10)
    zeros = {"kernel": jnp.zeros((2, 2))}
    updates, _ = optimizer.update(zeros, optimizer.init(zeros), zeros)
    assert not any(np.any(update) for update in flatten_with_paths(updates).values())


@pytest.mark.parametrize(
    ("pattern", "decayed"),
    [
        (AdamW.decayed, DECAYED),
        ("^block_0/", {"block_0/up/kernel", "block_0/norm_1/scale"}),
        ("bias$|scale$", {"kernel_free/bias", "lstm_0/bias", "block_0/norm_1/scale"}),
        ("", set(flatten_with_paths(PARAMS))),
    ],
)
def test_weight_decay_shrinks_the_paths_that_match_and_no_other(
    pattern: str, decayed: set[str]
) -> None:
    optimizer = AdamW(learning_rate=Constant(0.1), weight_decay=0.5, decayed=pattern)
    update = flatten_with_paths(first_update(optimizer, jax.tree.map(np.zeros_like, PARAMS)))
    for path, weight in flatten_with_paths(PARAMS).items():
        np.testing.assert_allclose(
            update[path], -0.05 * weight if path in decayed else 0 * weight, rtol=1e-6
        )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_matrix_of_every_experiment_is_decayed_and_no_bias_or_scale(name: str) -> None:
    experiment = small(name)
    params = nn.meta.unbox(jax.eval_shape(make_init(experiment)))["params"]
    decayed = flatten_with_paths(chosen("decayed", experiment.optimizer.decayed)(params))
    free = {path.split("/")[-1] for path, is_decayed in decayed.items() if not is_decayed}
    assert free <= {
        "bias",
        "scale",
        "layer_scale",
        "nearness",
        "places",
        "log_scale",
        "lambda",
        "rate",
        "token",
    } and not any(  # vectors all, written down by hand
        decayed[path] for path in decayed if path.endswith(("bias", "scale"))
    )


@pytest.mark.parametrize("pattern", ["(", "*kernel", "[a-"])
@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_a_pattern_that_is_none_is_refused_by_name(optimizer: Any, pattern: str) -> None:
    with pytest.raises(Refused) as refused:
        optimizer(learning_rate=Constant(0.1), decayed=pattern).build(10)
    assert "--optimizer.decayed" in str(refused.value) and repr(pattern) in str(refused.value)


def test_a_pattern_that_matches_no_parameter_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="'kernal' matches no parameter"):
        AdamW(learning_rate=Constant(0.1), decayed="kernal").build(10).init(PARAMS)


COSINE = WarmupCosine(peak=1.0, warmup=10, end=0.1)
LINEAR = WarmupLinear(peak=1.0, warmup=10, end=0.2)
STABLE = WarmupStableDecay(peak=1.0, warmup=10, end=0.2, decay=0.2)
ROOT = 1 - math.sqrt(0.95)
QUARTER = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2


@pytest.mark.parametrize(
    ("schedule", "steps", "points"),
    [
        (Constant(0.3), 100, {0: 0.3, 50: 0.3, 100: 0.3, 1_000: 0.3}),
        (COSINE, 110, {0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0, 35: QUARTER, 60: 0.55, 110: 0.1, 500: 0.1}),
        (LINEAR, 110, {0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0, 35: 0.8, 60: 0.6, 110: 0.2, 500: 0.2}),
        (dataclasses.replace(COSINE, warmup=0), 100, {0: 1.0, 25: QUARTER, 50: 0.55, 100: 0.1}),
        (dataclasses.replace(LINEAR, warmup=0), 100, {0: 1.0, 25: 0.8, 50: 0.6, 100: 0.2}),
        (
            dataclasses.replace(COSINE, warmup=100),
            20,
            {0: 0.0, 10: 0.5, 19: 0.95},
        ),  # warms up over all of the run
        (dataclasses.replace(LINEAR, warmup=100), 20, {0: 0.0, 10: 0.5, 19: 0.95}),
        (dataclasses.replace(COSINE, warmup=20), 20, {0: 0.0, 10: 0.5, 19: 0.95}),
        (dataclasses.replace(COSINE, end=0.0), 110, {60: 0.5, 110: 0.0}),
        (WarmupLinear(peak=0.0, warmup=2, end=0.0), 10, {0: 0.0, 2: 0.0, 10: 0.0}),
        (WarmupCosine(peak=0.0, warmup=2, end=0.0), 10, {0: 0.0, 2: 0.0, 10: 0.0}),
        (WarmupLinear(peak=0.1, warmup=0, end=0.5), 10, {0: 0.1, 5: 0.3, 10: 0.5}),
        (WarmupCosine(peak=0.1, warmup=0, end=0.5), 10, {0: 0.1, 5: 0.3, 10: 0.5}),
        (COSINE, 1, {0: 0.0}),
        (STABLE, 100, {0: 0.0, 5: 0.5, 10: 1.0, 80: 1.0, 85: 0.6, 99: 0.2 + 0.8 * ROOT, 100: 0.2}),
        (
            dataclasses.replace(STABLE, shape="line", warmup=0),
            100,
            {0: 1.0, 79: 1.0, 80: 1.0, 85: 0.8, 90: 0.6, 100: 0.2},
        ),
        (dataclasses.replace(STABLE, decay=0.0), 100, {10: 1.0, 50: 1.0, 99: 1.0}),
        (dataclasses.replace(STABLE, decay=1.0), 20, {5: 0.5, 10: 1.0, 20: 0.2}),
    ],
    ids=str,
)
def test_a_rate_at_points_by_hand(schedule: Schedule, steps: int, points: dict[int, float]) -> None:
    rate = jax.jit(schedule.build(steps))
    values = {step: rate(jnp.int32(step)) for step in points}
    assert {step: float(value) for step, value in values.items()} == pytest.approx(
        points, rel=1e-5, abs=1e-7
    )
    assert {value.dtype for value in values.values()} == {jnp.dtype("float32")}


@given(st.sampled_from([WarmupCosine, WarmupLinear]), st.integers(0, 30), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_a_rate_rises_to_its_peak_and_then_falls(kind: Any, warmup: int, steps: int) -> None:
    rates = np.asarray(kind(peak=2.0, warmup=warmup, end=0.5).build(steps)(np.arange(61)))[
        : steps + 1
    ]
    top = min(warmup, steps)
    assert np.all(np.diff(rates[: top + 1]) > 0) and np.all(np.diff(rates[top:]) < 0)
    assert rates[top] == pytest.approx(2.0) and np.all(rates <= 2.0 + 1e-6)


def test_layer_decay_multiplies_the_rate_of_each_lower_layer() -> None:
    tree = {
        "tokens": {"embedding": jnp.ones((2, 3))},
        "stem_1": {"kernel": jnp.ones((2, 3))},
        "blocks": {
            "block_0": {"up": {"kernel": jnp.ones((2, 3))}},
            "block_10": {"norm_1": {"scale": jnp.ones(3)}},
            "block_2": {"lstm_0": {"kernel": jnp.ones((2, 3))}},
            "norm": {"scale": jnp.ones(3)},
        },
        "scan": {"block": {"up": {"kernel": jnp.ones((2, 3, 4))}}},
        "head": {"kernel": jnp.ones((2, 3))},
    }
    rate = Constant(1.0)
    optimizer = SGD(learning_rate=rate, momentum=0.0, layer_decay=0.5).build(10)
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
    found = {path: -np.asarray(leaf) for path, leaf in flatten_with_paths(updates).items()}
    stacked = found.pop("scan/block/up/kernel")
    assert {path: float(leaf.mean()) for path, leaf in found.items()} == {
        "tokens/embedding": 0.5**4,
        "stem_1/kernel": 0.5**4,
        "blocks/block_0/up/kernel": 0.5**3,
        "blocks/block_2/lstm_0/kernel": 0.5**2,
        "blocks/block_10/norm_1/scale": 0.5,
        "blocks/norm/scale": 1.0,
        "head/kernel": 1.0,
    }
    assert stacked[:, 0, 0].tolist() == [0.25, 0.5]


def test_layer_decay_without_numbered_layers_is_refused() -> None:
    optimizer = SGD(learning_rate=Constant(1.0), layer_decay=0.5).build(10)
    tree = {"head": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(Refused, match=r"--optimizer.layer-decay: no parameter"):
        optimizer.update(tree, optimizer.init(tree), tree)


def test_layer_decay_of_one_adds_nothing_to_the_state() -> None:
    plain = AdamW(learning_rate=RATE)
    decayed = dataclasses.replace(plain, layer_decay=0.5)
    shapes = [jax.tree.map(jnp.shape, each.build(5).init(PARAMS)) for each in (plain, decayed)]
    assert len(shapes[0]) + 1 == len(shapes[1])
