"""The loop: whatever happens to a run, it ends as the run that nothing happened to."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
from flax.traverse_util import unflatten_dict
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from support.compiling import HASTY
from support.experiments import SPINE, small
from support.timing import crowded

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint import manager
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.pytext import PyText
from jaxbig.distributed import watchdog
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.run_lock import lock_run_directory
from jaxbig.distributed.watchdog import Watchdog
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet, Dense, Dropout
from jaxbig.models.rnn import RNN
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant
from jaxbig.tracking.console import Screen
from jaxbig.train import trainer
from jaxbig.train.bad_step_policy import LEFT_OUT
from jaxbig.train.step_reporter import StepReporter, rates
from jaxbig.train.trainer import fit, summarize

pytestmark = pytest.mark.usefixtures("shared_programs")
SPEED = {"data_wait", "mfu"}  # and what is a second: of the machine's speed, not of the run
EVERY = {"steps": 20, "log_every": 3, "evaluate_every": 8, "checkpoint_every": 5, "keep_last": 9}


class Excerpt(PyText):
    """The first bytes of the text, so that an evaluation takes a moment."""

    def joined(self, split: str) -> np.ndarray:
        return super().joined(split)[:5001]


def shipped(name: str) -> Experiment:
    experiment = small(name, **EVERY)
    if isinstance(experiment.data, PyText):
        experiment = dataclasses.replace(
            experiment, data=Excerpt(batch=16, length=32, contiguous=experiment.data.contiguous)
        )
    return experiment


def tiny(**changes: Any) -> Experiment:
    """The digits with a single hidden layer, and dropout."""
    model = ConvNet(layers=(Dropout(0.25), Dense(16)), classes=10)
    return dataclasses.replace(shipped("digits_convnet"), **{"model": model, **changes})


class Interrupting(Screen):
    """Sends this process a signal once a step is logged.

    The loop is then in the midst of the next one.
    """

    def __init__(self, at: int, number: signal.Signals = signal.SIGTERM):
        super().__init__()
        self.at = at
        self.number = number

    def train(self, step: int, values: dict[str, float]) -> None:
        if step == self.at:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles an equal program once: these tests are not about speed."""
    configure(str(tmp_path_factory.mktemp("compiled")), cached_from_seconds=0.0)
    yield
    configure(None, cached_from_seconds=1.0)


def configure(cache: str | None, cached_from_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cached_from_seconds)
    reset_cache()


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Experiment], tuple[Path, dict[str, Any]]]:
    """The folder and summary of a run that nothing happens to, made once for this file."""
    runs: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(experiment: Experiment) -> tuple[Path, dict[str, Any]]:
        if repr(experiment) not in runs:
            folder = tmp_path_factory.mktemp("straight") / "run"
            runs[repr(experiment)] = folder, fit(experiment, folder, Screen())
        return runs[repr(experiment)]

    return run


@pytest.fixture
def finished(straight: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the finished run of `tiny()`, and its summary."""
    folder, summary = straight(tiny())
    return Path(shutil.copytree(folder, tmp_path / "run")), summary


def curves(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in line if name not in SPEED and "_per_second" not in name}
        for line in lines
    ]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in curves(folder)]


def rewind(folder: Path, step: int) -> None:
    """Takes a run back to a step: what was saved after it is gone."""
    for saved in (folder / "checkpoints").glob("[0-9]*"):
        if int(saved.name) > step:
            shutil.rmtree(saved)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def parameters(folder: Path) -> dict[str, np.ndarray]:
    saved = CheckpointManager(folder / "checkpoints").restore_parameters()
    assert saved is not None
    return flatten_with_paths(saved.state["params"])


# whole runs of a plain model and of one with a carried state; of the others with the slow tests
EACH_KIND = [
    name
    if name in ("digits_convnet", "pytext_lstm")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in SPINE
]


@pytest.mark.parametrize("name", EACH_KIND)
def test_an_experiment_that_ships_learns(name: str, straight: Any) -> None:
    folder, summary = straight(shipped(name))
    evaluated = [line for line in curves(folder) if line["split"] == "eval"]
    assert summary["step"] == 20 and not summary["interrupted"]
    assert [line["step"] for line in evaluated] == [8, 16, 20]
    assert evaluated[0]["loss"] > evaluated[1]["loss"] > evaluated[2]["loss"]


@pytest.mark.parametrize(
    "name",
    [
        "digits_convnet",
        pytest.param("digits_rnn", marks=pytest.mark.slow),
        pytest.param("pytext_transformer", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_is_the_mean_over_all_examples_at_once(name: str, straight: Any) -> None:
    experiment = shipped(name)
    folder, summary = straight(experiment)
    source = experiment.data.source("eval")
    rows = source.rows(np.arange(len(source)))
    assert len(source) % experiment.data.batch, (
        "the last batch must be padded for this test to say anything"
    )
    variables = {"params": unflatten_dict(parameters(folder), sep="/")}
    logits = np.asarray(experiment.model.apply(variables, rows["inputs"]), np.float64)
    chosen = np.take_along_axis(
        scipy.special.log_softmax(logits, axis=-1), rows["targets"][..., None], -1
    )[..., 0]
    right = np.argmax(logits, axis=-1) == rows["targets"]
    loss, accuracy = (
        np.sum(values * rows["mask"]) / np.sum(rows["mask"]) for values in (-chosen, right)
    )
    assert summary["metrics"]["eval/loss"] == pytest.approx(loss, rel=1e-6)
    assert summary["metrics"]["eval/accuracy"] == pytest.approx(accuracy, rel=1e-9)


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    name: str, straight: Any, tmp_path: Path
) -> None:
    experiment = shipped(name)
    folder, whole = straight(experiment)
    part = fit(experiment, tmp_path, Interrupting(12))
    assert part["interrupted"] and part["step"] == 13
    assert json.loads((tmp_path / "summary.json").read_text()) == part
    rest = fit(experiment, tmp_path, Screen())
    assert rest["state_sha256"] == whole["state_sha256"] != part["state_sha256"]
    assert curves(tmp_path) == curves(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_interrupted_again_and_again_logs_each_step_once(
    number: signal.Signals, straight: Any, tmp_path: Path
) -> None:
    folder, whole = straight(tiny(log_every=1))
    before = signal.getsignal(signal.SIGINT)
    stops = [
        fit(tiny(log_every=1), tmp_path, Interrupting(at, number))["step"] for at in (1, 6, 18)
    ]
    assert stops == [2, 7, 19]
    last = fit(tiny(log_every=1), tmp_path, Screen())
    assert last["state_sha256"] == whole["state_sha256"]
    assert curves(tmp_path) == curves(folder)
    steps = [(line["step"], line["split"]) for line in curves(folder)]
    assert len(set(steps)) == len(steps) == 20 + 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "changes",
    [
        {"reader_threads": 0},
        {"reader_threads": 3},
        {"log_every": 1},
        {"evaluate_every": 3},
        {"checkpoint_every": 2, "keep_last": 1},
    ],
    ids=str,
)
def test_readers_and_intervals_change_nothing_in_the_state(
    changes: Any, straight: Any, tmp_path: Path
) -> None:
    _, whole = straight(tiny())
    assert fit(tiny(**changes), tmp_path, Screen())["state_sha256"] == whole["state_sha256"]


class Struck:
    """Evaluates; in the one of that number it sends this process SIGTERM.

    Notes what is saved and evaluated when.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int):
        self.number = number
        self.calls = 0
        self.plain = trainer.evaluate
        self.done = []
        monkeypatch.setattr(trainer, "evaluate", self)
        save = CheckpointManager.save

        def saved(checkpoints: CheckpointManager, step: int, *rest: Any) -> str:
            self.done.append(f"saves {step}")
            return save(checkpoints, step, *rest)

        monkeypatch.setattr(CheckpointManager, "save", saved)

    def __call__(self, program: Any, state: Any, *rest: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.number:
            signal.raise_signal(signal.SIGTERM)
        step = int(state.step)
        means = self.plain(program, state, *rest, **named)
        self.done.append(f"{'evaluates' if means else 'leaves off'} {step}")
        return means


@pytest.mark.parametrize(
    ("at", "number", "done"),
    [
        (7, 0, ["saves 8"]),  # asked before an evaluation that is due
        (0, 1, ["leaves off 8", "saves 8"]),  # while it is made
        (19, 0, ["evaluates 8", "saves 8", "evaluates 16", "saves 16", "saves 20"]),
        (0, 3, ["evaluates 8", "saves 8", "evaluates 16", "saves 16", "leaves off 20", "saves 20"]),
    ],
)
def test_who_is_asked_to_stop_saves_first_and_what_resumes_makes_the_evaluation(
    at: int,
    number: int,
    done: list[str],
    straight: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lines, digest, summary, checkpoints and their metrics of an uninterrupted run."""
    experiment = tiny(log_every=1, checkpoint_every=8, keep_last=1, keep_best=1)
    folder, whole = straight(experiment)
    with monkeypatch.context() as during:
        struck = Struck(during, number)
        part = fit(experiment, tmp_path, Interrupting(at))
    assert struck.done == done and part["interrupted"] and part["step"] == int(done[-1].split()[1])
    rest = fit(experiment, tmp_path, Screen())
    assert rest == {**whole, "metrics": rest["metrics"]} and not rest["interrupted"]
    assert curves(tmp_path) == curves(folder)
    kept, alone = (CheckpointManager(each / "checkpoints") for each in (tmp_path, folder))
    assert {step: kept.manifest(step)["metrics"] for step in kept.steps()} == {
        step: alone.manifest(step)["metrics"] for step in alone.steps()
    }


def test_an_evaluation_that_is_left_off_again_and_again_is_made_in_the_end(
    straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(log_every=1)
    folder, whole = straight(experiment)
    for _ in range(2):
        with monkeypatch.context() as during:
            Struck(during, 1)
            assert fit(experiment, tmp_path, Screen())["step"] == 8
    assert fit(experiment, tmp_path, Screen())["state_sha256"] == whole["state_sha256"]
    assert curves(tmp_path) == curves(folder)


def test_all_that_a_run_does_is_named_to_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []

    @contextlib.contextmanager
    def watched(limit: float, factor: float) -> Iterator[Callable[[int, str], None]]:
        yield lambda step, doing: reported.append(doing)

    monkeypatch.setattr(trainer, "watchdog", watched)
    monkeypatch.setattr(manager, "POLL", 0.001)
    fit(tiny(steps=4, evaluate_every=2, checkpoint_every=2), tmp_path, Screen())
    started = {"prepares the data", "opens the data", "compiles", "reads run.json"}
    each = {"reads the next batch", "is in the loop", "waits for the devices", "evaluates", "saves"}
    each |= {"starts a step"}
    assert "" not in reported and set(reported) >= started | each | {
        "waits for its save of step 4",
        "writes summary.json",
    }
    assert (
        reported.index("prepares the data")
        < reported.index("compiles")
        < reported.index("reads the next batch")
    )
    reported.clear()
    fit(tiny(steps=5, evaluate_every=2, checkpoint_every=2), tmp_path, Screen())
    assert "" not in reported and set(reported) >= {
        "verifies its checkpoint of step 4",
        "restores a checkpoint",
    }


def test_step_that_hangs_is_named_soon_and_ends_the_run_within_ten_times_the_slowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a fifth of a second each; by the real thread, with floors of parts of a second."""
    for name, seconds in (("CHECK_S", 0.05), ("LATE_S", 0.2), ("HANG_S", 0.5)):
        monkeypatch.setattr(watchdog, name, seconds)
    ended = threading.Event()
    messages = []

    def end_process(dog: Watchdog, text: str) -> None:
        messages.append(text)
        ended.set()

    monkeypatch.setattr(Watchdog, "end_process", end_process)
    plain = trainer.Trainer.train_step
    took = []

    def slow(self: trainer.Trainer, step: int, *given: Any) -> Any:
        began = time.monotonic()
        ended.wait(60 if step == 6 else 0.2)
        made = plain(self, step, *given)
        took.append(time.monotonic() - began)
        return made

    monkeypatch.setattr(trainer.Trainer, "train_step", slow)
    fit(tiny(steps=6), tmp_path, Screen())
    [message] = messages
    assert "(--guard.stuck-factor): the run starts a step at step 6" in message
    assert took[5] < 10 * max(took[:5]) + crowded(2)
    assert "the run starts a step at step 6; the run ends after" in capsys.readouterr().err


def test_rates_are_those_of_examples_or_tokens_and_of_the_chips_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = shipped("digits_convnet")
    text = shipped("pytext_transformer")
    assert rates(images, 1000, 2.0) == {
        "steps_per_second": 2.0,
        "examples_per_second": 32.0,
        "examples_per_second_per_device": 4.0,  # on eight
        "model_flops_per_second": 2000.0,
    }
    monkeypatch.setattr("jaxbig.train.step_reporter.peak_of", lambda kind: {"cpu": 500.0}[kind])
    assert rates(text, 1000, 2.0, real=0.75) == {
        "steps_per_second": 2.0,
        "examples_per_second": 32.0,
        "tokens_per_second": 768.0,  # of 2 x 16 x 32 places
        "tokens_per_second_per_device": 96.0,
        "padding": 0.25,
        "model_flops_per_second": 2000.0,
        "mfu": 0.5,
    }


def test_another_seed_gives_another_state(straight: Any, tmp_path: Path) -> None:
    _, whole = straight(tiny())
    assert fit(tiny(seed=1), tmp_path, Screen())["state_sha256"] != whole["state_sha256"]


@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=4), Mesh(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_run_that_resumes_over_another_mesh_keeps_its_curve(
    mesh: Mesh, finished: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jaxbig")
    folder, _ = finished
    before = losses(folder)
    rewind(folder, 10)
    fit(tiny(mesh=mesh), folder, Screen())
    said = caplog.text
    assert "resuming from step 10" in said and f"mesh.fsdp: 1 -> {mesh.fsdp}" in said
    assert losses(folder) == pytest.approx(before, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("8", "2"), ("1", "8")])
def test_a_run_resumes_over_another_number_of_devices_with_the_same_curve(
    jaxbig: Any, tmp_path: Path, first: str, then: str
) -> None:
    model = {
        "model.layers.0.channels": 8,
        "model.layers.1.channels": 8,
        "model.layers.4.channels": 16,
    }
    every = {
        "steps": 60,
        "log-every": 1,
        "evaluate-every": 60,
        "checkpoint-every": 10,
        "keep-last": 9,
    }
    options = [f"--{name}={value}" for name, value in {**model, **every, "data.batch": 32}.items()]
    command = ["train", "digits_convnet", "--workdir", "run", *options]
    assert jaxbig(*command, JAX_NUM_CPU_DEVICES=first, **HASTY).returncode == 0
    before = losses(tmp_path / "run")
    rewind(tmp_path / "run", 10)
    again = jaxbig(*command, JAX_NUM_CPU_DEVICES=then, **HASTY)
    assert again.returncode == 0 and f"devices.count: {first} -> {then}" in again.stdout
    assert len(before) == 60 + 1
    assert losses(tmp_path / "run") == pytest.approx(before, rel=1e-5)


def test_a_finished_run_run_again_changes_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    before = contents(folder)
    assert fit(tiny(), folder, Screen()) == summary
    after = contents(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed -= {"run.json", "checkpoints/run.json"}
    assert {name.split("/")[0] for name in changed} <= {"tensorboard"}
    old = json.loads(before["run.json"])
    new = json.loads(after["run.json"])
    assert {name for name in old if old[name] != new[name]} <= {"started", "starts"}


def test_a_finished_run_resumes_to_more_steps(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    before = curves(folder)
    summary = fit(tiny(steps=25), folder, Screen())
    assert summary["step"] == 25
    assert curves(folder)[: len(before)] == before
    assert [(line["step"], line["split"]) for line in curves(folder)[len(before) :]] == [
        (21, "train"),
        (24, "train"),
        (24, "eval"),
        (25, "train"),
        (25, "eval"),
    ]


def test_lines_of_metrics_that_a_kill_cut_or_left_ahead_are_made_again(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = finished
    file = folder / "metrics.jsonl"
    before = curves(folder)
    rewind(folder, 10)
    lines = file.read_text().splitlines(keepends=True)
    ahead = next(number for number, line in enumerate(lines) if json.loads(line)["step"] > 15)
    file.write_text("".join(lines[:ahead]) + lines[ahead][:25])
    assert fit(tiny(), folder, Screen())["state_sha256"] == summary["state_sha256"]
    assert curves(folder) == before


def test_a_broken_last_checkpoint_is_made_again_from_the_one_before(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = finished
    before = curves(folder)
    (folder / "checkpoints" / "20" / "state" / "manifest.ocdbt").write_bytes(b"")
    again = fit(tiny(), folder, Screen())
    assert again["state_sha256"] == summary["state_sha256"]
    assert curves(folder) == before
    (kept,) = (folder / "broken").iterdir()
    assert (kept / "state" / "manifest.ocdbt").read_bytes() == b""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, ["seed: 0 -> 3"]),
        ({"data": dataclasses.replace(tiny().data, batch=24)}, ["data.batch: 16 -> 24"]),
        (
            {"model": ConvNet(layers=(Dropout(0.5), Dense(16)), classes=10)},
            ["model.layers.0.rate: 0.25 -> 0.5"],
        ),
        (
            {"model": RNN(width=8, classes=10), "seed": 1},
            ["seed: 0 -> 1", "model.type: ConvNet -> RNN"],
        ),
        (
            {"optimizer": AdamW(learning_rate=Constant(1e-3))},
            ["optimizer.learning_rate.type: WarmupCosine -> Constant"],
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_run_in_the_same_folder_is_refused_with_each_difference(
    changes: Any, named: list[str], finished: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = finished
    before = contents(folder)
    with pytest.raises(Refused) as error:
        fit(tiny(**changes), folder, Screen())
    assert all(
        difference in str(error.value)
        for difference in [*named, str(folder), "--workdir", "--fork"]
    )
    assert contents(folder) == before


def test_a_run_that_had_saved_nothing_leaves_its_folder_to_another(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, before = finished
    fit(tiny(seed=3), tmp_path, Screen())
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / LEFT_OUT).write_text('[{"step": 2, "why": "bad"}]')
    assert fit(tiny(), tmp_path, Screen())["state_sha256"] == before["state_sha256"]
    assert not (tmp_path / LEFT_OUT).exists()


def test_other_data_under_the_same_name_are_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "data_identity": "digits of another day"}))
    with pytest.raises(Refused, match="data_identity: digits of another day -> jaxbig_digits"):
        fit(tiny(), folder, Screen())


def test_a_configuration_that_draws_other_numbers_is_refused_as_another_seed_is(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    run = json.loads((folder / "run.json").read_text())
    changed = {**run["config"], "jax_default_prng_impl": "rbg"}
    (folder / "run.json").write_text(json.dumps({**run, "config": changed}))
    with pytest.raises(
        Refused, match=r"another run \(jax_default_prng_impl: rbg -> threefry2x32\)"
    ):
        fit(tiny(), folder, Screen())


def test_a_run_that_resumes_under_other_flags_names_them(
    finished: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jaxbig")
    folder, _ = finished
    run = json.loads((folder / "run.json").read_text())
    config = {**run["config"], "jax_default_matmul_precision": "highest"}
    (folder / "run.json").write_text(
        json.dumps({**run, "flags": {"XLA_FLAGS": {"--xla_a": "1"}}, "config": config})
    )
    fit(tiny(), folder, Screen())
    said = "".join(caplog.text.split())
    assert "flags.XLA_FLAGS" in said and "config.jax_default_matmul_precision:highest->null" in said


def test_a_folder_that_another_live_run_holds_is_refused(tmp_path: Path) -> None:
    with (
        lock_run_directory(tmp_path),
        pytest.raises(Refused, match=rf"{tmp_path} is in use by process \d+ on .*--workdir"),
    ):
        fit(tiny(), tmp_path, Screen())
    with lock_run_directory(tmp_path):
        pass


def still(**changes: Any) -> Experiment:
    """One step at a rate of zero: what comes out are the weights that went in."""
    return tiny(
        **{"optimizer": AdamW(learning_rate=Constant(0.0), weight_decay=0.1), "steps": 1, **changes}
    )


def test_a_fork_begins_from_the_weights_and_keeps_the_old_run_whole(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    before = contents(folder)
    weights = parameters(folder)
    summary = fit(still(), folder, Screen(), fork=True)
    assert summary["step"] == 1
    assert [line["step"] for line in curves(folder)] == [1, 1]
    np.testing.assert_equal(parameters(folder), weights)
    kept = contents(folder / "forked_from_1")
    assert kept == {name: data for name, data in before.items() if name != "lock"}


def test_the_same_fork_again_resumes_and_a_fork_of_a_fork_keeps_both(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    part = fit(tiny(seed=1), folder, Interrupting(9), fork=True)
    assert part["interrupted"] and part["step"] == 10
    rest = fit(tiny(seed=1), folder, Screen(), fork=True)
    assert rest["step"] == 20 and not (folder / "forked_from_2").exists()
    assert (
        len({(line["step"], line["split"]) for line in curves(folder)})
        == len(curves(folder))
        == 7 + 3
    )
    weights = parameters(folder)
    fit(still(), folder, Screen(), fork=True)
    np.testing.assert_equal(parameters(folder), weights)
    np.testing.assert_equal(parameters(folder / "forked_from_2"), weights)
    assert json.loads((folder / "forked_from_1" / "summary.json").read_text())["step"] == 20


def test_a_fork_that_was_killed_while_it_moved_the_old_run_aside_is_finished(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    before = contents(folder)
    weights = parameters(folder)
    (folder / "forked_from_1").mkdir()
    (folder / "run.json").rename(folder / "forked_from_1" / "run.json")
    fit(still(), folder, Screen(), fork=True)
    np.testing.assert_equal(parameters(folder), weights)
    assert contents(folder / "forked_from_1") == {
        name: data for name, data in before.items() if name != "lock"
    }


def test_a_fork_to_a_changed_model_takes_what_fits(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jaxbig")
    folder, _ = finished
    wider = still(model=ConvNet(layers=(Dropout(0.25), Dense(16), Dense(24)), classes=10))
    weights = parameters(folder)
    fit(wider, folder, Screen(), fork=True)
    said = caplog.text
    fit(wider, tmp_path / "fresh", Screen())
    forked = parameters(folder)
    fresh = parameters(tmp_path / "fresh")
    taken = {path for path in fresh if path in weights and weights[path].shape == fresh[path].shape}
    assert taken == {"layers_1/linear/kernel", "layers_1/linear/bias", "head/bias"}
    for path in fresh:
        np.testing.assert_equal(
            forked[path], (weights if path in taken else fresh)[path], err_msg=path
        )
    assert (
        "3 of 6 leaves are the other run's" in said and "head/kernel" in said and "reshaped" in said
    )


@pytest.mark.parametrize(
    ("scores", "saved", "best"),
    [
        (
            {100: 0.5, 200: 0.9, 280: 0.9, 320: 0.9},
            [280, 320],
            320,
        ),  # of equals the newest, as checkpoints are kept
        ({100: 0.5, 200: 0.9, 300: 0.7}, [100, 300], 300),  # the best was evaluated and not saved
        ({100: 0.9, 200: 0.5}, [100, 200], 100),
        ({100: None, 200: 0.5}, [100, 200], 200),
        ({100: 0.9}, [], None),
        ({}, [100], None),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_the_best_of_a_summary_is_a_checkpoint_that_is_kept(
    scores: dict[int, float | None],
    saved: list[int],
    best: int | None,
    higher: bool,
    tmp_path: Path,
) -> None:
    name, criterion = ("digits_convnet", "accuracy") if higher else ("diabetes_mlp", "loss")
    experiment = small(name)
    assert (experiment.objective.criterion, experiment.objective.higher_is_better) == (
        criterion,
        higher,
    )
    sign = 1 if higher else -1
    lines: list[dict[str, Any]] = [
        {"step": step, "split": "eval", criterion: None if score is None else sign * score}
        for step, score in scores.items()
    ]
    lines.append(
        {"step": 10, "split": "eval", "another": 5.0}
    )  # of an objective that it had before
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarize(experiment, tmp_path, 400, digest="x", saved=saved)["best"]
    assert (found and found["step"]) == best


def test_a_run_whose_run_json_is_lost_is_resumed_when_asked(tmp_path: Path, screen: Screen) -> None:
    """A power loss leaves an empty run.json beside good checkpoints, which are not lost."""
    run = tmp_path / "run"
    every = {"evaluate_every": 4, "checkpoint_every": 4, "keep_last": 1}
    experiment = tiny(steps=12, optimizer=AdamW(learning_rate=Constant(1e-3)), **every)
    half = fit(dataclasses.replace(experiment, steps=8), run, screen)
    assert half["best"]["step"] in CheckpointManager(run / "checkpoints").steps()
    for content in ("", None):
        (run / "run.json").unlink()
        if content is not None:
            (run / "run.json").write_text(content)
            (run / "checkpoints" / "run.json").write_text(content)
        before = sorted(each.name for each in run.rglob("*"))
        with pytest.raises(Refused, match=r"run\.json.*--adopt"):
            fit(experiment, run, screen)
        assert sorted(each.name for each in run.rglob("*")) == before
        resumed = fit(experiment, run, screen, adopt=True)
        assert resumed["step"] == 12
    assert resumed["state_sha256"] == fit(experiment, tmp_path / "whole", screen)["state_sha256"]
    with pytest.raises(Refused, match="holds another run"):  # a run.json that is whole is believed
        fit(dataclasses.replace(experiment, seed=5), run, screen, adopt=True)


def test_a_picture_that_fails_ends_no_run(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> bool:
        raise ValueError("ParseFatalException: Expected end of text")

    monkeypatch.setattr(trainer, "draw_attention", fail)
    assert fit(tiny(steps=2, evaluate_every=2, checkpoint_every=2), tmp_path, screen)["step"] == 2


def test_a_run_is_advised_no_more_cores_than_it_may_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Slurm binds a process to some of a node's cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setattr(logging.getLogger("jaxbig"), "propagate", True)
    report = StepReporter(tiny(), lambda step, values: None, 0)
    for _ in range(4):
        report.warn(0.9)
    assert "up to the cores this process may use (2)" in caplog.text and "128" not in caplog.text
