"""Connections between the processes of a run, by which each learns at once that another has ended, and why.

Process 0 listens where its coordinator does, the others connect and stay connected. When a process dies its system
closes the connection: so no limit of time has to be short, and a process that is merely slow is not given up. What
each is doing goes over it once a second, for the watchdog. All that is sent is a line of JSON.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jaxbig.errors import PEER_LOST, Failed

GRACE, TICK, SLOW = 1.0, 1.0, 5.0
"""Seconds: in which a process that hears of another's end may end by itself; between two tellings of what one does;
that sending may take, to one that does not read."""


class Lifeline:
    """One process's end of it. `heard`: for each other process known here, when it last spoke, its step, and what it
    was doing there."""

    def __init__(self, process: int, connections: dict[socket.socket, int | None], token: str = ""):
        self.process, self.token = process, token
        self.heard: dict[int, tuple[float, int, str]] = {}
        self.doing: tuple[int, str] = (0, "")
        self.lost, self.leaving = threading.Event(), False
        self.stuck: Callable[[str], None] = lambda text: None
        self._who, self._text = connections, dict.fromkeys(connections, "")
        self._left: set[int] = set()
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        for each in connections:
            self._selector.register(each, selectors.EVENT_READ)
        threading.Thread(target=self._live, daemon=True, name="lifeline").start()

    # -- what the run says

    def at(self, step: int, doing: str) -> None:
        """What this process does now."""
        self.doing = step, doing

    def leave(self, why: str = "", at_once: bool = False) -> None:
        """Tells the others that this process ends: empty where it has done its part, else why. at_once: it does so
        when this returns; then process 0, whose coordinator JAX would miss in the others, waits for them to go."""
        self.leaving = True
        self._send({"left": why})
        until = time.monotonic() + 3 * GRACE
        while at_once and self.process == 0 and self._who and time.monotonic() < until:
            time.sleep(0.05)

    def say_stuck(self, text: str) -> None:
        """Tells the others that the run is stuck, and where."""
        self._send({"stuck": text})

    # -- its thread

    def _live(self) -> None:
        told = 0.0
        while True:
            for key, _ in self._selector.select(TICK):
                self._read(key.fileobj)  # type: ignore[arg-type]
            if time.monotonic() - told >= TICK:
                told = time.monotonic()
                self._send({"at": self.doing})

    def _read(self, connection: socket.socket) -> None:
        if connection not in self._who:  # the one that listens
            new, _ = connection.accept()
            new.settimeout(SLOW)
            self._who[new], self._text[new] = None, ""
            self._selector.register(new, selectors.EVENT_READ)
            return
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(65536)
        if not data:
            return self._close(connection)
        *lines, self._text[connection] = (self._text[connection] + data.decode(errors="replace")).split("\n")
        for line in lines:
            try:
                self._hear(connection, json.loads(line))
            except (ValueError, TypeError, KeyError):
                return self._close(connection)  # a stranger

    def _close(self, connection: socket.socket) -> None:
        process = self._who.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if process is not None and process not in self._left:
            self._end(process, "died", 0)

    def _hear(self, connection: socket.socket, said: dict[str, Any]) -> None:
        process = self._who[connection]
        if process is None:  # it says first who it is
            if not secrets.compare_digest(said["token"], self.token):
                raise ValueError("no token of this run")
            self._who[connection] = int(said["process"])
        elif "at" in said:
            self.heard[process] = (time.monotonic(), *said["at"])
        elif "stuck" in said:
            self.lost.set()
            self.stuck(said["stuck"])
        elif "lost" in said:
            self._end(*said["lost"])
        elif "left" in said:
            self._left.add(process)
            if said["left"]:
                self._end(process, said["left"], GRACE)

    def _end(self, process: int, why: str, grace: float) -> None:
        """Ends this process because another has ended, unless it ends by itself before."""
        self.lost.set()
        self._send({"lost": [process, why, grace]})  # the others know of process 0 alone
        time.sleep(grace)
        if not self.leaving:
            print(f"jaxbig: process {process} {why}; process {self.process} leaves too", file=sys.stderr, flush=True)
            os._exit(PEER_LOST)

    def _send(self, what: dict[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        with self._lock:
            for connection, process in list(self._who.items()):
                if process is not None:
                    with contextlib.suppress(OSError):
                        connection.sendall(line)


_mine: Lifeline | None = None


def tie(process: int, host: str, publish: Callable[[str], None], find: Callable[[], str]) -> Lifeline | None:
    """This process's end, once; process 0 publishes where it listens, which the others find. None, and a word on
    standard error, where no connection can be made."""
    global _mine
    try:
        if process == 0:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = socket.create_server((host if is_mine(host) else "", 0), family=family, backlog=4096)
            token = secrets.token_hex(16)
            publish(json.dumps([server.getsockname()[1], token]))
            _mine = Lifeline(0, {}, token)
            _mine._selector.register(server, selectors.EVENT_READ)
        else:
            port, token = json.loads(find())
            connection = socket.create_connection((host, port), timeout=20)
            connection.settimeout(SLOW)
            connection.sendall(json.dumps({"token": token, "process": process}).encode() + b"\n")
            _mine = Lifeline(process, {connection: 0})
    except OSError as error:
        print(f"jaxbig: process {process} will notice late if another ends: {host}: {error}", file=sys.stderr)
        return None
    sys.excepthook = fail
    return _mine


def mine() -> Lifeline | None:
    """This process's end of the lifeline, if it is one of several."""
    return _mine


def is_mine(host: str) -> bool:
    """Whether an address is one of this machine."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as asked:
            asked.bind(address)
    except OSError:
        return False
    return True


def leave(why: str = "", at_once: bool = False) -> None:
    """Tells the other processes, if there are any, that this one ends."""
    if _mine is not None:
        _mine.leave(why, at_once)


def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends this process of several by an error, which it shows first; unless it comes of another one's end, which is
    said then in its place."""
    assert _mine is not None
    if _mine.lost.wait(0.5):
        time.sleep(GRACE + 1)  # its thread ends the process
    if isinstance(error, Failed):
        print(f"jaxbig: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(kind, error, trace)
    step, _ = _mine.doing
    where = f" at step {step}" if step else ""
    _mine.leave(f"raised {kind.__name__}{where}: {' '.join(str(error).split())[:300]}", at_once=True)
    os._exit(1)
