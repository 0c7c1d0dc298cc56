"""Reads and writes folders of safetensors files, a part of a tensor at a time."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from jaxbig.errors import Refused

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""The most bytes of tensors in a file that is written, but for a larger tensor."""
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The names of dtypes in a safetensors file."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As the file names it, such as "F32"."""


class WeightFolder:
    """The tensors of a folder by name; none is read until it is asked for."""

    def __init__(self, folder: Path):
        """
        Raises:
          Refused: the folder has no whole safetensors files.
        """
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        for file, expected in weight_files(folder).items():
            found = read_header(file)
            if expected is not None and expected != set(found):
                name = sorted(expected ^ set(found))[0]
                where = "it is not there" if name in expected else f"{INDEX} does not have it there"
                raise Refused(f"{file}: tensor {name}: {where}; copy the folder again.")
            self.tensors |= found

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part of a tensor at `index`, a slice with start and stop for each axis."""
        stored = self.tensors[name]
        if 0 in stored.shape:  # the library refuses to slice nothing
            return np.empty([each.stop - each.start for each in index], DTYPES[stored.dtype])
        with opened(stored.file) as file:
            part = file.get_slice(name)
            return np.asarray(part[index] if index else part[...])


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An open safetensors file; raises `Refused` for one that is not whole.

    It is opened for each read: the pages of an open file count as this process's memory.
    """
    try:
        with safetensors.safe_open(str(file), "numpy") as content:
            yield content
    except safetensors.SafetensorError as error:
        size = file.stat().st_size
        raise Refused(
            f"{file} is no whole safetensors file ({size:,} bytes): {error}; copy it again."
        ) from None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror or error}.") from None


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors in a file, by name."""
    with opened(file) as content:
        parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
        return {
            name: Stored(file, tuple(part.get_shape()), part.get_dtype())
            for name, part in parts.items()
        }


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, each with the tensors that its index names there.

    Returns:
      None as the tensors of a single file, which has no index.

    Raises:
      Refused: there are none.
    """
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder: give one with config.json and {SINGLE}.")
    if (folder / INDEX).exists():
        named: dict[Path, set[str] | None] = {}
        for tensor, name in weight_map(folder).items():
            file = folder / name
            if Path(name).name != name or not file.is_file():
                raise Refused(f"{folder / INDEX}: its file {name} is not there: copy it again.")
            tensors = named.setdefault(file, set())
            assert tensors is not None
            tensors.add(tensor)
        return dict(sorted(named.items()))
    if (folder / SINGLE).exists():
        return {folder / SINGLE: None}
    pickles = sorted(
        file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind)
    )
    if pickles:
        raise Refused(
            f"{folder} has its weights as a pickle, {pickles[0]}, which can run any code and is "
            f"never read: save them as {SINGLE}, with transformers by "
            f"model.save_pretrained(FOLDER)."
        )
    raise Refused(f"{folder} has no weights: there is neither {SINGLE} nor {INDEX}.")


def weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor, from the index of a folder."""
    content = read_object(folder / INDEX).get("weight_map")
    if not isinstance(content, dict) or not all(isinstance(n, str) for n in content.values()):
        raise Refused(f"{folder / INDEX} has no weight_map of file names: copy it again.")
    return content


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of such a folder; raises `Refused` if there is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise Refused(f"{file} holds no JSON object.")
    return content


# -- writing

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and dtype of tensors, by name."""


def write_tensors(
    folder: Path,
    shapes: Shapes,
    make: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors to a folder, one after the other, in one file or several with an index.

    Args:
      folder: where to.
      shapes: of all tensors, in the order in which they are written.
      make: gives a tensor; it is called once for each.
      shard_bytes: the most bytes of tensors in a file, but for a larger tensor.
    """
    shards = split_shards(shapes, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        index = {
            "metadata": {"total_size": sum(nbytes(*each) for each in shapes.values())},
            "weight_map": {
                tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            write_shard(file, {tensor: shapes[tensor] for tensor in shard}, make)


def split_shards(shapes: Shapes, shard_bytes: int) -> list[list[str]]:
    """The names of tensors, in their order, a list for each file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, each in shapes.items():
        if shards[-1] and size + nbytes(*each) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes(*each)
    return shards


def nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """The size of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def write_shard(file: BinaryIO, shapes: Shapes, make: Callable[[str], np.ndarray]) -> None:
    """Writes one safetensors file: the length of its header, the header, and each tensor's bytes.

    The library would need all tensors of the file in memory.
    """
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, (shape, dtype) in shapes.items():
        start = end
        end += nbytes(shape, dtype)
        header[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, (shape, dtype) in shapes.items():
        tensor = np.asarray(make(name), order="C")
        assert (tensor.shape, tensor.dtype) == (shape, dtype), name
        file.write(tensor.reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
