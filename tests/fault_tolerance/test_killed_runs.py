"""A run that is stopped, killed, crowded or starved has the digest of an uninterrupted one."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.compiling import HASTY
from support.fork_server import Process
from support.timing import crowded

pytestmark = pytest.mark.slow

MODEL = [
    f"--model.layers.{layer}=8" for layer in ("0.channels", "1.channels", "4.channels", "7.width")
]
EVERY = [
    "--steps=300",
    "--log-every=5",
    "--evaluate-every=100",
    "--checkpoint-every=20",
    "--data.batch=32",
]
TRAIN = ["train", "digits_convnet", "--workdir=run", *EVERY, *MODEL]
SPEED = {"data_wait", "mfu"}  # and what is a second: of the machine's speed, not of the run


def start(
    folder: Path,
    *arguments: str,
    devices: int = 1,
    core: int | None = None,
    hasty: bool = True,
    cached: bool = True,
    memory: int | None = None,
) -> Process:
    """`jaxbig ...` in that folder, on that many CPU devices, on one core, in that many bytes.

    hasty: compiled with fewer optimizations.

    cached: one compiles, the others load. What is pinned or starved compiles itself.
    """
    settings = {"JAX_NUM_CPU_DEVICES": str(devices)}
    settings |= HASTY if hasty else {}
    settings |= {} if cached else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = Process(*arguments, cwd=folder, env={**os.environ, **settings})
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    if memory is not None:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (memory, memory))
    return process


def finish(process: Process, seconds: float = 200) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; a process that hangs is killed."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def until(process: Process, condition: Callable[[], bool]) -> None:
    """Waits until the condition holds while the process lives."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl without what depends on the machine's speed."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    read = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        {name: line[name] for name in line if name not in SPEED and "_per_second" not in name}
        for line in read
    ]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run that was left alone, and how many seconds it takes once compiled."""
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = finish(start(folder, *TRAIN))
    assert code == 0, err
    began = time.monotonic()
    code, _, err = finish(start(folder, *TRAIN, "--workdir=again"))
    seconds = time.monotonic() - began
    assert code == 0, err
    same(folder / "again", folder / "run")
    return folder / "run", seconds


def same(run: Path, other: Path) -> None:
    """Both runs ended in the same state, by the same curves, and left nothing half-done behind."""
    assert summary(run)["state_sha256"] == summary(other)["state_sha256"]
    assert not summary(run)["interrupted"]
    assert lines(run) == lines(other)
    names = {entry.name for entry in (run / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names - {"run.json"})


def test_a_run_that_is_asked_to_stop_saves_and_the_same_command_resumes(
    alone: tuple[Path, float], tmp_path: Path
) -> None:
    process = start(tmp_path, *TRAIN)
    until(process, lambda: len(lines(tmp_path / "run")) > 10)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 75 and "Traceback" not in err
    stopped = summary(tmp_path / "run")
    assert stopped["interrupted"] and 50 < stopped["step"] < 300
    assert (tmp_path / "run" / "checkpoints" / str(stopped["step"])).is_dir()
    assert "SIGTERM" in err and f"saved at step {stopped['step']}" in out
    code, out, err = finish(start(tmp_path, *TRAIN))
    assert code == 0, err
    assert f"resuming from step {stopped['step']}" in out
    same(tmp_path / "run", alone[0])


def test_a_run_killed_at_five_random_moments_ends_as_one_left_alone(
    alone: tuple[Path, float], tmp_path: Path
) -> None:
    moments = random.Random(0)
    for _ in range(5):
        process = start(tmp_path, *TRAIN)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moments.uniform(0, alone[1]))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL) and "Traceback" not in err
    code, _, err = finish(start(tmp_path, *TRAIN))
    assert code == 0, err
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) > 1
    same(tmp_path / "run", alone[0])


def test_a_folder_in_use_is_refused_and_named_by_its_owner(tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN)
    until(process, lambda: len(lines(tmp_path / "run")) > 0)
    process.send_signal(signal.SIGSTOP)
    code, out, err = finish(start(tmp_path, *TRAIN))
    process.kill()
    process.communicate()
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"jaxbig: run is in use by process {process.pid} on .*--workdir.*\n", err
    ), err
    code, _, err = finish(start(tmp_path, *TRAIN, "--steps=40"))
    assert code == 0, err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_the_same_command_twice_gives_the_same_run(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    for folder in ("one", "other"):
        command = [
            "train",
            "pytext_transformer",
            "--model.depth=1",
            "--model.width=32",
            "--model.dropout=0.1",
            "--steps=30",
            "--checkpoint-every=20",
            "--evaluate-batches=2",
            f"--workdir={folder}",
        ]
        code, _, err = finish(
            start(tmp_path, *command, core=core, hasty=False, cached=False), seconds=500
        )
        assert code == 0, err
    same(tmp_path / "one", tmp_path / "other")


def test_the_number_of_devices_and_readers_does_not_change_which_examples_a_step_sees(
    tmp_path: Path,
) -> None:
    losses = {}
    for devices, readers in ((1, 1), (8, 0), (8, 3)):
        command = [
            "train",
            "digits_convnet",
            f"--workdir={devices}-{readers}",
            f"--reader-threads={readers}",
            *MODEL,
        ]
        short = ["--steps=5", "--log-every=1", "--data.batch=32"]
        code, _, err = finish(start(tmp_path, *command, *short, devices=devices))
        assert code == 0, err
        read = lines(tmp_path / f"{devices}-{readers}")
        losses[devices, readers] = [line["loss"] for line in read if line["split"] == "train"]
    first, *others = losses.values()
    assert len(set(first)) == 5
    assert others == [pytest.approx(first, rel=1e-5)] * 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=2000", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("a disk cannot be mounted here (that takes root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int = 0) -> None:
    """Leaves that many bytes."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - left)


def fill_with_names(disk: Path) -> None:
    """Leaves bytes, but no room for one more file or folder."""
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (disk / f"filler-{number}").touch()


def paused_between_saves(process: Process, checkpoints: Path) -> bool:
    """Stops the process; lets it continue unless there is a save and none is in progress."""
    process.send_signal(signal.SIGSTOP)
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.exists() else []
    names = [name for name in names if not name.startswith("run.json")]
    between = bool(names) and all(name.isdigit() for name in names)
    process.send_signal(signal.SIGSTOP if between else signal.SIGCONT)
    return between


@pytest.mark.parametrize(
    "fill_up",
    [
        pytest.param(fill, id="no byte left"),
        pytest.param(lambda disk: fill(disk, left=40_960), id="room for logs alone"),
        pytest.param(fill_with_names, id="no file left"),
    ],
)
def test_a_full_disk_is_reported_in_one_sentence_and_what_was_saved_before_still_serves(
    fill_up: Callable[[Path], None],
    disk: Path,
    alone: tuple[Path, float],
    noticed: Callable[[float], None],
) -> None:
    process = start(disk, *TRAIN)
    until(process, lambda: paused_between_saves(process, disk / "run" / "checkpoints"))
    fill_up(disk)
    process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    code, _, err = finish(process, seconds=100)
    noticed(time.monotonic() - began)
    assert code == 1
    assert (
        re.fullmatch(r"jaxbig: [^\n]*step \d+[^\n]*\n", err)
        and "run" in err
        and "No space left" in err
    ), err[:2000]
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=20000", str(disk)], check=True)
    code, out, err = finish(start(disk, *TRAIN))
    assert code == 0, err
    assert re.search(r"resuming from step \d+", out)
    same(disk / "run", alone[0])


def test_a_permission_that_is_lost_ends_the_run_and_it_resumes_when_that_is_fixed(
    alone: tuple[Path, float], tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    folders = [str(tmp_path / "run" / "checkpoints"), str(tmp_path / "run")]
    process = start(tmp_path, *TRAIN)
    until(process, lambda: paused_between_saves(process, tmp_path / "run" / "checkpoints"))
    lost = shutil.which("chattr") and subprocess.run(
        ["chattr", "+i", *folders], capture_output=True, check=False
    )
    try:
        if not lost or lost.returncode:
            process.kill()
            process.communicate()
            pytest.skip("a folder cannot be made immutable here (that takes root)")
        began = time.monotonic()
        process.send_signal(signal.SIGCONT)
        code, _, err = finish(process, seconds=100)
        noticed(time.monotonic() - began)
        assert code == 1
        assert (
            re.fullmatch(r"jaxbig: [^\n]*step \d+[^\n]*\n", err)
            and "Operation not permitted" in err
        ), err
        code, _, err = finish(start(tmp_path, *TRAIN))
        assert code == 2 and re.fullmatch(
            r"jaxbig: cannot write in run: Operation not permitted; .*\n", err
        ), err
    finally:
        if shutil.which("chattr"):
            subprocess.run(["chattr", "-i", *folders], capture_output=True, check=False)
    code, out, err = finish(start(tmp_path, *TRAIN))
    assert code == 0 and "resuming from step" in out, err
    same(tmp_path / "run", alone[0])


def test_a_folder_that_is_removed_ends_the_run(
    tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    process = start(tmp_path, *TRAIN, "--steps=100000", "--checkpoint-every=100000")
    until(process, lambda: len(lines(tmp_path / "run")) > 5)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    began = time.monotonic()
    code, _, err = finish(process, seconds=60)
    noticed(time.monotonic() - began)
    assert code == 1 and time.monotonic() - began < crowded(5)
    assert re.fullmatch(r"jaxbig: run is gone: [^\n]*\n", err), err
    assert not (tmp_path / "run").exists()


def test_memory_that_does_not_suffice_is_reported_in_the_words_of_plan(
    tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    """Before anything is compiled, after it, and where the device runs out all the same."""
    wide = ["--model.width=32768", "--model.heads=64"]
    many = ["--data.batch=65536", "--model.depth=2"]
    short = ["--data.batch=16384", "--model.depth=1", "--steps=2", "--data.length=32"]
    less = 7 << 30  # than the machine says
    for options, limit, words in (
        (wide, None, ["the state and a batch need", "a smaller model, or more devices"]),
        (many, None, ["a step needs", "--model.remat=full", "--accumulate=2", "`jaxbig plan`"]),
        (short, less, ["a step needs", "--model.remat=full", "--accumulate=2", "`jaxbig plan`"]),
    ):
        began = time.monotonic()
        process = start(
            tmp_path,
            "train",
            "pytext_transformer",
            "--workdir=run",
            *options,
            cached=False,
            memory=limit,
        )
        code, _, err = finish(process)
        noticed(time.monotonic() - began)
        assert code == (2 if limit is None else 1), err
        assert re.fullmatch(r"jaxbig: out of memory: on each of 1 cpu devices [^\n]*\n", err), err[
            -3000:
        ]
        assert all(each in err for each in words), err
