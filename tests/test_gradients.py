"""Gradients over any mesh are those of one device, and losses are those of the day they were written down.

`python tests/test_gradients.py` writes the losses of this platform down anew.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXPERIMENTS, small

from jaxbig.data.base import Rows, Source
from jaxbig.data.pytext import PyText, Windows
from jaxbig.data.stream import train_batch
from jaxbig.experiment import Experiment
from jaxbig.mesh import AXES, Mesh, activate, put
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant
from jaxbig.state import TrainState, leaves
from jaxbig.step import make_init, make_loss, make_program, make_train_step

GOLDEN = Path(__file__).with_name("golden_losses.json")
TEXT = np.frombuffer(" ".join(map(str, range(1000))).encode(), np.uint8)  # the same with every version of Python
SCANNED = "pytext_transformer, scanned"
Gradients = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True, params=["hastily", pytest.param("fully", marks=pytest.mark.slow)])
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hasty compiler splits arrays as the full one does, in a third of the time; the slow tests use the full one."""
    jax.config.update("jax_disable_most_optimizations", request.param == "hastily")
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    on_one_device.cache_clear()
    over.cache_clear()


def with_dropout(name: str) -> Experiment:
    """An experiment that ships, small, with dropout; its sizes divide by 8."""
    experiment = small(name.removesuffix(", scanned"))
    if name.startswith("pytext"):
        model = dataclasses.replace(experiment.model, dropout=0.1, scan=name == SCANNED)
        experiment = dataclasses.replace(experiment, model=model)
    return experiment


def source(experiment: Experiment) -> Source:
    """Its examples, of a text that never changes in place of the library's."""
    if isinstance(experiment.data, PyText):
        return Windows(TEXT, experiment.data.length)
    experiment.data.prepare()
    return experiment.data.source("train")


def batch(experiment: Experiment, step: int) -> Rows:
    return train_batch(source(experiment), experiment.seed, step, experiment.data.batch)


def one_device() -> jax.sharding.Mesh:
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES, axis_types=axis_types)


def arrays(tree: Any) -> Gradients:
    return {path: np.array(leaf) for path, leaf in leaves(tree).items()}


@functools.cache
def on_one_device(name: str) -> tuple[Gradients, Gradients]:
    """The initial parameters and the gradient of the first step, on one device."""
    experiment, mesh = with_dropout(name), one_device()
    with activate(mesh):
        variables = nn.meta.unbox(jax.jit(make_init(experiment))())
        params = variables.pop("params")
        gradient = jax.jit(jax.grad(make_loss(experiment), has_aux=True))
        found, _ = gradient(params, variables, put(batch(experiment, 0), mesh), jnp.int32(0))
        assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(found))
    return arrays(params), arrays(found)


@functools.cache
def over(name: str, mesh: Mesh) -> tuple[Gradients, Gradients]:
    """The same from the compiled train step of a run: the momentum after a first step of SGD is the gradient."""
    optimizer = SGD(rate=Constant(0.1), momentum=0.9)
    experiment = dataclasses.replace(with_dropout(name), mesh=mesh, optimizer=optimizer)
    program = make_program(experiment)
    with activate(program.mesh):
        state = program.init()
        params = arrays(state.params)
        state, _ = program.train_step(state, put(batch(experiment, 0), program.mesh))
        assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(state))
    trace = {path.split("trace/")[1]: leaf for path, leaf in arrays(state.opt_state).items() if "trace/" in path}
    return params, trace


def worst(found: Gradients, expected: Gradients) -> tuple[str, float]:
    """The leaf that is furthest from what is expected, and how far: norm of the difference over norm."""
    assert found.keys() == expected.keys()
    errors = {
        path: float(np.linalg.norm(found[path] - expected[path]) / np.linalg.norm(expected[path])) for path in expected
    }
    return max(errors.items(), key=lambda item: item[1] if np.isfinite(item[1]) else np.inf)


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(fsdp=8, data=1), Mesh(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("name", [*EXPERIMENTS, pytest.param(SCANNED, marks=pytest.mark.slow)])
def test_gradients_over_a_mesh_are_those_of_one_device(name: str, mesh: Mesh) -> None:
    params, gradient = over(name, mesh)
    expected_params, expected = on_one_device(name)
    assert all(np.linalg.norm(leaf) > 0 for leaf in expected.values())
    assert params.keys() == expected_params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected_params[path], err_msg=path)
    path, error = worst(gradient, expected)
    assert error < 1e-5, f"{path} is off by {error:.2e}"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda leaf: leaf * 1.0001, id="scaled"),
        pytest.param(
            lambda leaf: np.where(np.arange(leaf.shape[-1]) < leaf.shape[-1] // 8, 0, leaf), id="a shard lost"
        ),
        pytest.param(lambda leaf: leaf[..., ::-1], id="shards exchanged"),
        pytest.param(lambda leaf: np.full_like(leaf, np.nan), id="not a number"),
    ],
)
def test_a_wrong_gradient_of_a_single_leaf_is_caught_and_named(damage: Any) -> None:
    _, expected = on_one_device("digits_rnn")
    assert worst(expected, expected)[1] == 0
    for wrong in expected:
        path, error = worst({**expected, wrong: damage(expected[wrong])}, expected)
        assert path == wrong and not error < 1e-5


def test_a_gradient_summed_twice_over_a_mesh_axis_is_caught() -> None:
    _, gradient = over("digits_rnn", Mesh(data=2, fsdp=2, tensor=2))
    _, expected = on_one_device("digits_rnn")
    assert worst({path: 2 * leaf for path, leaf in gradient.items()}, expected)[1] == pytest.approx(1, abs=1e-4)


def first_losses(name: str, steps: int = 5) -> list[float]:
    """The training losses of the first steps on one device, with the experiment's own optimizer."""
    experiment, mesh = small(name), one_device()
    optimizer = experiment.optimizer.build(experiment.steps)
    losses = []
    with activate(mesh):
        variables = nn.meta.unbox(jax.jit(make_init(experiment))())
        params = variables.pop("params")
        state = TrainState(jnp.int32(0), params, variables, optimizer.init(params))
        train_step = jax.jit(make_train_step(experiment, optimizer))
        for step in range(steps):
            state, metrics = train_step(state, put(batch(experiment, step), mesh))
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_losses_are_those_written_down(name: str) -> None:
    golden = json.loads(GOLDEN.read_text()).get(jax.default_backend())
    if golden is None:
        pytest.skip(f"no losses are written down for {jax.default_backend()}")
    np.testing.assert_allclose(first_losses(name), golden[name], rtol=1e-4)


if __name__ == "__main__":
    old = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    new = {**old, jax.default_backend(): {name: first_losses(name) for name in EXPERIMENTS}}
    GOLDEN.write_text(json.dumps(new, indent=1) + "\n")
