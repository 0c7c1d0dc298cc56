"""Child processes end with their parent, also where it has died before they could ask for that."""

import functools
import os
import signal
import subprocess
import sys

import pytest

from jaxbig.system import child_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
COMMAND = [sys.executable, "-c", "print('ran')"]


def test_a_child_of_a_parent_that_lives_runs() -> None:
    child = child_processes.spawn(COMMAND, {}, subprocess.PIPE, None)
    assert child.communicate(timeout=60) == (b"ran\n", None) and child.returncode == 0


def test_a_child_whose_parent_died_while_it_was_started_does_not_run() -> None:
    parent = os.getppid()  # any but this process
    child = subprocess.run(
        COMMAND,
        preexec_fn=functools.partial(child_processes._die_with, parent),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, b"")
