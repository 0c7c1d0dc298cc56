"""The lock on a run's folder: one live owner on any machine; dead and sleeping owners lose it."""

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
from support.timing import crowded

from jaxbig.distributed import run_lock
from jaxbig.distributed.run_lock import RunLock, lock_run_directory
from jaxbig.errors import Failed, Refused


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(run_lock, "SILENT_S", 0.6)


def leave_owner(folder: Path, **owner: Any) -> Path:
    """Writes the file of an owner on another machine, whole: no reader finds it half-written."""
    owner = {"process": 7, "host": "n1", "machine": "other", "token": "x", **owner}
    (folder / "owner.new").write_text(json.dumps(owner))
    return (folder / "owner.new").replace(folder / "owner")


def eventually(condition: Callable[[], Any]) -> None:
    ends = time.monotonic() + crowded(10)
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_run_lock_has_one_owner_and_is_released(tmp_path: Path) -> None:
    with lock_run_directory(tmp_path / "run") as check:
        check()
        with pytest.raises(
            Refused, match=r"run is in use by process \d+ on .*: stop that run, or give another"
        ):
            RunLock(tmp_path / "run")
    assert not (tmp_path / "run" / "owner").exists()
    RunLock(tmp_path / "run").release()


def test_run_lock_stays_with_owner_on_another_machine_that_writes_heartbeats(
    tmp_path: Path,
) -> None:
    file = leave_owner(tmp_path)
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.05):
            leave_owner(tmp_path, beats=(beats := beats + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Refused, match="in use by process 7 on n1"):
            RunLock(tmp_path)
    finally:
        stop.set()
        thread.join()
    assert json.loads(file.read_text())["host"] == "n1"
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing of the refused run stays


@pytest.mark.parametrize("text", ["", "process 7 on n1", "[1]", "\udcff", None])
def test_run_lock_is_taken_over_from_another_machine_without_heartbeat(
    text: str | None, tmp_path: Path
) -> None:
    file = leave_owner(tmp_path)
    if text is not None:
        file.write_bytes(os.fsencode(text))
    began = time.monotonic()
    mine = RunLock(tmp_path)
    assert time.monotonic() - began >= 0.6
    mine.check()
    mine.release()


def test_dead_owner_on_this_machine_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "SILENT_S", 60)
    leave_owner(tmp_path, machine=run_lock.machine())
    RunLock(tmp_path).release()

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock, "SILENT_S", 0.6)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    first = RunLock(tmp_path)
    with pytest.raises(Refused, match="in use"):  # by its heartbeat alone
        RunLock(tmp_path)
    first.check()
    first.release()
    RunLock(tmp_path).release()


def test_run_lock_is_lost_when_another_process_takes_it_and_leaves_its_file_alone(
    tmp_path: Path,
) -> None:
    mine = RunLock(tmp_path)
    (tmp_path / "owner").unlink()
    leave_owner(tmp_path)
    eventually(lambda: mine.lost)
    with pytest.raises(
        Failed, match=r"was taken from this run \(process \d+ on .*\) by process 7 on n1"
    ):
        mine.check()
    mine.release()
    assert json.loads((tmp_path / "owner").read_text()) == {
        "process": 7, "host": "n1", "machine": "other", "token": "x"
    }  # fmt: skip


def test_run_lock_is_lost_when_its_file_can_no_longer_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, where a file that another process has replaced is stale."""
    mine = RunLock(tmp_path)

    def stale(self: RunLock) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(RunLock, "_write", stale)
    (tmp_path / "owner").unlink()
    leave_owner(tmp_path)
    eventually(lambda: mine.lost)
    mine.release()


def test_flock_that_a_dead_machine_left_on_a_file_server_is_ignored(tmp_path: Path) -> None:
    leave_owner(tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        mine = RunLock(tmp_path)
        assert time.monotonic() - began >= 0.6
        mine.check()
        mine.release()


def test_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunLock) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLock, "_write", full)
    with pytest.raises(Refused, match=r"cannot write in .*No space left on device"):
        RunLock(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == []


def test_run_lock_is_lost_when_its_folder_is_removed(tmp_path: Path) -> None:
    mine = RunLock(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    eventually(lambda: mine.lost)
    with pytest.raises(Failed, match="run is gone"):
        mine.check()
    mine.release()


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", "run.json.partial", "lock", "owner"]
)
def test_link_in_a_folder_is_refused_and_its_target_stays(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    target = tmp_path / "target"
    run.mkdir()
    target.write_text("as it was")
    (run / name).symlink_to(target)
    with pytest.raises(
        Refused,
        match=rf"run/{name} is a link to .*target, and links in the folder of a run are not",
    ):
        RunLock(run)
    assert target.read_text() == "as it was" and (run / name).is_symlink()


SLEEPER = """
import fcntl, time
from jaxbig.distributed import run_lock
from jaxbig.__main__ import main
from jaxbig.train.step_reporter import StepReporter
run_lock.machine = lambda: "another"  # its locks are not visible here
fcntl.flock = lambda *given: None
record = StepReporter.record
StepReporter.record = lambda *given: (time.sleep(0.5), record(*given))
main()
"""


@pytest.mark.slow
def test_run_taken_over_from_a_sleeping_machine_has_the_digest_of_an_uninterrupted_run(
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
    assert code == 2 and f"in use by process {other.pid} on" in said, said  # it writes heartbeats
    other.send_signal(signal.SIGSTOP)
    ((code, said),) = Life(folder, 1, 1, *train).end()
    assert code == 0 and "waiting 15 s for a heartbeat" in " ".join(said.split()), said
    other.send_signal(signal.SIGCONT)
    woke = time.monotonic()
    _, err = other.communicate(timeout=60)
    noticed(time.monotonic() - woke)
    assert other.returncode == 1 and "was taken from this run" in err, err
    assert (
        json.loads((folder / "run" / "summary.json").read_text())["state_sha256"]
        == alone["state_sha256"]
    )


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def open_except(kind: str) -> Callable[..., Any]:
    """`Path.open` on a mount that supports sequential writes only."""
    real = Path.open

    def open_file(self: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if mode == kind:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return real(self, mode, *more, **options)

    return open_file


CANNOT = {  # an operation, and how a mount without it fails
    "rename a folder": (
        "rename",
        fail_with(errno.EMFILE),
        "Too many open files",
    ),  # gcsfuse, flat bucket, limit 0
    "replace a file by another": ("replace", fail_with(errno.EXDEV), "Invalid cross-device link"),
    "append to a file": ("open", open_except("ab"), "Operation not supported"),  # goofys
    "overwrite a part of a file": ("open", open_except("r+b"), "Operation not supported"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_file_system_without_a_needed_operation_is_refused_and_left_empty(
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


def test_file_system_that_appends_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """goofys may report an error for a second write at an unexpected offset late, or never."""
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: real(self, "wb" if mode == "ab" else mode, *a)
    )
    with pytest.raises(Refused, match=r"cannot append to a file \(the result was wrong\)"):
        RunLock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk_is_reported_as_such(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", fail_with(number))
    with pytest.raises(Refused, match=rf"cannot write in {tmp_path}: {os.strerror(number)}"):
        RunLock(tmp_path)


def test_locked_folder_contains_only_the_lock_and_its_owner(tmp_path: Path) -> None:
    mine = RunLock(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"lock", "owner"}
    mine.release()


@pytest.mark.parametrize(
    "there", [(), ("runs",), ("runs", "runs/a"), ("runs", "runs/a", "runs/a/checkpoints")]
)
def test_refused_run_removes_what_it_created(there: tuple[str, ...], tmp_path: Path) -> None:
    """Its data is missing, or the folder belongs to another run: only what existed before stays."""
    for name in there:
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match="no such data"), lock_run_directory(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "checkpoints").mkdir(exist_ok=True)
        raise Refused("no such data")
    assert sorted(tmp_path.rglob("*")) == before


def test_refused_run_keeps_files_that_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(Refused), lock_run_directory(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").write_text("x")
        raise Refused("at step 3")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "x"


def test_folder_in_use_is_not_changed_by_the_refused_run(tmp_path: Path) -> None:
    mine = RunLock(tmp_path / "run")
    with pytest.raises(Refused, match="in use"), lock_run_directory(tmp_path / "run"):
        pass
    assert {each.name for each in (tmp_path / "run").iterdir()} == {"lock", "owner"}
    mine.release()
