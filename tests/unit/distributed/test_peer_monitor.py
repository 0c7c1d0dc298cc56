"""The peer monitor under network faults, foreign connections and limits of the system."""

import ctypes
import errno
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxbig.distributed import peer_monitor
from jaxbig.distributed.peer_monitor import (
    PeerMonitor,
    address_towards,
    listen,
    own_address,
    raise_file_limit,
    set_timeouts,
)


class RecordingMonitor(PeerMonitor):
    """Records which process exited and why, and does not exit itself."""

    ended: tuple[int, str] | None = None

    def _on_peer_exit(self, process: int, why: str, grace: float) -> None:
        self.ended = process, why


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listen("127.0.0.1") as one:
        yield one


@pytest.fixture
def zero(server: socket.socket) -> RecordingMonitor:
    """Process 0's monitor; its thread ends with the tests."""
    return RecordingMonitor(0, {}, "secret", server)


def until(condition: Callable[[], object], seconds: float = 10) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return bool(condition())


def connect(server: socket.socket) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=10)


def peer(server: socket.socket, process: int = 1) -> socket.socket:
    """A process of the run."""
    connection = connect(server)
    connection.sendall(json.dumps({"token": "secret", "process": process}).encode() + b"\n")
    return connection


def is_received(zero: PeerMonitor, connection: socket.socket, process: int = 1) -> bool:
    """Whether process 0 still receives the status of a process."""
    step = zero.statuses[process].step + 1 if process in zero.statuses else 1
    connection.sendall(json.dumps({"status": [step, "steps"]}).encode() + b"\n")
    return until(lambda: process in zero.statuses and zero.statuses[process].step == step)


# -- foreign connections

LINES = {
    "deep JSON": b"[" * 200_000 + b"\n",
    "JSON that is just too deep": b"[" * 5_000 + b"\n",
    "20 MB in one line": b"x" * 20_000_000,
    "invalid UTF-8": b"\xff\xfe\n",
    "a number": b"1\n",
    "nothing": b"\n",
    "NaN": b'{"token": NaN}\n',
    "another token": b'{"token": "\xc3\xa9", "process": 1}\n',
    "an invalid process": b'{"token": "secret", "process": []}\n',
    "a message before the token": b'{"exit": "ended"}\n',
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_foreign_connection_is_closed_and_a_process_of_the_run_is_received_afterwards(
    zero: RecordingMonitor, server: socket.socket, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(server) as foreign, peer(server) as process:
        try:
            foreign.sendall(line)
            assert foreign.recv(1) == b""
        except ConnectionError:
            pass  # closed with some of it unread
        assert is_received(zero, process) and zero.ended is None
        assert max(map(len, zero._unread.values())) <= peer_monitor.MAX_LINE
    assert capsys.readouterr().err == ""


def test_silent_connections_are_limited_and_closed_and_a_waiting_process_is_accepted(
    zero: RecordingMonitor, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_monitor, "MAX_UNIDENTIFIED", 4)
    monkeypatch.setattr(peer_monitor, "SEND_S", 0.5)
    silent = [connect(server) for _ in range(10)]
    with peer(server) as process:
        most = 0
        deadline = time.monotonic() + 20
        while 1 not in zero._peers.values() and time.monotonic() < deadline:
            most = max(most, len(zero._unidentified))
            time.sleep(0.005)
        assert most == 4 and is_received(zero, process)
        assert until(lambda: not zero._unidentified)
    for each in silent:
        each.close()


# -- limits of the system


def test_connections_without_a_free_file_descriptor_are_accepted_later(
    zero: RecordingMonitor,
    server: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peer_monitor, "STATUS_S", 0.1)
    accept = socket.socket.accept
    full = [True]

    def accepting(self: socket.socket) -> Any:
        if full[0]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accepting)
    with peer(server, 1) as first, peer(server, 2) as second:
        time.sleep(0.5)
        assert not zero._peers
        full[0] = False
        assert is_received(zero, first, 1) and is_received(zero, second, 2)
    assert capsys.readouterr().err.count("Too many open files (see `ulimit -n`)") == 1  # once


def test_error_in_the_thread_is_reported_and_the_monitor_continues(
    zero: RecordingMonitor,
    server: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peer_monitor, "STATUS_S", 0.05)
    with peer(server) as process:
        assert is_received(zero, process)
        fails = [True]
        send = zero._send
        monkeypatch.setattr(zero, "_send", lambda what: 1 / 0 if fails[0] else send(what))
        time.sleep(0.5)
        fails[0] = False
        assert is_received(zero, process)
        process.close()
        assert until(lambda: zero.ended == (1, "died"))
    assert capsys.readouterr().err.count("continues after ZeroDivisionError: division by zero") == 1


def test_file_limit_is_raised_to_what_the_system_allows() -> None:
    show = "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))\n"
    code = "import resource; from jaxbig.distributed.peer_monitor import raise_file_limit\n"
    code += f"{lower}raise_file_limit()\n{show}"
    code += f"{lower}raise_file_limit(200)\n{show}"
    code += f"raise_file_limit(100)\n{show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(300, 300)", "(200, 300)", "(200, 300)"]
    raise_file_limit(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )  # already as many: nothing changes


# -- machines that vanish


def test_connection_has_the_timeouts_for_a_vanished_machine() -> None:
    with listen("127.0.0.1") as server, connect(server) as one:
        set_timeouts(one)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def drop_packets(connection: socket.socket) -> None:
    """The kernel drops all packets for this socket, as if its machine had lost its power."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    drop = ctypes.create_string_buffer(
        struct.pack("HBBI", 0x06, 0, 0, 0), 8
    )  # BPF: return 0 bytes of each packet
    program = Program(1, ctypes.addressof(drop))
    so_attach_filter = 26
    connection.setsockopt(socket.SOL_SOCKET, so_attach_filter, bytes(program))


def test_machine_that_vanishes_is_noticed_and_named(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, noticed: Callable[[float], None]
) -> None:
    """Its kernel sends no FIN and acknowledges nothing."""
    monkeypatch.setattr(peer_monitor, "SILENT_S", 1.0)
    monkeypatch.setattr(peer_monitor, "STATUS_S", 0.1)
    zero = RecordingMonitor(0, {}, "secret", server)
    with peer(server) as process:
        assert is_received(zero, process)
        drop_packets(process)
        began = time.monotonic()
        assert until(lambda: zero.ended, 20)
        noticed(time.monotonic() - began)
        assert zero.ended == (1, f"cannot be reached ({os.strerror(errno.ETIMEDOUT)})")


def test_stopped_process_is_not_taken_for_dead(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel acknowledges for it, however long it reads and sends nothing."""
    monkeypatch.setattr(peer_monitor, "SILENT_S", 0.5)
    monkeypatch.setattr(peer_monitor, "STATUS_S", 0.1)
    zero = RecordingMonitor(0, {}, "secret", server)
    with peer(server) as process:
        assert is_received(zero, process)
        time.sleep(2)
        assert zero.ended is None and is_received(zero, process)


# -- addresses


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name resolves to these addresses."""
    found = [
        (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0))
        for each in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_own_address_is_empty_for_other_machines() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1" and own_address("localhost") in (
        "127.0.0.1",
        "::1",
    )
    assert (
        own_address("192.0.2.1")
        == own_address("no.such.host.invalid")
        == own_address("x" * 70)
        == ""
    )


def test_name_that_resolves_to_the_loopback_is_not_reachable_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in Debian's /etc/hosts."""
    resolve_to(monkeypatch, "127.0.1.1")
    assert own_address("node1") == address_towards("node1") == ""


def test_own_address_is_the_first_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.2")
    assert own_address("127.0.0.2") == "127.0.0.2"


def test_address_towards_another_host_is_on_the_route_there() -> None:
    assert (
        address_towards("127.0.0.9") == "127.0.0.1" or address_towards("127.0.0.9") == "127.0.0.9"
    )
    assert address_towards("no.such.host.invalid") == ""


@pytest.mark.parametrize("ipv6", [True, False])
def test_listening_on_all_addresses_works_without_ipv6(
    monkeypatch: pytest.MonkeyPatch, ipv6: bool
) -> None:
    if not ipv6:
        real = socket.socket

        def refusing(family: int = -1, *rest: Any, **more: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            return real(family, *rest, **more)

        monkeypatch.setattr(socket, "socket", refusing)
    with listen("") as server, connect(server):
        assert server.family == (
            socket.AF_INET6 if ipv6 and socket.has_dualstack_ipv6() else socket.AF_INET
        )


def test_others_connect_to_the_published_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And not to what the coordinator's name resolves to on their machine."""
    monkeypatch.setattr(peer_monitor, "PeerMonitor", RecordingMonitor)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(peer_monitor, "_current", None)
    published: list[str] = []
    zero = peer_monitor.connect(0, "127.0.0.1", publish=published.append, find=lambda: "")
    assert json.loads(published[0])[0] == "127.0.0.1" and zero is not None
    one = peer_monitor.connect(
        1, "coordinator.invalid", publish=published.append, find=lambda: published[0]
    )
    assert one is not None and until(lambda: 1 in zero.statuses)


def test_processes_run_with_a_warning_where_process_0_cannot_listen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any) -> Any:
        raise (
            OSError(errno.EMFILE, "Too many open files")
            if given
            else RuntimeError("DEADLINE_EXCEEDED: 20s")
        )

    monkeypatch.setattr(peer_monitor, "listen", fail)
    monkeypatch.setattr(peer_monitor, "_current", None)
    for process in (0, 1):
        assert peer_monitor.connect(process, "127.0.0.1", publish=print, find=fail) is None
        assert f"process {process} will notice late" in capsys.readouterr().err
