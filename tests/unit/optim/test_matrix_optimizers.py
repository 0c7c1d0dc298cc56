"""Optimizers of matrices against NumPy and optax: stacks, meshes, and the compiled iteration."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.constraints import validate
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import parameter_shardings
from jaxbig.errors import Refused
from jaxbig.optim.adafactor import Adafactor
from jaxbig.optim.lamb import LAMB
from jaxbig.optim.lion import Lion
from jaxbig.optim.matrix_axes import layout, matrix_shape
from jaxbig.optim.muon import Muon
from jaxbig.optim.optax_optimizer import Optax
from jaxbig.optim.optimizers import Optimizer
from jaxbig.optim.schedule_free import ScheduleFree
from jaxbig.optim.schedules import Constant
from jaxbig.optim.soap import SOAP
from jaxbig.program.program import make_init, make_program
from jaxbig.tools.describe import show
from jaxbig.tracking.console import Screen
from jaxbig.train.trainer import fit

RATE = Constant(0.1)
MODELS = {
    "scanned": "c4_llama3_8b",
    "unrolled": "pytext_llama",
    "experts": "c4_mixtral_8x7b",
    "convolutions": "imagenet_resnet50",
    "gates": "pytext_lstm",
}


@functools.cache
def parameters(name: str) -> tuple[Any, Any, Any]:
    """A small experiment's boxed parameters, their shapes, and the logical axes by path."""
    boxed = jax.eval_shape(make_init(small(MODELS[name])))["params"]
    axes = flatten_with_paths(nn.get_partition_spec(boxed))
    return boxed, nn.meta.unbox(boxed), axes


def random(shapes: Any, seed: int) -> Any:
    """A tree of normal numbers of these shapes, float32."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)


def two_updates(optimizer: optax.GradientTransformation, gradients: Any, params: Any) -> Any:
    state = optimizer.init(params)
    _, state = optimizer.update(gradients[0], state, params)
    return optimizer.update(gradients[1], state, params)[0]


def matrices(path: str, w: np.ndarray) -> list[np.ndarray]:
    """The matrices of a parameter of one of `MODELS`, by the names of its layers."""
    if "/block/" in path:
        path = path.replace("/block/", "/one/")
        return [matrix for layer in w for matrix in matrices(path, layer)]
    if path.endswith(("up_kernel", "gate_kernel", "down_kernel")):
        return list(w)
    if path.endswith(("key_value/kernel", "recurrent")) or (w.ndim == 3 and "input" in path):
        return [w[:, each].reshape(len(w), -1) for each in range(w.shape[1])]
    rows = len(w) if path.endswith("query/kernel") else -1
    return [w.reshape(rows, w.shape[-1]) if rows < 0 else w.reshape(rows, -1)]


def orthogonal(w: np.ndarray, rms: float) -> np.ndarray:
    """Jordan's iteration and the scale of Liu et al. (2025), in float64."""
    x = w.astype(np.float64)
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return rms * np.sqrt(max(w.shape)) * x


@pytest.mark.parametrize("name", MODELS)
def test_muon_on_a_mesh_is_that_of_one_device_and_of_numpy(name: str) -> None:
    boxed, shapes, axes = parameters(name)
    gradients = random(shapes, 1), random(shapes, 2)
    muon = Muon(learning_rate=Constant(1.0), weight_decay=0.0)
    build = functools.partial(two_updates, muon.build(10, axes))
    params = jax.tree.map(np.zeros_like, gradients[0])
    alone = flatten_with_paths(jax.jit(build)(gradients, params))
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    rules = Mesh().table()
    at = parameter_shardings(boxed, mesh, rules)
    with activate(mesh, rules):
        placed = jax.jit(build, in_shardings=((at, at), at), out_shardings=at)
        spread = flatten_with_paths(placed(gradients, params))
    seen = 0
    first, second = map(flatten_with_paths, gradients)
    for path, update in alone.items():
        np.testing.assert_allclose(spread[path], update, atol=1e-5, err_msg=path)
        if not muon.is_muon(path, update.shape, axes):
            continue
        momentum = second[path] + 0.95 * (second[path] + 0.95 * first[path])
        for ours, given in zip(
            matrices(path, np.asarray(update)), matrices(path, momentum), strict=True
        ):
            np.testing.assert_allclose(-ours, orthogonal(given, 0.2), atol=1e-5, err_msg=path)
            seen += 1
    assert seen > 3


def test_no_collective_is_inside_the_iteration() -> None:
    boxed, shapes, axes = parameters("experts")
    optimizer = Muon(learning_rate=RATE).build(10, axes)
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    rules = Mesh().table()
    at = parameter_shardings(boxed, mesh, rules)
    with activate(mesh, rules):
        update = jax.jit(
            functools.partial(two_updates, optimizer), in_shardings=((at, at), at), out_shardings=at
        )
        text = str(update.lower((shapes, shapes), shapes).compile().as_text())
    loops = loop_bodies(text)
    assert any("newton_schulz" in body and " dot(" in body for body in loops)
    found = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    assert re.search(found, text)  # the matrices do come from other devices
    assert not any(re.search(found, body) for body in loops)


def loop_bodies(text: str) -> list[str]:
    """The text of the loops' bodies in an HLO module, with all computations that they call."""
    starts = re.finditer(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$", text, re.MULTILINE)
    computations = {
        each[1]: text[each.start() : text.index("\n}", each.start())] for each in starts
    }

    def whole(name: str) -> str:
        body = computations[name]
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", body)
        return body + "".join(whole(each) for each in called)

    return [whole(name) for name in re.findall(r" while\(.*body=%?([\w.-]+)", text)]


LAYERS = {"up": ("layers", "embed", "mlp"), "query": ("layers", "embed", "heads", None)}
LAYERS |= {"scale": ("layers", None), "gate_kernel": ("layers", "experts", "embed", "mlp")}
SHAPES = {"up": (3, 4, 6), "query": (3, 4, 2, 3), "scale": (3, 4), "gate_kernel": (3, 2, 4, 5)}
OPTIMIZERS: dict[str, Optimizer] = {
    "Adafactor": Adafactor(learning_rate=RATE, factored_from=3, weight_decay=0.1),
    "LAMB": LAMB(learning_rate=RATE, weight_decay=0.1),
    "Lion": Lion(learning_rate=RATE, weight_decay=0.1),
    "Muon": Muon(learning_rate=RATE),
    "SOAP": SOAP(learning_rate=RATE, basis_every=2),
    "ScheduleFree": ScheduleFree(learning_rate=RATE),
}


def updated(optimizer: Optimizer, params: Any, axes: Any, steps: int = 4) -> Any:
    transformation = optimizer.build(steps, axes)

    def run(params: Any) -> Any:
        state = transformation.init(params)
        for step in range(steps):
            gradient = jax.tree.map(lambda w, step=step: jnp.cos(3 * w + step), params)
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return jax.jit(run)(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_in_a_stack_are_updated_as_each_by_itself(name: str) -> None:
    optimizer = dataclasses.replace(OPTIMIZERS[name], decayed="up|query")
    draw = np.random.default_rng(0)
    stack = {path: draw.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    alone = {f"{path}_{at}": w[at] for path, w in stack.items() for at in range(3)}
    renamed = {f"{path}_{at}": LAYERS[path][1:] for path in stack for at in range(3)}
    together = updated(optimizer, {"one": stack}, {f"one/{p}": a for p, a in LAYERS.items()})["one"]
    apart = updated(optimizer, {"one": alone}, {f"one/{p}": a for p, a in renamed.items()})["one"]
    for path in stack:
        for at in range(3):
            np.testing.assert_allclose(
                together[path][at], apart[f"{path}_{at}"], rtol=2e-4, atol=2e-5, err_msg=path
            )


def test_adafactor_and_lamb_are_those_of_optax_for_one_matrix() -> None:
    params = random({"kernel": np.zeros((5, 7)), "scale": np.zeros(4)}, 3)
    pairs = {
        "adafactor": (
            Adafactor(learning_rate=RATE, factored_from=4),
            optax.adafactor(0.1, min_dim_size_to_factor=4),
        ),
        "small, absolute": (
            Adafactor(learning_rate=RATE, relative=False, clip_threshold=2.0),
            optax.adafactor(0.1, multiply_by_parameter_scale=False, clipping_threshold=2.0),
        ),
        "lamb": (
            LAMB(learning_rate=RATE, weight_decay=0.3, decayed=""),
            optax.lamb(0.1, weight_decay=0.3),
        ),
        "lion": (
            Lion(learning_rate=RATE, weight_decay=0.3, decayed=""),
            optax.lion(0.1, weight_decay=0.3),
        ),
    }
    for name, (ours, rival) in pairs.items():
        build = ours.build(4)
        found = run(build, params)
        expected = run(rival, params)
        for path in params:
            np.testing.assert_allclose(
                found[path], expected[path], rtol=2e-5, atol=1e-6, err_msg=f"{name} {path}"
            )


def run(transformation: optax.GradientTransformation, params: Any, steps: int = 4) -> Any:
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for step in range(steps):
        gradient = jax.tree.map(lambda w, step=step: np.cos(3 * w + step), params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_soap_is_the_algorithm_of_the_paper() -> None:
    """Vyas et al. (2025), algorithm 3, in NumPy; as in its code the first step finds the bases."""
    start = np.random.default_rng(1).normal(size=(4, 3))
    w = start.copy()
    m = np.zeros_like(w)
    v = np.zeros_like(w)
    left = np.zeros((4, 4))
    right = np.zeros((3, 3))
    ql = np.eye(4)
    qr = np.eye(3)
    for step in range(9):
        g = np.cos(3 * w + step)
        if step:
            m = 0.9 * m + 0.1 * g
            v = 0.8 * v + 0.2 * (ql.T @ g @ qr) ** 2
            m_hat = ql.T @ m @ qr / (1 - 0.9**step)
            n = m_hat / (np.sqrt(v / (1 - 0.8**step)) + 1e-8)
            w = w - 0.1 * (ql @ n @ qr.T + 0.01 * w)
        else:
            w = w - 0.1 * 0.01 * w
        left = 0.7 * left + 0.3 * g @ g.T
        right = 0.7 * right + 0.3 * g.T @ g
        if step == 0:
            ql = np.linalg.eigh(left)[1]
            qr = np.linalg.eigh(right)[1]
        elif step % 3 == 0:
            ql = np.linalg.qr(left @ ql)[0]
            qr = np.linalg.qr(right @ qr)[0]
    with jax.enable_x64(True):
        soap = SOAP(learning_rate=RATE, b1=0.9, b2=0.8, basis_decay=0.7, basis_every=3)
        found = run(soap.build(9), {"kernel": start}, 9)["kernel"]
    np.testing.assert_allclose(found, w, rtol=1e-5)


STACKS = """
import jax
from jaxbig.optim.soap import power_iteration
stacks = [jax.random.normal(jax.random.key(n), (4, 128, 128)) for n in range(4)]
turn = jax.jit(lambda stacks: [power_iteration(each, each) for each in stacks])
for _ in range(20):
    stacks = jax.block_until_ready(turn(stacks))
"""


def test_bases_of_several_stacks_at_once_do_not_wait_for_each_other() -> None:
    """In a process that is ended where they do."""
    subprocess.run([sys.executable, "-c", STACKS], timeout=120, check=True)


def test_schedule_free_is_the_algorithm_of_the_paper() -> None:
    """Defazio et al. (2024), equations 6 to 8 of AdamW, in NumPy."""
    optimizer = ScheduleFree(learning_rate=RATE, weight_decay=0.2, b2=0.9)
    start = np.random.default_rng(2).normal(size=(2, 3))
    z = x = y = start
    v = np.zeros_like(start)
    for step in range(1, 6):
        g = np.cos(3 * y + (step - 1))
        v = 0.9 * v + 0.1 * g**2
        z = z - 0.1 * (g / (np.sqrt(v / (1 - 0.9**step)) + 1e-8) + 0.2 * y)
        x = (1 - 1 / step) * x + z / step
        y = 0.1 * z + 0.9 * x
    transformation = optimizer.build(5)
    params: Any = {"kernel": start.astype(np.float32)}
    state = transformation.init(params)
    for step in range(5):
        gradient = jax.tree.map(lambda w, step=step: np.cos(3 * w + step), params)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], y, rtol=1e-5)
    np.testing.assert_allclose(optimizer.average(params, state)["kernel"], x, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_the_gradient_is_clipped(name: str) -> None:
    optimizer = dataclasses.replace(
        OPTIMIZERS[name], frozen="head", clip_norm=1.0, rate_factors=(("slow", 0.0),)
    )
    params = random({"up": {"kernel": np.zeros((4, 6))}, "slow": {"kernel": np.zeros((4, 6))}}, 1)
    params["head"] = {"kernel": np.ones((2, 2), np.float32)}
    after = updated(optimizer, params, {}, 2)
    assert np.array_equal(after["head"]["kernel"], params["head"]["kernel"])
    assert np.array_equal(after["slow"]["kernel"], params["slow"]["kernel"]) or (
        # what is between the average and the steps' end is rounded
        np.allclose(after["slow"]["kernel"], params["slow"]["kernel"], atol=1e-6)
    )
    assert not np.allclose(after["up"]["kernel"], params["up"]["kernel"])
    state = optimizer.build(2).init(params)
    assert not any("head" in path for path in flatten_with_paths(state))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (Muon(learning_rate=RATE, adam="("), r"--adam '\(' is no regular expression"),
        (Muon(learning_rate=RATE, momentum=1.0), "--momentum 1.0: it must be 0 or more and below"),
        (Muon(learning_rate=RATE, iterations=0), "--iterations 0: it must be 1 or more"),
        (ScheduleFree(learning_rate=RATE, b1=0.0), "--b1 0.0: it is the share of the average"),
        (Adafactor(learning_rate=RATE, clip_threshold=0.5), "--clip-threshold 0.5: it must be 1"),
        (SOAP(learning_rate=RATE, basis_every=0), "--basis-every 0: it must be 1 or more"),
    ],
)
def test_wrong_value_of_an_optimizer_is_refused(optimizer: Optimizer, said: str) -> None:
    with pytest.raises(Refused, match=said):
        validate(optimizer)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("embed", "mlp"), (4, 6), (1, 4, 6)),
        (("layers", "embed", "heads", None), (2, 4, 3, 5), (2, 4, 15)),
        (("layers", "heads", None, "embed"), (2, 3, 5, 4), (2, 15, 4)),
        (("embed", None, "heads", None), (4, 2, 3, 5), (2, 4, 15)),
        (("layers", "experts", "mlp", "embed"), (2, 3, 6, 4), (6, 6, 4)),
        (("embed", None, "hidden"), (4, 4, 6), (4, 4, 6)),
        ((None, "heads", None, None), (2, 3, 5, 5), (6, 5, 5)),
        ((None, "hidden", "embed"), (2, 6, 4), (2, 6, 4)),
        ((None, None, None, "channels"), (3, 3, 8, 16), (1, 72, 16)),
        (("rank", "heads", None), (2, 3, 5), (1, 2, 15)),
        (("heads", None, "rank"), (3, 5, 2), (1, 15, 2)),
        ((), (3, 3, 8, 16), (1, 72, 16)),
    ],
)
def test_matrices_of_a_parameter_follow_from_its_logical_axes(
    names: Any, shape: Any, expected: Any
) -> None:
    found = layout("kernel", shape, {"kernel": names})
    assert found.rows and matrix_shape(shape, found) == expected
    assert sorted((*found.stack, *found.own)) == list(range(len(shape)))


@pytest.mark.parametrize(
    ("path", "names", "shape"),
    [
        ("key_value/bias", (None, "heads", None), (2, 3, 5)),
        ("norm/scale", ("layers", None), (2, 4)),
        ("token", (None, None, "embed"), (1, 1, 4)),
        ("score/kernel", ("hidden", None), (6, 1)),
    ],
)
def test_vector_of_several_axes_is_no_matrix(path: str, names: Any, shape: Any) -> None:
    assert not layout(path, shape, {path: names}).rows
    assert Muon(learning_rate=RATE).rule(path, shape, {path: names}) == "AdamW"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Muon", "ScheduleFree"])
def test_resumed_run_has_the_bits_of_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    optimizer = dataclasses.replace(OPTIMIZERS[name], learning_rate=Constant(1e-2))
    every = {"evaluate_every": 2, "checkpoint_every": 2, "log_every": 2}
    experiment = small("diabetes_mlp", optimizer=optimizer, steps=4, **every)
    whole = fit(experiment, tmp_path / "whole", Screen())
    fit(experiment.replace(steps=2), tmp_path / "parts", Screen())
    assert fit(experiment, tmp_path / "parts", Screen())["state_sha256"] == whole["state_sha256"]


@pytest.mark.slow
def test_evaluation_uses_the_average_of_a_schedule_free_optimizer(tmp_path: Path) -> None:
    every = {"evaluate_every": 4, "checkpoint_every": 4}
    experiment = small("diabetes_mlp", optimizer=OPTIMIZERS["ScheduleFree"], steps=4, **every)
    run = jb.fit(experiment, tmp_path)
    average = experiment.optimizer.average(run.state.params, run.state.opt_state)
    merged = run.program.merged(run.state).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, average)
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), average, run.state.params)
    assert max(jax.tree.leaves(gaps)) > 1e-4
    with pytest.raises(Refused, match=r"--ema 0.9: ScheduleFree keeps an average of its own"):
        experiment.replace(ema=0.9).check()


def test_state_of_several_arrays_a_parameter_is_placed() -> None:
    optimizer = Optax(name="scale_by_sm3", learning_rate=RATE)
    program = make_program(small("diabetes_mlp", optimizer=optimizer))
    assert any(leaf.shape == (16,) for leaf in jax.tree.leaves(program.abstract.opt_state))


def test_show_says_what_updates_each_parameter() -> None:
    experiment = small("pytext_transformer")
    muon = Muon(learning_rate=RATE, frozen="^positions|norm/bias", weight_decay=0.1)
    rules = {
        row["parameter"]: row["update"] for row in show(experiment.replace(optimizer=muon))["table"]
    }
    assert rules["blocks/block_0/attention/key_value/kernel"] == "Muon 2 x (32 x 32), decayed"
    assert rules["blocks/block_0/mlp_norm/scale"] == "AdamW"
    assert rules["tokens/embedding"] == "AdamW, decayed"
    assert rules["blocks/norm/bias"] == "frozen"
