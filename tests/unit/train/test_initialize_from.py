"""A run that starts from another one's parameters; frozen parameters; learning rates by group."""

import contextlib
import dataclasses
import gc
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint import manager
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet, Dense, Dropout
from jaxbig.models.mlp import MLP
from jaxbig.optim.optimizers import SGD, AdamW
from jaxbig.optim.schedules import Constant
from jaxbig.program.program import make_program
from jaxbig.system.json_files import read_json
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.evaluate import evaluate_run
from jaxbig.train.resume import initialize_or_resume
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
EVERY = {"steps": 12, "evaluate_every": 3, "checkpoint_every": 3, "keep_last": 9}


def digits(hidden: tuple[int, ...] = (16,), **changes: Any) -> Experiment:
    layers = (Dropout(0.25), *(Dense(width) for width in hidden))
    return small(
        "digits_convnet", **(EVERY | {"model": ConvNet(layers=layers, classes=10)} | changes)
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose best checkpoint is not its last: its rate is far too high at the end."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    fit(digits(optimizer=SGD(learning_rate=Constant(0.5))), folder, Screen())
    return folder


def parameters(folder: Path, step: int) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint, by path."""
    checkpoints = CheckpointManager(folder / "checkpoints")
    for other in checkpoints.steps():
        if other != step:
            checkpoints.path(other).rename(folder / f"other-{other}")
    found = checkpoints.restore_parameters()
    for other in folder.glob("other-*"):
        other.rename(checkpoints.path(int(other.name.split("-")[1])))
    assert found is not None
    return {
        path: np.asarray(leaf) for path, leaf in flatten_with_paths(found.state["params"]).items()
    }


def started(folder: Path, source: InitializeFrom, **changes: Any) -> dict[str, np.ndarray]:
    """What the parameters are after one step that changes nothing."""
    still = SGD(learning_rate=Constant(0.0), momentum=0.0)
    experiment = digits(**({"optimizer": still, "steps": 1, "initialize_from": source} | changes))
    fit(experiment, folder, Screen())
    return parameters(folder, 1)


def test_a_run_starts_from_the_best_checkpoint_of_another(parent: Path, tmp_path: Path) -> None:
    evaluations = [line for line in read_metrics(parent) if line["split"] == "eval"]
    best = max(evaluations, key=lambda line: (line["accuracy"], line["step"]))["step"]
    found = started(tmp_path / "run", InitializeFrom(run=str(parent)))
    for path, leaf in parameters(parent, best).items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_what_fits_is_loaded_and_each_other_leaf_is_reported(
    parent: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wider = ConvNet(layers=(Dropout(0.25), Dense(16), Dense(8)), classes=10)
    fresh = started(tmp_path / "fresh", InitializeFrom(), model=wider)
    with caplog.at_level(logging.INFO, "jaxbig"):
        source = InitializeFrom(run=str(parent), pattern="kernel|head")
        screen = Screen()
        still = SGD(learning_rate=Constant(0.0), momentum=0.0)
        fit(
            digits(model=wider, steps=1, optimizer=still, initialize_from=source),
            tmp_path / "run",
            screen,
        )
    found = parameters(tmp_path / "run", 1)
    taken = {path for path in found if not np.array_equal(found[path], fresh[path])}
    assert taken == {"layers_1/linear/kernel", "head/bias"}
    table = next(
        record.getMessage() for record in caplog.records if "fresh:" in record.getMessage()
    )
    lines = dict(line.split(None, 1) for line in table.splitlines()[1:])
    assert lines["layers_1/linear/kernel"] == lines["head/bias"] == "loaded"
    assert lines["layers_1/linear/bias"] == lines["layers_2/linear/bias"] == "skipped"
    assert lines["layers_2/linear/kernel"] == "missing"
    assert lines["head/kernel"] == "reshaped: float32[16, 10] there, float32[8, 10] here"


@pytest.mark.slow
def test_a_run_that_was_started_so_resumes_as_one_that_was_not_interrupted(
    parent: Path, tmp_path: Path
) -> None:
    source = InitializeFrom(run=str(parent))
    whole = fit(digits(initialize_from=source), tmp_path / "whole", Screen())
    fit(digits(initialize_from=source, steps=6), tmp_path / "parts", Screen())
    parts = fit(digits(initialize_from=source), tmp_path / "parts", Screen())
    assert (
        parts["step"] == whole["step"] == 12
    )  # a schedule follows the steps, so the digests may differ
    again = fit(digits(initialize_from=source), tmp_path / "again", Screen())
    assert again["state_sha256"] == whole["state_sha256"]


def test_a_run_killed_before_its_first_save_begins_with_the_same_weights_or_not_at_all(
    parent: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    folder = tmp_path / "run"
    shutil.copytree(parent / "checkpoints", other / "checkpoints")
    experiment = digits(initialize_from=InitializeFrom(run=str(other)), steps=3)
    digest = fit(experiment, folder, Screen())["state_sha256"]
    shutil.rmtree(folder / "checkpoints")  # as a kill before the first save leaves it
    assert fit(experiment, folder, Screen())["state_sha256"] == digest
    shutil.rmtree(folder / "checkpoints")
    step = read_json(folder / "run.json")["weights"]["step"]
    shutil.rmtree(other / "checkpoints" / str(step))
    with pytest.raises(Refused, match=f"of step {step} then.*another --workdir"):
        fit(experiment, folder, Screen())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            InitializeFrom(run="nowhere"),
            ["--initialize-from.run nowhere", "no checkpoint", "train that run first, or"],
        ),
        (
            InitializeFrom(run="runs/digits_vit"),
            ["--initialize-from.run runs/digits_vit", "run first (`jaxbig train digits_vit`), or"],
        ),
        (
            InitializeFrom(run="nowhere", pattern="("),
            ["--initialize-from.pattern", "'('", "regular expression"],
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(
    source: InitializeFrom, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        fit(digits(initialize_from=source), tmp_path / "run", Screen())
    assert all(word in str(refused.value) for word in words)


def test_a_pattern_that_takes_nothing_is_refused(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no leaf there"):
        fit(
            digits(initialize_from=InitializeFrom(run=str(parent), pattern="nothing")),
            tmp_path / "run",
            Screen(),
        )


def test_run_of_another_model_is_refused_with_both(parent: Path, tmp_path: Path) -> None:
    source = InitializeFrom(run=str(parent), pattern="nothing")
    with pytest.raises(Refused, match=r"here \(the models differ: ConvNet there, MLP here\): see"):
        fit(
            digits(initialize_from=source, model=MLP(widths=(8,), outputs=10)),
            tmp_path / "run",
            Screen(),
        )


# -- what is read of another run, and where it goes


class Loads:
    """What Orbax was asked to load: the paths, and the bytes that it put on the first device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.paths: list[str] = []
        self.bytes = 0
        self.plain = manager.ocp.load
        monkeypatch.setattr(manager.ocp, "load", self)

    def __call__(self, path: str, abstract: Any) -> Any:
        before = on_first_device()
        found = self.plain(path, abstract)
        self.paths = list(flatten_with_paths(found))
        self.bytes = on_first_device() - before
        return found


def on_first_device() -> int:
    """The bytes of all arrays there."""
    gc.collect()
    shards = [each for array in jax.live_arrays() for each in array.addressable_shards]
    return sum(each.data.nbytes for each in shards if each.device == jax.devices()[0])


@pytest.mark.parametrize(
    "way",
    ["fork", *(pytest.param(way, marks=pytest.mark.slow) for way in ("initialize", "evaluate"))],
)
def test_weights_alone_are_loaded_each_device_s_share_of_them(
    way: str, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's moments are not even read, and nothing is whole on a device that has a part of it."""
    split = Mesh(data=1, fsdp=8)
    folder = Path(shutil.copytree(parent, tmp_path / "run"))
    experiment = digits(mesh=split, optimizer=SGD(learning_rate=Constant(0.5)))
    loads = Loads(monkeypatch)
    if way == "evaluate":
        found = evaluate_run(experiment, folder)
        assert found["metrics"] == pytest.approx(evaluated(folder, 12), rel=1e-5)
        assert found["state_sha256"] == read_json(folder / "summary.json")["state_sha256"]
    else:
        source = InitializeFrom(run=str(parent) if way == "initialize" else "")
        experiment = digits(
            mesh=split, optimizer=AdamW(learning_rate=Constant(0.1)), initialize_from=source, seed=1
        )
        started = folder if way == "fork" else tmp_path / "started"
        started.mkdir(exist_ok=True)
        program = make_program(experiment)
        with program.activate():
            initialize_or_resume(
                program, CheckpointManager(started / "checkpoints"), started, fork=way == "fork"
            )
    expected = flatten_with_paths(make_program(experiment).abstract.params)
    share = sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in expected.values()
    )
    whole = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in expected.values())
    assert loads.paths == [f"params/{path}" for path in expected]
    assert loads.bytes == share < whole / 4


def evaluated(folder: Path, step: int) -> dict[str, float]:
    [line] = [
        line for line in read_metrics(folder) if line["split"] == "eval" and line["step"] == step
    ]
    return {name: value for name, value in line.items() if name not in ("step", "split")}


def test_an_evaluation_of_what_was_saved_has_the_bits_of_the_run_s_own(parent: Path) -> None:
    assert evaluate_run(digits(optimizer=SGD(learning_rate=Constant(0.5))), parent)[
        "metrics"
    ] == evaluated(parent, 12)


def test_parameters_and_batch_statistics_come_back_as_a_model_takes_them(tmp_path: Path) -> None:
    experiment = small("digits_resnet")
    program = make_program(experiment, jax.devices()[:1])
    with program.activate():
        state: Any = program.init()
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    found = checkpoints.restore_parameters()
    assert found is not None and sorted(found.state) == ["batch_stats", "params"]
    images = np.ones((2, 8, 8, 1), np.float32)
    apply = jax.jit(experiment.model.apply)
    same = apply({"params": state.params, **state.variables}, images)
    np.testing.assert_array_equal(apply(found.state, images), same)


@pytest.mark.parametrize("fork", [True, False], ids=["fork", "initialize"])
@pytest.mark.parametrize(
    ("model", "pattern", "frozen", "words"),
    [
        (
            (Dense(16),),
            ".*",
            "^layers",
            r"freezes 2 parameters .* first layers_0/linear/bias \(missing\)",
        ),
        (
            (Dropout(0.25), Dense(8)),
            ".*",
            "kernel",
            r"freezes 2 .* first head/kernel \(reshaped: .*10\] there",
        ),
        (
            (Dropout(0.25), Dense(16)),
            "^head",
            "linear/bias",
            r"freezes 1 .*layers_1/linear/bias \(skipped\)",
        ),
        ((Dropout(0.25), Dense(16)), ".*", "^layers", ""),
        ((Dense(16),), ".*", "head", ""),
    ],
)
def test_parameters_that_are_frozen_but_were_never_loaded_are_refused(
    fork: bool, model: Any, pattern: str, frozen: str, words: str, parent: Path, tmp_path: Path
) -> None:
    if fork and pattern != ".*":
        pytest.skip("a fork takes all that fits")
    source = InitializeFrom() if fork else InitializeFrom(run=str(parent), pattern=pattern)
    optimizer = SGD(learning_rate=Constant(0.5), frozen=frozen)
    experiment = digits(
        model=ConvNet(layers=model, classes=10), optimizer=optimizer, initialize_from=source, seed=1
    )
    folder = tmp_path / "run"
    _ = shutil.copytree(parent, folder) if fork else folder.mkdir()
    before = sorted(folder.rglob("*"))
    program = make_program(experiment, jax.devices()[:1])
    with (
        program.activate(),
        pytest.raises(Refused, match=words) if words else contextlib.nullcontext(),
    ):
        initialize_or_resume(program, CheckpointManager(folder / "checkpoints"), folder, fork=fork)
    assert not words or {each.name for each in set(folder.rglob("*")) ^ set(before)} <= {
        "checkpoints"
    }


# -- what learns, and how fast


def updates(optimizer: Any) -> dict[str, np.ndarray]:
    """How far each parameter goes in a first step."""
    params = {
        "trunk": {"kernel": np.ones((2, 2), np.float32)},
        "head": {"kernel": np.ones((2,), np.float32)},
    }
    gradient = jax.tree.map(lambda leaf: 3 * leaf, params)
    build = optimizer.build(10)
    found, _ = build.update(gradient, build.init(params), params)
    return flatten_with_paths(found)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_frozen_parameters_stay_and_have_no_moments(kind: Any) -> None:
    optimizer = kind(learning_rate=Constant(0.1), frozen="^trunk", clip_norm=100.0)
    found = updates(optimizer)
    free = updates(dataclasses.replace(optimizer, frozen=None))
    assert not found["trunk/kernel"].any()  # not even decayed
    np.testing.assert_array_equal(found["head/kernel"], free["head/kernel"])
    state = optimizer.build(10).init(
        {"trunk": {"kernel": np.ones((2, 2))}, "head": {"kernel": np.ones(2)}}
    )
    assert not any("trunk" in path for path in flatten_with_paths(state))


def test_clipping_does_not_count_what_is_frozen() -> None:
    found = updates(SGD(learning_rate=Constant(1.0), momentum=0.0, frozen="^trunk", clip_norm=1.0))
    np.testing.assert_allclose(np.linalg.norm(found["head/kernel"]), 1.0, rtol=1e-6)


def test_a_rate_factor_is_of_the_whole_update() -> None:
    plain = updates(AdamW(learning_rate=Constant(0.1), weight_decay=0.5))
    found = updates(
        AdamW(
            learning_rate=Constant(0.1),
            weight_decay=0.5,
            rate_factors=(("^trunk", 0.25), ("kernel$", 2.0)),
        )
    )
    np.testing.assert_allclose(found["trunk/kernel"], 0.5 * plain["trunk/kernel"], rtol=1e-6)
    np.testing.assert_allclose(found["head/kernel"], 2 * plain["head/kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frozen": "nothing"}, ["--optimizer.frozen", "'nothing'", "no parameter"]),
        ({"frozen": "("}, ["--optimizer.frozen", "regular expression"]),
        (
            {"rate_factors": (("nothing", 2.0),)},
            ["--optimizer.rate-factors", "'nothing'", "no parameter"],
        ),
    ],
)
def test_patterns_that_choose_nothing_are_refused(fields: Any, words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        updates(SGD(learning_rate=Constant(0.1), **fields))
    assert all(word in str(refused.value) for word in words)


def test_a_frozen_trunk_under_a_new_head_is_trained_end_to_end(
    parent: Path, tmp_path: Path
) -> None:
    source = InitializeFrom(run=str(parent))
    optimizer = AdamW(learning_rate=Constant(1e-2), frozen="^layers")
    fit(digits(initialize_from=source, optimizer=optimizer), tmp_path / "run", Screen())
    first = started(tmp_path / "started", source)
    last = parameters(tmp_path / "run", 12)
    for path, leaf in first.items():
        assert np.array_equal(leaf, last[path]) == path.startswith("layers"), path
