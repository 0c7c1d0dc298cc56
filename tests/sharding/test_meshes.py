"""Gradients over any mesh are those of one device, and losses are those of the day they were
written down.

`python tests/sharding/test_meshes.py` writes the losses of this platform again.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compiling import fully
from support.experiments import ADAPTED, EMBEDDED, HAS_GAMES, HAS_GYMNAX, ROOT, SPINE, small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.pytext import PlainWindows, PyText, PyTextRows, Windows
from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant
from jaxbig.program.gradient import make_gradient
from jaxbig.program.program import make_init, make_program, make_train_step
from jaxbig.program.state import TrainState
from jaxbig.tools.check_sharding import apart, perturbed
from jaxbig.tools.shrink import random_batch

GOLDEN = ROOT / "tests" / "golden" / "losses.json"
TEXT = np.frombuffer(
    " ".join(map(str, range(1000))).encode(), np.uint8
)  # the same with every version of Python
SETTINGS: dict[str, dict[str, Any]] = {
    "scanned": {"scan": True, "remat": "full", "drop_path": 0.1},
    "pieces": {"mlp_chunks": 3},
    "stages": {"scan": True, "depth": 4, "microbatches": 4, "remat": "full", "drop_path": 0.1},
    "stages, ring": {"scan": True, "depth": 2, "microbatches": 2, "attention_kernel": "ring"},
    "heads": {"heads": 8},
    "ring": {"attention_kernel": "ring", "kv_heads": 2, "window": 12},
    "zigzag": {"attention_kernel": "zigzag", "kv_heads": 2},
    "ulysses": {"attention_kernel": "ulysses", "kv_heads": 2, "window": 12},
    "ulysses relative": {"attention_kernel": "ulysses", "positions": "relative"},
    "all to all": {"expert_dispatch": "all_to_all", "mlp_chunks": 3},
    "gemma": {
        "scan": True,
        "window": 12,
        "window_pattern": (True, False),
        "head_width": 24,
        "norm": "rms_plus_one",
        "sandwich_norm": True,
        "qk_norm": True,
        "attention_soft_cap": 5.0,
        "logit_soft_cap": 3.0,
    },
    "gru": {"cell": "gru", "bidirectional": True, "layers": 2},
    "group": {"norm": "group", "groups": 4},
}
STEADY = [
    name
    for name in EMBEDDED
    if name not in ADAPTED and not name.startswith(("pydoc", "pyimports", "pymodule"))
]
# the first ones with every test, the others with the slow ones
QUICK = [*SPINE, "pytext_griffin", "dates_transformer", "digits_vit"]
# one of each other kind of model, those that differ within a kind, and settings
LONG = [
    "imagenet_alexnet",
    "imagenet_convnext_t",
    "diabetes_mlp",
    "pytext_deltanet",
    "pytext_bert",
    "pytext_moe",
    "dates_seq2seq",
    "imdb_attention_rnn",
    "c4_mixtral_8x7b",
    "pytext_transformer, scanned",
    "pytext_llama, gemma",
    "digits_rnn, gru",
    "digits_resnet, group",
    "digits_diffusion",
    "morse_ctc",
    "librispeech_conformer",
    # with batch statistics the rounding of a mesh changes which pixel a max pool takes
    "digits_segmentation, group",
    "pyimports_recommend",
    "movielens_two_tower",
    "criteo_dlrm",
    "digits_detection",
    *(["cartpole_dqn", "cartpole_ppo"] if HAS_GYMNAX else []),
    *(["tictactoe_alphazero"] if HAS_GAMES else []),
    "pydoc_summary",
    "pydoc_qa",
    "digits_simclr",
    "pydoc_clip",
]
# those whose first parameters are compared
MODELS = [*QUICK, "imagenet_convnext_t", "pytext_deltanet", "pytext_moe", "dates_seq2seq"]
Gradients = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hasty compiler splits arrays as the full one does, in less time; some tests use both."""
    with fully() if request.param == "fully" else contextlib.nullcontext():
        yield
    on_one_device.cache_clear()
    initial.cache_clear()
    over.cache_clear()


@contextlib.contextmanager
def hastily() -> Iterator[None]:
    """Compiles what is inside hastily: the full compiler takes long to compile random numbers."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def in_full_precision(name: str) -> Experiment:
    """An experiment that ships, small, in float32, with dropout where the model has it; its sizes
    divide by 8."""
    name, _, setting = name.partition(", ")
    experiment = small(name, ema=0.0)  # no average is compared
    model: Any = experiment.model
    fields = {field.name for field in dataclasses.fields(model)}
    changes = {"dtype": "float32"} if "dtype" in fields else {}
    changes |= {"dropout": 0.1} if "dropout" in fields else {}
    if "depth" in fields and not setting and name not in (*SPINE, "pytext_griffin"):
        changes["depth"] = 1  # a second block is the first one again
    changes |= SETTINGS.get(setting, {})
    return dataclasses.replace(experiment, model=dataclasses.replace(model, **changes))


def source(experiment: Experiment) -> Source:
    """Its examples, of a text that never changes in place of the library's."""
    if isinstance(experiment.data, PyTextRows):
        return PlainWindows(TEXT, experiment.data.length)
    if isinstance(experiment.data, PyText):
        return Windows(TEXT, experiment.data.length, experiment.data.contiguous)
    experiment.data.prepare()
    return experiment.data.source("train")


def batch(name: str, experiment: Experiment, step: int) -> Rows:
    if name not in STEADY:  # data that is not here, or differs between versions of Python
        return random_batch(experiment, step)
    return train_batch(source(experiment), step, seed=experiment.seed, batch=experiment.data.batch)


def one_device() -> jax.sharding.Mesh:
    return Mesh(data=1).build(jax.devices()[:1])


def arrays(tree: Any) -> Gradients:
    return {path: np.array(leaf) for path, leaf in flatten_with_paths(tree).items()}


@functools.cache
def initial(name: str) -> tuple[Any, Any]:
    """The initial parameters and other variables, drawn on one device."""
    with activate(one_device()), hastily():
        variables = nn.meta.unbox(jax.jit(make_init(in_full_precision(name)))())
    variables = jax.tree.map(np.asarray, variables)
    return variables.pop("params"), variables


@functools.cache
def on_one_device(name: str) -> Gradients:
    """The gradient of the first step on one device."""
    experiment = in_full_precision(name)
    mesh = one_device()
    with activate(mesh):
        params, variables = jax.device_put(initial(name))
        rows = device_put_batch(batch(name, experiment, 0), mesh)
        inputs = (perturbed(params), variables, rows, jnp.int32(0))
        gradient = jax.jit(make_gradient(experiment, mesh)).lower(*inputs).compile()
        found, _, _ = gradient(*inputs)
        assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(found))
    return arrays(found)


@functools.cache
def over(name: str, mesh: Mesh) -> Gradients:
    """The same over a mesh, from the compiled train step of a run: the momentum after a first step
    of SGD is the gradient."""
    optimizer = SGD(learning_rate=Constant(0.1), momentum=0.9)
    experiment = dataclasses.replace(in_full_precision(name), mesh=mesh, optimizer=optimizer)
    program = make_program(experiment)
    with program.activate():
        with hastily():
            state = program.begin(*initial(name))
        state = state.replace(params=perturbed(state.params))  # type: ignore[attr-defined]
        inputs = (state, device_put_batch(batch(name, experiment, 0), program.mesh))
        state, _ = program.train_step.lower(*inputs).compile()(*inputs)
        assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(state))
    return {
        path.split("trace/")[1]: leaf
        for path, leaf in arrays(state.opt_state).items()
        if "trace/" in path
    }


def worst(found: Gradients, expected: Gradients) -> tuple[str, float]:
    """The leaf that is furthest from what is expected, and how far."""
    assert found.keys() == expected.keys()
    errors = apart(found, expected)
    return max(errors.items(), key=lambda item: item[1] if np.isfinite(item[1]) else np.inf)


SLOW = pytest.mark.slow
SPLIT = Mesh(data=2, fsdp=2, tensor=2)
RECURRENT = ["pytext_griffin", "pytext_deltanet"]
OVER_EXPERTS = [
    Mesh(data=2, expert=4),
    Mesh(data=1, fsdp=2, tensor=2, expert=2),
    Mesh(data=1, expert=2, sequence=4),
]
OVER_LENGTH = [Mesh(data=1, sequence=8), Mesh(data=2, tensor=2, sequence=2)]
OVER_STAGES = [
    ("pytext_transformer, stages", Mesh(data=2, fsdp=2, stage=2)),
    ("pytext_llama, stages, ring", Mesh(data=1, tensor=2, sequence=2, stage=2)),
    ("dates_transformer, stages", Mesh(data=2, tensor=2, stage=2)),
]
BETWEEN = Mesh(data=2, tensor=2, sequence=2, rules="length_over_tensor")
OVERRIDDEN = Mesh(
    data=2,
    fsdp=2,
    tensor=2,
    overrides=(("embed", "none"), ("mlp", "tensor+fsdp"), ("vocab", "none")),
)
IN_TURN = [
    "pytext_transformer, ring",
    "pytext_transformer, zigzag",
    "pymodule_bert, ulysses",
    "pytext_transformer, ulysses relative",
]
TENSOR = Mesh(data=1, tensor=8)
OTHER_AXES = [
    ("digits_resnet", Mesh(data=8)),
    ("pytext_transformer", Mesh(data=1, fsdp=8)),
    *((name, TENSOR) for name in ("digits_convnet", "pytext_transformer, heads")),
    ("digits_vit, ring", OVER_LENGTH[0]),
    *((name, OVER_LENGTH[1]) for name in [*IN_TURN, *RECURRENT]),
    *(("pytext_transformer", mesh) for mesh in (OVER_LENGTH[0], BETWEEN, OVERRIDDEN)),
    *(("pytext_moe", mesh) for mesh in OVER_EXPERTS),
    *((f"pytext_moe, {setting}", OVER_EXPERTS[1]) for setting in ("pieces", "all to all")),
    *OVER_STAGES,
]
HASTY = [*((name, SPLIT) for name in [*QUICK[len(SPINE) :], *LONG]), *OTHER_AXES]
# the meshes of a model follow one another: its gradient on one device is computed once
CASES = [
    *(("hastily", name, SPLIT) for name in SPINE),
    *(
        pytest.param("hastily", *case, marks=SLOW)
        for case in sorted(HASTY, key=lambda case: case[0])
    ),
    pytest.param("fully", "pytext_transformer", SPLIT, marks=SLOW),
]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("compiled", "name", "mesh"), CASES, indirect=["compiled"], ids=str)
def test_gradients_over_a_mesh_are_those_of_one_device(name: str, mesh: Mesh) -> None:
    expected = on_one_device(name)
    assert all(np.linalg.norm(leaf) > 0 for leaf in expected.values())
    path, error = worst(over(name, mesh), expected)
    assert error < 1e-5, f"{path} is off by {error:.2e}"


# a model of each kind
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("compiled", "name"),
    [
        *(("hastily", name) for name in SPINE),
        *(pytest.param("hastily", name, marks=SLOW) for name in MODELS if name not in SPINE),
        pytest.param("fully", "digits_convnet", marks=SLOW),
    ],
    indirect=["compiled"],
)
def test_initial_parameters_over_a_mesh_are_those_of_one_device(name: str) -> None:
    experiment = dataclasses.replace(in_full_precision(name), mesh=SPLIT)
    alone = dataclasses.replace(experiment, mesh=Mesh(data=1))
    program = make_program(experiment)
    with program.activate():
        found = arrays(program.init.lower().compile()().params)
    program = make_program(alone, jax.devices()[:1])
    with program.activate():
        expected = arrays(program.init.lower().compile()().params)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.parametrize("name", ["digits_convnet", "pytext_transformer"])
def test_over_fsdp_a_device_holds_an_eighth_of_parameters_and_moments(name: str) -> None:
    experiment = dataclasses.replace(load(name), mesh=Mesh(data=1, fsdp=8))
    program = make_program(experiment)
    with program.activate():
        state = program.init()
    for tree in (state.params, state.opt_state):
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        assert held == pytest.approx(
            sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 8, rel=0.05
        )


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda leaf: leaf * 1.0001, id="scaled"),
        pytest.param(
            lambda leaf: np.where(np.arange(leaf.shape[-1]) < leaf.shape[-1] // 8, 0, leaf),
            id="a shard lost",
        ),
        pytest.param(lambda leaf: leaf[..., ::-1], id="shards exchanged"),
        pytest.param(lambda leaf: np.full_like(leaf, np.nan), id="not a number"),
    ],
)
def test_a_wrong_gradient_of_a_single_leaf_is_caught_and_named(damage: Any) -> None:
    expected = on_one_device("digits_rnn")
    assert worst(expected, expected)[1] == 0
    for wrong in expected:
        path, error = worst({**expected, wrong: damage(expected[wrong])}, expected)
        assert path == wrong and not error < 1e-5


def test_a_gradient_summed_twice_over_a_mesh_axis_is_caught() -> None:
    gradient = over("digits_rnn", Mesh(data=2, fsdp=2, tensor=2))
    expected = on_one_device("digits_rnn")
    assert worst({path: 2 * leaf for path, leaf in gradient.items()}, expected)[1] == pytest.approx(
        1, abs=1e-4
    )


def first_losses(name: str, steps: int = 5) -> list[float]:
    """The training losses of the first steps on one device, with the experiment's own optimizer."""
    experiment = small(name, ema=0.0)  # an average changes no loss
    mesh = one_device()
    optimizer = experiment.optimizer.build(experiment.steps)
    losses = []
    with activate(mesh):
        with hastily():
            variables = nn.meta.unbox(jax.jit(make_init(experiment))())
        params = variables.pop("params")
        state = TrainState(jnp.int32(0), params, variables, optimizer.init(params))
        batches = [device_put_batch(batch(name, experiment, step), mesh) for step in range(steps)]
        train_step = jax.jit(make_train_step(experiment, optimizer, mesh))
        compiled = train_step.lower(state, batches[0]).compile()
        for each in batches:
            state, metrics = compiled(state, each)
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("compiled", "name"),
    [
        *(("hastily", name) for name in SPINE),
        *(pytest.param("hastily", name, marks=SLOW) for name in STEADY if name not in SPINE),
        pytest.param("fully", "pytext_transformer", marks=SLOW),
    ],
    indirect=["compiled"],
)
def test_the_first_losses_are_those_written_down(name: str) -> None:
    golden = json.loads(GOLDEN.read_text()).get(jax.default_backend())
    if golden is None:
        pytest.skip(f"no losses are written down for {jax.default_backend()}")
    np.testing.assert_allclose(first_losses(name), golden[name], rtol=1e-4)


if __name__ == "__main__":
    old = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    new = {**old, jax.default_backend(): {name: first_losses(name) for name in STEADY}}
    GOLDEN.write_text(json.dumps(new, indent=1) + "\n")
