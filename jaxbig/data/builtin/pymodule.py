"""Data set: lines of Python's library, classified by package, with the files and split of pytext.

The packages are those with held-out files in the split of pytext, and lines for evaluation occur
only in held-out files: so an encoder pretrained on pytext has seen none of them.
"""

import dataclasses
import platform
from collections import defaultdict
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.builtin.pytext import held_out, library_files
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Rows, Source, Spec
from jaxbig.data.core.fields import as_bytes
from jaxbig.data.pipeline.sampler import epoch_order
from jaxbig.data.records.tfds_builder import Builder, Record, columns, identity, prepared

# The same in Python 3.11 and 3.12.
PACKAGES = (
    "asyncio", "dbm", "email", "encodings", "idlelib", "importlib", "turtledemo", "unittest",
    "wsgiref", "xml",
)  # fmt: skip
SHORTEST = 20  # bytes of a line
LONGEST = 96
MOST = 3000  # training lines a package


def lines() -> dict[str, list[list[bytes]]]:
    """The stripped lines of each split and package, sorted, each once.

    A line that also occurs outside its package is dropped, and one that occurs in a training file
    is not used for evaluation.
    """
    # where a line occurs: package, whether held out
    found: dict[bytes, set[tuple[str, bool]]] = defaultdict(set)
    for name, text in library_files().items():
        for line in text.split(b"\n"):
            found[line.strip()].add((name.split("/")[0], held_out(name)))
    splits: dict[str, list[list[bytes]]] = {
        split: [[] for _ in PACKAGES] for split in ("train", "eval")
    }
    for line, where in sorted(found.items()):
        package, *others = {name for name, _ in where}
        if package in PACKAGES and not others and SHORTEST <= len(line) <= LONGEST:
            split = "train" if (package, False) in where else "eval"
            splits[split][PACKAGES.index(package)].append(line)
    for number, kept in enumerate(splits["train"]):
        if len(kept) > MOST:
            splits["train"][number] = [kept[i] for i in sorted(epoch_order(0, 0, len(kept))[:MOST])]
    return splits


class JaxbigPymodule(Builder):
    """Lines of the standard library: one record a package, its lines joined."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"python_{platform.python_version()}")
    ]

    def features(self) -> dict[str, Any]:
        return {
            "package": tfds.features.Text(),
            "lines": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
        }

    def records(self) -> dict[str, list[Record]]:
        def record(package: str, kept: list[bytes]) -> Record:
            return {"package": package, "lines": np.frombuffer(b"\n".join(kept), np.uint8)}

        return {
            split: list(map(record, PACKAGES, of_packages))
            for split, of_packages in lines().items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyModule(Data):
    """Lines of Python's standard library and their packages.

    A batch has bytes `inputs` [B, 96], their number `lengths` [B], and the packages `targets` [B].
    """

    packages = PACKAGES
    classes = len(PACKAGES)
    vocab = 256  # as PyTextRows, so that an encoder pretrained there can be used
    reads_texts = True
    endings = None

    def record_of_file(self, content: bytes) -> Record:
        return {"text": content}

    def record_of_text(self, text: str) -> Record:
        return {"text": text}

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of a line, cut to `LONGEST` bytes."""
        if "inputs" in record:
            return super().read_unlabeled(record)
        line = as_bytes(record, "text").strip()[:LONGEST]
        if not line:
            raise ValueError("it is empty")
        inputs = np.frombuffer(line.ljust(LONGEST, b"\0"), np.uint8).astype(np.int32)
        return super().read_unlabeled({"inputs": inputs, "lengths": np.int32(len(line))})

    def spec(self) -> Spec:
        number = jax.ShapeDtypeStruct((self.batch,), np.int32)
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, LONGEST), np.int32),
            "lengths": number,
            "targets": number,
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def prepare(self) -> str:
        return identity(prepared(JaxbigPymodule))

    def text(self, tokens: np.ndarray) -> str:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return PACKAGES

    def source(self, split: str) -> Source:
        packages = columns(prepared(JaxbigPymodule), split)["lines"]
        kept = [
            (line, number)
            for number, text in enumerate(packages)
            for line in text.tobytes().split(b"\n")
            if line
        ]
        padded = b"".join(line.ljust(LONGEST, b"\0") for line, _ in kept)
        return ArraySource(
            inputs=np.frombuffer(padded, np.uint8).reshape(-1, LONGEST).astype(np.int32),
            lengths=np.array([len(line) for line, _ in kept], np.int32),
            targets=np.array([number for _, number in kept], np.int32),
        )
