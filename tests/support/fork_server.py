"""`jaxbig ...` as a process of its own that has its imports already, which take three seconds.

A server with jaxbig imported, which touches no device, forks for each. It is a process beside each
worker of pytest, and no child of it: tests look at their children. What is forked has its own
arguments, environment, folder, files and process id, and ends as any process does. Only Python's
random seed of hashes is the server's: the processes of one run are forked from two servers, so that
they differ in it as on a cluster.
"""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MESSAGE = 1 << 20  # bytes, with a whole environment


class Process:
    """`python -m jaxbig ARGUMENTS`, or a script, as `subprocess.Popen` would start it.

    What it writes goes to files: it never waits for a reader.
    """

    returncode: Any = None

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        env: Mapping[str, str],
        script: str = "",
        together: bool = False,
        number: int = 0,
    ):
        """together: standard error goes where standard output goes. number: of a run's process."""
        self.args = [*map(str, arguments)]
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as this
        self._err = self._out if together else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._server = _server(number % 2)
        self.pid = _ask(
            self._server,
            {"arguments": self.args, "cwd": str(cwd), "env": dict(env), "script": script},
            [self._out.fileno(), self._err.fileno()],
        )
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> Any:
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = _ask(self._server, {"wait": self.pid})
            os.close(self._ended)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; all that it wrote, also when asked again."""
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.poll()
        said = []
        for file in (self._out, self._err):
            file.seek(0)
            said.append(file.read())
        return said[0], "" if self._err is self._out else said[1]

    def wait(self, timeout: float | None = None) -> int:
        self.communicate(timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run(
    *arguments: object, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """The same as `subprocess.run`: to its end, and killed where it takes longer."""
    process = Process(*arguments, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@functools.cache
def _server(number: int) -> socket.socket:
    """A connection to one of the servers of this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.run(
        [sys.executable, "-P", __file__, str(its.fileno())],
        pass_fds=[its.fileno()],
        env={name: os.environ[name] for name in os.environ if not name.startswith("JAX_")},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    its.close()
    return ours  # when it is closed, as this process ends, the server ends


def _ask(server: socket.socket, request: dict[str, Any], files: Sequence[int] = ()) -> int:
    socket.send_fds(server, [json.dumps(request).encode()], files)
    return json.loads(server.recv(MESSAGE))


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Forks for each request; in what is forked it returns the request."""
    while True:
        text, files, _, _ = socket.recv_fds(connection, MESSAGE, 2)
        if not text:
            sys.exit()
        request = json.loads(text)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                for stream, file in enumerate(files, start=1):
                    os.dup2(file, stream)
                    os.close(file)
                return request
            for file in files:
                os.close(file)
        connection.send(json.dumps(answer).encode())


def _become(request: dict[str, Any]) -> None:
    """Takes over the folder, environment and arguments that were asked for."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for name in request["env"]:  # jax read its variables when it was imported
        if (option := name.lower()) in jax.config.values:
            kind = type(jax.config.values[option])
            value = request["env"][name]
            jax.config.update(option, _parsed(value, kind))
    sys.argv = [request["script"] or "jaxbig", *request["arguments"]]
    # as `python -m` and `python SCRIPT` have it
    sys.path.insert(0, os.path.dirname(request["script"]) or request["cwd"])


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        return text.lower() in ("1", "true", "yes", "on")
    return kind(text) if kind in (int, float) else text


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    import gc
    import importlib
    import pkgutil
    import runpy

    import jax

    import jaxbig

    for module in pkgutil.walk_packages(jaxbig.__path__, "jaxbig."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # collections do not write to what is shared
    gc.set_threshold(100_000, 20, 20)  # as in conftest.py
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(request)
    if request["script"]:
        runpy.run_path(request["script"], run_name="__main__")
    else:
        runpy.run_module("jaxbig", run_name="__main__", alter_sys=True)
