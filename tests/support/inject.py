"""`jaxbig ...` with a fault injected once, when it calls a function for the Nth time.

    python struck.py MODULE[:CLASS] FUNCTION N WHAT jaxbig's arguments

WHAT is a signal, which it sends itself; `raise`; or `sleep`, for ten minutes. It prints "struck"
and the time.
"""

import importlib
import os
import signal
import sys
import time
from typing import Any

from jaxbig.__main__ import main

place, name, number, what, *arguments = sys.argv[1:]
module, _, owner = place.partition(":")
owner_object = (
    getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
)
plain = getattr(owner_object, name)
calls = 0


def struck(*given: Any, **named: Any) -> Any:
    global calls
    calls += 1
    if calls == int(number):
        print("struck", time.monotonic(), file=sys.stderr, flush=True)
        if what == "raise":
            raise KeyError("planted")
        if what == "sleep":
            time.sleep(600)
        else:
            os.kill(os.getpid(), getattr(signal, what))
    return plain(*given, **named)


if __name__ == "__main__":
    setattr(owner_object, name, struck)
    sys.argv[1:] = arguments
    main()
