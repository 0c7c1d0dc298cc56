"""The test world: eight CPU devices, strict rank promotion, one folder of prepared data."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# one folder for the whole session: workers of pytest-xdist inherit it
if "JAXBIG_TEST_DATA" not in os.environ:
    os.environ["JAXBIG_TEST_DATA"] = tempfile.mkdtemp(prefix="jaxbig-test-data-")
    atexit.register(shutil.rmtree, os.environ["JAXBIG_TEST_DATA"], ignore_errors=True)
os.environ["TFDS_DATA_DIR"] = os.environ["JAXBIG_TEST_DATA"]
os.environ["JAXBIG_CACHE"] = os.path.join(os.environ["JAXBIG_TEST_DATA"], "cache")

import gc
import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
from support import fork_server
from support.compiling import OLD_EMITTERS
from support.programs import share_programs

from jaxbig.tools import replay_step
from jaxbig.tracking.console import Screen
from jaxbig.train import evaluate, trainer

# nohup and background shells ignore them, and so would the processes of the tests
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects that live: by default a fifth of the time goes into looking at them
gc.set_threshold(100_000, 20, 20)
# Without most optimizations XLA shards arrays the same way and compiles in a sixth of the time;
# the slow gradient tests use the full compiler.
jax.config.update("jax_disable_most_optimizations", True)
given = os.environ.get("XLA_FLAGS", "")
with mock.patch.dict(os.environ, XLA_FLAGS=f"{given} {OLD_EMITTERS}"):
    jax.devices()  # XLA reads its flags once, here


@pytest.fixture(scope="module", autouse=True)
def each_file_is_compiled_hastily() -> None:
    """Whatever the file before it has left behind."""
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def each_test_leaves_the_environment_as_it_was() -> Iterator[None]:
    """A deterministic run in this process sets XLA's flags, which other code reads."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module", autouse=True)
def each_file_leaves_the_log_as_it_was() -> Iterator[None]:
    """A command that is called in this process prints jaxbig's log from then on."""
    log = logging.getLogger("jaxbig")
    handlers = log.handlers
    level = log.level
    propagate = log.propagate
    yield
    log.handlers = handlers
    log.setLevel(level)
    log.propagate = propagate


@pytest.fixture(scope="module")
def shared_programs() -> Iterator[None]:
    """All runs of a file in this process share the programs of equal experiments."""
    make = share_programs()
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainer, evaluate, replay_step):
            patch.setattr(module, "make_program", make)
        yield


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def jaxbig(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `jaxbig ...` in its own process, in an empty folder, on one CPU device by default."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run(
            *arguments,
            cwd=tmp_path,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment},
            timeout=500,
        )

    return run


@pytest.fixture
def noticed(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Records the seconds until an event was noticed; printed when all tests have run."""
    return lambda seconds: record_property("noticed", round(seconds, 1))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each worker its share of whole runs first: a long test that is last is waited for."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    of_runs = {"docs", "fault_tolerance", "launch"}
    long = [item for item in items if of_runs & set(item.path.parts)]
    short = [item for item in items if not of_runs & set(item.path.parts)]
    items[:] = [
        item
        for worker in range(workers)
        for kind in (long, short)
        for item in kind[len(kind) * worker // workers : len(kind) * (worker + 1) // workers]
    ]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the seconds that `noticed` recorded."""
    recorded = [
        (dict(each.user_properties).get("noticed"), each.nodeid)
        for each in terminalreporter.getreports("passed")
    ]
    if found := sorted(
        {(name.split("::")[-1], seconds) for seconds, name in recorded if seconds is not None}
    ):
        terminalreporter.section("seconds until it was noticed")
        for name, seconds in found:
            terminalreporter.line(f"{seconds:6.1f}  {name}")
