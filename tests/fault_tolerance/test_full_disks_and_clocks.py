"""A run where clocks jump, disks are full or read-only, and nobody looks.

It ends as it does anywhere else.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.run_processes import RUN, settings

pytestmark = pytest.mark.slow
TRAIN = [*RUN, "--steps=20", "--evaluate-every=10", "--checkpoint-every=10"]
HERE = [sys.executable, "-m", "jaxbig"]
JUMPS = """
import itertools, sys, time
from jaxbig.train import trainer
from jaxbig.__main__ import main
now, looks, later, compile_step = time.time, itertools.count(), [0], trainer.compile_step
time.time = lambda: now() + later[0] - 3600 * next(looks)
def compile_a_year_long(program):
    later[0] = 31_536_000
    return compile_step(program)
trainer.compile_step = compile_a_year_long
main()
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def trained(folder: Path, *command: str, **environment: str) -> str:
    """The digest of a short run that was started so."""
    folder.mkdir()
    words = [*(command or HERE), *TRAIN]
    done = subprocess.run(
        words, cwd=folder, env={**settings(1), **environment}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr
    return digest(folder)


def digest(folder: Path) -> str:
    return json.loads((folder / "run" / "summary.json").read_text())["state_sha256"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled by itself; the others load what the first of them has compiled."""
    return trained(tmp_path_factory.mktemp("plain") / "here", JAX_ENABLE_COMPILATION_CACHE="false")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own in a folder that is made for it."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(words, capture_output=True, check=False).returncode
    ):
        pytest.skip("a disk cannot be mounted here (that takes root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_clock_that_jumps(plain: str, tmp_path: Path) -> None:
    """By an hour back at each look, and by a year on while it compiles."""
    assert trained(tmp_path / "here", sys.executable, "-c", JUMPS) == plain


@pytest.mark.parametrize(
    "environment",
    [{**ASCII, "PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "40"}, {"TERM": ""}],
)
def test_a_locale_and_a_terminal_that_know_little(
    environment: dict[str, str], plain: str, tmp_path: Path
) -> None:
    assert trained(tmp_path / "here", **environment) == plain


def test_no_network(plain: str, tmp_path: Path) -> None:
    alone = ["unshare", "--net"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("the network cannot be taken away here (that takes root)")
    assert trained(tmp_path / "here", *alone, *HERE) == plain


def test_a_tmp_that_is_full(plain: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "tmp", "size=4k") as full:
        with contextlib.suppress(OSError):
            (full / "filler").write_bytes(bytes(8192))
        assert trained(tmp_path / "here", TMPDIR=str(full)) == plain


def test_a_home_that_cannot_be_written(plain: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "home", "ro") as home:
        assert (
            trained(tmp_path / "here", HOME=str(home), XDG_CACHE_HOME="", XDG_CONFIG_HOME="")
            == plain
        )
        alone = {
            name: value
            for name, value in settings(1).items()
            if name not in ("TFDS_DATA_DIR", "JAXBIG_CACHE")
        }
        how = {
            "cwd": tmp_path / "here",
            "env": {**alone, "HOME": str(home)},
            "capture_output": True,
            "text": True,
        }
        other = [*HERE, *TRAIN, "--workdir=other"]
        done = subprocess.run(other, check=False, **how)  # type: ignore[call-overload]
        assert done.returncode == 2 and re.fullmatch(
            r"jaxbig: data set jaxbig_digits cannot be prepared in \S+: "
            r"Read-only file system; set TFDS_DATA_DIR .*\n",
            done.stderr,
        )


@pytest.mark.parametrize(("term", "columns"), [("xterm", 200), ("dumb", 40)])
def test_a_terminal(term: str, columns: int, plain: str, tmp_path: Path) -> None:
    """Nothing is wider than it, and a dumb one gets no codes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**settings(1), "TERM": term, "LC_ALL": "C.UTF-8"}
    environment = {
        name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")
    }
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    command = [*HERE, *TRAIN]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **streams)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal says that the other side is gone
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown
    text = shown.decode()
    if term == "dumb":
        assert "\x1b" not in text
    else:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= columns
    assert "digits_convnet is done" in text
    assert digest(tmp_path) == plain
