"""Standard output and error whose reader has gone, or which cannot show a character."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.experiments import ROOT

from jaxbig.system import standard_streams
from jaxbig.system.standard_streams import Stream, pipe_safe

PRINTS = """
import logging, os, sys
from jaxbig.system.standard_streams import install_pipe_safe_streams
from jaxbig.tracking.console import Screen, table
install_pipe_safe_streams()
screen = Screen({json}).with_log()
screen.start(0, 1000)
for step in range(2000):
    print("to standard output", step)
    print("to standard error", step, file=sys.stderr)
    screen.say(f"said {{step}}")
    logging.getLogger("jaxbig").warning("logged %s", step)
    screen.evaluation(step, {{"loss": 0.5}})
table([{{"a": 1}}], "title")
os.write(1, b"by a library")
open({done!r}, "w").write("to its end")
"""


@pytest.mark.slow
@pytest.mark.parametrize("json_only", [False, True])
@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_a_pipe_whose_reader_has_gone_ends_nothing(
    closed: str, json_only: bool, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    code = PRINTS.format(json=json_only, done=str(done))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes |= {"stderr": subprocess.STDOUT} if closed == "both" else {}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes
    )
    gone = process.stdout if closed in ("stdout", "both") else process.stderr
    assert gone is not None
    gone.readline()
    gone.close()
    other = process.stderr if closed == "stdout" else process.stdout if closed == "stderr" else None
    said = other.read().decode() if other else ""
    assert process.wait(timeout=60) == 0 and done.read_text() == "to its end"
    assert "Broken pipe" not in said and "Traceback" not in said and "Exception" not in said


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_once_nobody_reads_what_is_written_is_discarded(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    stream = Stream(write)
    assert stream.write(b"seen") == 4 and os.read(read, 4) == b"seen"
    os.close(read)
    with monkeypatch.context() as patched:
        patched.setattr(standard_streams, "NO_READER", (number,))
        if number != errno.EPIPE:  # this pipe says EPIPE
            with pytest.raises(BrokenPipeError):
                stream.write(b"lost")
    assert stream.write(b"lost") == 4
    assert os.write(write, b"lost too") == 8  # of a library that writes to the descriptor itself
    os.close(write)


def test_a_disk_that_is_full_is_no_reader_that_has_gone() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left"),
    ):
        Stream(full.fileno()).write(b"x")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "é \\udcff"), ("ascii", "\\xe9 \\udcff")]
)
def test_a_character_that_cannot_be_written_is_escaped(
    encoding: str, shown: str, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        print("é \udcff", file=pipe_safe(file), flush=True)
    assert (tmp_path / "out").read_text(encoding=encoding) == f"{shown}\n"


@pytest.mark.parametrize(
    "words", [["show", "digits_convnet", "--json"], ["--help"], ["show", "digits_vit", "--help"]]
)
def test_head_of_a_command_is_quiet(words: list[str], tmp_path: Path) -> None:
    command = f"{sys.executable} -m jaxbig {' '.join(words)} | head -c 1 >/dev/null; "
    command += "echo ${PIPESTATUS[0]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
def test_a_run_piped_into_head_trains_to_its_end(pipe: str, tmp_path: Path) -> None:
    """It was ended by rich at its first evaluation, with exit code 1 and nothing saved."""
    train = "train diabetes_mlp --steps 200 --evaluate-every 10 --workdir run"
    command = f"{sys.executable} -m jaxbig {train} {pipe} head -n 2; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 200


def test_line_on_standard_error_is_there_at_once() -> None:
    script = "import sys, time\nfrom jaxbig.system.standard_streams import *\n"
    script += "install_pipe_safe_streams()\n"
    script += "print('waits', file=sys.stderr); time.sleep(60)"
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waits\n"
        process.kill()
    assert time.monotonic() - began < 30
