"""Data sets of the running Python's standard library as bytes; prepared once in TFDS's folder.

It differs between versions of Python, so its sha256 is its identity. The split is by file: one in
twenty is held out, by the hash of its name.
"""

import abc
import dataclasses
import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Data, Rows, Source, Spec
from jaxbig.data.core.fields import as_bytes
from jaxbig.data.records.tfds_builder import Builder, Record, columns, identity, prepared
from jaxbig.data.tokenize.tokenizers import Bytes, Tokenizer

LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
}


def library_files() -> dict[str, bytes]:
    """The .py files of the standard library without tests, by relative path, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    kept = {
        name: path for name, path in sorted(found.items()) if not LEFT_OUT & set(name.split("/"))
    }
    return {name: path.read_bytes() for name, path in kept.items()}


def held_out(name: str) -> bool:
    """Whether a file is for evaluation: one in twenty, by the hash of its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20 == 0


class JaxbigPytext(Builder):
    """The source files of the standard library."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"python_{platform.python_version()}")
    ]

    def features(self) -> dict[str, Any]:
        return {
            "name": tfds.features.Text(),
            "text": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
        }

    def records(self) -> dict[str, list[Record]]:
        splits: dict[str, list[Record]] = {"train": [], "eval": []}
        for name, text in library_files().items():
            splits["eval" if held_out(name) else "train"].append(
                {"name": name, "text": np.frombuffer(text, np.uint8)}
            )
        return splits


class Windows:
    """A text cut into windows of `length` tokens; `inputs` is the text shifted right, after a 0.

    Every token of the text is a target exactly once; the last window is padded with `mask` 0.
    """

    def __init__(self, text: np.ndarray, length: int, contiguous: bool = False):
        self.text = text
        self.length = length
        self.contiguous = contiguous

    def __len__(self) -> int:
        return -(-len(self.text) // self.length)

    def rows(self, indices: np.ndarray) -> Rows:
        places = indices[:, None] * self.length + np.arange(self.length)  # [B, L]
        mask = places < len(self.text)
        targets = self.text[np.where(mask, places, 0)]
        before = self.text[np.where(mask, places, 1) - 1]
        return {
            "inputs": np.where(places == 0, 0, before).astype(np.int32),
            "targets": targets.astype(np.int32),
            "mask": mask.astype(np.float32),
        }


class PlainWindows(Windows):
    """The same windows without the shift: `inputs` is the text, and 0 beyond its end."""

    def rows(self, indices: np.ndarray) -> Rows:
        late = super().rows(indices)
        return {"inputs": late["targets"] * late["mask"].astype(np.int32), "mask": late["mask"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library(Data):
    """Python's standard library as bytes, files joined by a 0."""

    length: PositiveInt = 256
    """Tokens (bytes) an example."""

    cuts_to_length = True
    tokenizer: ClassVar[Tokenizer] = Bytes()
    reads_texts = True
    endings = None

    def record_of_file(self, content: bytes) -> Record:
        return {"text": content}

    def record_of_text(self, text: str) -> Record:
        return {"text": text}

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of a text: its first window."""
        if "inputs" in record:
            return super().read_unlabeled(record)
        if not (content := as_bytes(record, "text")):
            raise ValueError("it is empty")
        rows = self.windows(self.tokens(content)).rows(np.zeros(1, np.int64))
        return super().read_unlabeled({name: field[0] for name, field in rows.items()})

    def tokens(self, content: bytes) -> np.ndarray:
        """The tokens of a text, its bytes, uint8 [n]."""
        return np.frombuffer(content, np.uint8)

    @abc.abstractmethod
    def windows(self, text: np.ndarray) -> "Windows":
        """The windows of a text, uint8 [n]."""

    def source(self, split: str) -> Source:
        return self.windows(self.joined(split))

    def prepare(self) -> str:
        return identity(prepared(JaxbigPytext))

    def text(self, tokens: np.ndarray) -> str:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")

    def joined(self, split: str) -> np.ndarray:
        """The bytes of a split, each file followed by a 0."""
        files = columns(prepared(JaxbigPytext), split)["text"]
        return np.concatenate([part for file in files for part in (file, np.zeros(1, np.uint8))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyText(Library):
    """Python's standard library for language modeling: `inputs` and `targets` [B, L]."""

    contiguous: bool = False
    """Each row continues the one of the step before; `starts` [B] is 1 where it restarts."""

    vocab = 256

    def spec(self) -> Spec:
        shape = (self.batch, self.length)
        tokens = jax.ShapeDtypeStruct(shape, np.int32)
        spec = {
            "inputs": tokens,
            "targets": tokens,
            "mask": jax.ShapeDtypeStruct(shape, np.float32),
        }
        return spec | (
            {"starts": jax.ShapeDtypeStruct((self.batch,), np.int32)} if self.contiguous else {}
        )

    def windows(self, text: np.ndarray) -> Windows:
        return Windows(text, self.length, self.contiguous)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyTextRows(Library):
    """Python's standard library for masked language modeling: `inputs` [B, L], not masked yet."""

    vocab = 256
    mask_token = 255  # a byte that UTF-8 never has

    def spec(self) -> Spec:
        shape = (self.batch, self.length)
        return {
            "inputs": jax.ShapeDtypeStruct(shape, np.int32),
            "mask": jax.ShapeDtypeStruct(shape, np.float32),
        }

    def tokens(self, content: bytes) -> np.ndarray:
        """The bytes; `<mask>` is the mask token."""
        return super().tokens(content.replace(b"<mask>", bytes([self.mask_token])))

    def windows(self, text: np.ndarray) -> Windows:
        return PlainWindows(text, self.length)
