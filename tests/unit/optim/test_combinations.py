"""Every optimizer with layer decay, masks of weight decay, frozen parameters, and adapters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.experiments import small

from jaxbig.adapt import lora
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.lora import LoRA
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP
from jaxbig.optim.adafactor import Adafactor
from jaxbig.optim.lamb import LAMB
from jaxbig.optim.lion import Lion
from jaxbig.optim.muon import Muon
from jaxbig.optim.optax_optimizer import Optax
from jaxbig.optim.optimizers import SGD, AdamW, Optimizer
from jaxbig.optim.schedule_free import ScheduleFree
from jaxbig.optim.schedules import Constant
from jaxbig.optim.soap import SOAP
from jaxbig.program.gradient import make_gradient
from jaxbig.program.program import logical_axes, make_program
from jaxbig.tools.shrink import random_batch

RATE = Constant(0.1)
OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW": AdamW(learning_rate=RATE),
    "Adafactor": Adafactor(learning_rate=RATE, factored_from=3, weight_decay=0.1),
    "LAMB": LAMB(learning_rate=RATE),
    "Lion": Lion(learning_rate=RATE, weight_decay=0.1),
    "Muon": Muon(learning_rate=RATE, adam="^tokens"),
    "Optax": Optax(name="adamaxw", learning_rate=RATE, arguments={"weight_decay": 0.1}),
    "SGD": SGD(learning_rate=RATE),
    "SOAP": SOAP(learning_rate=RATE, basis_every=2),
    "ScheduleFree": ScheduleFree(learning_rate=RATE),
}
AXES = {
    "tokens/embedding": ("vocab", "embed"),
    "block_0/up/kernel": ("embed", "mlp"),
    "block_1/up/kernel": ("embed", "mlp"),
    "block_2/up/kernel": ("embed", "mlp"),
    "scan/block/up/kernel": ("layers", "embed", "mlp"),
    "head/kernel": ("embed", "classes"),
}
SHAPES = {path: (3, 4, 6) if "scan" in path else (4, 6) for path in AXES}


def random(seed: int) -> dict[str, Any]:
    """A tree of the shapes above, by path, float32."""
    draw = np.random.default_rng(seed)
    return {path: draw.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def last_update(optimizer: Optimizer, params: Any) -> dict[str, np.ndarray]:
    """The second update for the same parameters, by path.

    Of ScheduleFree the first, as it averages after it. SOAP's first only finds its bases.
    """
    transformation = optimizer.build(10, AXES)
    gradients = [random(1)] if isinstance(optimizer, ScheduleFree) else [random(1), random(2)]

    def run(params: Any, gradients: Any) -> Any:
        state = transformation.init(params)
        updates = None
        for gradient in gradients:
            updates, state = transformation.update(gradient, state, params)
        return updates

    return jax.device_get(jax.jit(run)(params, gradients))


FAST = ("Lion", "SGD")
SLOW_ONES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS
]


@pytest.mark.parametrize("name", SLOW_ONES)
def test_layer_decay_scales_whole_updates_beside_frozen_layers_that_stay(name: str) -> None:
    params = random(0)
    plain = last_update(OPTIMIZERS[name], params)
    decayed = dataclasses.replace(OPTIMIZERS[name], layer_decay=0.5, frozen="^block_2")
    found = last_update(decayed, params)
    factors: dict[str, Any] = {
        "tokens/embedding": 1 / 16,
        "block_0/up/kernel": 1 / 8,
        "block_1/up/kernel": 1 / 4,
    }
    factors |= {"block_2/up/kernel": 0, "head/kernel": 1}
    factors["scan/block/up/kernel"] = np.array([1 / 8, 1 / 4, 1 / 2])[:, None, None]
    for path, factor in factors.items():
        assert np.abs(plain[path]).min() > 0
        np.testing.assert_allclose(
            found[path], factor * plain[path], rtol=1e-4, atol=1e-7, err_msg=path
        )


@pytest.mark.parametrize("name", [name for name in SLOW_ONES if name != "SGD"])
def test_weight_decay_is_of_the_parameters_in_its_mask_alone(name: str) -> None:
    """Without a gradient the whole update is `-rate * decay * w`; of LAMB times |w| / |decay w|."""
    optimizer = dataclasses.replace(OPTIMIZERS[name], decayed="^block_1")
    params = random(0)
    transformation = optimizer.build(10, AXES)
    zeros = jax.tree.map(np.zeros_like, params)
    found, _ = jax.jit(transformation.update)(zeros, transformation.init(params), params)
    decay = getattr(optimizer, "weight_decay", 0.1)
    decay = 1.0 if name == "LAMB" else decay
    for path, w in params.items():
        expected = -0.1 * decay * w if path == "block_1/up/kernel" else 0 * w
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_weight_decay_of_no_parameter_is_refused() -> None:
    optimizer = dataclasses.replace(OPTIMIZERS["Muon"], decayed="nowhere")
    with pytest.raises(Refused, match=r"--optimizer.decayed 'nowhere' matches no parameter"):
        optimizer.build(10, AXES).init(random(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adapters_are_updated_by_their_own_gradient_and_the_rest_stays(name: str) -> None:
    """W + s A B has the gradients s G B' of A and s A' G of B, where G is that of W."""
    optimizer = OPTIMIZERS[name]
    if isinstance(optimizer, SOAP):
        # the covariance of a longer side has rank 2: rounding would choose the rest of its basis
        optimizer = dataclasses.replace(optimizer, largest=2)
    experiment = small("diabetes_mlp", mesh=Mesh(data=1), optimizer=optimizer)
    adapted = experiment.replace(lora=LoRA(rank=2, alpha=6.0, pattern="^(?!head).*kernel$"))
    assert isinstance(experiment.model, MLP)
    one = jax.devices()[:1]
    plain = make_program(experiment, one)
    program = make_program(adapted, one)
    axes = logical_axes(program)
    with program.activate():
        state = program.init()
        before = jax.device_get(state)
        find = jax.jit(make_gradient(experiment, plain.mesh))
        transformation = optimizer.build(experiment.steps, axes)
        params = flatten_with_paths(before.params)
        frozen = flatten_with_paths(before.variables["frozen"])
        moments = transformation.init(before.params)
        expected = before.params
        for step in range(2):
            rows = device_put_batch(random_batch(experiment, step), program.mesh)
            merged = lora.merge(expected, before.variables["frozen"], 3.0)
            dense = flatten_with_paths(find(merged, {}, rows, jnp.int32(step))[0])
            gradient = by_hand(flatten_with_paths(expected), dense)
            gradient = jax.tree.unflatten(
                jax.tree.structure(expected), [gradient[path] for path in params]
            )
            found, moments = transformation.update(gradient, moments, expected)
            expected = optax.apply_updates(expected, found)
            state, _ = program.train_step(state, rows)
    after = flatten_with_paths(state.params)
    assert after and all("/lora_" in path for path in after)
    for path, leaf in flatten_with_paths(expected).items():
        np.testing.assert_allclose(after[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
    assert any(np.abs(after[path] - params[path]).max() > 1e-3 for path in params)
    for path, leaf in flatten_with_paths(state.variables["frozen"]).items():
        assert np.array_equal(leaf, frozen[path]), path


def by_hand(adapters: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """The gradients of adapters of matrices, whose scale is 3, from those of the matrices."""
    found = {}
    for path, w in adapters.items():
        above, which, leaf = path.rsplit("/", 2)
        g = np.asarray(dense[f"{above}/{leaf}"])
        other = np.asarray(adapters[f"{above}/lora_{'b' if which == 'lora_a' else 'a'}/{leaf}"])
        found[path] = 3.0 * (g @ other.T if which == "lora_a" else other.T @ g)
        assert found[path].shape == w.shape
    return found


def test_layers_without_adapters_count_for_layer_decay() -> None:
    changes: Any = {"lora": LoRA(rank=2, pattern="block_0/up/kernel$"), "mesh": Mesh(data=1)}
    experiment = small("pytext_transformer", **changes)
    program = make_program(experiment, jax.devices()[:1])
    optimizer = SGD(learning_rate=Constant(1.0), momentum=0.0, layer_decay=0.5)
    transformation = optimizer.build(10, logical_axes(program))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), program.abstract.params)
    found, _ = transformation.update(ones, transformation.init(ones), ones)
    assert {float(leaf.mean()) for leaf in jax.tree.leaves(found)} == {-0.25}  # of two layers


def test_reproducible_run_over_a_mesh_of_several_axes_is_refused() -> None:
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    experiment = small("digits_convnet", reproducible=8, mesh=mesh, optimizer=OPTIMIZERS["Muon"])
    with pytest.raises(
        Refused, match=r"--reproducible 8 .* a multiple of data, the only axis above"
    ):
        make_program(experiment)
