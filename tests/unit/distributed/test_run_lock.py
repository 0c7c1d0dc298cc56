"""A run's folder is held by one live run, on whatever machine; the dead, and those who sleep, lose it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.run_processes import RUN, Life, done, settings

from jaxbig.distributed import run_lock as room
from jaxbig.distributed.run_lock import RunLock, lock_run_directory
from jaxbig.errors import Failed, Refused


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BEAT", 0.05)
    monkeypatch.setattr(room, "SILENT", 0.6)


def left(folder: Path, **who: Any) -> Path:
    """What a holder has left there."""
    (folder / "holder").write_text(
        json.dumps({"process": 7, "host": "n1", "machine": "other", "token": "x", **who})
    )
    return folder / "holder"


def eventually(condition: Callable[[], Any]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_folder_is_held_once_and_given_back(tmp_path: Path) -> None:
    with lock_run_directory(tmp_path / "run") as held:
        held()
        with pytest.raises(
            Refused, match=r"run is in use by process \d+ on .*: stop that run, or give another"
        ):
            RunLock(tmp_path / "run")
    assert not (tmp_path / "run" / "holder").exists()
    RunLock(tmp_path / "run").release()


def test_a_holder_of_another_machine_that_beats_keeps_it(tmp_path: Path) -> None:
    file, done = left(tmp_path), threading.Event()

    def beat() -> None:
        beats = 0
        while not done.wait(0.05):
            left(tmp_path, beats=(beats := beats + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Refused, match="in use by process 7 on n1"):
            RunLock(tmp_path)
    finally:
        done.set()
        thread.join()
    assert json.loads(file.read_text())["host"] == "n1"
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and nothing of the refused one stays


@pytest.mark.parametrize("text", ["", "process 7 on n1", "[1]", "\udcff", None])
def test_a_holder_of_another_machine_that_does_not_beat_is_dead(
    text: str | None, tmp_path: Path
) -> None:
    file = left(tmp_path)
    if text is not None:
        file.write_bytes(os.fsencode(text))
    began = time.monotonic()
    mine = RunLock(tmp_path)
    assert time.monotonic() - began >= 0.6
    mine.check()
    mine.release()


def test_one_of_this_machine_would_have_the_lock_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SILENT", 60)
    left(tmp_path, machine=room.machine())
    RunLock(tmp_path).release()

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(room, "SILENT", 0.6)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    first = RunLock(tmp_path)
    with pytest.raises(Refused, match="in use"):  # by its beat alone
        RunLock(tmp_path)
    first.check()
    first.release()
    RunLock(tmp_path).release()


def test_who_loses_the_folder_hears_of_it_and_leaves_the_other_s_alone(tmp_path: Path) -> None:
    mine = RunLock(tmp_path)
    (tmp_path / "holder").unlink()
    left(tmp_path)
    eventually(lambda: mine.lost)
    with pytest.raises(
        Failed, match=r"was taken from this run \(process \d+ on .*\) by process 7 on n1"
    ):
        mine.check()
    mine.release()
    assert json.loads((tmp_path / "holder").read_text()) == {
        "process": 7, "host": "n1", "machine": "other", "token": "x"
    }  # fmt: skip


def test_who_cannot_write_any_more_hears_of_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a network, where what another has replaced can be written no more."""
    mine = RunLock(tmp_path)

    def stale(self: RunLock) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(RunLock, "_write", stale)
    (tmp_path / "holder").unlink()
    left(tmp_path)
    eventually(lambda: mine.lost)
    mine.release()


def test_a_lock_that_a_dead_machine_has_left_on_a_server_is_passed_over(tmp_path: Path) -> None:
    left(tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        mine = RunLock(tmp_path)
        assert time.monotonic() - began >= 0.6
        mine.check()
        mine.release()


def test_a_full_disk_leaves_no_holder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunLock) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLock, "_write", full)
    with pytest.raises(Refused, match=r"cannot write in .*No space left on device"):
        RunLock(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == []


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    mine = RunLock(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    eventually(lambda: mine.lost)
    with pytest.raises(Failed, match="run is gone"):
        mine.check()
    mine.release()


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", "run.json.partial", "lock", "holder"]
)
def test_links_in_a_folder_are_refused_and_what_they_lead_to_stays(
    name: str, tmp_path: Path
) -> None:
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    target.write_text("as it was")
    (run / name).symlink_to(target)
    with pytest.raises(
        Refused,
        match=rf"run/{name} is a link to .*target, and in the folder of a run none is followed",
    ):
        RunLock(run)
    assert target.read_text() == "as it was" and (run / name).is_symlink()


SLEEPER = """
import fcntl, time
from jaxbig.distributed import run_lock
from jaxbig.__main__ import main
from jaxbig.train.step_reporter import Report
run_lock.machine = lambda: "another"  # whose locks are not seen here
fcntl.flock = lambda *given: None
push = Report.push
Report.push = lambda *given: (time.sleep(0.5), push(*given))
main()
"""


@pytest.mark.slow
def test_a_run_is_taken_over_from_a_machine_that_sleeps_and_ends_as_one_left_alone(
    tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    train = [*RUN, "--steps=60", "--evaluate-every=30", "--checkpoint-every=10"]
    alone = done(tmp_path / "alone", 1, 1, *train)
    (folder := tmp_path / "run").mkdir()
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    other = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *train], cwd=folder, env=settings(1), text=True, **pipes
    )  # type: ignore[call-overload]
    while not (folder / "run" / "checkpoints" / "10").exists():
        assert other.poll() is None, other.communicate()
        time.sleep(0.05)
    ((code, said),) = Life(folder, 1, 1, *train).end()
    assert code == 2 and f"in use by process {other.pid} on" in said, said  # it beats
    other.send_signal(signal.SIGSTOP)
    ((code, said),) = Life(folder, 1, 1, *train).end()
    assert code == 0 and "waiting 15 s to see whether it lives" in " ".join(said.split()), said
    other.send_signal(signal.SIGCONT)
    woke = time.monotonic()
    _, err = other.communicate(timeout=60)
    noticed(time.monotonic() - woke)
    assert other.returncode == 1 and "was taken from this run" in err, err
    assert (
        json.loads((folder / "run" / "summary.json").read_text())["state_sha256"]
        == alone["state_sha256"]
    )


def fails_with(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def opened(kind: str) -> Callable[..., Any]:
    """`Path.open` on a mount that knows sequential writes alone."""
    real = Path.open

    def open_file(self: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if mode == kind:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return real(self, mode, *more, **options)

    return open_file


CANNOT = {  # what a mount cannot do, and how it answers
    "rename a folder": (
        "rename",
        fails_with(errno.EMFILE),
        "Too many open files",
    ),  # gcsfuse, flat bucket, limit 0
    "replace a file by another": ("replace", fails_with(errno.EXDEV), "Invalid cross-device link"),
    "append to a file": ("open", opened("ab"), "Operation not supported"),  # goofys
    "overwrite a part of a file": ("open", opened("r+b"), "Operation not supported"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_a_file_system_that_cannot_serve_a_run_is_refused_and_nothing_stays(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, behavior, why = CANNOT[what]
    with monkeypatch.context() as patched:
        patched.setattr(Path, name, behavior)
        with pytest.raises(
            Refused, match=rf"cannot {what} \({why}\).*gcsfuse --rename-dir-limit.*another disk"
        ):
            RunLock(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path / "run").release()


def test_a_file_system_that_appends_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """goofys' answer to a second write at an offset that it does not expect may come late, or never."""
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: real(self, "wb" if mode == "ab" else mode, *a)
    )
    with pytest.raises(Refused, match=r"cannot append to a file \(it was done wrongly\)"):
        RunLock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_is_said_to_be_full(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", fails_with(number))
    with pytest.raises(Refused, match=rf"cannot write in {tmp_path}: {os.strerror(number)}"):
        RunLock(tmp_path)


def test_a_folder_that_is_taken_holds_nothing_of_the_trial(tmp_path: Path) -> None:
    mine = RunLock(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"lock", "holder"}
    mine.release()


@pytest.mark.parametrize(
    "there", [(), ("runs",), ("runs", "runs/a"), ("runs", "runs/a", "runs/a/checkpoints")]
)
def test_a_run_that_is_refused_takes_away_what_it_brought(
    there: tuple[str, ...], tmp_path: Path
) -> None:
    """Its data are not there, or the folder is another run's: what it found stays, and nothing else."""
    for name in there:
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match="no such data"), lock_run_directory(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "checkpoints").mkdir(exist_ok=True)
        raise Refused("no such data")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_refused_leaves_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(Refused), lock_run_directory(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").write_text("x")
        raise Refused("at step 3")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "x"


def test_a_folder_that_is_in_use_is_left_alone_by_the_run_that_is_refused(tmp_path: Path) -> None:
    mine = RunLock(tmp_path / "run")
    with pytest.raises(Refused, match="in use"), lock_run_directory(tmp_path / "run"):
        pass
    assert {each.name for each in (tmp_path / "run").iterdir()} == {"lock", "holder"}
    mine.release()
