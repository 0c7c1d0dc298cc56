"""A Ctrl-C inside a garbage collection is not lost."""

import subprocess
import sys

import pytest

INTERRUPTED = """
import gc, signal, time
from jaxbig.system.unraisable import install_unraisable_hook

def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGINT)

install_unraisable_hook()
gc.callbacks.append(callback)
try:
    gc.collect()
    {after}
except KeyboardInterrupt:
    print("stopped")
"""
MESSAGE = """
from jaxbig.system.unraisable import install_unraisable_hook

class Leaving:
    def __del__(self):
        raise RuntimeError({text!r})

install_unraisable_hook()
Leaving()
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("after", ["time.sleep(30)", "while True: pass"])
def test_ctrl_c_in_a_garbage_collection_is_raised_after_it(after: str) -> None:
    done = run(INTERRUPTED.format(after=after))
    assert (done.stdout, done.stderr) == ("stopped\n", "")


@pytest.mark.parametrize(("text", "shown"), [("Event loop is closed", False), ("wrong", True)])
def test_other_errors_are_printed_but_one(text: str, shown: bool) -> None:
    assert (f"RuntimeError: {text}" in run(MESSAGE.format(text=text)).stderr) == shown
