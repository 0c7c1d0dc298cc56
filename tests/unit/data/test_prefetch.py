"""Prefetching by threads and worker processes: the same bytes, bounded memory, clear errors."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from PIL import Image
from support.compiling import HASTY
from support.experiments import small
from support.timing import crowded

from jaxbig.config.discover import import_file
from jaxbig.data.core.dataset import Rows
from jaxbig.data.images import Images
from jaxbig.data.pipeline.batch_parts import ReadAhead, in_order
from jaxbig.data.pipeline.loader import eval_batch, eval_batches, train_batch, train_batches
from jaxbig.data.pipeline.sampler import eval_steps, train_indices
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.errors import Failed, Refused
from jaxbig.program.bad_steps import FAULT
from jaxbig.train.step_reporter import SLOW, WARN_EVERY, StepReporter

# A user's own file, which no other Python can import by the name that it is loaded under.
FILE = '''
"""Numbers, some of which cannot be read."""
import dataclasses, os, signal
import jax, numpy as np
from jaxbig.data.core.dataset import Records
from jaxbig.data.core.examples import Examples
from beside import square

@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(Records):
    size: int = 37
    bad: tuple[int, ...] = ()
    deadly: int = -1
    owner: int = 0
    def open(self, split):
        return Opened(self)

class Opened:
    def __init__(self, numbers):
        self.numbers = numbers
    def __len__(self):
        return self.numbers.size
    def __getitem__(self, index):
        if index in self.numbers.bad:
            raise OSError("flipped bits")
        if index == self.numbers.deadly and os.getpid() != self.numbers.owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": index}
    def where(self, index):
        return f"part-{index // 10}.bin record {index % 10}"

@dataclasses.dataclass(frozen=True, kw_only=True)
class Squares(Examples):
    def spec(self):
        kinds = {"inputs": ((3,), np.float32), "mask": ((), np.float32)}
        return {
            name: jax.ShapeDtypeStruct((self.batch, *shape), kind)
            for name, (shape, kind) in kinds.items()
        }
    def read(self, record):
        number = record["number"]
        inputs = np.array([number, square(number), 0.1], np.float32)
        return {"inputs": inputs, "mask": np.float32(1)}

class Seen:
    """The process that reads: its id, whether its JAX is set to the CPU, whether it has devices."""
    def __len__(self):
        return 8
    def rows(self, indices):
        from jax._src import xla_bridge
        seen = [os.getpid(), os.environ.get("JAX_PLATFORMS") == "cpu", bool(xla_bridge._backends)]
        mask = np.ones(len(indices), np.float32)
        return {"inputs": np.array([seen] * len(indices)), "mask": mask}

class Broken:
    def __len__(self):
        return 8
    def draw(self, seed, positions):
        return positions % 8
    def rows(self, indices):
        if 5 in indices:
            raise OSError("no such sector")
        return {"mask": np.ones(len(indices), np.float32)}

class Lost(Broken):
    def __setstate__(self, state):
        raise ValueError("the folder is on another machine")
    def __getstate__(self):
        return {"a": 1}
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("user")
    (folder / "beside.py").write_text("def square(number):\n    return number * number\n")
    (folder / "numbers_of_mine.py").write_text(FILE)
    return import_file(folder / "numbers_of_mine.py")


@pytest.fixture(scope="module", autouse=True)
def older_objects_are_left_alone() -> Iterator[None]:
    """Before and after each test garbage is collected: not what other modules have left alive."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    """No process, open file or shared memory remains of what a test read."""

    def left() -> tuple[Any, ...]:
        return (
            psutil.Process().children(),
            len(os.listdir("/proc/self/fd")),
            # scikit-learn's loky has its own, in any process of this machine that imports it
            sorted(name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky-")),
        )

    gc.collect()
    before = left()
    yield
    assert left() == before


def data(file: Any, batch: int = 8, skip: int = 0, **fields: Any) -> Any:
    records = file.Numbers(owner=os.getpid(), **fields)
    return file.Squares(batch=batch, records=records, skip_bad_records=skip).source("train")


def as_bytes(batches: Any) -> list[dict[str, tuple[Any, ...]]]:
    return [
        {name: (a.dtype, a.shape, a.tobytes()) for name, a in batch.items()} for batch in batches
    ]


@contextlib.contextmanager
def soon(seconds: float = 5.0) -> Iterator[None]:
    """What is inside takes no longer."""
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < crowded(seconds)


def step_of(source: Any, record: int, start: int = 1) -> int:
    """The first step from `start` on in whose batch of 8 the record is."""
    return next(
        step for step in range(start, 100) if record in train_indices(source, step, seed=5, batch=8)
    )


READERS = [(0, 0), (0, 4), (1, 1), (4, 1)]
MORE_READERS = [pair for pair in itertools.product((0, 1, 4), repeat=2) if pair not in READERS]
SOME = [(0, 0), (0, 2), (2, 1)]


@pytest.mark.parametrize(
    ("workers", "readers"),
    [*READERS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_READERS)],
)
@pytest.mark.parametrize("start", [0, 1_000])
def test_batches_are_the_same_bytes_for_any_readers(
    file: Any, workers: int, readers: int, start: int
) -> None:
    if workers == 4 and (start == 0) != (readers == 1):
        pytest.skip(
            "processes take long to start: of four, the first step or the thousandth is tried"
        )
    source = data(file)
    share = np.array([1, 2, 5, 7])
    expected = [
        train_batch(source, step, seed=5, batch=8, rows=share) for step in range(start, start + 20)
    ]
    found = train_batches(
        source,
        range(start, start + 20),
        seed=5,
        batch=8,
        rows=share,
        threads=readers,
        workers=workers,
    )
    assert as_bytes(found) == as_bytes(expected)


@pytest.mark.parametrize(("workers", "readers"), [(0, 3), (2, 2)])
def test_batches_in_parts_are_the_same_bytes(file: Any, workers: int, readers: int) -> None:
    source = data(file)
    expected = [train_batch(source, step, seed=5, batch=7) for step in range(3, 12)]
    assert as_bytes(
        train_batches(
            source, range(3, 12), seed=5, batch=7, threads=readers, workers=workers, read_ahead=0
        )
    ) == as_bytes(expected)


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_evaluation_is_read_ahead(file: Any, readers: int) -> None:
    source = data(file, bad=(4, 36), skip=2)
    expected = [eval_batch(source, step, batch=8) for step in range(eval_steps(source, 8))]
    found = list(eval_batches(data(file, bad=(4, 36), skip=2), batch=8, threads=readers))
    assert as_bytes(found) == as_bytes(expected)
    assert np.flatnonzero(np.concatenate([each["mask"] for each in found]) == 0).tolist() == [
        4,
        36,
        37,
        38,
        39,
    ]


# -- how far ahead


def test_read_ahead_is_bounded_in_bytes_and_parts_leave_no_thread_idle() -> None:
    mib = 2**20
    batch = {
        "inputs": np.zeros(10 * mib - 64, np.uint8),
        "mask": np.zeros(16, np.float32),
    }  # 10 MiB
    for threads, workers, limit, expected in [
        (1, 0, 1024, (4, 1)),  # four a thread are enough
        (4, 0, 1024, (16, 1)),
        (4, 0, 79, (7, 1)),
        (4, 0, 25, (2, 2)),  # two batches fit, for four threads
        (4, 0, 5, (1, 4)),  # none fits: one at least
        (0, 3, 1024, (12, 1)),
        (4, 8, 100, (10, 4)),
        (4, 8, 15, (1, 16)),  # no more parts than rows
    ]:
        assert (
            ReadAhead(threads=threads, workers=workers, limit=limit * mib).plan(batch) == expected
        )


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_no_more_batches_are_requested_than_fit(ahead: int) -> None:
    asked: list[int] = []
    got: list[int] = []

    def collect(step: int) -> Rows:
        got.append(step)
        return {"mask": np.full(1, step)}

    found = []
    for rows in in_order(
        {"mask": np.full(1, 7)}, range(7, 30), ahead=ahead, submit=asked.append, collect=collect
    ):
        found.append(int(rows["mask"][0]))
        assert len(asked) == min(22, len(got) + ahead)
    assert (found, asked) == (list(range(7, 30)), list(range(8, 30)))


# -- what cannot be read


@pytest.mark.parametrize(("workers", "readers"), SOME)
def test_a_record_that_cannot_be_read_ends_the_run_at_its_own_step(
    file: Any, workers: int, readers: int
) -> None:
    source = data(file, bad=(13,))
    step = step_of(source, 13, 3)
    batches = train_batches(
        source, range(step - 2, 100), seed=5, batch=8, threads=readers, workers=workers
    )
    next(batches), next(batches)
    with soon(), pytest.raises(Failed) as failed:
        next(batches)
    assert str(failed.value).startswith(
        "part-1.bin record 3 cannot be read: OSError: flipped bits; fix or remove it"
    )


@pytest.mark.parametrize(("workers", "readers"), SOME)
@pytest.mark.parametrize("bad", ["cut off", "no image"])
def test_a_file_that_is_cut_off_or_cannot_be_decoded_is_named_soon_or_left_out(
    bad: str, workers: int, readers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "cache"))
    for number in range(37):
        name = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").convert("RGB").save(name)
    images = Images(
        records=ImageFolder(folder=f"{tmp_path}/pictures", eval_share=0), batch=8, size=8, classes=2
    )
    source: Any = images.source("train")
    broken = Path(source.where(13))
    step = step_of(source, 13, 3)
    broken.write_bytes({"cut off": broken.read_bytes()[:-300], "no image": b"decode this"}[bad])
    batches = train_batches(
        source, range(step - 2, 100), seed=5, batch=8, threads=readers, workers=workers
    )
    next(batches), next(batches)
    with (
        soon(),
        pytest.raises(
            Failed,
            match=rf"{broken} cannot be read: ValueError: it is not a complete image: .*; fix or",
        ),
    ):
        next(batches)
    source = dataclasses.replace(images, skip_bad_records=1).source("train")
    with contextlib.closing(
        train_batches(
            source, range(step - 2, 100), seed=5, batch=8, threads=readers, workers=workers
        )
    ) as batches:
        masks = [next(batches)["mask"] for _ in range(3)]
    assert np.array_equal(masks[2] == 0, train_indices(source, step, seed=5, batch=8) == 13)


@pytest.mark.parametrize(("workers", "readers"), SOME)
def test_bad_records_are_left_out_counted_and_named_once_by_any_readers(
    file: Any, workers: int, readers: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = data(file, bad=(13, 20, 36), skip=3)
    found = list(
        train_batches(source, range(10), seed=5, batch=8, threads=readers, workers=workers)
    )
    indices = np.concatenate([train_indices(source, step, seed=5, batch=8) for step in range(10)])
    masks, inputs = (np.concatenate([each[name] for each in found]) for name in ("mask", "inputs"))
    assert np.array_equal(masks == 0, np.isin(indices, (13, 20, 36)))
    assert np.array_equal(inputs[:, 0], np.where(masks, indices, 0)) and np.all(
        inputs[masks == 0] == 0
    )
    said = [record.getMessage() for record in caplog.records if record.name == "jaxbig"]
    in_order_of_steps = list(
        dict.fromkeys(index for index in indices.tolist() if index in (13, 20, 36))
    )
    assert said == [
        f"left out ({number + 1} of at most 3): part-{index // 10}.bin record {index % 10} cannot "
        "be read: OSError: flipped bits"
        for number, index in enumerate(in_order_of_steps)
    ]


@pytest.mark.parametrize(("workers", "readers"), SOME)
def test_one_more_than_may_be_left_out_ends_the_run_at_the_same_step(
    file: Any, workers: int, readers: int
) -> None:
    source = data(file, bad=(13, 20, 36), skip=2)
    made = 0
    last = max(step_of(source, record, 0) for record in (13, 20, 36))
    with pytest.raises(
        Failed, match=r"record \d cannot be read: .* \(3 are bad, and 2 may be\); fix"
    ):
        for _ in train_batches(
            source, range(100), seed=5, batch=8, threads=readers, workers=workers
        ):
            made += 1
    assert made == last


def test_an_example_of_another_shape_is_named(file: Any) -> None:
    source = data(file)
    source.empty = {**source.empty, "inputs": np.zeros(4, np.float32)}
    with pytest.raises(
        Failed, match=r"part-0.bin record 2 .*its inputs has the shape \(3,\), and not \(4,\)"
    ):
        source.rows(np.array([2]))


def test_error_of_a_source_in_a_worker_is_raised_in_the_run(file: Any) -> None:
    with pytest.raises(
        Failed, match=r"the batch of step 6 cannot be read: OSError: no such sector"
    ):
        list(train_batches(file.Broken(), range(3, 8), seed=0, batch=1, threads=1, workers=1))


def test_worker_that_cannot_start_reports_why(file: Any) -> None:
    with pytest.raises(Failed, match="cannot start: ValueError: the folder is on another machine"):
        list(train_batches(file.Lost(), range(3), seed=0, batch=1, threads=1, workers=1))


def test_a_source_that_cannot_be_sent_is_refused(file: Any) -> None:
    source = data(file)
    source.lock = threading.Lock()
    with pytest.raises(Refused, match=r"cannot be given to worker processes: .*lock.*--workers 0"):
        next(train_batches(source, range(3), seed=0, batch=1, threads=1, workers=2))


# -- ends


def test_a_worker_that_is_killed_ends_the_run_and_the_record_is_named(file: Any) -> None:
    source = data(file, deadly=23, size=400)
    step = step_of(source, 23, 15)
    batches = train_batches(source, range(step - 15, 100), seed=5, batch=8, threads=1, workers=2)
    next(batches), next(batches)  # 8 are ahead
    said = r"was killed by SIGKILL while .* step \d+, at or after part-2.bin record 3: t"
    with soon(), pytest.raises(Failed, match=said):
        for _ in batches:
            pass


def test_a_worker_that_is_killed_is_noticed_at_the_next_batch_though_many_are_ahead(
    file: Any,
) -> None:
    others = psutil.Process().children()  # such as Python's tracker of shared memory
    batches = train_batches(data(file), range(10**6), seed=5, batch=8, threads=1, workers=2)
    for _ in range(3):
        next(batches)
    time.sleep(0.5)  # a long step, in which all that is ahead is read
    # not the last child: process ids wrap around
    worker = next(child for child in psutil.Process().children() if child not in others).pid
    with soon():
        os.kill(worker, signal.SIGKILL)
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # it is dead, and not yet asked for
        with pytest.raises(Failed, match="was killed by SIGKILL: the machine may lack memory"):
            next(batches)


def test_workers_are_started_once_and_have_no_devices(file: Any) -> None:
    found = list(train_batches(file.Seen(), range(30), seed=0, batch=2, threads=1, workers=2))[1:]
    seen = np.concatenate([each["inputs"] for each in found])
    assert len(set(seen[:, 0].tolist())) == 2 and os.getpid() not in seen[:, 0]
    assert np.all(seen[:, 1] == 1) and np.all(seen[:, 2] == 0)


def test_closing_ends_workers_and_threads(file: Any) -> None:
    threads = threading.active_count()
    others = psutil.Process().children()  # such as Python's tracker of shared memory
    for readers, workers in ((1, 2), (4, 0)):
        batches = train_batches(
            data(file), range(10**6), seed=5, batch=8, threads=readers, workers=workers
        )
        next(batches), next(batches)
        assert len(psutil.Process().children()) == len(others) + workers
        assert (threading.active_count() > threads) == (readers == 4)
        batches.close()
        assert (psutil.Process().children(), threading.active_count()) == (others, threads)


RUN = """
import signal, sys
# a shell's background jobs start with it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from jaxbig.data.pipeline.loader import train_batches
from jaxbig.config.discover import import_file
file = import_file(Path(sys.argv[1]))
source = file.Squares(batch=8, records=file.Numbers()).source("train")
batches = train_batches(source, range(10**9), seed=0, batch=8, threads=2, workers=2)
for number, _ in enumerate(batches):
    if number == 5:
        print("reading", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda each: each.name)
def test_nothing_is_left_of_a_run_that_is_ended(file: Any, number: signal.Signals) -> None:
    """Ctrl-C goes to every process of a terminal; SIGKILL to one alone."""
    command = [sys.executable, "-c", RUN, file.__file__]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert run.stdout and run.stdout.readline() == "reading\n"
        workers = psutil.Process(run.pid).children()
        assert len(workers) == 2
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.kill()
        _, error = run.communicate(timeout=60)
        assert error.count("KeyboardInterrupt") == (number == signal.SIGINT)  # of the run alone
        assert psutil.wait_procs(workers, timeout=60)[1] == []
    finally:
        run.kill()


SCRIPT = """
import numpy as np
from jaxbig.data.pipeline.loader import train_batches
class Mine:
    def __len__(self):
        return 5
    def rows(self, indices):
        return {"inputs": indices, "mask": np.ones(len(indices), np.float32)}
if __name__ == "__main__":
    batches = train_batches(Mine(), range(4), seed=0, batch=5, threads=1, workers=1)
    print([sorted(rows["inputs"].tolist()) for rows in batches] == [[0, 1, 2, 3, 4]] * 4)
"""


def test_a_script_may_be_the_run_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


# -- in a run

EXPERIMENT = """
import dataclasses
import numpy as np
from jaxbig.experiments.digits_convnet import config as parent
from jaxbig.data.builtin.digits import Digits
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Digits):
    def source(self, split):
        return Slow(super().source(split))
class Slow:
    def __init__(self, source):
        self.source = source
    def __len__(self):
        return len(self.source)
    def rows(self, indices):
        return self.source.rows(indices)
def config():
    return dataclasses.replace(
        parent(), data=Mine(batch=32), steps=60, evaluate_every=25, checkpoint_every=20
    )
"""


@pytest.mark.slow
def test_a_run_fed_by_workers_is_stopped_by_ctrl_c_and_ends_as_one_fed_by_none(
    tmp_path: Path, jaxbig: Any
) -> None:
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    few = ["--log-every", "1", "--model.layers.0.channels", "4"]
    assert (
        jaxbig(
            "train", "mine.py", "--workdir", "straight", "--reader-threads", "0", *few, **HASTY
        ).returncode
        == 0
    )
    command = [
        sys.executable,
        "-m",
        "jaxbig",
        "train",
        "mine.py",
        "--workdir",
        "fed",
        "--workers",
        "2",
        *few,
    ]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **HASTY, "JAX_NUM_CPU_DEVICES": "1"},
        start_new_session=True,
        text=True,
    )
    log = tmp_path / "fed" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert run.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(120) == 75 and len(workers) == 2
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    done = jaxbig("train", "mine.py", "--workdir", "fed", "--workers", "2", "--json", *few, **HASTY)
    assert done.returncode == 0, done.stderr
    ends = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("straight", "fed")
    ]
    assert ends[0]["state_sha256"] == ends[1]["state_sha256"]


@pytest.fixture
def report() -> Callable[[list[float]], None]:
    reporter = StepReporter(
        small("digits_convnet", reader_threads=3, workers=5, read_ahead=77),
        lambda step, values: None,
        0,
    )

    def warn(waits: list[float]) -> None:
        for wait in waits:
            reporter.warn(wait)

    return warn


def test_run_that_waits_for_data_warns_which_options_to_raise(
    report: Any, caplog: pytest.LogCaptureFixture
) -> None:
    report([0.9] * SLOW)  # the first log is of a beginning
    assert not caplog.records
    report([0.6])
    (said,) = [record.getMessage() for record in caplog.records]
    assert all(
        words in said
        for words in ("80%", "--workers (now 5)", "--reader-threads (3)", "--read-ahead (77 MiB)")
    )
    report([0.9] * (WARN_EVERY - 1))
    assert len(caplog.records) == 1
    report([0.9])
    assert len(caplog.records) == 2


def test_run_that_waits_now_and_then_gives_no_warning(
    report: Any, caplog: pytest.LogCaptureFixture
) -> None:
    report([0.9, 0.9, 0.1] * 20 + [0.19] * 20)
    assert not caplog.records


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 0), (2.0, 1)])
def test_run_of_a_few_seconds_gives_no_warning(
    seconds: float, count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = itertools.count(step=seconds)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    reporter = StepReporter(small("digits_convnet", log_every=1), lambda step, values: None, 0)
    for step in range(1, 12):
        reporter.record_batch(np.ones(16), 0.9 * seconds)
        reporter.record(step, {FAULT: jnp.int32(0)})
    assert len(caplog.records) == count
