"""Errors that Python cannot raise, as they occur inside a destructor or a garbage collection."""

import os
import signal
import sys
import threading
from typing import Any

REPEAT_S = 0.05
"""Seconds until a lost Ctrl-C is sent again: the garbage collection has ended by then."""


def install_unraisable_hook() -> None:
    """Sends a Ctrl-C again that was lost in a garbage collection, and hides one message of Orbax.

    jax calls Python code in each garbage collection. Python prints a KeyboardInterrupt that is
    raised there and does no more.
    """
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(unraisable: Any) -> None:
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(REPEAT_S, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif str(unraisable.exc_value) != "Event loop is closed":  # Orbax's, after a failed save
        sys.__unraisablehook__(unraisable)
