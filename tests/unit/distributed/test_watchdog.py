"""Watchdog and peer monitor: a process that hangs, dies or fails is named, and the others exit."""

import contextlib
import functools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.timing import crowded

from jaxbig.checkpoint import digest, manager
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.distributed import multihost, peer_monitor, watchdog
from jaxbig.distributed.peer_monitor import WAITS_FOR_OTHERS, PeerMonitor, PeerStatus
from jaxbig.distributed.watchdog import (
    BY_ACTIVITY,
    CALLS,
    COMPILES,
    RESTORES,
    STARTS,
    WAITS,
    Watchdog,
)
from jaxbig.system.exit_codes import PEER_LOST

# -- one process


def script(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HANGS = """
import sys, time
from jaxbig.distributed.watchdog import watchdog
def a_blocked_read(): time.sleep(60)
with watchdog(float(sys.argv[1])) as heartbeat:
    for step in range(int(sys.argv[2])):
        heartbeat(step, "reads the next batch"); time.sleep(0.2)
    heartbeat(57, sys.argv[3])
    print("now", flush=True)
    a_blocked_read() if sys.argv[4] == "block" else time.sleep(float(sys.argv[4]))
print("done")
"""


def test_hanging_run_reports_where_dumps_its_stacks_and_ends_within_its_limit() -> None:
    process = script(
        HANGS, 1, 15, "reads the next batch", "block"
    )  # three seconds of steps do not count
    assert process.stdout and process.stdout.readline() == "now\n"
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and 0.5 < time.monotonic() - began < crowded(3)
    sentence = err.split("\n")[0]
    assert sentence.startswith(
        "jaxbig: nothing has moved for 1 s (--guard.stuck-after): the run reads the next batch"
    )
    assert "at step 57" in sentence and "a_blocked_read" in err


@pytest.mark.parametrize(
    ("limit", "doing", "seconds"), [(0, "evaluates", 1.5), (0.6, "", 1.5)], ids=["never", "idle"]
)
def test_activity_without_a_limit_is_not_ended(limit: float, doing: str, seconds: float) -> None:
    out, err = script(HANGS, limit, 1, doing, seconds).communicate(timeout=30)
    assert out == "now\ndone\n" and err == ""


@pytest.mark.slow
def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    process = script(HANGS, 6, 1, "evaluates", 3)
    assert process.stdout and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30) == ("done\n", "")


@pytest.mark.parametrize(
    ("own", "peers", "late"),
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
def test_late_process_is_silent_or_does_not_wait_or_is_behind(
    own: tuple[int, str], peers: dict[int, tuple[float, int, str]], late: str
) -> None:
    monitor = PeerMonitor(0, {})
    now = time.monotonic()
    monitor.statuses = {
        process: PeerStatus(now - ago, step, activity)
        for process, (ago, step, activity) in peers.items()
    }
    dog = Watchdog(0, monitor)
    dog.heartbeat(*own)
    assert dog.describe().startswith(f"{late} (late); process ")


# -- long activities


class Watched(Watchdog):
    """Records the message instead of ending the process."""

    message = ""

    def end_process(self, text: str) -> None:
        self.message = text


def watched(limit: float, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(watchdog, "CHECK_S", 0.1)
    return Watched(limit)


def save_twice(folder: Path, dog: Watched) -> CheckpointManager:
    """Two saves, of which the second waits for the first, and then a wait for the second."""
    checkpoints = CheckpointManager(
        folder, keep_last=2, report_activity=lambda doing: dog.heartbeat(7, doing)
    )
    leaves = {str(n): jnp.full(4, n) for n in range(8)}
    for step in (1, 2):
        checkpoints.save(step, {"params": leaves, "step": jnp.int32(step)}, {})
    checkpoints.wait()
    return checkpoints


def slow_down(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, seconds: Callable[[int], float]
) -> list[int]:
    """Makes each call of a function slower; returns the number of calls."""
    plain = getattr(where, name)
    calls = [0]

    def slow(*given: Any) -> Any:
        calls[0] += 1
        time.sleep(seconds(calls[0]))
        return plain(*given)

    monkeypatch.setattr(where, name, slow)
    return calls


LONG = {
    "each file's hash": (manager, "_file_digest", "waits for its save of step 1"),
    "each leaf's hash": (digest, "_hash_part", "waits for its save of step 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "limit"), [("each leaf's hash", 1.5), *((what, 4.0) for what in LONG)]
)
def test_save_longer_than_the_limit_is_not_ended_while_it_makes_progress(
    what: str, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = watched(limit, monkeypatch)
    where, name, _ = LONG[what]
    began = time.monotonic()
    calls = slow_down(monkeypatch, where, name, lambda call: limit / 5)
    assert save_twice(tmp_path, dog).steps() == [1, 2]
    assert not dog.message and calls[0] > 15 and time.monotonic() - began > 3 * limit


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG)
def test_save_without_progress_is_ended(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = watched(1.0, monkeypatch)
    where, name, doing = LONG[what]
    slow_down(monkeypatch, where, name, lambda call: 3.0 * (call == 2))
    save_twice(tmp_path, dog)
    assert dog.message.endswith(f"the run {doing} at step 7")


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True], ids=["slow", "hangs"])
def test_restore_is_not_ended_while_files_are_verified_and_is_where_one_cannot_be_read(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save_twice(tmp_path, Watched(0))
    dog = watched(1.0, monkeypatch)
    checkpoints.report_activity = functools.partial(dog.heartbeat, 0)
    slow_down(
        monkeypatch, manager, "_file_digest", lambda call: 3.0 * (call == 2) if hangs else 0.25
    )
    began = time.monotonic()
    assert checkpoints.restore_parameters() is not None and time.monotonic() - began > 2
    assert (
        dog.message.endswith("the run verifies its checkpoint of step 2 at step 0")
        if hangs
        else not dog.message
    )


LIBRARY_CALL = """
import sys, time
from jaxbig.distributed.watchdog import RESTORES, watchdog
with watchdog(1.5) as heartbeat:
    heartbeat(0, RESTORES)
    until = time.monotonic() + 4
    while time.monotonic() < until: sum(range(1000))
    print("has computed", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_library_call_is_not_ended_while_it_computes_and_is_once_it_is_idle() -> None:
    """In a process of its own: threads of other tests would compute too."""
    process = script(LIBRARY_CALL)
    out, err = process.communicate(timeout=45)
    assert process.returncode == 1 and out == "has computed\n"
    assert f"the run {RESTORES} at step 0" in err.split("\n")[0]


@pytest.mark.parametrize("doing", BY_ACTIVITY)
def test_library_call_that_only_reads_is_active(doing: str, tmp_path: Path) -> None:
    dog = Watchdog(0)
    file = tmp_path / "data"
    file.write_bytes(bytes(2**20))
    dog.heartbeat(0, doing)
    dog.active()
    assert not dog.active()
    file.read_bytes()
    assert dog.active() and not dog.active()
    dog.heartbeat(0, "saves")
    file.read_bytes()
    assert not dog.active()


def test_waiting_for_another_process_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    dog = watched(0.5, monkeypatch)
    peer_monitor.waiting.set()
    dog.heartbeat(3, "evaluates")
    time.sleep(1)
    assert not dog.message
    peer_monitor.waiting.clear()
    time.sleep(1)
    assert dog.message.endswith("the run evaluates at step 3")


# -- limits that are learned


class Counted(Watchdog):
    """Makes no checks of its own, and computes nothing meanwhile."""

    def watch(self) -> None:
        pass

    def active(self) -> bool:
        return False


def hung(dog: Watchdog, seconds: float = 1800.0) -> float:
    """How long the activity under way may last, in checks of half a second; infinity: longer."""
    for half in range(1, int(2 * seconds) + 1):
        if dog.check(0.5):
            return half / 2
    return math.inf


def goes_through(dog: Watchdog, *each: tuple[str, float]) -> Watchdog:
    """Does each for that many seconds."""
    for step, (doing, seconds) in enumerate(each):
        dog.heartbeat(step, doing)
        for _ in range(int(2 * seconds)):
            assert not dog.check(0.5), (step, doing)
    return dog


@pytest.mark.parametrize(
    ("before", "doing", "seconds"),
    [
        ([WAITS], WAITS, 1800.0),  # no other has followed
        ([STARTS], WAITS, 1800.0),
        ([WAITS, STARTS], WAITS, 205.0),
        ([WAITS, "saves", WAITS, STARTS], "saves", 205.0),
        ([COMPILES, STARTS], COMPILES, 1800.0),
        ([CALLS, STARTS], CALLS, 1800.0),
        (["is in the loop", STARTS], "is in the loop", 1800.0),
        (["waits for its save of step 8", STARTS], "waits for its save of step 90", 205.0),
    ],
    ids=str,
)
def test_limit_is_ten_times_the_slowest_of_its_kind_once_that_is_over(
    before: list[str], doing: str, seconds: float
) -> None:
    dog = goes_through(Counted(1800.0, None, 10.0), *((each, 20.0) for each in before))
    dog.heartbeat(57, doing)
    assert abs(hung(dog, 1900.0) - seconds) <= 1.0
    dog.factor = 0.0
    dog.heartbeat(57, doing)
    assert abs(hung(dog, 1900.0) - 1800.0) <= 1.0


def test_late_one_is_named_once_and_a_short_one_is_no_hang_for_two_minutes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dog = goes_through(Counted(1800.0, None, 10.0), (WAITS, 2.0), (STARTS, 1.0))
    goes_through(dog, (WAITS, 6.0))
    assert capsys.readouterr().err == ""
    goes_through(dog, (STARTS, 0.0), (WAITS, 60.0), (STARTS, 0.0))
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"jaxbig: nothing has moved for \d+ s, and the slowest before took [\d.]+ s: the run "
        rf"{WAITS} at step 1; the run ends after 120 s\n",
        said,
    )
    dog = goes_through(Counted(1800.0, None, 10.0), (WAITS, 1.0), (STARTS, 0.0))
    dog.heartbeat(58, WAITS)
    assert abs(hung(dog) - 120.0) <= 1.0
    assert "the run ends after 120 s" in capsys.readouterr().err


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    usual=st.floats(0.01, 60),
    jitter=st.lists(st.floats(0.5, 1.0), min_size=2, max_size=6),
    slower=st.floats(1.0, 9.0),
)
def test_machine_that_becomes_nine_times_slower_is_no_hang(
    usual: float, jitter: list[float], slower: float
) -> None:
    dog = Counted(1800.0, None, 10.0)
    each = [(kind, usual * share) for share in (1.0, *jitter) for kind in (STARTS, WAITS, "saves")]
    goes_through(dog, *each, *((kind, seconds * slower) for kind, seconds in each))


def test_progress_and_a_stopped_process_are_no_hang_and_teach_nothing() -> None:
    dog = goes_through(Counted(1800.0, None, 10.0), (WAITS, 20.0), (STARTS, 0.0), (WAITS, 0.0))
    peer_monitor.waiting.set()
    assert not any(dog.check(2.0) for _ in range(2000))
    peer_monitor.waiting.clear()
    dog.heartbeat(9, STARTS)
    dog.heartbeat(9, WAITS)
    assert abs(hung(dog) - 205.0) <= 1.0


@pytest.mark.parametrize(
    ("process", "peer", "seconds"),
    [
        (0, (0.0, 9, WAITS), 205.0),
        (0, (0.0, 9, "reads the next batch"), 205.0),
        (0, (9.0, 9, CALLS), 205.0),  # silent
        (0, (0.0, 9, CALLS), 1800.0),
        (1, (0.0, 9, WAITS), 1800.0),
    ],
)
def test_first_process_decides_unless_another_does_what_has_no_known_time(
    process: int, peer: tuple[float, int, str], seconds: float
) -> None:
    monitor = PeerMonitor(process, {})
    dog = goes_through(Counted(1800.0, monitor, 10.0), (WAITS, 20.0), (STARTS, 0.0), (WAITS, 0.0))
    ago, step, doing = peer
    monitor.statuses = {1 - process: PeerStatus(time.monotonic() - ago, step, doing)}
    assert abs(hung(dog, 1900.0) - seconds) <= 1.0


@pytest.mark.parametrize("leads", [True, False])
def test_process_that_waits_for_a_value_of_another_is_marked_as_waiting(
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


# -- several processes

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
assert peer_monitor.connect(process, "127.0.0.1", publish=publish, find=find)
print("connected", flush=True)
while len(peer_monitor.current().statuses) < (3 if process == 0 else 1): time.sleep(0.01)
peer_monitor.current().doing = (7, "steps")
print("met", flush=True)
if process == int(sys.argv[4]):
    sys.stdin.readline()
    if how == "raise": raise KeyError("planted")
    if how == "refuse": peer_monitor.announce_exit("ended: no such thing"); sys.exit(2)
    if how == "finish": peer_monitor.announce_exit(); sys.exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(2 if how == "finish" else 60)
peer_monitor.announce_exit()
"""


def peers(folder: Path, how: str, which: int) -> list["subprocess.Popen[str]"]:
    """Four connected processes, of which one acts on a line from standard input."""
    command = [sys.executable, "-c", PEER]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [
        subprocess.Popen(
            [*command, str(n), str(folder / "place"), how, str(which)], text=True, **pipes
        )  # type: ignore[call-overload]
        for n in range(4)
    ]
    for process in started:
        assert [process.stdout.readline() for _ in range(2)] == ["connected\n", "met\n"], (
            process.stderr.read()
        )
    return started


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("kill", -signal.SIGKILL, "died"),
        ("raise", 1, "raised KeyError at step 7: 'planted'"),
        ("refuse", 2, "ended: no such thing"),
    ],
)
def test_all_exit_within_seconds_of_one_and_name_it_and_the_cause(
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
            assert err == f"jaxbig: process {which} {words}; process {number} exits too\n"
    assert time.monotonic() - began < crowded(5)


def test_finished_process_exits_alone_and_foreign_connections_are_closed(tmp_path: Path) -> None:
    started = peers(tmp_path, "finish", 2)
    _, port, _ = json.loads((tmp_path / "place").read_text())
    for line in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"token": "x", "process": 1}\n',
        b'{"exit": "ended"}\n',
        b"[]\n",
        b"\xff\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as foreign:
            foreign.sendall(line)
            with contextlib.suppress(OSError):
                assert foreign.recv(1) == b""
    started[2].communicate("\n", timeout=30)
    assert [
        process.communicate(timeout=30)[1] for process in started if process is not started[2]
    ] == [""] * 3
    assert [process.returncode for process in started] == [0] * 4


def test_peer_monitor_listens_on_one_address_only(tmp_path: Path) -> None:
    started = peers(tmp_path, "finish", 2)
    _, port, _ = json.loads((tmp_path / "place").read_text())
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("this system does not list listening sockets")
    rows = [line.split() for line in listening.read_text().splitlines()[1:]]
    at = [row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert at == [f"0100007F:{port:04X}"]
