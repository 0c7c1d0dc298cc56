"""Low-rank adapters: what is trained, saved, merged and refused; and moving averages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.adapt import lora
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.config.fingerprint import identity
from jaxbig.config.lora import LoRA
from jaxbig.config.serialize import to_json
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Failed, Refused
from jaxbig.models.convnet import Dense
from jaxbig.models.layers.basic import Linear
from jaxbig.program.gradient import make_gradient
from jaxbig.program.program import make_program
from jaxbig.tools.shrink import random_batch
from jaxbig.train.resume import initialize

pytestmark = pytest.mark.usefixtures("shared_programs")
FEW = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 1, "evaluate_batches": 1}


def tiny(name: str, **changes: Any) -> Experiment:
    return small(name, mesh=Mesh(data=1, fsdp=8), **(FEW | changes))


def adapted(name: str, source: Path, **changes: Any) -> Experiment:
    fields = {"lora": LoRA(rank=3, trained="^head"), **changes}
    return tiny(name, initialize_from=InitializeFrom(run=str(source)), **fields)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained conv net."""
    folder = tmp_path_factory.mktemp("base")
    jb.fit(tiny("digits_convnet"), folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    """Its adapters, trained, with a moving average."""
    return jb.fit(adapted("digits_convnet", base, ema=0.9), tmp_path_factory.mktemp("lora"))


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_with_paths(tree).items()}


def randomized(program: Any) -> Any:
    """A state of small random numbers: its adapters do something."""
    draw = np.random.default_rng(0)

    def place(leaf: Any) -> Any:
        return jax.device_put(0.1 * draw.standard_normal(leaf.shape), leaf.sharding)

    state = program.abstract.replace(step=None, opt_state=None)
    return jax.tree.map(place, state)


def unmerged_logits(model: Any, frozen: Any, adapters: Any, tokens: np.ndarray) -> Any:
    """What a model gives if each layer adds `scale * (x A) B` to its own output."""

    def call(method: Any, arguments: Any, named: Any, context: Any) -> Any:
        y = method(*arguments, **named)
        if not isinstance(context.module, Linear):
            return y
        own = adapters
        for name in context.module.path:
            own = own[name]
        [x] = arguments
        a = own["lora_a"]["kernel"]
        b = own["lora_b"]["kernel"]
        return y + 4.0 * jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)

    with nn.intercept_methods(call):
        return model.apply({"params": frozen}, tokens)


@pytest.mark.slow
def test_merged_kernels_give_what_separate_adapters_give_on_eight_devices() -> None:
    experiment = tiny("pytext_llama", lora=LoRA(rank=4, alpha=16.0))
    program = make_program(experiment)
    state = randomized(program)
    batch = random_batch(experiment)
    with program.activate():
        merged = program.merged(state)
        found = np.asarray(program.forward(merged, device_put_batch(batch, program.mesh)))
    host = jax.device_get(state)
    expected = unmerged_logits(
        experiment.model, host.variables["frozen"], host.params, batch["inputs"]
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = experiment.model.apply({"params": host.variables["frozen"]}, batch["inputs"])
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.slow
def test_stacked_kernels_of_a_scan_have_the_adapters_of_each_layer() -> None:
    unrolled = tiny("pytext_llama", lora=LoRA(rank=4))
    scanned = unrolled.replace(**{"model.scan": True})
    state = jax.device_get(randomized(make_program(unrolled)))
    program = make_program(scanned)

    def stack(tree: Any) -> Any:
        blocks = [tree["blocks"][f"block_{layer}"] for layer in range(2)]
        rest = {name: each for name, each in tree["blocks"].items() if "block_" not in name}
        stacked = {**rest, "block": jax.tree.map(lambda *each: np.stack(each), *blocks)}
        return {**tree, "blocks": stacked}

    frozen = stack(state.variables["frozen"])
    params = stack(state.params)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, program.abstract.params)
    tokens = random_batch(unrolled)["inputs"]
    found = scanned.model.apply({"params": lora.merge(params, frozen, 4.0)}, tokens)
    whole = lora.merge(state.params, state.variables["frozen"], 4.0)
    np.testing.assert_allclose(found, unrolled.model.apply({"params": whole}, tokens), atol=1e-5)


def test_only_adapters_and_what_is_trained_in_full_have_optimizer_state(run: jb.Run) -> None:
    names = set(leaves(run.state.params))
    assert all("lora_" in name or name.startswith("head") for name in names)
    assert "head/kernel" in names and "head/lora_a/kernel" not in names
    moments = [path for path, leaf in leaves(run.state.opt_state).items() if leaf.ndim]
    assert len(moments) == 2 * len(names)
    assert all(path.partition("/mu/")[2] in names for path in moments if "/mu/" in path)


def test_frozen_parameters_stay_as_the_other_run_left_them(run: jb.Run, base: Path) -> None:
    theirs = leaves(jb.restore(base, step="best").state.params)
    frozen = leaves(run.state.variables["frozen"])
    assert frozen and all(np.array_equal(frozen[path], theirs[path]) for path in frozen)
    sharding = run.state.variables["frozen"]["layers_3"]["kernel"].sharding
    assert "fsdp" in str(sharding.spec)


def test_checkpoints_hold_adapters_alone_and_share_one_base(run: jb.Run) -> None:
    folder = run.directory / "checkpoints"
    assert sorted(each.name for each in folder.iterdir()) == ["1", "2", "frozen", "run.json"]
    restored = jb.restore(run.directory)
    for path, leaf in leaves(run.state).items():
        assert np.array_equal(leaf, leaves(restored.state)[path]), path
    assert jb.evaluate(run.directory)["loss"] == pytest.approx(run.history[-1]["loss"], abs=1e-6)


def test_base_that_has_changed_is_not_used(run: jb.Run, tmp_path: Path) -> None:
    other = CheckpointManager(tmp_path / "other")
    other.clean()
    frozen = run.state.variables["frozen"]
    other.save(0, jax.tree.map(lambda leaf: leaf + 1, frozen), {})
    other.wait()
    mine = run.directory / "checkpoints/frozen"
    mine.rename(tmp_path / "kept")
    try:
        with pytest.raises(Failed, match="misses the folder"):
            jb.restore(run.directory)
        mine.symlink_to(other.folder)
        with pytest.raises(Failed, match="has changed in its leaf variables/frozen/"):
            jb.restore(run.directory)
    finally:
        mine.unlink(missing_ok=True)
        (tmp_path / "kept").rename(mine)


def test_evaluation_and_python_use_the_average_with_adapters_merged(run: jb.Run) -> None:
    experiment = run.experiment
    average = run.state.variables["average"]
    factor = experiment.lora.alpha / experiment.lora.rank
    whole = lora.merge(average, run.state.variables["frozen"], factor)
    assert all(
        np.allclose(leaf, leaves(run.variables["params"])[path], atol=1e-6)
        for path, leaf in leaves(whole).items()
    )
    images = random_batch(experiment)["inputs"]
    outputs = jb.apply(run, images)
    expected = experiment.model.apply(run.variables, images)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    raw = lora.merge(run.state.params, run.state.variables["frozen"], factor)
    assert np.abs(outputs - experiment.model.apply({"params": raw}, images)).max() > 1e-5


def test_another_run_starts_from_the_merged_model(run: jb.Run, tmp_path: Path) -> None:
    plain = tiny("digits_convnet", steps=2, initialize_from=InitializeFrom(run=str(run.directory)))
    program = make_program(plain)
    with program.activate():
        state, _ = initialize(program, tmp_path, None)
    found = leaves(state.params)
    for path, leaf in leaves(run.variables["params"]).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)


def test_adapters_of_a_run_without_its_description_are_refused(run: jb.Run, tmp_path: Path) -> None:
    plain = tiny("digits_convnet", initialize_from=InitializeFrom(run=str(run.directory)))
    program = make_program(plain)
    described = (run.directory / "run.json").rename(tmp_path / "kept")
    try:
        with program.activate(), pytest.raises(Refused, match=r"run.json, which has their factor"):
            initialize(program, tmp_path, None)
    finally:
        described.rename(run.directory / "run.json")


def test_resuming_without_adapters_or_with_others_is_refused(run: jb.Run) -> None:
    for changes in ({"lora": LoRA()}, {"lora": LoRA(rank=3, alpha=1.0, trained="^head")}):
        other = run.experiment.replace(**changes)
        with pytest.raises(
            Refused, match=r"holds (another run|a run of another experiment) .*lora"
        ):
            jb.fit(other, run.directory)
        with pytest.raises(Refused, match=r"another experiment .*lora"):
            jb.restore(run.directory, experiment=other)


def test_run_before_these_fields_is_the_same_run() -> None:
    now = to_json(tiny("digits_convnet"))
    before = {name: value for name, value in now.items() if name not in ("lora", "ema")}
    assert identity(now, "data") == identity(before, "data") and "lora" in now and "ema" in now


def test_dropout_leaves_out_features_in_training_alone() -> None:
    kernel = {"layer": {"kernel": jnp.zeros((64, 4))}}
    pair = {"lora_a": {"kernel": jnp.ones((64, 2))}, "lora_b": {"kernel": jnp.ones((2, 4))}}
    adapters = {"layer": pair}
    whole = lora.merge(adapters, kernel, 1.0, dropout=0.5)["layer"]["kernel"]
    assert np.all(np.asarray(whole) == 2)
    dropped = lora.merge(adapters, kernel, 1.0, dropout=0.5, key=jax.random.key(0))
    rows = np.asarray(dropped["layer"]["kernel"])
    assert set(np.unique(rows)) == {0, 4} and 16 < (rows[:, 0] == 0).sum() < 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pattern": "nowhere"}, ["--lora.pattern", "'nowhere'", "no matrix or convolution"]),
        ({"pattern": "bias$"}, ["--lora.pattern", "no matrix or convolution"]),
        ({"trained": "nowhere"}, ["--lora.trained", "matches no parameter"]),
        ({"rank": 20}, ["--lora.rank 20", "layers_0/kernel", "9 x 8", "at most 8"]),
        ({"pattern": "("}, ["--lora.pattern", "no regular expression"]),
        ({"rank": -1}, ["--lora.rank -1", "0 or more"]),
        ({"alpha": 0.0}, ["--lora.alpha 0", "above 0"]),
    ],
)
def test_adapters_that_cannot_be_are_refused_in_a_sentence(changes: Any, words: list[str]) -> None:
    adapters = dataclasses.replace(LoRA(rank=2), **changes)
    with pytest.raises(Refused) as refused:
        make_program(tiny("digits_convnet", lora=adapters))
    assert all(word in str(refused.value) for word in words), refused.value


def test_frozen_parameters_that_the_other_run_lacks_are_refused(base: Path, tmp_path: Path) -> None:
    wider = adapted("digits_convnet", base, lora=LoRA(rank=2))
    layers: Any = wider.model.layers  # type: ignore[attr-defined]
    wider = wider.replace(**{"model.layers": (*layers, Dense(16))})
    with pytest.raises(Refused, match=r"--lora.rank 2 freezes 2 .* stay random, first layers_6"):
        jb.fit(wider, tmp_path / "run")


@pytest.mark.slow
def test_average_is_that_of_the_parameters_after_each_step(tmp_path: Path) -> None:
    experiment = tiny("digits_convnet", ema=0.15, steps=3)
    program = make_program(experiment)
    with program.activate():
        state = program.init()
        expected = leaves(state.params)
        for step in range(3):
            batch = device_put_batch(random_batch(experiment, step), program.mesh)
            state, _ = program.train_step(state, batch)
            share = min(0.15, (1 + step) / (10 + step))
            for path, leaf in leaves(state.params).items():
                expected[path] = share * expected[path] + (1 - share) * leaf
        for path, leaf in leaves(program.merged(state).params).items():
            np.testing.assert_allclose(leaf, expected[path], atol=1e-6)


def test_gradient_with_an_average_is_as_precise_as_without() -> None:
    def gradient(ema: float) -> Any:
        halved = {"precision.parameters": "bfloat16", "accumulate": 2}
        experiment = tiny("digits_convnet", ema=ema).replace(**halved)
        program = make_program(experiment)
        state = program.abstract
        with program.activate():
            find = make_gradient(experiment, program.mesh)
            return jax.eval_shape(find, state.params, state.variables, program.batch, state.step)[0]

    found = jax.tree.map(lambda leaf: leaf.dtype, gradient(0.9))
    assert found == jax.tree.map(lambda leaf: leaf.dtype, gradient(0.0))
    assert jnp.float32 in jax.tree.leaves(found)


def test_describes_what_was_run(run: jb.Run) -> None:
    described = json.loads((run.directory / "run.json").read_text())["experiment"]
    assert described["lora"]["rank"] == 3 and described["ema"] == 0.9
