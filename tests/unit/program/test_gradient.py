"""A gradient in parts is the gradient of the whole; fixed-order chunks give the same bits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compiling import fully
from support.experiments import HAS_GAMES, HAS_GYMNAX, small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.digest import digests
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.program import gradient
from jaxbig.program.gradient import Gradient, make_gradient
from jaxbig.program.program import Program, make_program
from jaxbig.tools.shrink import random_batch

BATCH = 64


def plain(name: str, **changes: Any) -> Experiment:
    """A built-in experiment, small, without dropout and without statistics of the whole batch."""
    experiment = small(name, **changes)
    model: Any = experiment.model
    if name == "digits_convnet":
        model = dataclasses.replace(
            model, layers=tuple(layer for layer in model.layers if not hasattr(layer, "rate"))
        )
    if hasattr(model, "dropout"):
        model = dataclasses.replace(model, dropout=0.0)
    if name == "digits_resnet":
        model = dataclasses.replace(model, norm="group", groups=4)
    data: Any = dataclasses.replace(experiment.data, batch=BATCH)
    return dataclasses.replace(experiment, model=model, data=data)


def found(experiment: Experiment, batch: Any, devices: int = 1) -> tuple[dict[str, Any], Any]:
    """(gradient, sums, variables) by path at the initial parameters, and the compiled function."""
    program = make_program(experiment, jax.devices()[:devices])
    with program.activate():
        state = program.init()
        rows = device_put_batch(batch, program.mesh)
        gradient: Gradient = make_gradient(experiment, program.mesh)
        compiled = (
            jax.jit(gradient).lower(state.params, state.variables, rows, jnp.int32(0)).compile()
        )
        got = compiled(state.params, state.variables, rows, jnp.int32(0))
    return {path: np.asarray(leaf) for path, leaf in flatten_with_paths(got).items()}, compiled


def uneven(experiment: Experiment) -> Any:
    """A batch whose padding makes the parts unequally heavy; one row in four is nothing else."""
    batch = random_batch(experiment)
    mask = np.random.default_rng(1).integers(0, 2, batch["mask"].shape).astype(batch["mask"].dtype)
    mask[::4] = 0
    if "starts" in batch:
        batch["starts"][::2] = 0
    return {**batch, "mask": mask}


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("digits_resnet", "pytext_transformer", "pytext_lstm")
]


@pytest.mark.parametrize("name", ["digits_convnet", *SLOW])
def test_parts_of_unequal_weight_give_the_gradient_of_the_whole(name: str) -> None:
    batch = uneven(plain(name))
    whole, _ = found(plain(name), batch, 8)
    for accumulate in (2, 8):
        parts, _ = found(plain(name, accumulate=accumulate), batch, 8)
        assert parts.keys() == whole.keys()
        for path, leaf in whole.items():
            distance = float(np.linalg.norm(parts[path] - leaf))
            assert distance <= 1e-6 * max(float(np.linalg.norm(leaf)), 1.0), (
                path,
                accumulate,
                distance,
            )


@pytest.mark.slow
def test_more_parts_need_less_memory() -> None:
    batch = random_batch(plain("pytext_transformer"))
    used = [
        found(plain("pytext_transformer", accumulate=count), batch)[1]
        .memory_analysis()
        .temp_size_in_bytes
        for count in (1, 4, 16)
    ]
    assert used[1] < 0.5 * used[0] and used[2] < 0.7 * used[1]


# -- the same bits on any number of devices


@pytest.fixture
def trained() -> Callable[[Experiment, list[int]], str]:
    """The digest of the state after one step on each of these numbers of devices, in turn.

    What it compiles for a number of devices it compiles once.
    """

    @functools.cache
    def compiled(experiment: Experiment, count: int) -> tuple[Program, Any]:
        program = make_program(experiment, jax.devices()[:count])
        with program.activate():
            rows = device_put_batch(random_batch(experiment), program.mesh)
            return program, program.train_step.lower(program.abstract, rows).compile()

    @functools.cache
    def initial(experiment: Experiment, count: int) -> Any:
        program, _ = compiled(experiment, count)
        with program.activate():
            return jax.device_get(program.init.lower().compile()())

    def digest(experiment: Experiment, devices: list[int]) -> str:
        state = jax.tree.map(np.array, initial(experiment, devices[0]))  # a step may take its place
        for step, count in enumerate(devices):
            program, train_step = compiled(experiment, count)
            with program.activate():
                shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
                state = jax.device_put(state, shardings)
                rows = device_put_batch(random_batch(experiment, step), program.mesh)
                state, _ = train_step(state, rows)
                state = jax.device_get(state)
        return digests(state)[1]

    return digest


def test_the_bits_of_a_step_do_not_depend_on_its_devices(
    trained: Callable[[Experiment, list[int]], str],
) -> None:
    experiment = small("digits_convnet", reproducible=8)
    assert trained(experiment, [1]) == trained(experiment, [8])


def test_chunks_are_added_in_order_whether_whole_or_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order changes float32 sums; the last leaf does not divide over the devices."""
    mesh = Mesh(data=4).build(jax.devices()[:4])
    draw = np.random.default_rng(0)
    shapes = {"number": (), "kernel": (6, 4), "odd": (3, 5)}
    tree: dict[str, Any] = {
        name: np.float32(
            draw.standard_normal((8, *shape)) * 10.0 ** draw.integers(-4, 5, (8, *shape))
        )
        for name, shape in shapes.items()
    }
    expected = {name: functools.reduce(np.add, list(each)) for name, each in tree.items()}
    assert not np.array_equal(
        expected["kernel"], functools.reduce(np.add, list(tree["kernel"])[::-1])
    )
    for most in (0, 2**16):
        monkeypatch.setattr(gradient, "SMALL", most)

        def add(tree: Any) -> Any:
            return gradient.in_turn(gradient.added_over("data"), tree)

        split = jax.sharding.PartitionSpec("data")
        whole = jax.sharding.PartitionSpec()
        found = jax.jit(
            jax.shard_map(add, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False)
        )(tree)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(["cartpole_dqn", "cartpole_ppo"] if HAS_GYMNAX else []),
        *(["tictactoe_alphazero"] if HAS_GAMES else []),
        "digits_convnet",
        "digits_resnet",
        "digits_rnn",
        "pyimports_recommend",
        "pytext_transformer",
    ],
)
def test_the_bits_of_a_run_do_not_depend_on_its_devices(
    name: str, trained: Callable[[Experiment, list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, "SMALL", 256)  # kernels are added in slices, biases whole
    experiment = small(name, reproducible=8)
    if name == "digits_resnet":  # with standardized kernels
        model: Any = experiment.model
        model = dataclasses.replace(model, norm="group", groups=4)
        experiment = dataclasses.replace(experiment, model=model)
    with fully():
        straight = {count: trained(experiment, [count] * 2) for count in (1, 8)}
        assert len(set(straight.values())) == 1, straight
        assert trained(experiment, [8, 1]) == straight[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 3}, ["--data.batch 16", "--accumulate 3", "24"]),
        ({"accumulate": 0}, ["--accumulate 0", "1 or more"]),
        ({"reproducible": 4}, ["--reproducible 4", "multiple of data"]),
        ({"reproducible": 32}, ["--reproducible 32", "divide the batch"]),
        ({"reproducible": 8, "accumulate": 2}, ["--accumulate 2", "accumulate must be 1"]),
        ({"reproducible": 8, "mesh": Mesh(data=4, fsdp=2)}, ["'fsdp': 2", "the only axis"]),
        ({"reproducible": -1}, ["--reproducible -1", "0 or more"]),
    ],
)
def test_what_does_not_divide_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        make_program(small("digits_convnet", **changes))
    assert all(word in str(refused.value) for word in words), refused.value
