"""Sockets between the processes of a run: each learns at once when another exits, and why.

Process 0 listens on its coordinator's address; the others connect and stay connected. When a
process dies, its kernel closes the connection, so no timeout has to be short and a slow process is
not taken for dead. Each process sends its status once a second, for the watchdog. A message is one
line of JSON.
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
from typing import Any, NamedTuple

from jaxbig.errors import Failed
from jaxbig.system.exit_codes import PEER_LOST

GRACE_S = 1.0
"""Seconds in which a process can exit by itself after another one has announced its exit."""
STATUS_S = 1.0
"""Seconds between two status messages."""
SEND_S = 5.0
"""Seconds for a send to a peer that does not read, and for a new connection to identify itself."""
SILENT_S = 60.0
"""Seconds in which another machine's kernel must acknowledge, or the machine is taken for lost. A
pause, as while a virtual machine is moved, is shorter."""
MAX_UNIDENTIFIED = 64
"""Connections at most that have not identified themselves."""
MAX_LINE = 65536
"""Bytes of a message at most."""
UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
WAITS_FOR_OTHERS = "waits for another process"
waiting = threading.Event()
"""Set while this process only waits for a value from another process, whose own watchdog watches
it."""


class PeerStatus(NamedTuple):
    """What a process reported last."""

    received: float
    """When, on this process's monotonic clock."""
    step: int
    activity: str


class PeerMonitor:
    """One process's connections to its peers: all of them on process 0, only process 0 elsewhere.

    Args:
      process: the number of this process.
      connections: open connections, each with the number of its peer.
      token: the secret that a new connection must send first.
      server: the listening socket of process 0.
    """

    def __init__(
        self,
        process: int,
        connections: dict[socket.socket, int],
        token: str = "",
        server: socket.socket | None = None,
    ):
        self.process = process
        self.token = token
        self.statuses: dict[int, PeerStatus] = {}
        """The last status of each peer."""
        self.doing: tuple[int, str] = (0, "")
        """Step and activity of this process."""
        self.lost = threading.Event()
        """Set once another process has exited or hangs."""
        self.exiting = False
        self.on_hang: Callable[[str], None] = _ignore
        """Called with the message of a peer that hangs."""
        self._peers = connections
        self._unread = dict.fromkeys(connections, b"")
        self._unidentified: dict[socket.socket, float] = {}
        """New connections, each with the time until which it may identify itself."""
        self._server = server
        self._listening = False
        self._listen_from = 0.0
        self._exited: set[int] = set()
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._status_sent = 0.0
        self._reported: set[str] = set()
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ)
        threading.Thread(target=self._run, daemon=True, name="peer monitor").start()

    # -- called by the run

    def announce_exit(self, why: str = "", at_once: bool = False) -> None:
        """Informs the others that this process exits.

        Args:
          why: the cause; "" where it has done its part.
          at_once: it exits when this returns. Then process 0 waits for the others to go first, as
            JAX's runtime aborts a process that loses its coordinator.
        """
        self.exiting = True
        self._send({"exit": why})
        until = time.monotonic() + 3 * GRACE_S
        while at_once and self.process == 0 and self._peers and time.monotonic() < until:
            time.sleep(0.05)

    def announce_hang(self, text: str) -> None:
        """Informs the others that the run hangs, and where."""
        self.exiting = True  # by itself, not because of the others, which exit now
        self._send({"hang": text[: MAX_LINE // 8]})

    # -- the thread

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            # this thread must not end: exits of peers would be noticed late, and without a message
            except Exception as error:
                self._report(f"the peer monitor continues after {type(error).__name__}: {error}")
                time.sleep(STATUS_S)

    def _turn(self) -> None:
        self._listen()
        for key, _ in self._selector.select(STATUS_S):
            if key.fileobj is self._server:
                self._accept()
            else:
                self._read(key.fileobj)  # type: ignore[arg-type]
        if time.monotonic() - self._status_sent >= STATUS_S:
            self._status_sent = time.monotonic()
            step, activity = self.doing
            self._send({"status": (step, WAITS_FOR_OTHERS if waiting.is_set() else activity)})

    def _report(self, text: str) -> None:
        """Prints a message to standard error, once."""
        if text not in self._reported:
            self._reported.add(text)
            print(f"jaxbig: process {self.process}: {text}", file=sys.stderr, flush=True)

    def _listen(self) -> None:
        """Listens while few connections are unidentified; closes those that take too long."""
        now = time.monotonic()
        for connection in [each for each, until in self._unidentified.items() if until < now]:
            self._close(connection)
        if (
            self._server is not None
            and not self._listening
            and len(self._unidentified) < MAX_UNIDENTIFIED
            and now >= self._listen_from
        ):
            self._selector.register(self._server, selectors.EVENT_READ)
            self._listening = True

    def _pause(self, seconds: float = 0.0) -> None:
        """Stops listening; new connections wait in the kernel's queue."""
        assert self._server is not None
        self._selector.unregister(self._server)
        self._listening = False
        self._listen_from = time.monotonic() + seconds

    def _accept(self) -> None:
        assert self._server is not None
        try:
            new, _ = self._server.accept()
        except OSError as error:
            self._report(
                f"cannot accept connections of other processes now: {error.strerror} "
                f"(see `ulimit -n`)"
            )
            return self._pause(STATUS_S)
        set_timeouts(new)
        self._unidentified[new] = time.monotonic() + SEND_S
        self._unread[new] = b""
        self._selector.register(new, selectors.EVENT_READ)
        if len(self._unidentified) >= MAX_UNIDENTIFIED:
            self._pause()

    def _read(self, connection: socket.socket) -> None:
        if connection not in self._unread:
            return  # closed in this turn
        data = b""
        why = "died"
        try:
            data = connection.recv(MAX_LINE)
        except OSError as error:
            if error.errno in UNREACHABLE:
                why = f"cannot be reached ({error.strerror})"
        if not data:
            return self._close(connection, why)
        *lines, rest = (self._unread[connection] + data).split(b"\n")
        self._unread[connection] = rest
        for line in lines:
            try:
                self._receive(connection, json.loads(line))
            except Exception as error:
                return self._close(
                    connection, f"sent an invalid message ({type(error).__name__}: {error})"
                )
        if len(rest) > MAX_LINE:
            self._close(connection, f"sent a line of more than {MAX_LINE} bytes")

    def _close(self, connection: socket.socket, why: str = "") -> None:
        process = self._peers.pop(connection, None)
        self._unidentified.pop(connection, None)
        self._unread.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if process is not None and process not in self._exited:
            self._on_peer_exit(process, why, 0)

    def _receive(self, connection: socket.socket, message: dict[str, Any]) -> None:
        process = self._peers.get(connection)
        if process is None:  # the first message identifies the process
            if not secrets.compare_digest(message["token"], self.token):
                raise ValueError("no token of this run")
            self._peers[connection] = int(message["process"])
            del self._unidentified[connection]
        elif "status" in message:
            self.statuses[process] = PeerStatus(time.monotonic(), *message["status"])
        elif "hang" in message:
            self.lost.set()
            self.on_hang(message["hang"])
        elif "lost" in message:
            self._on_peer_exit(*message["lost"])
        elif "exit" in message:
            self._exited.add(process)
            if message["exit"]:
                self._on_peer_exit(process, message["exit"], GRACE_S)

    def _on_peer_exit(self, process: int, why: str, grace: float) -> None:
        """Exits because another process has, unless this one exits by itself before."""
        self.lost.set()
        self._send({"lost": [process, why, grace]})  # the others are connected to process 0 only
        time.sleep(grace)
        if not self.exiting:
            print(
                f"jaxbig: process {process} {why}; process {self.process} exits too",
                file=sys.stderr,
                flush=True,
            )
            os._exit(PEER_LOST)

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            for connection in list(self._peers):
                with contextlib.suppress(OSError):
                    connection.sendall(line)


def _ignore(text: str) -> None:
    pass


_current: PeerMonitor | None = None


def connect(
    process: int, host: str, *, publish: Callable[[str], None], find: Callable[[], str]
) -> PeerMonitor | None:
    """Connects this process to its peers, once.

    Args:
      process: its number.
      host: the coordinator's host.
      publish: on process 0, publishes its address and token.
      find: elsewhere, returns what process 0 has published.

    Returns:
      This process's monitor; None, after a warning on standard error, if it cannot connect.
    """
    global _current
    try:
        if process == 0:
            raise_file_limit()
            address = own_address(host) or address_towards(host)
            token = secrets.token_hex(16)
            server = listen(address)
            publish(json.dumps([address or host, server.getsockname()[1], token]))
            _current = PeerMonitor(0, {}, token, server)
        else:
            address, port, token = json.loads(find())
            connection = socket.create_connection((address, port), timeout=20)
            set_timeouts(connection)
            connection.sendall(json.dumps({"token": token, "process": process}).encode() + b"\n")
            _current = PeerMonitor(process, {connection: 0})
    except (OSError, RuntimeError) as error:  # JAX's, where process 0 has published nothing
        print(
            f"jaxbig: process {process} will notice late if another process exits: {host}: {error}",
            file=sys.stderr,
        )
        return None
    sys.excepthook = exit_with_error
    return _current


def current() -> PeerMonitor | None:
    """This process's monitor; None in a run of one process."""
    return _current


def own_address(host: str) -> str:
    """The address of this machine that a name resolves to.

    "" if it resolves to none, or to the loopback without being called so (Debian's 127.0.1.1),
    which other machines could not reach.
    """
    for family, *_, address in _addresses(host):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(address)
            return _reachable(address[0], host)
    return ""


def address_towards(host: str) -> str:
    """This machine's address on the route to a host, such as a proxy; "" if there is none."""
    for family, *_, address in _addresses(host):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.connect((address[0], 9))  # sends nothing
            return _reachable(trial.getsockname()[0], host)
    return ""


def _addresses(host: str) -> list[Any]:
    with contextlib.suppress(OSError, UnicodeError):
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return []


def _reachable(address: str, host: str) -> str:
    loopback = ipaddress.ip_address(address).is_loopback
    if loopback and host not in ("localhost", "::1") and not host.startswith("127."):
        return ""
    return address


def listen(address: str) -> socket.socket:
    """Listens on a free port of an address; "": of all addresses (only IPv4 if IPv6 is missing)."""
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=4096)


def set_timeouts(connection: socket.socket) -> None:
    """Makes the kernel close a connection whose other machine vanishes, e.g. loses its power.

    The kernel acknowledges for a process that is only stopped or slow. A message is sent every
    `STATUS_S`, so what counts is how long one may stay unacknowledged; the keepalive is for systems
    without that limit.
    """
    connection.settimeout(SEND_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {
        "TCP_USER_TIMEOUT": 1000 * SILENT_S,
        "TCP_KEEPIDLE": SILENT_S / 2,
        "TCP_KEEPINTVL": SILENT_S / 8,
        "TCP_KEEPCNT": 4,
    }
    for name, limit in limits.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, int(limit)))


def raise_file_limit(most: int = 65536) -> None:
    """Raises this process's limit of open files: process 0 has two connections to each other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < want:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def announce_exit(why: str = "", at_once: bool = False) -> None:
    """Informs the other processes, if there are any, that this one exits."""
    if _current is not None:
        _current.announce_exit(why, at_once)


def exit_with_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an error, informs the other processes and exits (an excepthook).

    If the error follows from another process's exit, the monitor reports that instead.
    """
    assert _current is not None
    if _current.lost.wait(0.5):
        time.sleep(GRACE_S + 1)  # the monitor's thread ends the process
    if isinstance(error, Failed):
        print(f"jaxbig: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(kind, error, trace)
    step, _ = _current.doing
    where = f" at step {step}" if step else ""
    _current.announce_exit(
        f"raised {kind.__name__}{where}: {' '.join(str(error).split())[:300]}", at_once=True
    )
    os._exit(1)
