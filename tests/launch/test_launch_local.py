"""Several processes on this machine, for real: they are stopped together, and none is left."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.compiling import HASTY
from support.experiments import ROOT
from support.timing import crowded

pytestmark = pytest.mark.slow
MODEL = [
    f"--model.layers.{layer}=8" for layer in ("0.channels", "1.channels", "4.channels", "7.width")
]


def start(folder: Path, processes: int, *overrides: str) -> "subprocess.Popen[str]":
    words = [
        "digits_convnet",
        "--processes",
        str(processes),
        "--submit",
        "--",
        "--workdir=run",
        "--data.batch=32",
        *MODEL,
    ]
    environment = {**os.environ, **HASTY, "PYTHONPATH": str(ROOT), "MARK": str(folder)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    return subprocess.Popen(
        [sys.executable, "-m", "jaxbig.launch.local", *words, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(folder: Path) -> list[str]:
    """The processes that come from a launcher in this folder."""
    mark = f"MARK={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:
            continue
    return found


def trained(folder: Path) -> bool:
    lines = folder / "run" / "metrics.jsonl"
    return lines.exists() and lines.read_text().count("\n") > 2


def test_ctrl_c_saves_all_and_the_same_command_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, 2, "--steps=100000", "--log-every=1")
    while not trained(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    [step] = re.findall(r"^\[0\] interrupted; saved at step (\d+)", out, re.MULTILINE)
    assert (tmp_path / "run" / "checkpoints" / step).is_dir() and not left(tmp_path)
    process = start(tmp_path, 2, f"--steps={int(step) + 1}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and f"resuming from step {step}" in out, err


def test_ctrl_c_at_any_moment_leaves_no_process_six_times_of_six(tmp_path: Path) -> None:
    moments = random.Random(0)
    for attempt in range(6):
        process = start(tmp_path, 2, "--steps=100000", f"--workdir=run{attempt}")
        time.sleep(moments.uniform(0.5, 9))
        process.send_signal(signal.SIGINT)
        if attempt % 2:
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode and not left(tmp_path), attempt


def test_a_launcher_that_is_killed_takes_all_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, 2, "--steps=100000")
    while len(left(tmp_path)) < 3:
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    ends = time.monotonic() + crowded(10)
    while left(tmp_path) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not left(tmp_path)


def test_the_first_failure_is_the_last_that_is_seen(tmp_path: Path) -> None:
    """Process 1 raises in the midst of training, and its traceback is shown again at the end."""
    (tmp_path / "raising.py").write_text(
        "import dataclasses, sys, threading\nfrom jaxbig.experiments import digits_convnet\n"
        "def config():\n    if '1' in sys.argv[-1:]:\n        raise RuntimeError('planted')\n"
        "    return digits_convnet.config()\n"
    )
    words = ["raising.py", "--processes", "2", "--unchecked", "--submit", "--", "--steps=10"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jaxbig.launch.local", *words]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "process 1 failed first (exit 1)" in done.stderr
    last = done.stderr.split("its last output:\n")[1]
    assert last.startswith("Traceback") and last.rstrip().endswith("RuntimeError: planted")
