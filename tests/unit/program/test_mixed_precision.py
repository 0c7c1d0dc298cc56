"""Mixed precision: stochastic rounding, masters, loss scale, float32 sums, offloaded moments.

Each is compared with what is computed otherwise.
"""

import dataclasses
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.digest import digests
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.config.precision import Precision
from jaxbig.cost.memory import bytes_per_device
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.base import replaced
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant
from jaxbig.program.float32_reductions import float32_sums
from jaxbig.program.gradient import make_gradient
from jaxbig.program.mixed_precision import (
    Scale,
    make_update,
    rescaled,
    round_all,
    stochastic_round,
    with_mixed_precision,
)
from jaxbig.program.program import Program, make_program
from jaxbig.program.state import TrainState
from jaxbig.tools.shrink import random_batch
from jaxbig.tracking.console import Screen
from jaxbig.train.resume import initialize_or_resume
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
BETWEEN = 1 + 2.0**-7 / 4  # a quarter of the way from 1 to the next bfloat16


def stepped(
    experiment: Experiment, steps: int, devices: int = 1
) -> tuple[Program, Any, list[dict[str, Any]]]:
    """The state after some steps on batches of random numbers, and the metrics of each step."""
    program = make_program(experiment, jax.devices()[:devices])
    history = []
    with activate(program.mesh):
        state = program.init()
        for step in range(steps):
            batch = device_put_batch(random_batch(experiment, step), program.mesh)
            state, metrics = program.train_step(state, batch)
            history.append({name: float(value) for name, value in metrics.items()})
    return program, state, history


def convnet(**precision: Any) -> Experiment:
    return small("digits_convnet", precision=Precision(**precision))


def same(one: Any, other: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other
    )


# Rounding at random


def test_rounding_is_right_on_average_and_only_to_a_neighbor() -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    for sign in (1, -1):
        found = jax.vmap(
            lambda key, x=sign * BETWEEN: stochastic_round(key, jnp.full(1000, x, jnp.float32))
        )(keys)
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found, np.float64) * sign
        assert set(np.unique(found)) == {1, 1 + 2.0**-7}
        raised = np.mean(found > 1)  # of 64000 draws with chance 1/4: four deviations are 0.0068
        assert abs(raised - 0.25) < 0.0068


def test_what_is_a_bfloat16_already_stays_whatever_is_drawn() -> None:
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    found = jax.jit(stochastic_round)(jax.random.key(1), every.astype(jnp.float32))
    same(jnp.isnan(found), jnp.isnan(every))
    here = ~jnp.isnan(every) & ((jnp.abs(every) >= jnp.finfo(jnp.float32).tiny) | (every == 0))
    same(jnp.where(here, found, 0), jnp.where(here, every, 0))


def test_infinities_and_every_nan_stay_whatever_is_drawn() -> None:
    """Also a NaN whose bits are all 1: with a random number added they would be those of -0."""
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001, 0x7F800000, 0xFF800000])
    values = jax.lax.bitcast_convert_type(jnp.asarray(bits, jnp.uint32), jnp.float32)
    for seed in range(8):
        found = jax.jit(stochastic_round)(jax.random.key(seed), values)
        assert np.isnan(np.asarray(found[:4], np.float32)).all()
        same(np.asarray(found[4:], np.float32), np.float32([np.inf, -np.inf]))


def test_each_parameter_draws_its_own_and_no_mesh_changes_that() -> None:
    params = {name: jnp.full((64, 8), BETWEEN) for name in ("one", "other")}
    alone = jax.jit(round_all)(jax.random.key(2), params)
    assert np.any(np.asarray(alone["one"]) != np.asarray(alone["other"]))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    same(
        alone,
        jax.jit(round_all, out_shardings=split)(jax.random.key(2), jax.device_put(params, split)),
    )


def test_updates_that_the_nearest_would_lose_arrive_on_average() -> None:
    """100 steps of 1/40 of the distance between two bfloat16s: rounding to nearest makes none."""
    precision = Precision(parameters="bfloat16")
    optimizer = optax.sgd(2.0**-7 / 40)
    update = jax.jit(make_update(precision, optimizer, 0))
    params = {"w": jnp.ones(4000, jnp.bfloat16)}
    state = TrainState(
        step=jnp.int32(0), params=params, variables={}, opt_state=optimizer.init(params)
    )
    for _ in range(100):
        state = update(state, {"w": -jnp.ones(4000)}, {})
    moved = (np.asarray(state.params["w"], np.float64) - 1) * 2**7
    # the deviation is sqrt(100 * 1/40 * 39/40) = 1.56; of the mean 0.025
    assert abs(moved.mean() - 2.5) < 0.1 and moved.std() > 1


def test_a_model_stored_in_bfloat16_is_trained() -> None:
    _, state, history = stepped(convnet(parameters="bfloat16"), 20)
    _, _, exact = stepped(convnet(), 20)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        [each["loss"] for each in history], [each["loss"] for each in exact], rtol=0.05
    )


# Master copies


@pytest.mark.parametrize("parameters", ["float32", "bfloat16_master"])
def test_the_parameters_are_the_rounded_masters_and_these_as_if_updated_by_hand(
    parameters: Any,
) -> None:
    """Against SGD by hand: the gradient of the rounded parameters updates float32 masters."""
    experiment = dataclasses.replace(
        convnet(parameters=parameters), optimizer=SGD(learning_rate=Constant(0.1), momentum=0.0)
    )
    _, state, _ = stepped(experiment, 3)
    plain = make_program(dataclasses.replace(experiment, precision=Precision()), jax.devices()[:1])
    with activate(plain.mesh):
        masters = jax.tree.map(np.asarray, plain.init().params)
        find = jax.jit(make_gradient(experiment, plain.mesh))
        for step in range(3):
            given = (
                masters
                if parameters == "float32"
                else jax.tree.map(lambda p: p.astype(jnp.bfloat16), masters)
            )
            gradient, *_ = find(
                given,
                {},
                device_put_batch(random_batch(experiment, step), plain.mesh),
                jnp.int32(step),
            )
            masters = jax.tree.map(
                lambda p, g: p - np.float32(0.1) * np.asarray(g, np.float32), masters, gradient
            )
    close = {"float32": 1e-6, "bfloat16_master": 2.0**-8}[parameters]
    jax.tree.map(
        lambda p, m: np.testing.assert_allclose(np.asarray(p, np.float32), m, close, 1e-4),
        state.params,
        masters,
    )
    if parameters == "bfloat16_master":
        same(
            state.params,
            jax.tree.map(lambda master: master.astype(jnp.bfloat16), state.opt_state.masters),
        )
        jax.tree.map(
            lambda p, m: np.testing.assert_allclose(p, m, 1e-3, 1e-5),
            state.opt_state.masters,
            masters,
        )


# The scale of a loss


def test_a_scale_is_doubled_and_halved_as_computed_by_hand() -> None:
    scale = Scale(value=jnp.float32(8), good=jnp.int32(0), skipped=jnp.int32(0))
    seen = []
    for finite in (1, 1, 0, 1, 1, 1, 1, 0, 0):
        scale = rescaled(scale, jnp.bool_(finite), 2)
        seen.append((float(scale.value), int(scale.good), int(scale.skipped)))
    expected = [
        (8, 1, 0),
        (16, 0, 0),
        (8, 0, 1),
        (8, 1, 1),
        (16, 0, 1),
        (16, 1, 1),
        (32, 0, 1),
        (16, 0, 2),
        (8, 0, 3),
    ]
    assert seen == expected


def test_an_overflow_is_skipped_and_leaves_all_but_the_scale_untouched() -> None:
    precision = Precision(loss_scale=4.0, loss_scale_steps=2)
    optimizer = with_mixed_precision(precision, optax.adam(0.1))
    update = jax.jit(make_update(precision, optimizer, 0))
    params = {"w": jnp.ones(3), "v": jnp.ones(2)}
    start = TrainState(
        step=jnp.int32(0),
        params=params,
        variables={"n": jnp.zeros(())},
        opt_state=optimizer.init(params),
    )
    good = {"w": jnp.ones(3), "v": jnp.ones(2)}
    before = update(start, good, {"n": jnp.ones(())})
    after = update(before, {**good, "v": jnp.array([1, jnp.inf])}, {"n": jnp.array(2.0)})
    for kept in ("params", "variables"):
        same(getattr(before, kept), getattr(after, kept))
    same(before.opt_state.optimizer, after.opt_state.optimizer)
    assert (
        int(after.step),
        float(after.opt_state.scale.value),
        int(after.opt_state.scale.skipped),
    ) == (2, 2.0, 1)
    later = update(after, good, {"n": jnp.ones(())})
    same(
        later.params,
        optax.apply_updates(
            before.params, optimizer.update(good, before.opt_state, before.params)[0]
        ),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 4},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"reproducible": 4, "mesh": Mesh(data=1)}, marks=pytest.mark.slow),
    ],
)
def test_a_power_of_two_changes_nothing_in_float32(changes: dict[str, Any]) -> None:
    """The scale multiplies the loss and divides its gradient: exact, up to overflow and fusion."""
    plain = dataclasses.replace(convnet(), **changes)
    scaled = dataclasses.replace(convnet(loss_scale=1024.0), **changes)
    _, one, plain_history = stepped(plain, 3)
    _, other, scaled_history = stepped(scaled, 3)
    np.testing.assert_allclose(
        [each["loss"] for each in plain_history],
        [each["loss"] for each in scaled_history],
        rtol=1e-6,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        one.params,
        other.params,
    )
    assert [each["loss_scale"] for each in scaled_history] == [1024.0] * 3


def test_a_float16_model_finds_its_scale_and_is_trained() -> None:
    experiment = convnet(loss_scale=2.0**24)
    experiment = dataclasses.replace(
        experiment, model=replaced(experiment.model, {"dtype": "float16"})
    )
    _, state, history = stepped(experiment, 20)
    skipped = int(history[-1]["skipped_steps"])
    assert 0 < skipped < 15 and history[-1]["loss_scale"] == 2.0 ** (24 - skipped)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert all(np.isfinite(each["loss"]) for each in history)


# Sums in float32


def model_in(dtype: str, **precision: Any) -> Experiment:
    experiment = small("pytext_transformer", precision=Precision(**precision), mesh=Mesh(data=8))
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, batch=64)
    )
    return dataclasses.replace(
        experiment, model=replaced(experiment.model, {"dtype": dtype, "dropout": 0.0})
    )


def gradient_of(experiment: Experiment) -> tuple[dict[str, np.ndarray], str]:
    """By path, over 8 devices, and the compiled program."""
    program = make_program(experiment)
    with activate(program.mesh):
        state = program.init()
        rows = device_put_batch(random_batch(experiment), program.mesh)
        find = make_gradient(experiment, program.mesh)
        arguments = (state.params, state.variables, rows, jnp.int32(0))
        compiled = jax.jit(lambda *each: find(*each)[0]).lower(*arguments).compile()
        found = {
            path: np.asarray(leaf, np.float64)
            for path, leaf in flatten_with_paths(compiled(*arguments)).items()
        }
        return found, compiled.as_text()


@pytest.mark.slow
def test_sums_over_devices_are_in_float32_and_nearer_to_the_truth() -> None:
    truth, _ = gradient_of(model_in("float32"))
    rough, text = gradient_of(model_in("bfloat16"))
    near, float32_text = gradient_of(model_in("bfloat16", sums="float32"))
    assert reduced(float32_text) == {"f32"}
    off = [
        np.sqrt(sum(np.sum((each[path] - truth[path]) ** 2) for path in truth))
        for each in (rough, near)
    ]
    assert off[1] < off[0]
    assert near.keys() == rough.keys() and reduced(text)


def reduced(text: str) -> set[str]:
    """The dtypes that a program adds up over devices in."""
    lines = re.findall(r"= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", text)
    return {dtype for line in lines for dtype in re.findall(r"\b(f32|bf16|f16)\[", line)}


def test_what_a_traced_sum_is_added_in() -> None:
    """Of products, of sums and of collectives, also inside a scan; the results keep their dtype."""

    def function(x: jax.Array) -> Any:
        return jax.lax.scan(
            lambda carry, row: (carry + jnp.dot(row, row), jnp.dot(row, x.T)), x[0, 0], x
        )

    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.bfloat16)
    plain, summed = (str(jax.make_jaxpr(each)(x)) for each in (function, float32_sums(function)))
    assert (
        plain.count("preferred_element_type=bfloat16") == 2
        and "preferred_element_type=bfloat16" not in summed
    )
    assert summed.count("preferred_element_type=float32") == 2
    one = function(x)
    other = float32_sums(function)(x)
    same([leaf.dtype.name for leaf in one], [leaf.dtype.name for leaf in other])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(float), b.astype(float), 0.02, 0.02),
        one,
        other,
    )


# The optimizer's state on the host


def test_moments_on_the_host_give_the_same_bits() -> None:
    experiment = small("digits_convnet", mesh=Mesh(data=2, fsdp=4))
    _, plain, plain_history = stepped(experiment, 3, 8)
    program, state, history = stepped(dataclasses.replace(experiment, offload=True), 3, 8)
    assert plain_history == history and digests(plain)[1] == digests(state)[1]
    for tree in (program.abstract, state):
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree.opt_state) if leaf.ndim}
        assert kinds == {"pinned_host"}
        assert "pinned_host" not in {
            leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree.params)
        }
    sizes = bytes_per_device(program)
    before = bytes_per_device(make_program(experiment, jax.devices()))
    assert sizes["host"] + sizes["optimizer"] == before["optimizer"] and sizes["optimizer"] < 100


# Runs, and what is refused

SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": Precision(parameters="bfloat16")},
    "master": {
        "precision": Precision(parameters="bfloat16_master", sums="float32"),
        "offload": True,
    },
    "scaled": {"precision": Precision(loss_scale=2.0**24, loss_scale_steps=2)},
}


class Stopping(Screen):
    """Asks the run to save and stop once step 3 is logged."""

    def train(self, step: int, values: dict[str, float]) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "master")), "scaled"],
)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    name: str, tmp_path: Path, screen: Screen
) -> None:
    experiment = small(
        "digits_convnet",
        steps=8,
        evaluate_every=8,
        checkpoint_every=8,
        log_every=1,
        **SETTINGS[name],
    )
    if name == "scaled":
        experiment = dataclasses.replace(
            experiment, model=replaced(experiment.model, {"dtype": "float16"})
        )
    whole = fit(experiment, tmp_path / "whole", screen)
    part = fit(experiment, tmp_path / "parts", Stopping())
    assert part["interrupted"] and 3 <= part["step"] < 8
    rest = fit(experiment, tmp_path / "parts", screen)
    assert rest["state_sha256"] == whole["state_sha256"] != part["state_sha256"]


BRIEF: dict[str, Any] = {
    "steps": 1,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "evaluate_batches": 1,
}


@pytest.fixture(scope="module", params=["float32", "bfloat16_master"])
def parent(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Experiment, Path]:
    """A run of one step with such parameters."""
    experiment = small("digits_convnet", **BRIEF, precision=Precision(parameters=request.param))
    folder = tmp_path_factory.mktemp("parent") / "run"
    fit(experiment, folder, Screen())
    return request.param, experiment, folder


@pytest.mark.parametrize(
    ("kind", "fork"),
    [
        ("master", False),
        ("float32", True),
        pytest.param("master", True, marks=pytest.mark.slow),
        pytest.param("float32", False, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_begins_with_weights_has_all_their_bits(
    kind: str, fork: bool, parent: tuple[str, Experiment, Path], tmp_path: Path
) -> None:
    """Its masters, or its parameters if it has none, are the other's float32 weights, unrounded."""
    source, before, folder = parent
    saved: Any = (
        CheckpointManager(folder / "checkpoints").restore(make_program(before).abstract).state
    )
    exact = saved.params if source == "float32" else saved.opt_state.masters
    child = small(
        "digits_convnet", **BRIEF, seed=1, **(SETTINGS["master"] if kind == "master" else {})
    )
    if fork:
        folder = Path(shutil.copytree(folder, tmp_path / "child"))
    else:
        child = dataclasses.replace(child, initialize_from=InitializeFrom(run=str(folder)))
        (folder := tmp_path / "child").mkdir()
    program = make_program(child, jax.devices()[:1])
    with activate(program.mesh):
        _, state, _ = initialize_or_resume(
            program, CheckpointManager(folder / "checkpoints"), folder, fork=fork
        )
    initial: Any = state
    same(initial.opt_state.masters if kind == "master" else initial.params, exact)
    if kind == "master":
        same(initial.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), exact))
        masters = jax.tree.leaves(initial.opt_state.masters)
        assert {leaf.sharding.memory_kind for leaf in masters} == {"pinned_host"}
    assert np.any(
        np.asarray(exact["head"]["kernel"], jnp.bfloat16) != np.asarray(exact["head"]["kernel"])
    )


@pytest.mark.parametrize(
    ("dtype", "precision", "words"),
    [
        ("float32", {"parameters": "float8"}, ["--precision.parameters", "bfloat16_master"]),
        ("float32", {"sums": "float64"}, ["--precision.sums", "dtype, float32"]),
        ("float16", {}, ["--model.dtype float16", "--precision.loss-scale 65536"]),
        ("float16", {"loss_scale": 2.0**30}, ["--precision.loss-scale 1.07374e+09", "1.67772e+07"]),
        ("float32", {"loss_scale": -1.0}, ["--precision.loss-scale -1", "0 or more"]),
        ("float32", {"loss_scale_steps": 0}, ["--precision.loss-scale-steps 0", "1 or more"]),
    ],
)
def test_what_cannot_be_is_refused(dtype: str, precision: dict[str, Any], words: list[str]) -> None:
    experiment = convnet(**precision)
    experiment = dataclasses.replace(experiment, model=replaced(experiment.model, {"dtype": dtype}))
    with pytest.raises(Refused) as refused:
        experiment.check()
    for word in words:
        assert word in str(refused.value)
