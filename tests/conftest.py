"""The test world: eight CPU devices, strict rank promotion, one folder of prepared data."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import atexit
import dataclasses
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.models.convnet import Conv, Dense, Dropout, Pool
from jaxbig.tracking.console import Screen

# nohup and background shells ignore them, and so would the processes of the tests
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A hasty compiler splits arrays as the full one does, in a third of the time; the slow gradient tests use the full one.
jax.config.update("jax_disable_most_optimizations", True)

if (
    "JAXBIG_TEST_DATA" not in os.environ
):  # one folder for the whole session: workers of pytest-xdist inherit it
    os.environ["JAXBIG_TEST_DATA"] = tempfile.mkdtemp(prefix="jaxbig-test-data-")
    atexit.register(shutil.rmtree, os.environ["JAXBIG_TEST_DATA"], ignore_errors=True)
os.environ["TFDS_DATA_DIR"] = os.environ["JAXBIG_TEST_DATA"]
os.environ["JAXBIG_CACHE"] = os.path.join(os.environ["JAXBIG_TEST_DATA"], "cache")

HASTY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the same for a process that a test starts
# A compilation cache for the processes that tests start: the first run of a program compiles it, later ones load it.
# Only for runs on one device: XLA:CPU forgets the order of collectives in what it stores, so that what several devices
# load waits for itself until it is aborted (digits_rnn over 2x2x2, three times of three, jax 0.10.2). The tests' own
# process has eight devices. One folder for each worker: two processes at once could read what is half written.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.path.join(
        os.environ["JAXBIG_TEST_DATA"], "compiled", os.environ.get("PYTEST_XDIST_WORKER", "alone")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(file.stem for file in (ROOT / "experiments").glob("[a-z]*.py"))
# those whose data is made on this machine
EMBEDDED = [
    name
    for name in EXPERIMENTS
    if name.split("_")[0] in ("dates", "diabetes", "digits", "pymodule", "pytext")
]
# one of each kind of loop: plain, with batch statistics, with a carried state, with decoding
SPINE = ["digits_convnet", "digits_resnet", "digits_rnn", "pytext_transformer", "pytext_lstm"]

# What makes a model small, by field; counts that must fit its data or each other are set where they are
SMALL: dict[str, dict[str, Any]] = {
    "AlexNet": {"channels": (8, 8, 16, 16, 8), "width": 16},
    "ConvNet": {"layers": (Conv(8), Pool(), Dropout(0.25), Conv(16), Pool(), Dense(16))},
    "ConvNeXt": {"stages": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "layer_scale": 0.5},
    "Decoder": {"depth": 2, "width": 32, "heads": 4, "mlp_width": 48},
    "Encoder": {"depth": 2, "width": 32, "heads": 4},
    "EncoderDecoder": {"depth": 2, "width": 32, "heads": 4},
    "Griffin": {"depth": 3, "width": 16, "heads": 2, "window": 8},
    "MLP": {"widths": (16,)},
    "ResNet": {"stages": (1, 1, 1), "width": 8},
    "RNN": {"width": 16},
    "RNNEncoderDecoder": {"width": 16},
    "RNNLanguageModel": {"width": 16},
    "ViT": {"depth": 2, "width": 32, "heads": 2},
}


def small(name: str, **changes: Any) -> Experiment:
    """An experiment that ships, with a model of a few thousand parameters on little data; `changes` are its fields."""
    experiment = load(name)
    model: Any = experiment.model
    fields = dict(SMALL[type(model).__name__])
    if getattr(model, "kv_heads", None):
        fields["kv_heads"] = 2
    if getattr(model, "mlp_chunks", 0):
        fields["mlp_chunks"] = 3
    if name == "digits_resnet":
        fields["width"] = 8
    data: Any = dataclasses.replace(experiment.data, batch=16)
    objective: Any = experiment.objective
    if hasattr(data, "length"):
        data = dataclasses.replace(data, length=32)
    if getattr(data, "size", 0) > 32:
        size = {"AlexNet": 67}.get(type(model).__name__, 32)
        data = dataclasses.replace(data, size=size, canvas=2 * size)
    if getattr(data, "vocab", 0) > 300:
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, vocab=128))
        fields["vocab"] = 128
        tokens = {"vocab": 128, "chunks": 8}
        objective = dataclasses.replace(
            objective, **{k: v for k, v in tokens.items() if hasattr(objective, k)}
        )
    model = dataclasses.replace(model, **fields)
    initialize_from = dataclasses.replace(experiment.initialize_from, run="")
    few = {"model": model, "objective": objective, "data": data, "initialize_from": initialize_from}
    return dataclasses.replace(experiment, **(few | changes))


@pytest.fixture(scope="module", autouse=True)
def each_file_is_compiled_hastily() -> None:
    """Whatever the file before it has left behind."""
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def jaxbig(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `jaxbig ...` in a process of its own, in an empty folder, on one CPU device unless told otherwise.

    Only runs load what others have compiled: `plan` reads the compiler's text, and `check` sets its own devices.
    """

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        alone = (
            arguments[0] in ("train", "evaluate")
            and environment.get("JAX_NUM_CPU_DEVICES", "1") == "1"
        )
        return subprocess.run(
            [sys.executable, "-m", "jaxbig", *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": "1",
                **(COMPILED if alone else {}),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run


@pytest.fixture
def noticed(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Notes how many seconds it took until what happened was noticed; told when all tests have run."""
    return lambda seconds: record_property("noticed", round(seconds, 1))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The seconds that were noted."""
    told = [
        (dict(each.user_properties).get("noticed"), each.nodeid)
        for each in terminalreporter.getreports("passed")
    ]
    if found := sorted(
        {(name.split("::")[-1], seconds) for seconds, name in told if seconds is not None}
    ):
        terminalreporter.section("seconds until it was noticed")
        for name, seconds in found:
            terminalreporter.line(f"{seconds:6.1f}  {name}")
