"""Signals that ask a command to stop are answered from the first line of `main` on."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.run_processes import STRUCK

from jaxbig.distributed.multihost import interruptible
from jaxbig.system.child_processes import collect_stop_signals
from jaxbig.system.exit_codes import INTERRUPTED
from jaxbig.system.signals import STOP_SIGNALS, exit_on_ctrl_c, exit_resumable, write_stderr

NAMES = [number.name for number in STOP_SIGNALS]
# what a process does at the signal, after main's first line: Python code, or C code that runs no
# handler
WAITS = {
    "python": "import time\nwhile True: time.sleep(0.01)",
    "C code": "import ctypes; sleep = ctypes.CDLL(None).sleep\nwhile True: sleep(60)",
}


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, before: str = "") -> subprocess.Popen[str]:
        program = (
            f"{before}\nfrom jaxbig.system.signals import exit_on_stop_signals\n"
            "exit_on_stop_signals()\nprint('on', flush=True)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=NAMES)
@pytest.mark.parametrize("code", WAITS.values(), ids=WAITS)
def test_before_there_is_anything_to_save_a_signal_exits_75_at_once(
    started: Callable[..., subprocess.Popen[str]], code: str, number: signal.Signals
) -> None:
    process = started(code)
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED == 75
    assert number.name in err and "run the same command" in err and "Traceback" not in err


def test_sighup_under_nohup_stays_ignored(started: Callable[..., subprocess.Popen[str]]) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = started("import time; time.sleep(0.5); print('lived')", ignored)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "lived\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["difflib", "tyro"])
def test_the_command_line_answers_a_signal_while_it_imports(
    tmp_path: Path, number: signal.Signals, module: str
) -> None:
    """A module sends the signal: the first that `main` imports, or that a command imports."""
    (tmp_path / f"{module}.py").write_text(
        f"import os, time; os.kill(os.getpid(), {number:d}); time.sleep(9)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jaxbig", "list"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout == "" and done.stderr.startswith(f"jaxbig: {number.name}: stopped")


def test_importing_jaxbig_installs_no_handler() -> None:
    """All but the modules that are the command line."""
    code = (
        "import signal; numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT]\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "import jaxbig, jaxbig.train.trainer, jaxbig.cli.main\n"
        "for command in jaxbig.cli.main.COMMANDS: jaxbig.cli.main.load(command)\n"
        "import jaxbig.__main__\n"
        "assert [signal.getsignal(number) for number in numbers] == before\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_leaves_only_inside_and_where_it_is_not_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, inside in (
            (signal.default_int_handler, exit_resumable),
            (signal.SIG_IGN, signal.SIG_IGN),
        ):
            signal.signal(signal.SIGINT, handler)
            with exit_on_ctrl_c():
                assert signal.getsignal(signal.SIGINT) is inside
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of the command line; this process's own afterwards."""
    before = {number: signal.signal(number, exit_resumable) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, *STOP_SIGNALS], ids=["SIGINT", *NAMES])
def test_a_run_that_is_asked_by_any_of_them_saves_and_a_second_stops_it(
    handlers: None, number: signal.Signals
) -> None:
    with interruptible() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        assert {signal.getsignal(each) for each in STOP_SIGNALS} == {signal.SIG_DFL}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {signal.getsignal(each) for each in STOP_SIGNALS} == {exit_resumable}


@pytest.mark.parametrize("number", [signal.SIGINT, *STOP_SIGNALS], ids=["SIGINT", *NAMES])
def test_collect_stop_signals_collects_each_signal(handlers: None, number: signal.Signals) -> None:
    with collect_stop_signals() as asked:
        signal.raise_signal(number)
        assert asked == [number]
    assert {signal.getsignal(each) for each in STOP_SIGNALS} == {exit_resumable}


def test_run_under_nohup_ignores_sighup(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert not asked()


def test_a_terminal_that_is_gone_does_not_stop_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(file: int, text: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    write_stderr("nobody reads this")


def joining(folder: Path) -> tuple[list[str], str]:
    """A process whose process 0 never comes (JAX waits in C++), and its Python function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        "--coordinator",
        where,
        "--processes",
        "2",
        "--process",
        "1",
    ], "report_missing_processes"


def waiting_for_the_folder(folder: Path) -> tuple[list[str], str]:
    """A run whose folder another machine's run may still hold."""
    folder.mkdir()
    (folder / "owner").write_text(
        '{"process": 1, "host": "elsewhere", "machine": "other", "beats": 1}\n'
    )
    return [], "_wait_for_death"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "number"),
    [(joining, signal.SIGINT), *itertools.product([joining, waiting_for_the_folder], STOP_SIGNALS)],
)
def test_run_that_has_not_started_exits_75(
    tmp_path: Path, state: Callable[[Path], tuple[list[str], str]], number: signal.Signals
) -> None:
    options, function = state(tmp_path / "run")
    module = {"report_missing_processes": "multihost", "_wait_for_death": "run_lock:RunLock"}[
        function
    ]
    # sends the signal where that function is called
    command = [sys.executable, STRUCK, f"jaxbig.distributed.{module}", function, "1", number.name]
    done = subprocess.run(
        [*command, "train", "digits_convnet", "--workdir", "run", *options],
        cwd=tmp_path,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert f"jaxbig: {number.name}: stopped" in done.stderr and "Traceback" not in done.stderr
