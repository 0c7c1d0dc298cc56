"""Batches as a pure function of seed and step; the bundled data sets and their preparation."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.builtin.digits import Digits
from jaxbig.data.builtin.pytext import JaxbigPytext, PyText, Windows
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Rows, Source
from jaxbig.data.pipeline.loader import RowSelection, eval_batch, train_batch, train_batches
from jaxbig.data.pipeline.sampler import epoch_order, eval_steps, train_indices
from jaxbig.data.records.tfds_builder import columns, prepared
from jaxbig.errors import Failed, Refused

SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)


def numbered(size: int) -> Source:
    """A source whose example i is (i, -i)."""
    return ArraySource(inputs=np.arange(size), targets=-np.arange(size, dtype=np.int32))


def joined(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_bytes(batches: Any) -> list[dict[str, tuple[Any, ...]]]:
    return [
        {name: (a.dtype, a.shape, a.tobytes()) for name, a in batch.items()} for batch in batches
    ]


# -- order


@given(SEEDS, st.integers(0, 10_000), st.integers(1, 500))
@few
def test_epoch_order_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert np.array_equal(np.sort(epoch_order(seed, epoch, size)), np.arange(size))


def test_epoch_order_never_changes() -> None:
    assert epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_order(3, 2, 12).tolist() == [11, 8, 2, 4, 10, 1, 3, 6, 5, 0, 7, 9]
    assert epoch_order(2**32 - 1, 0, 5).tolist() == [4, 1, 2, 0, 3]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_epoch_order_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 10)[0] = 1


@given(SEEDS, st.integers(1, 40), st.integers(1, 25))
@few
def test_an_epoch_holds_every_example_once(seed: int, batch: int, size: int) -> None:
    """Also where the batch does not divide the epoch, or exceeds it: steps span epochs."""
    steps = np.concatenate(
        [train_indices(numbered(size), step, seed=seed, batch=batch) for step in range(2 * size)]
    )  # 2 x batch epochs
    assert np.array_equal(
        np.sort(steps.reshape(2 * batch, size)), np.tile(np.arange(size), (2 * batch, 1))
    )


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 50))
@few
def test_processes_share_one_global_batch(seed: int, step: int, quarter: int, size: int) -> None:
    source = numbered(size)
    batch = 4 * quarter
    whole = train_batch(source, step, seed=seed, batch=batch)
    for processes in (1, 2, 4):
        shares = [
            train_batch(source, step, seed=seed, batch=batch, rows=part)
            for part in np.split(np.arange(batch), processes)
        ]
        assert as_bytes([joined(shares)]) == as_bytes([whole])


@pytest.mark.parametrize("start", [0, 1_000])
@pytest.mark.parametrize("share", [slice(None), np.array([1, 2, 5, 7])], ids=["all", "some"])
def test_readers_change_no_byte(start: int, share: RowSelection) -> None:
    source = numbered(37)
    expected = [
        train_batch(source, step, seed=5, batch=8, rows=share) for step in range(start, start + 20)
    ]
    for readers in (0, 1, 4):
        assert as_bytes(
            train_batches(
                source, range(start, start + 20), seed=5, batch=8, rows=share, threads=readers
            )
        ) == as_bytes(expected)


@pytest.mark.parametrize("readers", [0, 1, 4])
def test_an_example_that_cannot_be_read_is_an_error_at_its_own_step(readers: int) -> None:
    class Damaged(ArraySource):
        def rows(self, indices: np.ndarray) -> Rows:
            if 13 in indices:
                raise OSError("example 13 is damaged")
            return super().rows(indices)

    bad = next(
        step for step in range(10) if 13 in train_indices(numbered(40), step, seed=0, batch=4)
    )
    batches = train_batches(
        Damaged(inputs=np.arange(40)), range(10), seed=0, batch=4, threads=readers
    )
    assert len([next(batches) for _ in range(bad)]) == bad > 0
    with pytest.raises(OSError, match="example 13 is damaged"):
        next(batches)


@given(st.integers(1, 60), st.integers(1, 8), st.sampled_from([1, 2, 4]))
@few
def test_evaluation_sees_each_example_once_and_pads_with_mask_0(
    size: int, share: int, processes: int
) -> None:
    source = numbered(size)
    batch = share * processes
    steps = range(eval_steps(source, batch))
    places = np.split(np.arange(batch), processes)
    parts = [eval_batch(source, step, batch=batch, rows=each) for step in steps for each in places]
    rows = joined(parts)
    assert all(len(part["mask"]) == share for part in parts)
    assert rows["inputs"][rows["mask"] == 1].tolist() == list(range(size))
    assert np.all(rows["mask"][size:] == 0) and len(rows["mask"]) - size < batch
    assert rows["mask"].dtype == np.float32


# -- text


@given(st.binary(min_size=1, max_size=200), st.integers(1, 40))
@few
def test_every_byte_is_a_target_once_and_its_input_is_the_byte_before(
    text: bytes, length: int
) -> None:
    source = Windows(np.frombuffer(text, np.uint8), length)
    rows = source.rows(np.arange(len(source)))
    real = rows["mask"] == 1
    assert rows["mask"].shape == (len(source), length)
    assert bytes(rows["targets"][real].tolist()) == text
    assert bytes(rows["inputs"][real].tolist()) == b"\0" + text[:-1]
    assert np.all(real[:-1]) and np.array_equal(
        real[-1], np.arange(length) < (len(text) - 1) % length + 1
    )


@given(st.binary(min_size=1, max_size=100), st.integers(1, 12), st.integers(1, 9))
@few
def test_evaluation_weighs_every_byte_once(text: bytes, length: int, batch: int) -> None:
    source = Windows(np.frombuffer(text, np.uint8), length)
    rows = joined(
        [eval_batch(source, step, batch=batch) for step in range(eval_steps(source, batch))]
    )
    assert bytes(rows["targets"][rows["mask"] == 1].tolist()) == text


def test_windows_are_the_same_in_any_order() -> None:
    source = Windows(np.arange(100, dtype=np.uint8), 7)
    some = np.array([14, 3, 3, 0])
    for name, whole in source.rows(np.arange(len(source))).items():
        assert np.array_equal(source.rows(some)[name], whole[some])


# -- prepared data

PREPARE = """
import hashlib, sys
from jaxbig.data.builtin.digits import Digits
print("ready", flush=True)
sys.stdin.read()
identity, source = Digits(batch=1).prepare(), Digits(batch=1).source("train")
print(identity, hashlib.sha256(source.arrays["inputs"].tobytes()).hexdigest())
"""
KILLED = """
import os, signal
from jaxbig.data.builtin.digits import Digits, JaxbigDigits
def half(self, records):
    yield from enumerate(records[:300])
    os.kill(os.getpid(), signal.SIGKILL)
JaxbigDigits._generate_examples = half
Digits(batch=1).prepare()
"""
DIGITS = (
    "jaxbig_digits/1.0.0 sha256:25d6b8421ba71f23b8a85fd5d0c82802b88d3eb7c431008f6d57d0006baff561"
)


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, text=True, **pipes
    )


@pytest.fixture(scope="module")
def prepared_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which two processes have prepared the digits at once, and what each printed."""
    folder = tmp_path_factory.mktemp("data") / "not" / "yet"
    both = [python(PREPARE, TFDS_DATA_DIR=str(folder)) for _ in range(2)]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    for process in both:  # both have imported, and wait
        if process.stdin:
            process.stdin.close()
        process.stdin = None
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    return folder, [out for out, _ in ends]


@pytest.fixture
def folder(prepared_by_two: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_by_two[0]))
    return prepared_by_two[0]


def images(source: Any) -> list[bytes]:
    """Each example as bytes, sorted: the examples as a multiset."""
    pairs = zip(source.arrays["inputs"], source.arrays["targets"], strict=True)
    return sorted(
        (image * 16).astype(np.uint8).tobytes() + bytes([label]) for image, label in pairs
    )


def all_images() -> list[bytes]:
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    return sorted(
        image.astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(pixels, labels, strict=True)
    )


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(prepared_by_two: tuple[Path, list[str]]) -> None:
    folder, (one, other) = prepared_by_two
    assert one == other and one.startswith(DIGITS)
    assert not list(folder.rglob("incomplete*"))


def test_digits_are_scikit_learns_each_once(folder: Path) -> None:
    data = Digits(batch=1)
    train = data.source("train")
    held_out = data.source("eval")
    assert (len(train), len(held_out)) == (1437, 360)
    assert sorted(images(train) + images(held_out)) == all_images()


def test_interrupted_preparation_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = python(KILLED, TFDS_DATA_DIR=str(tmp_path))
    killed.communicate(timeout=120)
    assert killed.returncode == -9
    assert len(list(tmp_path.rglob("incomplete.*"))) == 1
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = Digits(batch=1)
    assert data.prepare() == DIGITS
    assert sorted(images(data.source("train")) + images(data.source("eval"))) == all_images()
    assert not list(tmp_path.rglob("incomplete.*"))


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    with pytest.raises(Refused) as refused:
        Digits(batch=1).prepare()
    assert all(
        word in str(refused.value) for word in ("jaxbig_digits", str(folder), "TFDS_DATA_DIR")
    )


def test_a_flipped_bit_in_prepared_data_is_never_read(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for file in (folder / "jaxbig_digits" / "1.0.0").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= "train" in file.name
        copy = tmp_path / "jaxbig_digits" / "1.0.0" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(Digits(batch=1).source("eval")) == 360
    with pytest.raises((Refused, RuntimeError)):
        Digits(batch=1).source("train")


@pytest.mark.slow
def test_tensorflow_is_not_imported_even_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(9)")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    code = PREPARE + "print([name for name in sys.modules if name.split('.')[0] == 'tensorflow'])"
    process = python(code, TFDS_DATA_DIR=str(tmp_path), PYTHONPATH=path)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out.splitlines()[-1:]) == (0, ["[]"]), error


# -- Python's library as text


@pytest.fixture(scope="module")
def pytext(prepared_by_two: tuple[Path, list[str]]) -> Iterator[dict[str, dict[str, bytes]]]:
    """The files of each split by name, prepared in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(prepared_by_two[0]))
        splits = {split: columns(prepared(JaxbigPytext), split) for split in ("train", "eval")}
        yield {
            split: {
                name.decode(): text.tobytes()
                for name, text in zip(files["name"], files["text"], strict=True)
            }
            for split, files in splits.items()
        }


def test_files_are_held_out_whole(pytext: Any) -> None:
    train = pytext["train"]
    held_out = pytext["eval"]
    assert not train.keys() & held_out.keys()
    assert 0.03 < len(held_out) / (len(train) + len(held_out)) < 0.07


def test_the_text_is_the_library_without_its_tests(pytext: Any) -> None:
    files = {**pytext["train"], **pytext["eval"]}
    library = Path(sysconfig.get_paths()["stdlib"])
    assert {"os.py", "json/decoder.py", "asyncio/events.py", "xml/dom/minidom.py"} <= files.keys()
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in files)
    assert all((library / name).read_bytes() == text for name, text in files.items())


def test_a_split_is_its_files_in_order_of_name_each_with_a_0_after_it(
    pytext: Any, folder: Path
) -> None:
    for split, files in pytext.items():
        assert PyText(batch=1).joined(split).tobytes() == b"".join(
            files[name] + b"\0" for name in sorted(files)
        )


def test_identity_depends_on_the_bytes(
    pytext: Any, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    before = PyText(batch=1).prepare()
    assert before == PyText(batch=8, length=9).prepare() != Digits(batch=1).prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(
        "jaxbig.data.builtin.pytext.library_files",
        lambda: {"a.py": b"pass\n", "b.py": b"1\n", **NAMED},
    )
    ours = PyText(batch=1).prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "other"))
    monkeypatch.setattr(
        "jaxbig.data.builtin.pytext.library_files",
        lambda: {"a.py": b"pass\n", "b.py": b"2\n", **NAMED},
    )
    assert len({before, ours, PyText(batch=1).prepare()}) == 3


NAMED = {f"module_{number}.py": b"\n" for number in range(40)}  # enough that both splits have some


@pytest.mark.parametrize(
    "data", [Digits(batch=7), PyText(batch=7, length=50)], ids=["digits", "pytext"]
)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_batch_has_the_shapes_and_dtypes_of_its_spec(
    data: Data, split: str, pytext: Any, folder: Path
) -> None:
    source = data.source(split)
    last = eval_batch(source, eval_steps(source, 7) - 1, batch=7)
    for batch in (train_batch(source, 3, seed=0, batch=7), eval_batch(source, 0, batch=7), last):
        assert {
            name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()
        } == data.spec()


def test_digits_are_of_0_to_1_and_bytes_of_0_to_255(pytext: Any, folder: Path) -> None:
    digits = Digits(batch=1).source("train").rows(np.arange(1437))
    assert (digits["inputs"].min(), digits["inputs"].max(), set(digits["targets"])) == (
        0,
        1,
        set(range(10)),
    )
    text = PyText(batch=1, length=1000).source("eval").rows(np.arange(100))
    assert text["inputs"].min() >= 0 and text["inputs"].max() < PyText.vocab


@pytest.mark.parametrize("index", [-1, 10])
def test_drawn_example_that_does_not_exist_is_refused(index: int) -> None:
    class Drawn(Source):
        def __len__(self) -> int:
            return 10

        def rows(self, indices: np.ndarray) -> Rows:
            raise AssertionError("nothing is read")

        def draw(self, seed: int, positions: np.ndarray) -> np.ndarray:
            return np.full(len(positions), index)

    with pytest.raises(Failed, match=rf"Drawn.draw gave examples {index} to {index}"):
        train_indices(Drawn(), 0, seed=0, batch=4)
