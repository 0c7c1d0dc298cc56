"""Folders of safetensors: written by us, read by the library, and what is no such folder."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxbig.errors import Refused
from jaxbig.pretrained.weight_files import INDEX, SINGLE, WeightFolder, write_tensors

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "c": np.float32(7).reshape(()),
    "d": np.zeros((0, 3), np.float32),
}


def write(folder: Path, shard_bytes: int = 1000) -> Path:
    folder.mkdir(exist_ok=True)
    shapes = {name: (each.shape, each.dtype) for name, each in TENSORS.items()}
    write_tensors(folder, shapes, TENSORS.__getitem__, shard_bytes=shard_bytes)
    return folder


@pytest.mark.parametrize("shard_bytes", [1000, 50])
def test_written_tensors_are_read_by_the_library_and_by_us(
    tmp_path: Path, shard_bytes: int
) -> None:
    folder = WeightFolder(write(tmp_path, shard_bytes))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if shard_bytes == 1000 else 2)
    found = {}
    for file in files:
        found |= safetensors.numpy.load_file(file)
    for name, each in TENSORS.items():
        whole = tuple(slice(0, size) for size in each.shape)
        for read in (found[name], folder.read(name, whole)):
            assert read.dtype == each.dtype and read.tobytes() == each.tobytes()
    np.testing.assert_array_equal(
        folder.read("a", (slice(1, 3), slice(2, 4))), TENSORS["a"][1:3, 2:4]
    )


def lie(file: Path, size: int) -> None:
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])


BROKEN = {
    "truncated": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-3]), "no whole"),
    "empty": (lambda f: (f / SINGLE).write_bytes(b""), "no whole safetensors file"),
    "a header of 2^60 bytes": (lambda f: lie(f / SINGLE, 2**60), "no whole safetensors file"),
    "a header of 2^64 - 1 bytes": (lambda f: lie(f / SINGLE, 2**64 - 1), "no whole"),
    "a header of half its size": (lambda f: lie(f / SINGLE, 80), "no whole safetensors file"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "has no weights: there is neither"),
    "a pickle": (
        lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"),
        "as a pickle, pytorch_model.bin, which can run any code",
    ),
    "a tensor that overlaps": (
        lambda f: (f / SINGLE).write_bytes(
            (f / SINGLE).read_bytes().replace(b"[48,60]", b"[47,59]")
        ),
        "no whole",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    harm, said = BROKEN[kind]
    harm(write(tmp_path))
    with pytest.raises(Refused, match=said) as error:
        WeightFolder(tmp_path)
    assert "\n" not in str(error.value)


INDICES = {
    "a file that is not there": ({"weight_map": {"a": "x.safetensors"}}, "x.safetensors is not"),
    "a file elsewhere": ({"weight_map": {"a": "../x.safetensors"}}, "is not there"),
    "a tensor that is not there": ({"weight_map": {"e": SINGLE}}, "tensor"),
    "no map": ({"metadata": {}}, "no weight_map"),
    "a list": ([], "no JSON object"),
    "names that are none": ({"weight_map": {"a": 3}}, "no weight_map"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_index_that_does_not_fit_its_files_is_refused(tmp_path: Path, kind: str) -> None:
    content, said = INDICES[kind]
    write(tmp_path / "folder")
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "folder" / INDEX).write_text(json.dumps(content))
    with pytest.raises(Refused, match=said):
        WeightFolder(tmp_path / "folder")
