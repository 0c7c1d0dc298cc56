"""Joins a run's processes over the network, not devices: compare, share, handle stop signals.

Values are exchanged through the coordination service of `jax.distributed`, not over the devices, so
a process may wait for minutes, e.g. until a dataset is prepared or a compilation ends.
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

# the service's key-value store has no public name; Orbax takes it here too
from jax._src import distributed
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
from jaxbig.system.signals import exit_on_ctrl_c, handled, stop_signals, write_stderr
from jaxbig.system.standard_streams import pipe_safe

T = TypeVar("T")
WARN_MISSING_S = 20
"""Seconds until a warning that other processes are missing."""
JOIN_TIMEOUT_S = 300
"""Seconds until a process gives up waiting for missing processes."""
HEARTBEAT_TIMEOUT_S = 100
"""Seconds without a heartbeat after which a process counts as dead: JAX's default, for a machine
that pauses. The peer monitor notices a death sooner."""
SHUTDOWN_TIMEOUT_S = 20
"""Seconds that a process waits for the others when it exits."""
VALUE_TIMEOUT_MS = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for a value of another process: no limit while that process lives."""
PIECE = 2**20
"""Characters of a text that are sent at once."""
MAX_DIFFERENCE = 1000
"""Characters, at most, of the text of a process's differences from process 0."""
SAME = "start all processes with the same command, code and data."
_rounds = itertools.count()
_on_host = 1


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, *, saves: bool = True
) -> None:
    """Connects this process to the others of its run; call it before any device is used.

    Without arguments the process is alone, unless Slurm or Open MPI has started several.

    Args:
      coordinator: `host:port` of process 0; or "auto": as Slurm, Open MPI, Kubernetes or the TPU's
        host reports it.
      processes: the number of processes.
      process: the number of this process.
      saves: whether SIGTERM requests a checkpoint (see `interruptible`); else its handler stays.

    Raises:
      Refused: the arguments are invalid, or the processes differ.
      Failed: the others cannot be reached.
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
            # raises: a TPU's runtime has found the others, but nothing else connects them
            _service()
        return
    options: dict[str, Any] = {}
    if coordinator != "auto" and (coordinator or processes):
        if coordinator and not re.fullmatch(r".+:\d{1,5}", coordinator):
            raise Refused(
                f"--coordinator {coordinator!r}: write HOST:PORT, the address of process 0, or "
                f"auto."
            )
        if not 0 <= process < processes:
            raise Refused(
                f"--process {process} of --processes {processes}: they are numbered from 0, one "
                f"each."
            )
        options = {"num_processes": processes, "process_id": process}
        options |= {"coordinator_address": coordinator} if coordinator else {}
    if process == 0 and own_address(coordinator.rsplit(":", 1)[0].strip("[]")):
        options["coordinator_bind_address"] = coordinator  # and no other address of this machine
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", saves)  # it replaces the SIGTERM handler
    redirect_native_stdout()
    options |= {
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_S,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT_S,
    }
    where = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "auto")
    name = f"process {process} of {processes}" if options.get("num_processes") else "this process"
    if process == 0 and where != "auto" and port_in_use(int(where.rsplit(":", 1)[1])):
        raise Refused(
            f"--coordinator {where}: that port is taken on this machine: choose another for all "
            f"processes."
        )
    joined = threading.Event()
    report = threading.Thread(
        target=report_missing_processes,
        args=(joined, f"{name} waits for the others at {where}"),
        daemon=True,
    )
    try:
        with exit_on_ctrl_c():
            report.start()
            jax.distributed.initialize(**options, initialization_timeout=2 * JOIN_TIMEOUT_S)
    except (RuntimeError, ValueError) as error:
        raise Failed(
            f"{name} cannot join others at {where}: {' '.join(str(error).split())[:300]}"
        ) from None
    finally:
        joined.set()
    if jax.process_count() > 1:
        host = str(distributed.global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
        client = _service()
        key = "jaxbig/distributed/peer_monitor"
        if connect(
            jax.process_index(),
            host,
            publish=lambda text: client.key_value_set(key, text),
            find=lambda: client.blocking_key_value_get(key, 1000 * WARN_MISSING_S),
        ):
            atexit.register(announce_exit)
        check_same_environment(processes or jax.process_count())


def port_in_use(port: int) -> bool:
    """Whether a process of this machine listens on the port."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((address, port))
        except OSError as error:  # also of a kernel without IPv6
            if error.errno == errno.EADDRINUSE:
                return True
    return False


def report_missing_processes(joined: threading.Event, text: str) -> None:
    """Warns that others are missing, and later ends the process; JAX itself would dump memory."""
    if not joined.wait(WARN_MISSING_S):
        print(
            f"jaxbig: {text}: are there as many as --processes says, each with its own --process?",
            file=sys.stderr,
        )
        if not joined.wait(JOIN_TIMEOUT_S - WARN_MISSING_S):
            print(
                f"jaxbig: {text}; nobody came in {JOIN_TIMEOUT_S} s.", file=sys.stderr, flush=True
            )
            os._exit(1)


def redirect_native_stdout() -> None:
    """Sends native standard output (Gloo's banner) to standard error; Python's is unchanged."""
    sys.stdout.flush()
    sys.stdout = pipe_safe(sys.stdout, os.dup(1))
    os.dup2(2, 1)


def started_together() -> str:
    """The variable by which Slurm's srun or Open MPI's mpirun says that it has started this process
    as one of several; empty if they have not."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = os.environ.get(name, "1")
        if count.isdecimal() and int(count) > 1:
            return name
    return ""


def refuse_started_together(command: str) -> None:
    """Raises `Refused` if this process is one of several that run the same command."""
    if name := started_together():
        raise Refused(
            f"{command} runs in one process, and {name} says that this is one of "
            f"{os.environ[name]}: start one, or unset {name} where each has inputs of its own."
        )


def refuse_several(what: str) -> None:
    """Raises `Refused` in one of several connected processes, before anything is read."""
    if jax.process_count() > 1:
        raise Refused(
            f"{what} runs in one process, and this is one of {jax.process_count()}: call it in a "
            f"process of its own, on the run's folder."
        )


def exit_on_error(
    kind: type[BaseException] | None, error: BaseException | None, trace: Any
) -> None:
    """For an `ExitStack`: one of several processes exits at once on an error.

    It must not wait for collectives in which the others take no part any more.
    """
    if error is not None and not isinstance(error, Refused) and jax.process_count() > 1:
        exit_with_error(type(error), error, trace)


def is_process_zero() -> bool:
    """Whether this is process 0, which alone writes, prints and prepares data."""
    return jax.process_index() == 0


def processes_on_this_host() -> int:
    """How many processes of the run share this host, and so its memory."""
    return _on_host


def _service() -> Any:
    """The client of JAX's coordination service; raises `Refused` if this process has none."""
    if distributed.global_state.client is None:
        raise Refused(
            f"this is one of {jax.process_count()} processes, as on a TPU pod, that are not "
            f"connected: start each with --coordinator auto."
        )
    return distributed.global_state.client


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order, to each of them.

    Args:
      value: plain JSON. All processes must call this, in the same order.
    """
    if jax.process_count() == 1:
        return [value]
    key = f"jaxbig/{next(_rounds)}"
    client = _service()
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    if is_process_zero():
        values = [_receive(f"{key}/{i}") for i in range(jax.process_count())]
        client.key_value_set(f"{key}/all", f"[{','.join(values)}]")
    return json.loads(_receive(f"{key}/all"))


def _receive(key: str) -> str:
    """The value that another process sets for a key, once it does; meanwhile `waiting` is set."""
    waiting.set()
    try:
        return _service().blocking_key_value_get(key, VALUE_TIMEOUT_MS)
    finally:
        waiting.clear()


def unique_key() -> str:
    """A key of its own for `send_to_process_zero`; all processes must call this, in one order."""
    return f"jaxbig/{next(_rounds)}"


def send_to_process_zero(key: str, text: str) -> list[str]:
    """The texts of all processes, on process 0; none on the others, which do not wait.

    Unlike `gather` it may be called by any thread at any time.

    Args:
      key: of `unique_key`, the same on all processes.
      text: of any length.
    """
    if jax.process_count() == 1:
        return [text]
    client = _service()
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    own = f"{key}/{jax.process_index()}"
    for number, piece in enumerate(pieces):
        client.key_value_set(f"{own}/{number}", piece)
    client.key_value_set(own, str(len(pieces)))
    if not is_process_zero():
        return []
    received = []
    for process in range(jax.process_count()):
        count = int(client.blocking_key_value_get(f"{key}/{process}", VALUE_TIMEOUT_MS))
        names = [f"{key}/{process}/{number}" for number in range(count)]
        received.append(
            "".join(client.blocking_key_value_get(name, VALUE_TIMEOUT_MS) for name in names)
        )
    client.key_value_delete(key)  # and all below it
    return received


def on_process_zero(act: Callable[[], T]) -> T:
    """Calls a function on process 0 and returns its result (plain JSON) on all processes.

    An error that it raises there is raised on all.
    """
    if jax.process_count() == 1:
        return act()
    key = f"jaxbig/{next(_rounds)}"
    client = _service()
    if is_process_zero():
        try:
            value = act()
        except BaseException as error:
            client.key_value_set(key, json.dumps([type(error).__name__, str(error)]))
            raise
        client.key_value_set(key, json.dumps(["", value]))
        return value
    error, value = json.loads(_receive(key))
    if error:
        raise Refused(value) if error == "Refused" else Failed(f"process 0: {value or error}")
    return value


def assert_same_on_all(values: dict[str, Any], fix: str = SAME) -> None:
    """Checks that all processes have the same values.

    Process 0 sends its values, and the others answer only where they differ, so little is sent
    however many processes there are.

    Args:
      values: plain JSON by name.
      fix: the end of the message.

    Raises:
      Refused: on all processes; names each that differs from process 0, and how.
    """
    mine = json.loads(json.dumps(values))
    host, theirs = on_process_zero(lambda: (socket.gethostname(), mine))
    # as text: NaN is not equal to itself
    names = [
        name
        for name in theirs | mine
        if json.dumps(mine.get(name), sort_keys=True)
        != json.dumps(theirs.get(name), sort_keys=True)
    ]
    text = ", ".join(
        f"{name} {_short(mine.get(name))} and process 0 has {_short(theirs.get(name))}"
        for name in names
    )
    answers = gather([socket.gethostname(), text[:MAX_DIFFERENCE]] if text else [])
    groups: dict[str, list[str]] = {}
    for process, answer in enumerate(answers):
        if answer:
            where = f" on {answer[0]}" if answer[0] != host else ""
            groups.setdefault(answer[1], []).append(f"process {process}{where}")
    found = [f"{_several(processes)} {text}" for text, processes in groups.items()]
    if found:
        more = f"; and {len(found) - 3} other differences" if len(found) > 3 else ""
        raise Refused(f"{'; '.join(found[:3])}{more}: {fix}")


def _several(processes: list[str]) -> str:
    if len(processes) == 1:
        return f"{processes[0]} has"
    more = f" and {len(processes) - 3} others" if len(processes) > 3 else ""
    return f"{', '.join(processes[:3])}{more} have"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"


def check_same_environment(processes: int) -> None:
    """Compares the processes' software, flags, configuration, code and devices.

    Args:
      processes: their number, as this process was started with. JAX takes process 0's.

    Raises:
      Refused: they differ. As much as possible is compared before the devices are used.
    """
    theirs = on_process_zero(git_commit)
    commit = theirs if is_process_zero() else git_commit()
    environment = {
        f"{name} {flag}": value for name, each in flags().items() for flag, value in each.items()
    }
    known = {
        "--processes": processes,
        **versions(),
        **environment,
        **config(),
        # a process that cannot know its commit is no difference
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
def interruptible(
    on_signal: Callable[[int], None] = lambda number: None,
) -> Iterator[Callable[[], bool]]:
    """Yields `should_stop()`, which is true once the run should save a checkpoint and exit.

    Ctrl-C and `signals.STOP_SIGNALS` request that. A second signal (with several processes, one
    other than SIGTERM) stops at once. With several processes, a signal to one stops all at the same
    call of `should_stop`, so all must call it equally often. Outside the main thread, where Python
    allows no handlers, signals do not request it.

    Args:
      on_signal: called with the number of the first signal.
    """
    requested = threading.Event()
    reached = threading.Event()
    together = jax.process_count() > 1
    # with several processes SIGTERM belongs to JAX, which informs the others and finds the call
    numbers = [
        number
        for number in (signal.SIGINT, *stop_signals())
        if not (together and number == signal.SIGTERM)
    ]

    def request(number: int, frame: Any) -> None:
        for each in numbers:
            default = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            signal.signal(each, default)
        requested.set()
        on_signal(number)
        write_stderr(
            f"\n{signal.Signals(number).name}: finishing the current step and saving "
            f"(again: stop at once, unsaved)\n"
        )
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    # calls, not steps, which a resume or a rollback sets back: JAX stops at the highest plus one
    calls = itertools.count(1)

    def all_should_stop() -> bool:
        # JAX returns True once only
        if multihost_utils.reached_preemption_sync_point(next(calls)):
            reached.set()
        return reached.is_set()

    with handled(numbers, request):
        yield all_should_stop if together else requested.is_set
