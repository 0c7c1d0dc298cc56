"""The test world: eight CPU devices, strict rank promotion, one folder of prepared data."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import atexit
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from jaxbig.experiment import Experiment, load
from jaxbig.models.convolutional import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.tracking.screen import Screen

jax.config.update("jax_numpy_rank_promotion", "raise")

if "JAXBIG_TEST_DATA" not in os.environ:  # one folder for the whole session: workers of pytest-xdist inherit it
    os.environ["JAXBIG_TEST_DATA"] = tempfile.mkdtemp(prefix="jaxbig-test-data-")
    atexit.register(shutil.rmtree, os.environ["JAXBIG_TEST_DATA"], ignore_errors=True)
os.environ["TFDS_DATA_DIR"] = os.environ["JAXBIG_TEST_DATA"]

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(file.stem for file in (ROOT / "experiments").glob("[a-z]*.py"))


def small(name: str, **changes: object) -> Experiment:
    """An experiment that ships, with a model of a few thousand parameters; `changes` are its fields."""
    experiment = load(name)
    if name == "digits_convnet":
        layers = (Conv(8), Pool(), Dropout(0.25), Conv(16), Pool(), Dense(16))
        model = ConvNet(layers=layers, classes=10)
    else:
        fields = {"digits_rnn": {"width": 16}, "pytext_transformer": {"depth": 2, "width": 32, "heads": 2}}
        model = dataclasses.replace(experiment.model, **fields.get(name, {}))
    lengths = {"length": 32} if hasattr(experiment.data, "length") else {}
    data = dataclasses.replace(experiment.data, batch=16, **lengths)
    return dataclasses.replace(experiment, model=model, data=data, **changes)


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def jaxbig(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `jaxbig ...` in a process of its own, in an empty folder, on one CPU device unless told otherwise."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jaxbig", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run
