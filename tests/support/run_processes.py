"""`jaxbig ...` as one or several processes, from their start to their end."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import fork_server
from support.compiling import COMPILED, HASTY_BITS
from support.timing import crowded

MODEL = [
    f"--model.layers.{layer}=8" for layer in ("0.channels", "1.channels", "4.channels", "7.width")
]
RUN = ["train", "digits_convnet", "--workdir=run", "--log-every=1", "--data.batch=32", *MODEL]
STRUCK = str(Path(__file__).with_name("inject.py"))


def settings(devices: int) -> dict[str, str]:
    """The environment of a process with that many CPU devices, with fewer optimizations.

    On one device, programs are compiled once and cached.
    """
    return {
        **os.environ,
        **HASTY_BITS,
        "JAX_NUM_CPU_DEVICES": str(devices),
        **(COMPILED if devices == 1 else {}),
    }


class Life:
    """`jaxbig ...` as several processes, from their start to their end."""

    def __init__(
        self,
        folder: Path,
        count: int,
        devices: int,
        *arguments: str,
        struck: dict[int, tuple[str, ...]] | None = None,
    ):
        struck = struck or {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count)]
        cached = {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")
        }  # as a user would, to start sooner
        cached |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        self.run = folder / "run"
        self.processes = [
            fork_server.Process(
                *struck.get(number, ()),
                *arguments,
                *([*together, "--process", str(number)] if count > 1 else []),
                cwd=folder,
                env={**settings(devices), **cached},
                script=STRUCK if number in struck else "",
                together=True,
                number=number,
            )
            for number in range(count)
        ]

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for it while all live; whether it came."""
        while self.alive():
            if condition():
                return True
            time.sleep(0.01)
        return False

    def end(self, seconds: float = 120) -> list[tuple[int, str]]:
        """The code and the words of each; nobody helps them to end."""
        try:
            said = [process.communicate(timeout=crowded(seconds))[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [
            (process.returncode, text) for process, text in zip(self.processes, said, strict=True)
        ]

    def step(self) -> int:
        """The last step that was logged."""
        file = self.run / "metrics.jsonl"
        whole = file.read_text().split("\n")[:-1] if file.exists() else []
        return json.loads(whole[-1])["step"] if whole else 0


def done(folder: Path, count: int, devices: int, *arguments: str) -> dict[str, Any]:
    """The summary of a run that is left alone to its end."""
    folder.mkdir(exist_ok=True)
    said = Life(folder, count, devices, *arguments).end(600)
    assert [code for code, _ in said] == [0] * count, said
    return json.loads((folder / "run" / "summary.json").read_text())
