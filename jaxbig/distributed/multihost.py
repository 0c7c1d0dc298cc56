"""Several processes as one run: how they find each other, what the first alone does, and what all agree on.

What they say to each other here goes through the coordination service of `jax.distributed`, not over the devices: so
it may wait for minutes, for a data set to be prepared or a compiler to end.
"""

import atexit
import contextlib
import errno
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import (
    distributed,
)  # the service's texts have no public name; Orbax takes them here too
from jax.experimental import multihost_utils

from jaxbig.distributed.peer_monitor import (
    announce_exit,
    connect,
    exit_with_error,
    own_address,
    waiting,
)
from jaxbig.errors import Failed, Refused
from jaxbig.system.environment import config, devices, flags, git_commit, versions
from jaxbig.system.signals import exit_on_ctrl_c, stop_signals, write_stderr
from jaxbig.system.standard_streams import pipe_safe

T = TypeVar("T")
NOTICE, CONNECT, LOST, LEAVE = 20, 300, 100, 20
"""Seconds: until it is said that others are missing; until they are given up; until a process without a heartbeat
counts as dead, JAX's default, for a machine that pauses (the lifeline notices a death sooner); that one who leaves
waits for the others."""
FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for what another process says: while it lives, it may take its time."""
_rounds = itertools.count()
_on_host = 1
MOST = 1000
"""Characters of what one process has otherwise than process 0."""


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, saves: bool = True
) -> None:
    """Makes this process one of several; must be called before a device is touched. Alone if nothing says otherwise.

    coordinator: `host:port` of process 0, with the number of `processes` and of this `process`; "auto": as Slurm, Open
    MPI, Kubernetes or the TPU's host tells, which is asked by itself where Slurm or Open MPI has started several.
    saves: SIGTERM is for `interruptible`, by which all save the same step; else it keeps its handler.
    """
    if (
        not coordinator
        and (processes or process >= 0)
        and not os.environ.get("JAX_COORDINATOR_ADDRESS")
    ):
        raise Refused(
            "--processes and --process need --coordinator HOST:PORT, the address of process 0."
        )
    if not coordinator and not processes and not started_together():
        if jax.process_count() > 1:
            _service()  # `Refused`: a TPU's own runtime has found the others, and nothing else connects them
        return
    options: dict[str, Any] = {}
    if coordinator != "auto" and (coordinator or processes):
        if coordinator and not re.fullmatch(r".+:\d{1,5}", coordinator):
            raise Refused(
                f"--coordinator {coordinator!r}: write HOST:PORT, the address of process 0, or auto."
            )
        if not 0 <= process < processes:
            raise Refused(
                f"--process {process} of --processes {processes}: they are numbered from 0, one each."
            )
        options = {"num_processes": processes, "process_id": process}
        options |= {"coordinator_address": coordinator} if coordinator else {}
    if process == 0 and own_address(coordinator.rsplit(":", 1)[0].strip("[]")):
        options["coordinator_bind_address"] = coordinator  # and no other address of this machine
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", saves)  # it takes SIGTERM for itself
    redirect_native_stdout()
    options |= {"heartbeat_timeout_seconds": LOST, "shutdown_timeout_seconds": LEAVE}
    where = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "auto")
    who = f"process {process} of {processes}" if options.get("num_processes") else "this process"
    if process == 0 and where != "auto" and port_in_use(int(where.rsplit(":", 1)[1])):
        raise Refused(
            f"--coordinator {where}: that port is taken on this machine: choose another for all processes."
        )
    found = threading.Event()
    threading.Thread(
        target=report_missing_processes,
        args=(found, f"{who} waits for the others at {where}"),
        daemon=True,
    ).start()
    try:
        with exit_on_ctrl_c():
            jax.distributed.initialize(**options, initialization_timeout=2 * CONNECT)
    except (RuntimeError, ValueError) as error:
        raise Failed(
            f"{who} cannot join others at {where}: {' '.join(str(error).split())[:300]}"
        ) from None
    finally:
        found.set()
    if jax.process_count() > 1:
        host = str(distributed.global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
        client, place = _service(), "jaxbig/distributed/peer_monitor"
        if connect(
            jax.process_index(),
            host,
            publish=lambda where: client.key_value_set(place, where),
            find=lambda: client.blocking_key_value_get(place, 1000 * NOTICE),
        ):
            atexit.register(announce_exit)
        check_same_environment(processes or jax.process_count())


def port_in_use(port: int) -> bool:
    """Whether something on this machine listens there already."""
    for family, every in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as asked:
                asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                asked.bind((every, port))
        except OSError as error:  # also of a kernel without IPv6
            if error.errno == errno.EADDRINUSE:
                return True
    return False


def report_missing_processes(found: threading.Event, text: str) -> None:
    """Says that others are missing, and ends the process when they have not come; JAX's own end is a memory dump."""
    if not found.wait(NOTICE):
        print(
            f"jaxbig: {text}: are there as many as --processes says, each with its own --process?",
            file=sys.stderr,
        )
        if not found.wait(CONNECT - NOTICE):
            print(f"jaxbig: {text}; nobody came in {CONNECT} s.", file=sys.stderr, flush=True)
            os._exit(1)


def redirect_native_stdout() -> None:
    """Gloo prints its greetings there; now they go to standard error, and what Python prints alone stays."""
    sys.stdout.flush()
    sys.stdout = pipe_safe(sys.stdout, os.dup(1))
    os.dup2(2, 1)


def started_together() -> bool:
    """Whether Slurm's srun or Open MPI's mpirun has started this process as one of several."""
    told = os.environ.get("SLURM_STEP_NUM_TASKS", "1"), os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
    return any(int(count) > 1 for count in told if count.isdecimal())


def exit_on_error(
    kind: type[BaseException] | None, error: BaseException | None, trace: Any
) -> None:
    """For an `ExitStack`: of several processes one that fails waits for nothing that it would need the others for."""
    if error is not None and not isinstance(error, Refused) and jax.process_count() > 1:
        exit_with_error(type(error), error, trace)


def is_process_zero() -> bool:
    """Whether this is process 0, which alone writes, prints and prepares data first."""
    return jax.process_index() == 0


def processes_on_this_host() -> int:
    """How many processes of the run share this host, and so its memory."""
    return _on_host


def _service() -> Any:
    """The client of JAX's coordination service; `Refused` if this process has not joined the others."""
    if distributed.global_state.client is None:
        raise Refused(
            f"this is one of {jax.process_count()} processes, as on a TPU pod, that are not connected: start each with "
            f"--coordinator auto."
        )
    return distributed.global_state.client


def gather(value: Any) -> list[Any]:
    """What each process gives, in their order, on all of them; plain JSON. All must call it, in the same order."""
    if jax.process_count() == 1:
        return [value]
    place, client = f"jaxbig/{next(_rounds)}", _service()
    client.key_value_set(f"{place}/{jax.process_index()}", json.dumps(value))
    if is_process_zero():
        said = [_hear(f"{place}/{i}") for i in range(jax.process_count())]
        client.key_value_set(f"{place}/all", f"[{','.join(said)}]")
    return json.loads(_hear(f"{place}/all"))


def _hear(place: str) -> str:
    """What another process says there, once it does; until then this one is known to wait."""
    waiting.set()
    try:
        return _service().blocking_key_value_get(place, FOREVER)
    finally:
        waiting.clear()


def on_process_zero(act: Callable[[], T]) -> T:
    """What `act` gives on process 0 (plain JSON), on all of them; what it raises there, all raise."""
    if jax.process_count() == 1:
        return act()
    place, client = f"jaxbig/{next(_rounds)}", _service()
    if is_process_zero():
        try:
            value = act()
        except BaseException as error:
            client.key_value_set(place, json.dumps([type(error).__name__, str(error)]))
            raise
        client.key_value_set(place, json.dumps(["", value]))
        return value
    error, value = json.loads(_hear(place))
    if error:
        raise Refused(value) if error == "Refused" else Failed(f"process 0: {value or error}")
    return value


SAME = "start all processes with the same command, code and data."


def assert_same_on_all(what: dict[str, Any], fix: str = SAME) -> None:
    """`Refused`, on all processes, unless all give the same; names each that differs from process 0, and in what.

    Process 0 sends what it has, and each of the others answers where it differs: little is sent, whatever their number.
    """
    mine = json.loads(json.dumps(what))
    host, asked = on_process_zero(lambda: (socket.gethostname(), mine))
    differing = [name for name in asked | mine if mine.get(name) != asked.get(name)]
    pairs = [(name, _short(mine.get(name)), _short(asked.get(name))) for name in differing]
    text = ", ".join(f"{name} {here} and process 0 has {there}" for name, here, there in pairs)
    answers = gather([socket.gethostname(), text[:MOST]] if text else [])
    groups: dict[str, list[str]] = {}
    for process, answer in enumerate(answers):
        if answer:
            groups.setdefault(answer[1], []).append(
                f"process {process}{f' on {answer[0]}' * (answer[0] != host)}"
            )
    said = [f"{_several(who)} {text}" for text, who in groups.items()]
    if said:
        more = f"; and {len(said) - 3} other differences" if len(said) > 3 else ""
        raise Refused(f"{'; '.join(said[:3])}{more}: {fix}")


def _several(who: list[str]) -> str:
    if len(who) == 1:
        return f"{who[0]} has"
    return f"{', '.join(who[:3])}{f' and {len(who) - 3} others' if len(who) > 3 else ''} have"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"


def check_same_environment(processes: int) -> None:
    """`Refused` unless all processes have the same number of them in mind, the same software, flags and configuration,
    and the same devices. They are compared before the devices are touched, as far as that can be."""
    theirs = on_process_zero(git_commit)
    commit = theirs if is_process_zero() else git_commit()
    told = {
        f"{name} {flag}": value for name, each in flags().items() for flag, value in each.items()
    }
    # JAX takes process 0's word for their number; a commit that one cannot know says nothing
    known = {
        "--processes": processes,
        **versions(),
        **told,
        **config(),
        "git commit": (theirs and commit) or theirs,
    }
    assert_same_on_all(
        known,
        "start all processes with the same command, software, environment variables and code.",
    )
    assert_same_on_all(
        devices(),
        "each process of a run needs the same number of devices of one kind, with the same driver.",
    )
    global _on_host
    _on_host = gather(socket.gethostname()).count(socket.gethostname())


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether to save and stop now: Ctrl-C and the signals of `signals.STOP` ask for that, a
    second one (of several processes a second one other than SIGTERM) stops at once. Of several processes one that is
    asked stops all, at the same asking: so all must ask as often."""
    asked, heard, before, together = (
        threading.Event(),
        threading.Event(),
        {},
        jax.process_count() > 1,
    )

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def ask(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(
                each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            )
        asked.set()
        write_stderr(
            f"\n{signal.Signals(number).name}: finishing what is begun and saving (again: stop at once, unsaved)\n"
        )
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    askings = itertools.count(
        1
    )  # not steps, which a resume or a rollback sets back: JAX stops at the highest plus one

    def reached() -> bool:
        if multihost_utils.reached_preemption_sync_point(next(askings)):  # which it says once
            heard.set()
        return heard.is_set()

    for each in (signal.SIGINT, *stop_signals()):
        # of several processes SIGTERM is JAX's own, which tells the others and finds the asking
        if not (together and each == signal.SIGTERM):
            before[each] = signal.signal(each, ask)
    try:
        yield reached if together else asked.is_set
    finally:
        restore()
