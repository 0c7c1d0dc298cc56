"""Connections between the processes of a run, by which each learns at once that another has ended, and why.

Process 0 listens where its coordinator does, the others connect and stay connected. When a process dies its system
closes the connection: so no limit of time has to be short, and a process that is merely slow is not given up. What
each is doing goes over it once a second, for the watchdog. All that is sent is a line of JSON.
"""

import contextlib
import errno
import ipaddress
import json
import os
import resource
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
that sending may take, to one that does not read, or a stranger to say who it is."""
SILENT = 60.0
"""Seconds in which a machine must answer, or it has vanished; one that pauses, as while it is moved, takes less."""
STRANGERS, LINE = 64, 65536
"""Connections at most that have not said who they are; bytes of a line."""
VANISHED = errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH
WAITS_FOR_OTHERS = "waits for another process"
waiting = threading.Event()
"""Set while this process does nothing but wait for what another one says, which that one's watchdog watches over."""


class PeerMonitor:
    """One process's end of it. `heard`: for each other process known here, when it last spoke, its step, and what it
    was doing there."""

    def __init__(
        self,
        process: int,
        connections: dict[socket.socket, int],
        token: str = "",
        server: socket.socket | None = None,
    ):
        self.process, self.token = process, token
        self.heard: dict[int, tuple[float, int, str]] = {}
        self.doing: tuple[int, str] = (0, "")
        self.lost, self.leaving = threading.Event(), False
        self.stuck: Callable[[str], None] = lambda text: None
        self._who, self._text = connections, dict.fromkeys(connections, b"")
        self._strangers: dict[
            socket.socket, float
        ] = {}  # who have not said who they are, and until when they may
        self._server, self._listening, self._again = server, False, 0.0
        self._left: set[int] = set()
        self._lock = threading.Lock()
        self._selector, self._told, self._said = selectors.DefaultSelector(), 0.0, set()
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
        self.leaving = True  # by itself, and not because of the others, who leave now
        self._send({"stuck": text[: LINE // 8]})

    # -- its thread

    def _live(self) -> None:
        while True:
            try:
                self._turn()
            except (
                Exception
            ) as error:  # it must not end, or deaths would be noticed late and without a word
                self._report(f"the lifeline goes on after {type(error).__name__}: {error}")
                time.sleep(TICK)

    def _turn(self) -> None:
        self._listen()
        for key, _ in self._selector.select(TICK):
            self._accept() if key.fileobj is self._server else self._read(key.fileobj)  # type: ignore[arg-type]
        if time.monotonic() - self._told >= TICK:
            self._told = time.monotonic()
            step, doing = self.doing
            self._send({"at": (step, WAITS_FOR_OTHERS if waiting.is_set() else doing)})

    def _report(self, text: str) -> None:
        """Once, on standard error."""
        if text not in self._said:
            self._said.add(text)
            print(f"jaxbig: process {self.process}: {text}", file=sys.stderr, flush=True)

    def _listen(self) -> None:
        """Listens while strangers are few, and gives up those that do not say who they are."""
        now = time.monotonic()
        for each in [each for each, until in self._strangers.items() if until < now]:
            self._close(each)
        if (
            self._server is not None
            and not self._listening
            and len(self._strangers) < STRANGERS
            and now >= self._again
        ):
            self._selector.register(self._server, selectors.EVENT_READ)
            self._listening = True

    def _pause(self, seconds: float = 0.0) -> None:
        """Whoever connects meanwhile waits in the system's queue."""
        assert self._server is not None
        self._selector.unregister(self._server)
        self._listening, self._again = False, time.monotonic() + seconds

    def _accept(self) -> None:
        assert self._server is not None
        try:
            new, _ = self._server.accept()
        except OSError as error:
            self._report(
                f"cannot accept the connections of other processes now: {error.strerror} (see `ulimit -n`)"
            )
            return self._pause(TICK)
        set_timeouts(new)
        self._strangers[new], self._text[new] = time.monotonic() + SLOW, b""
        self._selector.register(new, selectors.EVENT_READ)
        if len(self._strangers) >= STRANGERS:
            self._pause()

    def _read(self, connection: socket.socket) -> None:
        if connection not in self._text:
            return  # closed in this turn
        data, why = b"", "died"
        try:
            data = connection.recv(LINE)
        except OSError as error:
            if error.errno in VANISHED:
                why = f"cannot be reached ({error.strerror})"
        if not data:
            return self._close(connection, why)
        *lines, rest = (self._text[connection] + data).split(b"\n")
        self._text[connection] = rest
        for line in lines:
            try:
                self._hear(connection, json.loads(line))
            except Exception as error:
                return self._close(
                    connection, f"sent what is no message ({type(error).__name__}: {error})"
                )
        if len(rest) > LINE:
            self._close(connection, f"sent a line of more than {LINE} bytes")

    def _close(self, connection: socket.socket, why: str = "") -> None:
        process = self._who.pop(connection, None)
        self._strangers.pop(connection, None)
        self._text.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if process is not None and process not in self._left:
            self._end(process, why, 0)

    def _hear(self, connection: socket.socket, said: dict[str, Any]) -> None:
        process = self._who.get(connection)
        if process is None:  # it says first who it is
            if not secrets.compare_digest(said["token"], self.token):
                raise ValueError("no token of this run")
            self._who[connection] = int(said["process"])
            del self._strangers[connection]
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
            print(
                f"jaxbig: process {process} {why}; process {self.process} leaves too",
                file=sys.stderr,
                flush=True,
            )
            os._exit(PEER_LOST)

    def _send(self, what: dict[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        with self._lock:
            for connection in list(self._who):
                with contextlib.suppress(OSError):
                    connection.sendall(line)


_mine: PeerMonitor | None = None


def connect(
    process: int, host: str, publish: Callable[[str], None], find: Callable[[], str]
) -> PeerMonitor | None:
    """This process's end, once; process 0 publishes where it listens, which the others find. None, and a word on
    standard error, where no connection can be made."""
    global _mine
    try:
        if process == 0:
            raise_file_limit()
            address, token = own_address(host) or address_towards(host), secrets.token_hex(16)
            server = listen(address)
            publish(json.dumps([address or host, server.getsockname()[1], token]))
            _mine = PeerMonitor(0, {}, token, server)
        else:
            address, port, token = json.loads(find())
            connection = socket.create_connection((address, port), timeout=20)
            set_timeouts(connection)
            connection.sendall(json.dumps({"token": token, "process": process}).encode() + b"\n")
            _mine = PeerMonitor(process, {connection: 0})
    except (OSError, RuntimeError) as error:  # JAX's, where process 0 has published nothing
        print(
            f"jaxbig: process {process} will notice late if another ends: {host}: {error}",
            file=sys.stderr,
        )
        return None
    sys.excepthook = exit_with_error
    return _mine


def current() -> PeerMonitor | None:
    """This process's end of the lifeline, if it is one of several."""
    return _mine


def own_address(host: str) -> str:
    """The address of this machine that a name stands for; "" if it stands for none, or for the loopback without being
    called so, as Debian's 127.0.1.1, which other machines could not reach."""
    for family, *_, place in _addresses(host):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as asked:
            asked.bind(place)
            return _reachable(place[0], host)
    return ""


def address_towards(host: str) -> str:
    """This machine's address on the way to that of a name, such as a proxy's; "" if there is none or it is hidden."""
    for family, *_, place in _addresses(host):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((place[0], 9))  # sends nothing
            return _reachable(asked.getsockname()[0], host)
    return ""


def _addresses(host: str) -> list[Any]:
    with contextlib.suppress(OSError, UnicodeError):
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return []


def _reachable(address: str, host: str) -> str:
    loopback = ipaddress.ip_address(address).is_loopback
    return (
        ""
        if loopback and host not in ("localhost", "::1") and not host.startswith("127.")
        else address
    )


def listen(address: str) -> socket.socket:
    """Listens on a free port of an address; "": of all, where IPv6 is missing those of IPv4."""
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=4096)


def set_timeouts(connection: socket.socket) -> None:
    """Lets the system close a connection whose other machine has vanished without a word, as one that lost its power.

    The system answers for a process that is only stopped or slow. Something is sent each `TICK`, so what counts is how
    long that may stay unanswered; the keepalive is for systems without that limit.
    """
    connection.settimeout(SLOW)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {
        "TCP_USER_TIMEOUT": 1000 * SILENT,
        "TCP_KEEPIDLE": SILENT / 2,
        "TCP_KEEPINTVL": SILENT / 8,
    }
    for name, limit in {**limits, "TCP_KEEPCNT": 4}.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, int(limit)))


def raise_file_limit(most: int = 65536) -> None:
    """As many open files as this process may have: process 0 has two connections to each of the others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < want:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def announce_exit(why: str = "", at_once: bool = False) -> None:
    """Tells the other processes, if there are any, that this one ends."""
    if _mine is not None:
        _mine.leave(why, at_once)


def exit_with_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
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
    _mine.leave(
        f"raised {kind.__name__}{where}: {' '.join(str(error).split())[:300]}", at_once=True
    )
    os._exit(1)
