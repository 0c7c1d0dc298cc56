"""The watchdog and the lifeline: a process that is stuck, dead or at fault is named, and the others leave."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxbig.checkpoint import digest, manager
from jaxbig.checkpoint.manager import Checkpoints
from jaxbig.distributed import multihost, peer_monitor, watchdog
from jaxbig.distributed.peer_monitor import WAITS_FOR_OTHERS, PeerMonitor
from jaxbig.distributed.watchdog import BY_ACTIVITY, COMPILES, RESTORES, WAITS, Watchdog
from jaxbig.errors import PEER_LOST

# -- alone


def script(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


STUCK = """
import sys, time
from jaxbig.distributed.watchdog import watchdog
def a_blocked_read(): time.sleep(60)
with watchdog(float(sys.argv[1])) as at:
    for step in range(int(sys.argv[2])):
        at(step, "reads the next batch"); time.sleep(0.2)
    at(57, sys.argv[3])
    print("now", flush=True)
    a_blocked_read() if sys.argv[4] == "block" else time.sleep(float(sys.argv[4]))
print("done")
"""


def test_a_run_that_is_stuck_says_where_shows_its_stacks_and_ends_within_its_limit() -> None:
    process = script(
        STUCK, 1, 15, "reads the next batch", "block"
    )  # and three seconds of steps do not count
    assert process.stdout and process.stdout.readline() == "now\n"
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and 0.5 < time.monotonic() - began < 3
    sentence = err.split("\n")[0]
    assert sentence.startswith(
        "jaxbig: nothing has moved for 1 s (--guard.stuck-after): the run reads the next batch"
    )
    assert "at step 57" in sentence and "a_blocked_read" in err


@pytest.mark.parametrize(
    ("limit", "doing", "seconds"), [(0, "evaluates", 1.5), (0.6, "", 1.5)], ids=["never", "idle"]
)
def test_what_may_take_its_time_does(limit: float, doing: str, seconds: float) -> None:
    out, err = script(STUCK, limit, 1, doing, seconds).communicate(timeout=30)
    assert out == "now\ndone\n" and err == ""


@pytest.mark.slow
def test_time_in_which_it_was_stopped_itself_does_not_count() -> None:
    process = script(STUCK, 6, 1, "evaluates", 3)
    assert process.stdout and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30) == ("done\n", "")


@pytest.mark.parametrize(
    ("mine", "heard", "late"),
    [
        (
            (300, WAITS),
            {1: (0.2, 299, "reads the next batch")},
            "process 1 reads the next batch at step 299",
        ),
        (
            (300, WAITS),
            {1: (9.0, 299, WAITS), 2: (0.1, 300, WAITS)},
            f"process 1 {WAITS} at step 299, silent for 9 s",
        ),
        ((12, "saves"), {1: (8.0, 12, "saves")}, "process 1 saves at step 12, silent for 8 s"),
        ((12, "evaluates"), {1: (0.3, 12, WAITS)}, "process 0 evaluates at step 12"),
        ((12, WAITS), {1: (0.3, 11, WAITS), 2: (0.3, 12, WAITS)}, f"process 1 {WAITS} at step 11"),
        ((12, "saves"), {1: (0.3, 11, WAITS_FOR_OTHERS)}, "process 0 saves at step 12"),
    ],
)
def test_the_late_process_is_the_one_that_is_silent_or_does_not_wait_or_is_behind(
    mine: tuple[int, str], heard: dict[int, tuple[float, int, str]], late: str
) -> None:
    lifeline = PeerMonitor(0, {})
    now = time.monotonic()
    lifeline.heard = {
        process: (now - ago, step, doing) for process, (ago, step, doing) in heard.items()
    }
    dog = Watchdog(0, lifeline)
    dog.at(*mine)
    assert dog.place().startswith(f"{late} (late); process ")


# -- what is long, and goes on


class Watched(Watchdog):
    """Notes what it would have ended the process for."""

    bitten = ""

    def bite(self, text: str) -> None:
        self.bitten = text


def watched(limit: float, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(watchdog, "TICK", 0.1)
    return Watched(limit)


def save_twice(folder: Path, dog: Watched) -> Checkpoints:
    """Two saves, the second of which waits for the first, and a third wait: for the last one."""
    checkpoints = Checkpoints(folder, keep_last=2, tell=lambda doing: dog.at(7, doing))
    leaves = {str(n): jnp.full(4, n) for n in range(8)}
    for step in (1, 2):
        checkpoints.save(step, {"params": leaves, "step": jnp.int32(step)}, {})
    checkpoints.wait()
    return checkpoints


def slowed(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, seconds: Callable[[int], float]
) -> list[int]:
    """Makes each call of a function longer; gives how many there were."""
    plain, calls = getattr(where, name), [0]

    def slow(*given: Any) -> Any:
        calls[0] += 1
        time.sleep(seconds(calls[0]))
        return plain(*given)

    monkeypatch.setattr(where, name, slow)
    return calls


LONG = {
    "each file's hash": (manager, "_file_digest", "waits for its save of step 1"),
    "each leaf's hash": (digest, "whole", "saves"),
}


@pytest.mark.parametrize("what", LONG)
@pytest.mark.parametrize("limit", [1.5, pytest.param(4.0, marks=pytest.mark.slow)])
def test_a_save_of_many_times_the_limit_goes_on_as_long_as_it_moves(
    what: str, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog, (where, name, _) = watched(limit, monkeypatch), LONG[what]
    began, calls = time.monotonic(), slowed(monkeypatch, where, name, lambda call: limit / 5)
    assert save_twice(tmp_path, dog).steps() == [1, 2]
    assert not dog.bitten and calls[0] > 15 and time.monotonic() - began > 3 * limit


@pytest.mark.parametrize("what", LONG)
def test_a_save_that_stands_still_is_found(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog, (where, name, doing) = watched(1.0, monkeypatch), LONG[what]
    slowed(monkeypatch, where, name, lambda call: 3.0 * (call == 2))
    save_twice(tmp_path, dog)
    assert dog.bitten.endswith(f"the run {doing} at step 7")


@pytest.mark.parametrize("stuck", [False, True], ids=["slow", "stuck"])
def test_a_restore_is_left_alone_while_its_files_are_verified_and_found_where_one_cannot_be_read(
    stuck: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save_twice(tmp_path, Watched(0))
    dog = watched(1.0, monkeypatch)
    checkpoints.tell = lambda doing: dog.at(0, doing)
    slowed(monkeypatch, manager, "_file_digest", lambda call: 3.0 * (call == 2) if stuck else 0.25)
    began = time.monotonic()
    assert checkpoints.restore_parameters() is not None and time.monotonic() - began > 2
    assert (
        dog.bitten.endswith("the run verifies its checkpoint of step 2 at step 0")
        if stuck
        else not dog.bitten
    )


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_a_call_of_a_library_goes_on_while_it_computes_and_is_stuck_once_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dog = watched(1.0, monkeypatch)
    monkeypatch.setattr(
        watchdog, "ACTIVE", (0.002, 2**16)
    )  # of a look of 0.1 s, on a machine that others use too
    dog.at(0, RESTORES)
    working = threading.Thread(target=spin, args=(2.5,))
    working.start()
    working.join()
    assert not dog.bitten
    time.sleep(2)
    assert dog.bitten.endswith(f"the run {RESTORES} at step 0")


@pytest.mark.parametrize("doing", BY_ACTIVITY)
def test_a_call_that_reads_and_hardly_computes_goes_on(doing: str, tmp_path: Path) -> None:
    dog, file = Watchdog(0), tmp_path / "data"
    file.write_bytes(bytes(2**20))
    dog.at(0, doing)
    dog.active()
    assert not dog.active()
    file.read_bytes()
    assert dog.active() and not dog.active()
    dog.at(0, "saves")
    file.read_bytes()
    assert not dog.active()


def test_compiling_and_waiting_for_another_process_take_as_long_as_they_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dog = watched(0.5, monkeypatch)
    dog.at(3, COMPILES)
    time.sleep(1)
    peer_monitor.waiting.set()
    dog.at(3, "evaluates")
    time.sleep(1)
    assert not dog.bitten
    peer_monitor.waiting.clear()
    time.sleep(1)
    assert dog.bitten.endswith("the run evaluates at step 3")


@pytest.mark.parametrize("leads", [True, False])
def test_who_waits_for_what_another_process_says_is_known_to_wait(
    leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Service:
        def key_value_set(self, place: str, text: str) -> None:
            assert not peer_monitor.waiting.is_set()

        def blocking_key_value_get(self, place: str, limit: int) -> str:
            assert peer_monitor.waiting.is_set()
            return '["", 1]'

    monkeypatch.setattr(multihost, "_service", Service)
    monkeypatch.setattr(multihost, "is_process_zero", lambda: leads)
    monkeypatch.setattr(multihost.jax, "process_count", lambda: 2)
    multihost.gather("here")
    assert multihost.on_process_zero(lambda: peer_monitor.waiting.is_set()) == (0 if leads else 1)
    assert not peer_monitor.waiting.is_set()


# -- several

PEER = """
import os, signal, sys, time
from pathlib import Path
from jaxbig.distributed import peer_monitor
process, place, how = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def find():
    while not place.exists(): time.sleep(0.01)
    return place.read_text()
def publish(text):
    place.with_suffix(".new").write_text(text); place.with_suffix(".new").rename(place)
assert peer_monitor.connect(process, "127.0.0.1", publish, find)
print("tied", flush=True)
while len(peer_monitor.current().heard) < (3 if process == 0 else 1): time.sleep(0.01)
peer_monitor.current().at(7, "steps")
print("met", flush=True)
if process == int(sys.argv[4]):
    sys.stdin.readline()
    if how == "raise": raise KeyError("planted")
    if how == "refuse": peer_monitor.announce_exit("ended: no such thing"); sys.exit(2)
    if how == "finish": peer_monitor.announce_exit(); sys.exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(4 if how == "finish" else 60)
peer_monitor.announce_exit()
"""


def peers(folder: Path, how: str, which: int) -> list["subprocess.Popen[str]"]:
    """Four processes that have met, of which one waits for a line to do something."""
    command = [sys.executable, "-c", PEER]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [
        subprocess.Popen(
            [*command, str(n), str(folder / "place"), how, str(which)], text=True, **pipes
        )  # type: ignore[call-overload]
        for n in range(4)
    ]
    for process in started:
        assert [process.stdout.readline() for _ in range(2)] == ["tied\n", "met\n"], (
            process.stderr.read()
        )
    return started


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("kill", -signal.SIGKILL, "died"),
        ("raise", 1, "raised KeyError at step 7: 'planted'"),
        ("refuse", 2, "ended: no such thing"),
    ],
)
def test_when_one_ends_all_leave_within_seconds_and_say_which_and_why(
    how: str, code: int, words: str, which: int, tmp_path: Path
) -> None:
    started = peers(tmp_path, how, which)
    began = time.monotonic()
    started[which].stdin.write("\n")  # type: ignore[union-attr]
    started[which].stdin.flush()  # type: ignore[union-attr]
    for number, process in enumerate(started):
        _, err = process.communicate(timeout=30)
        if number == which:
            assert process.returncode == code and ("KeyError" in err) == (how == "raise")
        else:
            assert process.returncode == PEER_LOST
            assert err == f"jaxbig: process {which} {words}; process {number} leaves too\n"
    assert time.monotonic() - began < 5


def test_one_that_has_done_its_part_may_go_and_a_stranger_is_not_listened_to(
    tmp_path: Path,
) -> None:
    started = peers(tmp_path, "finish", 2)
    _, port, _ = json.loads((tmp_path / "place").read_text())
    for line in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"token": "x", "process": 1}\n',
        b'{"left": "ended"}\n',
        b"[]\n",
        b"\xff\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(line)
            with contextlib.suppress(OSError):
                assert stranger.recv(1) == b""  # shown the door
    started[2].communicate("\n", timeout=30)
    assert [
        process.communicate(timeout=30)[1] for process in started if process is not started[2]
    ] == [""] * 3
    assert [process.returncode for process in started] == [0] * 4


def test_the_lifeline_listens_where_it_was_told_alone(tmp_path: Path) -> None:
    started = peers(tmp_path, "finish", 2)
    _, port, _ = json.loads((tmp_path / "place").read_text())
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("this system does not tell who listens where")
    rows = [line.split() for line in listening.read_text().splitlines()[1:]]
    at = [row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert at == [f"0100007F:{port:04X}"]
