"""The lifeline where networks, strangers and limits of the system are unkind: it goes on."""

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


class Ended(PeerMonitor):
    """One that notes who has ended and why, in place of ending this process."""

    ended: tuple[int, str] | None = None

    def _end(self, process: int, why: str, grace: float) -> None:
        self.ended = process, why


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listen("127.0.0.1") as one:
        yield one


@pytest.fixture
def zero(server: socket.socket) -> Ended:
    """Process 0's end; its thread ends with the tests."""
    return Ended(0, {}, "secret", server)


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


def is_heard(zero: PeerMonitor, connection: socket.socket, process: int = 1) -> bool:
    """Whether process 0 still reads what that process says."""
    step = zero.heard[process][1] + 1 if process in zero.heard else 1
    connection.sendall(json.dumps({"at": [step, "steps"]}).encode() + b"\n")
    return until(lambda: process in zero.heard and zero.heard[process][1] == step)


# -- strangers

LINES = {
    "deep JSON": b"[" * 200_000 + b"\n",
    "JSON that is just too deep": b"[" * 5_000 + b"\n",
    "20 MB without an end": b"x" * 20_000_000,
    "no UTF-8": b"\xff\xfe\n",
    "a number": b"1\n",
    "nothing": b"\n",
    "NaN": b'{"token": NaN}\n',
    "another token": b'{"token": "\xc3\xa9", "process": 1}\n',
    "a process that is none": b'{"token": "secret", "process": []}\n',
    "another's words": b'{"left": "ended"}\n',
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_stranger_is_closed_and_a_process_of_the_run_is_heard_afterwards(
    zero: Ended, server: socket.socket, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(server) as stranger, peer(server) as process:
        try:
            stranger.sendall(line)
            assert stranger.recv(1) == b""
        except ConnectionError:
            pass  # closed with some of it unread
        assert is_heard(zero, process) and zero.ended is None
        assert max(map(len, zero._text.values())) <= peer_monitor.LINE
    assert capsys.readouterr().err == ""


def test_strangers_that_say_nothing_are_few_and_given_up_and_whoever_waits_is_let_in(
    zero: Ended, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_monitor, "STRANGERS", 4)
    monkeypatch.setattr(peer_monitor, "SLOW", 0.5)
    silent = [connect(server) for _ in range(10)]
    with peer(server) as process:
        most = 0
        deadline = time.monotonic() + 20
        while 1 not in zero._who.values() and time.monotonic() < deadline:
            most = max(most, len(zero._strangers))
            time.sleep(0.005)
        assert most == 4 and is_heard(zero, process)
        assert until(lambda: not zero._strangers)
    for each in silent:
        each.close()


# -- limits of the system


def test_without_a_free_file_descriptor_connections_wait_and_are_accepted_later(
    zero: Ended,
    server: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peer_monitor, "TICK", 0.1)
    accept, full = socket.socket.accept, [True]

    def accepting(self: socket.socket) -> Any:
        if full[0]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accepting)
    with peer(server, 1) as first, peer(server, 2) as second:
        time.sleep(0.5)
        assert not zero._who
        full[0] = False
        assert is_heard(zero, first, 1) and is_heard(zero, second, 2)
    assert capsys.readouterr().err.count("Too many open files (see `ulimit -n`)") == 1  # once


def test_whatever_goes_wrong_in_its_thread_it_goes_on_and_says_so(
    zero: Ended,
    server: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peer_monitor, "TICK", 0.05)
    with peer(server) as process:
        assert is_heard(zero, process)
        fails = [True]
        send = zero._send
        monkeypatch.setattr(zero, "_send", lambda what: 1 / 0 if fails[0] else send(what))
        time.sleep(0.5)
        fails[0] = False
        assert is_heard(zero, process)
        process.close()
        assert until(lambda: zero.ended == (1, "died"))
    assert capsys.readouterr().err.count("goes on after ZeroDivisionError: division by zero") == 1


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    code = (
        "import resource; from jaxbig.distributed.peer_monitor import raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300)); raise_file_limit(); print(resource.getrlimit(7))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300)); raise_file_limit(200); print(resource.getrlimit(7))\n"
        "raise_file_limit(100); print(resource.getrlimit(7))\n"
    ).replace("getrlimit(7)", "getrlimit(resource.RLIMIT_NOFILE)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(300, 300)", "(200, 300)", "(200, 300)"]
    raise_file_limit(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )  # already as many: nothing changes


# -- machines that vanish


def test_each_connection_has_the_system_notice_a_machine_that_vanished() -> None:
    with listen("127.0.0.1") as server, connect(server) as one:
        set_timeouts(one)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def deaf(connection: socket.socket) -> None:
    """From now on the system drops what comes for this socket, unanswered, as if its machine had lost its power."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no limit for what is not acknowledged")

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    drop = ctypes.create_string_buffer(
        struct.pack("HBBI", 0x06, 0, 0, 0), 8
    )  # BPF: return 0 bytes of each packet
    program = Program(1, ctypes.addressof(drop))
    so_attach_filter = 26
    connection.setsockopt(socket.SOL_SOCKET, so_attach_filter, bytes(program))


def test_a_machine_that_vanishes_without_a_word_is_noticed_and_named(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, noticed: Callable[[float], None]
) -> None:
    """Its system sends no FIN and acknowledges nothing."""
    monkeypatch.setattr(peer_monitor, "SILENT", 1.0)
    monkeypatch.setattr(peer_monitor, "TICK", 0.1)
    zero = Ended(0, {}, "secret", server)
    with peer(server) as process:
        assert is_heard(zero, process)
        deaf(process)
        began = time.monotonic()
        assert until(lambda: zero.ended, 20)
        noticed(time.monotonic() - began)
        assert zero.ended == (1, f"cannot be reached ({os.strerror(errno.ETIMEDOUT)})")


def test_a_process_that_is_only_stopped_is_not_taken_for_dead(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its system acknowledges for it, however long it reads and says nothing."""
    monkeypatch.setattr(peer_monitor, "SILENT", 0.5)
    monkeypatch.setattr(peer_monitor, "TICK", 0.1)
    zero = Ended(0, {}, "secret", server)
    with peer(server) as process:
        assert is_heard(zero, process)
        time.sleep(2)
        assert zero.ended is None and is_heard(zero, process)


# -- addresses


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name stands for those addresses."""
    found = [
        (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0))
        for each in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_an_address_is_this_machine_s_or_it_is_not() -> None:
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


def test_a_name_of_this_machine_that_stands_for_the_loopback_is_not_where_others_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Debian writes it in /etc/hosts."""
    resolving(monkeypatch, "127.0.1.1")
    assert own_address("node1") == address_towards("node1") == ""


def test_of_several_addresses_the_first_of_this_machine_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "192.0.2.1", "127.0.0.2")
    assert own_address("127.0.0.2") == "127.0.0.2"


def test_where_the_coordinator_is_elsewhere_the_lifeline_listens_on_the_way_there() -> None:
    assert (
        address_towards("127.0.0.9") == "127.0.0.1" or address_towards("127.0.0.9") == "127.0.0.9"
    )
    assert address_towards("no.such.host.invalid") == ""


@pytest.mark.parametrize("ipv6", [True, False])
def test_listening_on_all_addresses_needs_no_ipv6(
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


def test_others_connect_to_the_address_that_process_0_listens_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And not to what they take the coordinator's name for."""
    monkeypatch.setattr(peer_monitor, "PeerMonitor", Ended)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(peer_monitor, "_mine", None)
    published: list[str] = []
    zero = peer_monitor.connect(0, "127.0.0.1", published.append, lambda: "")
    assert json.loads(published[0])[0] == "127.0.0.1" and zero is not None
    one = peer_monitor.connect(1, "coordinator.invalid", published.append, lambda: published[0])
    assert one is not None and until(lambda: 1 in zero.heard)


def test_where_process_0_cannot_listen_all_go_on_and_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any) -> Any:
        raise (
            OSError(errno.EMFILE, "Too many open files")
            if given
            else RuntimeError("DEADLINE_EXCEEDED: 20s")
        )

    monkeypatch.setattr(peer_monitor, "listen", fail)
    monkeypatch.setattr(peer_monitor, "_mine", None)
    for process in (0, 1):
        assert peer_monitor.connect(process, "127.0.0.1", print, fail) is None
        assert f"process {process} will notice late" in capsys.readouterr().err
