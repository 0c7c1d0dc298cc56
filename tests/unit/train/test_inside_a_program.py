"""jaxbig inside another program: nothing of that program's is changed, and Ctrl-C reaches it."""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import ROOT

import jaxbig as jb

Tiny = Callable[..., jb.Experiment]
IMPORTS = """
import logging, os, signal, sys
def state():
    return (
        {number: signal.getsignal(number) for number in signal.valid_signals()},
        sorted(os.listdir("/proc/self/fd")), dict(os.environ), logging.root.handlers[:],
        sorted(logging.root.manager.loggerDict), sys.excepthook, sys.unraisablehook,
    )
before = state()
import jaxbig as jb
jb.models, jb.data, jb.objectives, jb.optim
assert dir(jb) and "Decoder" in dir(jb.models) and jb.__version__
assert state() == before
print(*sys.modules)
"""


def test_an_import_loads_no_jax_and_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"jax", "jaxlib", "flax", "optax", "numpy", "orbax", "tyro", "rich", "matplotlib"}
    assert not loaded & heavy


def state() -> dict[str, Any]:
    """What a program may have set, and a library leaves as it is."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # of the listing itself
            continue
    loggers = {
        name: (each.level, list(each.handlers), each.propagate, each.disabled)
        for name, each in logging.root.manager.loggerDict.items()
        if isinstance(each, logging.Logger)
    }
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "descriptors": descriptors,
        "loggers": loggers,
        "root": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr),
        "path": list(sys.path),
        "jax": dict(jax.config.values),
        "folder": os.getcwd(),
        "faulthandler": faulthandler.is_enabled(),
    }


@pytest.fixture(scope="module")
def warm(shared_programs: None, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    """A run after which all libraries are imported and have opened what they hold for good."""
    run = jb.fit(tiny(), tmp_path_factory.mktemp("warm"), progress=True)
    jb.restore(run.directory)
    return run


@pytest.fixture
def program(warm: jb.Run) -> Iterator[list[int]]:
    """A program with its own handlers of signals and of logs; the signals that reached it."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, frame: received.append(number))
    handler = logging.NullHandler()
    logging.getLogger("jaxbig").addHandler(handler)
    yield received
    logging.getLogger("jaxbig").removeHandler(handler)
    for number, previous in before.items():
        signal.signal(number, previous)


def same(a: jb.Run, b: jb.Run) -> bool:
    """Whether two runs ended with the same bits."""
    equal = jax.tree.map(np.array_equal, a.state, b.state)
    return all(jax.tree.leaves(equal))


def test_a_run_leaves_a_program_as_it_was(
    program: list[int], warm: jb.Run, tiny: Tiny, tmp_path: Path
) -> None:
    before = state()
    run = jb.fit(tiny(), tmp_path)
    assert state() == before
    jb.evaluate(jb.restore(tmp_path))
    jb.apply(run, np.zeros((1, 8, 8, 1)))
    assert state() == before
    assert same(run, warm) and not program


def test_a_run_that_fails_leaves_a_program_as_it_was(
    program: list[int], tiny: Tiny, tmp_path: Path
) -> None:
    before = state()
    with pytest.raises(ZeroDivisionError):
        jb.fit(tiny(callbacks=(Failing(),)), tmp_path)
    with pytest.raises(jb.Refused):
        jb.fit(tiny(steps=0), tmp_path)
    assert state() == before


def test_a_run_in_a_thread_leaves_a_program_as_it_was(
    program: list[int], warm: jb.Run, tiny: Tiny, tmp_path: Path
) -> None:
    before = state()
    runs: list[jb.Run] = []
    thread = threading.Thread(target=lambda: runs.append(jb.fit(tiny(), tmp_path)))
    thread.start()
    thread.join()
    assert same(runs[0], warm)
    assert state() == before


def test_a_run_prints_nothing_unless_asked(
    warm: jb.Run, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jb.fit(tiny(), tmp_path / "quiet")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    jb.fit(tiny(), tmp_path / "loud", progress=True)
    printed = capfd.readouterr()
    assert "evaluated at" in printed.out and "step 2/6  loss" in printed.out


def test_the_log_of_a_run_is_that_of_the_program(
    warm: jb.Run, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jaxbig"):
        jb.fit(tiny(), warm.directory)
    assert "resuming from step 6" in caplog.text


class Failing(jb.Callback):
    """Fails after the second step."""

    def after_step(self, step: int, metrics: Any, state: Any) -> None:
        if step == 2:
            raise ZeroDivisionError


class Stopping(jb.Callback):
    """Sends this process a signal after the second step."""

    number = signal.SIGINT

    def after_step(self, step: int, metrics: Any, state: Any) -> None:
        if step == 2:
            signal.raise_signal(self.number)


class Terminating(Stopping):
    number = signal.SIGTERM


@pytest.mark.parametrize("callback", [Stopping(), Terminating()])
def test_a_signal_reaches_the_program_once_the_run_is_saved(
    callback: Stopping, program: list[int], warm: jb.Run, tiny: Tiny, tmp_path: Path
) -> None:
    before = state()
    run = jb.fit(tiny(callbacks=(callback,)), tmp_path)
    assert program == [callback.number]
    assert run.step == 2 and not run.finished
    assert jb.restore(tmp_path).step == 2
    assert state() == before
    assert same(jb.fit(tiny(), tmp_path), warm)


def test_ctrl_c_interrupts_once_the_run_is_saved(warm: jb.Run, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        jb.fit(tiny(callbacks=(Stopping(),)), tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert jb.restore(tmp_path).step == 2
    assert same(jb.fit(tiny(), tmp_path), warm)


def test_a_reproducible_run_needs_the_threads_that_jax_started_with(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    with pytest.raises(jb.Refused, match="set NPROC=8 and XLA_FLAGS=--xla_cpu_max_isa=AVX before"):
        jb.fit(tiny(reproducible=8), tmp_path)
    assert "NPROC" not in os.environ
