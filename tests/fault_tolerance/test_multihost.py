"""Several processes are one run: the same losses, one folder, one digest.

They start, stop and refuse together.
"""

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import fork_server
from support.compiling import HASTY
from support.timing import crowded

from jaxbig.distributed import multihost
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.multihost import (
    assert_same_on_all,
    check_same_environment,
    gather,
    initialize,
    on_process_zero,
    port_in_use,
    processes_on_this_host,
    started_together,
)
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.errors import Failed, Refused
from jaxbig.system.exit_codes import PEER_LOST
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train import resume
from jaxbig.train.resume import parent_folder

SMALL = """
import dataclasses
from jaxbig.experiments import digits_convnet
from jaxbig.models.convnet import Conv, Dense, Dropout, Pool

def config():
    parent = digits_convnet.config()
    model = parent.model.clone(layers=(Conv(8), Pool(), Dropout(0.25), Dense(16)))
    return dataclasses.replace(
        parent, model=model, steps=12, log_every=1,
        evaluate_every=6, checkpoint_every=6, keep_last=9
    )
"""


@pytest.fixture
def small_file(tmp_path: Path) -> str:
    (tmp_path / "small.py").write_text(SMALL)
    return "small.py"


class Run:
    """`jaxbig COMMAND ...` as several processes in one folder, each with some CPU devices.

    They run on any core, or on one.

    hasty: compiled with less zeal.
    reported: the number of processes that each is given. before: what each does before it begins.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        devices: int,
        *arguments: object,
        differing: tuple[str, ...] = (),
        one_core: bool = False,
        hasty: bool = True,
        reported: tuple[int, ...] = (),
        before: tuple[str, ...] = (),
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        reported = reported or (count,) * count
        before = before or ("",) * count
        together = ["--coordinator", f"127.0.0.1:{port}", "--processes"]
        environment = {
            **os.environ,
            **(HASTY if hasty else {}),
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        self.processes: list[Any] = []
        for number in range(count):
            command = [*map(str, arguments)]
            if count > 1:
                command += [*together, str(reported[number]), "--process", str(number)]
            command += differing if number else ()
            if before[number]:  # it must come before the imports
                code = f"{before[number]}\nfrom jaxbig.__main__ import main; main()"
                pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
                process: Any = subprocess.Popen(
                    [sys.executable, "-c", code, *command],
                    cwd=folder,
                    env=environment,
                    text=True,
                    **pipes,  # type: ignore[arg-type]
                )
            else:
                process = fork_server.Process(*command, cwd=folder, env=environment, number=number)
            self.processes.append(process)
            if one_core:
                os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})

    def end(self, *codes: int) -> list[tuple[str, str]]:
        """What each printed to standard output and error.

        All ended with those codes (0 if none is given).
        """
        said = [process.communicate(timeout=300) for process in self.processes]
        assert [process.returncode for process in self.processes] == list(
            codes or [0] * len(said)
        ), said
        return said


def train(folder: Path, count: int, devices: int, *arguments: object, **how: Any) -> Run:
    return Run(folder, count, devices, "train", *arguments, **how)


DIGESTS = """
import json
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxbig.checkpoint import digest
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.multihost import initialize

coordinator, processes, process = sys.argv[1:]
if int(processes) > 1:
    initialize(coordinator, int(processes), int(process))
digest.CHUNK = 256  # 2 to 60 chunks an array
draw = np.random.default_rng(0)
arrays = {"b": draw.normal(size=8), "w": draw.normal(size=(24, 16)).astype(np.float32)}
found = []
for mesh in (Mesh(data=8), Mesh(data=2, fsdp=4), Mesh(data=2, fsdp=2, tensor=2)):
    built = mesh.build()
    for spec in (P(), P("fsdp"), P(("data", "fsdp")), P(("fsdp", "tensor"))):
        placed = {
            name: jax.make_array_from_callback(
                array.shape, NamedSharding(built, spec), lambda index, array=array: array[index]
            )
            for name, array in arrays.items()
        }
        found.append(digest.digests(placed))
assert all(each == found[0] for each in found)
print(json.dumps([len(found), *found[0]]))
"""


def curve(workdir: Path, metric: str = "loss") -> list[float]:
    return [line[metric] for line in read_metrics(workdir)]


def digest(workdir: Path) -> str:
    return json.loads((workdir / "summary.json").read_text())["state_sha256"]


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(small_file: str, tmp_path: Path) -> None:
    train(tmp_path, 1, 4, small_file, "--workdir", "one").end()
    (out, _), (other_out, _) = train(tmp_path, 2, 2, small_file, "--workdir", "two", "--json").end()
    assert json.loads(out)["step"] == 12 and other_out == ""  # and nothing of Gloo's
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    assert len(curve(tmp_path / "two")) == 14  # 12 steps and two evaluations, each written once
    reported = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (
        reported["devices"]["count"] == 4
        and reported["devices"]["processes"] == 2
        and len(reported["starts"]) == 1
    )
    saved = (tmp_path / "two" / "checkpoints").glob("[0-9]*")
    assert sorted(entry.name for entry in saved) == ["12", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("fsdp", 8), ("tensor", 8)], ids=str)
def test_four_processes_make_the_run_of_one_over_any_mesh(
    small_file: str, tmp_path: Path, mesh: tuple[str, int]
) -> None:
    """Also where an axis is spread over processes, so that several hold the same rows."""
    axis, size = mesh
    options = ["--mesh.data", 8 // size, f"--mesh.{axis}", size]
    train(tmp_path, 1, 8, small_file, *options, "--workdir", "one").end()
    train(tmp_path, 4, 2, small_file, *options, "--workdir", "four").end()
    np.testing.assert_allclose(curve(tmp_path / "four"), curve(tmp_path / "one"), rtol=1e-5)


@pytest.mark.slow
def test_a_run_resumes_as_another_number_of_processes(small_file: str, tmp_path: Path) -> None:
    train(tmp_path, 1, 8, small_file, "--steps", 24, "--workdir", "one").end()
    for steps, (count, devices) in {12: (4, 2), 24: (1, 4)}.items():
        train(tmp_path, count, devices, small_file, "--steps", steps, "--workdir", "moved").end()
    train(
        tmp_path, 2, 1, small_file, "--steps", 24, "--workdir", "moved"
    ).end()  # once more: nothing is left to do
    evaluated = [
        line["loss"] for line in read_metrics(tmp_path / "moved") if line["split"] == "eval"
    ]
    # the schedule follows the length that each start was reported, so only the first steps can be
    # compared
    np.testing.assert_allclose(
        curve(tmp_path / "moved")[:3], curve(tmp_path / "one")[:3], rtol=1e-2
    )
    assert (
        len(evaluated) == 4
        and len(json.loads((tmp_path / "moved" / "run.json").read_text())["starts"]) == 3
    )
    [(out, _), _] = Run(
        tmp_path, 2, 1, "evaluate", small_file, "--steps", 24, "--workdir", "moved", "--json"
    ).end()
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(evaluated[-1], rel=1e-5)


REPRODUCIBLE = [
    "--steps=4",
    "--checkpoint-every=2",
    "--evaluate-batches=2",
    "--reproducible=8",
    "--optimizer.learning-rate.warmup=1",
    "--data.batch=64",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("digits_convnet", []), ("pytext_transformer", ["--model.depth=1", "--data.length=128"])],
    ids=["digits_convnet", "pytext_transformer"],
)
def test_reproducible_run_has_one_digest_on_any_processes_and_when_it_moves(
    name: str, options: list[str], tmp_path: Path
) -> None:
    """By the full compiler, whose liberties `--reproducible` has to bind.

    The conv net runs as one process, and as four that are resumed by one with four devices; the
    other as one process and as two. (test_gradient.py: small copies of each, on one device and on
    eight.)
    """
    options = [name, *REPRODUCIBLE, *options]
    layouts = [(1, 1)] if name == "digits_convnet" else [(1, 1), (2, 4)]
    for count, devices in layouts:
        how = {"one_core": devices == 1, "hasty": False}
        train(tmp_path, count, devices, *options, "--workdir", f"{count}x{devices}", **how).end()
    if name == "digits_convnet":
        move(tmp_path, options)
    found = {
        folder.parent.name: digest(folder.parent) for folder in tmp_path.glob("*/summary.json")
    }
    assert len(found) == len(layouts) + (name == "digits_convnet"), found
    assert len(set(found.values())) == 1, found


def move(folder: Path, options: list[str]) -> None:
    """A run of four processes that is stopped and resumed by one, with other devices."""
    options = [*options, "--workdir=moved", "--checkpoint-every=1"]
    moving = train(folder, 4, 2, *options, hasty=False)
    saved = folder / "moved" / "checkpoints"
    while not (saved / "1").exists() and moving.processes[0].poll() is None:
        time.sleep(0.01)
    moving.processes[1].send_signal(signal.SIGTERM)
    for process in moving.processes:
        said = process.communicate(timeout=300)
        assert process.returncode in (0, 75), said  # 0: it was done before it could stop
    train(folder, 1, 4, *options, hasty=False).end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGUSR1, 1)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_to_one_process_saves_one_step_of_all(
    small_file: str,
    tmp_path: Path,
    number: signal.Signals,
    asked: int,
    noticed: Callable[[float], None],
) -> None:
    run = train(tmp_path, 2, 1, small_file, "--steps", 100_000, "--workdir", "run")
    while not (tmp_path / "run" / "checkpoints" / "6").exists():
        assert run.processes[0].poll() is None
        time.sleep(0.1)
    run.processes[asked].send_signal(number)
    began = time.monotonic()
    (out, _), _ = run.end(75, 75)
    noticed(time.monotonic() - began)
    saved = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    last = max(int(entry.name) for entry in saved)
    assert f"saved at step {last}" in out and curve(tmp_path / "run", "step")[-1] == last
    train(tmp_path, 1, 2, small_file, "--steps", last + 1, "--workdir", "run").end()


def ready(run: Run, folder: Path) -> None:
    """Waits until a run has saved its sixth step."""
    while not (folder / "checkpoints" / "6").exists():
        assert all(process.poll() is None for process in run.processes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_process_is_killed_the_other_leaves_at_once_and_names_it(
    small_file: str, tmp_path: Path, dead: int, noticed: Callable[[float], None]
) -> None:
    run = train(
        tmp_path, 2, 1, small_file, "--steps", 100_000, "--keep-last", 100_000, "--workdir", "run"
    )
    ready(run, tmp_path / "run")
    run.processes[dead].kill()
    began = time.monotonic()
    _, err = run.processes[1 - dead].communicate(timeout=60)
    noticed(time.monotonic() - began)
    assert time.monotonic() - began < crowded(5), err
    assert run.processes[1 - dead].returncode == PEER_LOST, err
    assert f"jaxbig: process {dead} died; process {1 - dead} exits too" in err
    run.processes[dead].communicate()


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named_and_the_other_ends_within_the_limit(
    small_file: str, tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    limit = min(round(crowded(8)), 60)  # jax itself aborts after 100 s
    how = ["--steps", 100_000, "--keep-last", 100_000, "--workdir", "run"]
    run = train(tmp_path, 2, 1, small_file, *how, "--guard.stuck-after", limit)
    ready(run, tmp_path / "run")
    run.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _, err = run.processes[0].communicate(timeout=crowded(60))
    noticed(time.monotonic() - began)
    assert time.monotonic() - began < limit + crowded(2) and run.processes[0].returncode == 1
    assert (
        f"nothing has moved for {limit} s (--guard.stuck-after): process 1 " in err
        and "silent" in err
        and "Thread" in err
    )
    run.processes[1].send_signal(signal.SIGCONT)
    assert run.processes[1].wait(timeout=30) == 1  # it learns of it when it wakes
    run.processes[1].communicate()


@pytest.mark.slow
def test_processes_that_were_started_otherwise_refuse_together(
    small_file: str, tmp_path: Path
) -> None:
    for _, error in train(
        tmp_path, 2, 1, small_file, "--workdir", "run", differing=("--seed", "3")
    ).end(2, 2):
        assert "process 1 has seed 3 and process 0 has 0" in error
    assert not (tmp_path / "run").exists()
    train(tmp_path, 1, 2, small_file, "--workdir", "run").end()
    for _, error in train(tmp_path, 2, 1, small_file, "--workdir", "run", "--seed", 4).end(2, 2):
        assert "seed: 0 -> 4" in error and "--fork" in error
    train(tmp_path, 2, 1, small_file, "--workdir", "run", "--seed", 4, "--fork").end()
    assert (tmp_path / "run" / "forked_from_1" / "run.json").exists()
    train(tmp_path, 2, 1, small_file, "--workdir", "next", "--initialize-from.run", "run").end()
    flipped = next(
        file
        for file in (tmp_path / "next" / "checkpoints" / "12").rglob("*")
        if "ocdbt" in str(file.parent)
    )
    flipped.write_bytes(b"x" + flipped.read_bytes()[1:])
    end = train(
        tmp_path, 2, 1, small_file, "--workdir", "next", "--initialize-from.run", "run"
    ).end()
    assert "trying the one before it" in " ".join(end[0][0].split()) and digest(tmp_path / "next")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("", "process 1 has --processes 3 and process 0 has 2"),
        (
            "from jaxbig.distributed import multihost as m\n"
            "now = m.versions(); m.versions = lambda: {**now, 'jax': '0.1'}",
            "has jax '0.1'",
        ),
        (
            "import os; os.environ['JAX_NUM_CPU_DEVICES'] = '2'",
            "process 1 has number of devices 2 and process 0 has 1",
        ),
        (
            "import os; os.environ['XLA_FLAGS'] += ' --xla_cpu_enable_fast_math=true'",
            "process 1 has XLA_FLAGS --xla_cpu_enable_fast_math 'true' and process 0 has None",
        ),
    ],
    ids=["count", "versions", "devices", "flags"],
)
def test_processes_that_were_given_other_options_or_are_others_are_named(
    change: str, words: str, small_file: str, tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    began = time.monotonic()
    run = train(
        tmp_path,
        2,
        1,
        small_file,
        "--workdir",
        "run",
        reported=(2, 2 if change else 3),
        before=("", change),
    )
    for _, error in run.end(2, 2):
        assert words in error
    noticed(time.monotonic() - began)
    assert time.monotonic() - began < crowded(30) and not (tmp_path / "run").exists()


NUMBERS = """
from jaxbig.data.tabular import Columns
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.config.experiment import Experiment
from jaxbig.models.mlp import MLP
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant

def config():
    records = JsonLines(files="numbers.jsonl", eval_share=0.2)
    data = Columns(records=records, batch=4, shape=(2,), inputs=("a", "b"), targets="y", classes=2,
        skip_bad_records=9)
    return Experiment(
        model=MLP(widths=(8,), outputs=2), objective=Classification(classes=2), data=data,
        optimizer=AdamW(learning_rate=Constant(1e-3)), steps=20, evaluate_every=20,
        checkpoint_every=10, log_every=1,
    )
"""
ILL_DISK = """
from jaxbig.data.tabular import Columns
read = Columns.read
def fails(self, record):
    if record["a"] == 7:
        raise OSError(5, "Input/output error")
    return read(self, record)
Columns.read = fails
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor", "data"])
def test_a_disk_that_fails_on_one_host_alone_ends_a_run_whose_hosts_read_the_same_rows(
    tmp_path: Path, mesh: str
) -> None:
    """Over `data` each row is read by one process, so only the unreadable record is left out."""
    (tmp_path / "own_numbers.py").write_text(NUMBERS)
    lines = [json.dumps({"a": n, "b": n % 3, "y": n % 2}) for n in range(40)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(lines) + "\n")
    options = ["--mesh.data", 1, "--mesh.tensor", 2] if mesh == "tensor" else []
    run = train(
        tmp_path, 2, 1, "own_numbers.py", "--workdir", "run", *options, before=("", ILL_DISK)
    )
    if mesh == "data":
        run.end()
        return
    said = [process.communicate(timeout=300)[1] for process in run.processes]
    assert (
        1 in {process.returncode for process in run.processes} <= {1, PEER_LOST}
    )  # both fail, one may learn it first
    assert all(
        "process 1 could not read" in err and "process 0 could, which reads the" in err
        for err in said
    ), said
    assert not (tmp_path / "run" / "checkpoints" / "10").exists()


@pytest.mark.slow
def test_a_coordinator_that_cannot_be_reached_is_named(
    tmp_path: Path, noticed: Callable[[float], None]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    words = ["--coordinator", where, "--processes", "2", "--process", "1"]
    command = [sys.executable, "-m", "jaxbig", "train", "digits_convnet", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr or () if line.startswith("jaxbig"))
    noticed(time.monotonic() - began)
    process.kill()
    process.communicate()
    assert f"process 1 of 2 waits for the others at {where}" in line
    assert time.monotonic() - began < crowded(30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"processes": 2}, ["--coordinator HOST:PORT"]),
        ({"process": 0}, ["--coordinator HOST:PORT"]),
        ({"coordinator": "nowhere", "processes": 2, "process": 0}, ["'nowhere'", "HOST:PORT"]),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, ["--process 2 of --processes 2"]),
        ({"coordinator": "host:1"}, ["--process -1 of --processes 0"]),
    ],
)
def test_what_cannot_be_joined_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        initialize(**options)
    assert all(word in str(refused.value) for word in words)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("", 0)) as server, pytest.raises(Refused, match="port is taken"):
        initialize(f"127.0.0.1:{server.getsockname()[1]}", 2, 0)


def test_others_that_never_come_are_reported_and_given_up() -> None:
    code = (
        "from jaxbig.distributed import multihost as m\n"
        "m.WARN_MISSING_S = 1; m.JOIN_TIMEOUT_S = 2; m.initialize('127.0.0.1:9', 2, 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (
        done.returncode == 1 and "process 1 of 2 waits for the others at 127.0.0.1:9" in done.stderr
    )
    assert done.stderr.splitlines()[-1].endswith("nobody came in 2 s.")


@pytest.mark.parametrize("saves", [True, False], ids=["train", "evaluate"])
def test_of_several_processes_sigterm_is_for_jax_where_there_is_something_to_save(
    saves: bool,
) -> None:
    """JAX's handler only takes note, for all to stop at one step.

    A process that never asks would not end by it.
    """
    code = (
        "import jax, sys; from jaxbig.distributed import multihost\n"
        "jax.distributed.initialize = lambda **_: "
        "print(jax.config.values['jax_enable_preemption_service'])\n"
        "multihost.redirect_native_stdout = lambda: None\n"
        f"multihost.initialize('127.0.0.1:9', 2, 1, saves={saves})"
    )
    environment = {**os.environ, "JAX_ENABLE_PREEMPTION_SERVICE": str(not saves)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == f"{saves}\n"


def test_a_process_knows_when_a_launcher_has_started_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not started_together()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not started_together()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert started_together()


class Service:
    """The coordination service's texts, in memory, with the bytes that were sent to and from it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.set = threading.Condition()
        self.sent = 0

    def key_value_set(self, key: str, value: str) -> None:
        with self.set:
            assert key not in self.texts
            self.texts[key] = value
            self.sent += len(value)
            self.set.notify_all()

    def blocking_key_value_get(self, key: str, _: int) -> str:
        with self.set:
            assert self.set.wait_for(lambda: key in self.texts, 10), f"nobody sets {key}"
            self.sent += len(self.texts[key])
            return self.texts[key]


class Rounds(threading.local):
    """Each process counts its own."""

    count: Iterator[int]

    def __next__(self) -> int:
        return next(self.count)


Together = Callable[..., list[Any]]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    """Does the same as each of several processes, a thread each.

    Gives what each got or raised, and the service.
    """
    here = threading.local()

    def run(act: Callable[[int], Any], count: int = 3, service: Service | None = None) -> list[Any]:
        service = service or Service()
        monkeypatch.setattr(multihost, "_service", lambda: service)
        monkeypatch.setattr(multihost, "_rounds", rounds := Rounds())
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: here.number)
        monkeypatch.setattr(socket, "gethostname", lambda: f"host{here.number // 2}")

        def process(number: int) -> Any:
            # also where a thread is used again
            here.number = number
            rounds.count = itertools.count()
            try:
                return act(number)
            except (Refused, Failed) as error:
                return error

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(process, range(count)))

    return run


def test_what_the_first_gives_or_raises_all_get(together: Together) -> None:
    assert together(lambda number: on_process_zero(lambda: {"from": number})) == [{"from": 0}] * 3

    def refuse() -> None:
        raise Refused("no room")

    said = together(lambda _: on_process_zero(refuse))
    assert [type(each) for each in said] == [Refused] * 3 and {str(each) for each in said} == {
        "no room"
    }


def test_what_each_gives_all_get_in_their_order(together: Together) -> None:
    assert (
        together(lambda number: gather({"from": number}))
        == [[{"from": 0}, {"from": 1}, {"from": 2}]] * 3
    )


def test_a_host_whose_listing_is_older_forks_from_what_process_0_sees(
    together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = {
        0: "forked_from_2",
        1: "forked_from_1",
        2: None,
    }  # as a file server's caches may have it

    def listed(workdir: Path) -> Path | None:
        found = listings[jax.process_index()]
        return workdir / found if found else None

    monkeypatch.setattr(resume, "forked_from", listed)
    assert together(lambda _: parent_folder(tmp_path)) == [tmp_path / "forked_from_2"] * 3
    listings[0] = None
    assert together(lambda _: parent_folder(tmp_path)) == [None] * 3


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({2: {"seed": 1}}, "process 2 on host1 has seed 1 and process 0 has 0: start all"),
        ({1: {"seed": 1}}, "process 1 has seed 1 and process 0 has 0: start all"),
        (
            {2: {"seed": 0, "more": "x"}},
            "process 2 on host1 has more 'x' and process 0 has None: start all",
        ),
        ({2: {}}, "process 2 on host1 has seed None and process 0 has 0: start all"),
        (
            {1: {"seed": 3, "more": 2}, 3: {"seed": 4}},
            "process 1 has seed 3 and process 0 has 0, more 2 and process 0 has None; "
            "process 3 on host1 has seed 4",
        ),
        (
            {2: {"seed": 9}, 3: {"seed": 9}},
            "process 2 on host1, process 3 on host1 have seed 9 and process 0 has 0",
        ),
        (
            {n: {"seed": 9} for n in range(1, 6)},
            "process 3 on host1 and 2 others have seed 9 and process 0 has 0",
        ),
        (
            {n: {"seed": n} for n in range(1, 6)},
            "process 3 on host1 has seed 3 and process 0 has 0; and 2 other",
        ),
        ({1: {"seed": "x" * 5000}}, "process 1 has seed 'xxx"),
    ],
)
def test_all_must_agree_and_each_that_does_not_is_named_with_what_it_has(
    together: Together, others: dict[int, dict[str, Any]], words: str
) -> None:
    assert together(lambda _: assert_same_on_all({"seed": 0}), 6) == [None] * 6
    nan = {"seed": float("nan"), "sizes": [{"a": float("nan")}]}
    assert together(lambda _: assert_same_on_all(nan), 6) == [None] * 6
    said = together(lambda number: assert_same_on_all(others.get(number, {"seed": 0})), 6)
    assert [type(each) for each in said] == [Refused] * 6 and len({str(each) for each in said}) == 1
    assert words in str(said[0]) and len(str(said[0])) < 1000


def test_agreeing_sends_what_one_has_to_each_and_not_all_to_all(together: Together) -> None:
    """Of 32 processes that have 3 KB each, 32 times that: 32 * 32 times would be 3 MB."""
    service = Service()
    what = {f"field{n}": "x" * 80 for n in range(32)}
    assert together(lambda _: assert_same_on_all(what), 32, service) == [None] * 32
    size = len(json.dumps(what))
    assert size > 3000 and 32 * size < service.sent < 32 * size * 1.2


DEVICES = {
    "number of devices": 2,
    "device kind": "H100",
    "platform_version": "cuda 12.9",
    "driver": "580.1",
}


@pytest.mark.parametrize(
    ("name", "there", "words"),
    [
        ("versions", {"jax": "0.1"}, "has jax '0.1' and process 0 has"),
        ("flags", {"XLA_FLAGS": {"--xla_b": "2"}}, "XLA_FLAGS --xla_b '2' and process 0 has '1'"),
        ("flags", {}, "has XLA_FLAGS --xla_b None and process 0 has '1'"),
        (
            "config",
            {"jax_default_matmul_precision": "highest"},
            "has jax_default_matmul_precision 'highest' and",
        ),
        ("git_commit", "beef", "has git commit 'beef' and process 0 has 'cafe'"),
        (
            "devices",
            {**DEVICES, "number of devices": 1},
            "has number of devices 1 and process 0 has 2: each process",
        ),
        (
            "devices",
            {**DEVICES, "device kind": "A100"},
            "has device kind 'A100' and process 0 has 'H100'",
        ),
        (
            "devices",
            {**DEVICES, "platform_version": "cuda 12.8"},
            "has platform_version 'cuda 12.8' and process 0",
        ),
        ("devices", {**DEVICES, "driver": "575.0"}, "has driver '575.0' and process 0 has '580.1'"),
    ],
)
def test_hosts_of_other_software_flags_configuration_code_or_devices_are_refused_at_joining(
    together: Together, monkeypatch: pytest.MonkeyPatch, name: str, there: Any, words: str
) -> None:
    """F17 among them: unequal numbers of devices."""
    here: dict[str, Any] = {
        "versions": {"jax": "0.2"},
        "flags": {"XLA_FLAGS": {"--xla_b": "1"}},
        "config": {"jax_default_matmul_precision": None},
        "git_commit": "cafe",
        "devices": DEVICES,
    }
    for each, value in here.items():
        monkeypatch.setattr(multihost, each, lambda value=value: value)
    assert together(lambda _: check_same_environment(3)) == [None] * 3
    monkeypatch.setattr(multihost, name, lambda: there if jax.process_index() == 2 else here[name])
    said = together(lambda _: check_same_environment(3))
    assert [type(each) for each in said] == [Refused] * 3
    assert str(said[0]).startswith("process 2 on host1 has ") and words in str(said[0])


@pytest.mark.parametrize("unknown", [0, 2])
def test_a_commit_that_one_host_cannot_know_is_no_difference(
    together: Together, monkeypatch: pytest.MonkeyPatch, unknown: int
) -> None:
    monkeypatch.setattr(
        multihost, "git_commit", lambda: None if jax.process_index() == unknown else "cafe"
    )
    monkeypatch.setattr(multihost, "devices", lambda: DEVICES)
    assert together(lambda _: check_same_environment(3)) == [None] * 3


def test_processes_know_how_many_of_them_share_a_host(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multihost, "devices", lambda: DEVICES)
    monkeypatch.setattr(multihost, "git_commit", lambda: None)
    monkeypatch.setattr(multihost, "_on_host", 1)
    counts = together(lambda _: [check_same_environment(4), processes_on_this_host()][1], 4)
    assert counts == [2] * 4


def test_a_tpu_pod_without_a_coordinator_is_refused_with_what_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There JAX has found the others with the devices, but has no service for texts."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for act in (
        initialize,
        lambda: gather(1),
        lambda: on_process_zero(lambda: 1),
        lambda: assert_same_on_all({}),
    ):
        with pytest.raises(Refused, match=r"one of 4 processes.*--coordinator auto"):
            act()


@pytest.mark.parametrize("missing", [socket.AF_INET6, None])
def test_a_port_that_is_taken_is_found_so_with_or_without_ipv6(
    monkeypatch: pytest.MonkeyPatch, missing: int | None
) -> None:
    real = socket.socket

    def refusing(family: int = -1, *rest: Any, **more: Any) -> socket.socket:
        if family == missing:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest, **more)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "socket", refusing)
        assert port_in_use(server.getsockname()[1])
        port = server.getsockname()[1]
        monkeypatch.undo()
    monkeypatch.setattr(socket, "socket", refusing)
    assert not port_in_use(port)


def test_alone_a_process_agrees_with_itself() -> None:
    assert_same_on_all({"seed": 0})
    assert gather(3) == [3] and on_process_zero(lambda: "done") == "done"


@pytest.mark.parametrize(
    "mesh", [Mesh(), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, sequence=4, expert=2)], ids=str
)
def test_rows_are_put_where_they_belong(mesh: Mesh) -> None:
    built = mesh.build()
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    assert local_rows(built, 16).tolist() == list(range(16))
    placed = device_put_batch({"inputs": rows}, built)["inputs"]
    assert np.array_equal(placed, rows)
    assert all(np.array_equal(shard.data, rows[shard.index]) for shard in placed.addressable_shards)


@pytest.mark.slow
def test_a_state_has_one_digest_on_any_processes_and_mesh(tmp_path: Path) -> None:
    said = set()
    for count in (1, 2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(8 // count)}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", DIGESTS, address, str(count), str(number)],
                cwd=tmp_path,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
            )
            for number in range(count)
        ]
        try:
            said |= {process.communicate(timeout=crowded(200))[0] for process in processes}
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * count
    (text,) = said
    count, leaves, whole = json.loads(text)
    assert count == 12 and leaves.keys() == {"b", "w"} and len(whole) == 64
