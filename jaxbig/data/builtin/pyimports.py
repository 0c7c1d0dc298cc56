"""Data set of installed Python packages: which modules each of their files imports.

The files are those of the standard library and of packages that jaxbig needs, without their tests,
and differ between versions, so their sha256 is the data's identity. The split is by file: one in
six is held out, by the hash of its name. Prepared once in TFDS's folder.
"""

import ast
import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import platform
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxbig.constraints import PositiveInt, Probability
from jaxbig.data.builtin.pytext import LEFT_OUT, library_files
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.interactions import Interactions
from jaxbig.data.records.tfds_builder import Builder, columns, identity, prepared

PACKAGES = (
    "chex", "flax", "jax", "matplotlib", "numpy", "optax", "orbax-checkpoint", "pillow", "rich",
    "scikit-learn", "scipy", "tyro",
)  # fmt: skip
KNOWN = 800  # modules: those that most training files import
FEWEST = 3  # known modules of a file


def package_files() -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each .py file of the packages that is no test."""
    for package in PACKAGES:
        files = importlib.metadata.distribution(package).files or []
        for file in sorted(files):
            if file.suffix == ".py" and not LEFT_OUT & set(file.parts) and ".." not in file.parts:
                yield file.as_posix(), file.read_binary()


def imported(text: bytes, name: str = "") -> list[str]:
    """The modules that a file imports, anywhere in it, sorted, each once; no code is run.

    Of `from a import b` it is `a`. `from . import b` is resolved by the file's name, and left out
    without one.

    Raises:
      SyntaxError: this Python cannot parse it.
    """
    folder = name.split("/")[:-1]
    found: set[str] = set()
    with warnings.catch_warnings(action="ignore"):  # of the file's own code
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (name or not node.level):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            found.add(".".join([*above, *filter(None, [node.module])]))
    return sorted(found - {"", "__future__"})


def number_of(name: str) -> int:
    """A number that follows from a name, and is like a random one."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def versions() -> str:
    """A name for the versions of Python and of the packages."""
    found = " ".join(importlib.metadata.version(package) for package in PACKAGES)
    digest = hashlib.sha256(found.encode()).hexdigest()
    return f"python_{platform.python_version()}_{digest[:8]}"


class JaxbigPyimports(Builder):
    """The modules that each file imports, joined by spaces."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=versions())]  # noqa: RUF012

    def features(self) -> dict[str, Any]:
        return {"name": tfds.features.Text(), "modules": tfds.features.Text()}

    def records(self) -> dict[str, list[Record]]:
        splits: dict[str, list[Record]] = {"train": [], "eval": []}
        for name, text in [*library_files().items(), *package_files()]:
            try:
                modules = imported(text, name)
            except (SyntaxError, RecursionError, MemoryError):  # of another Python, or too deep
                continue
            split = "train" if number_of(name) % 6 else "eval"
            splits[split].append({"name": name, "modules": " ".join(modules)})
        return splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryImports(Records):
    """Records of `PyImports`: `items`, the known modules that a file imports but one, as numbers,
    and this one, `target`, which the hash of the file's name chooses.

    Files that import fewer than three known modules are left out, and of those held out the ones
    that import what a training file does.
    """

    def prepare(self) -> str:
        return identity(prepared(JaxbigPyimports))

    def files(self, split: str) -> dict[str, list[str]]:
        """The modules that each file of a split imports."""
        found = columns(prepared(JaxbigPyimports), split)
        pairs = zip(found["name"], found["modules"], strict=True)
        return {name.decode(): modules.decode().split() for name, modules in pairs}

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The known modules, the most frequent one first."""
        counts = collections.Counter(
            module for modules in self.files("train").values() for module in modules
        )
        return tuple(sorted(counts, key=lambda module: (-counts[module], module))[:KNOWN])

    def known(self, split: str) -> dict[str, tuple[int, ...]]:
        """The known modules of each file that imports enough of them, as numbers."""
        numbers = {module: number for number, module in enumerate(self.classes)}
        found = {
            name: tuple(numbers[module] for module in modules if module in numbers)
            for name, modules in self.files(split).items()
        }
        return {name: items for name, items in found.items() if len(items) >= FEWEST}

    def open(self, split: str) -> Sequence[Record]:
        files = self.known(split)
        if split == "eval":
            seen = set(self.known("train").values())
            files = {name: items for name, items in files.items() if items not in seen}
        records = []
        for name, items in files.items():
            place = number_of(name) // 6 % len(items)
            shown = np.array(items[:place] + items[place + 1 :], np.int32)
            records.append({"name": name, "items": shown, "target": items[place]})
        return records


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyImports(Interactions):
    """Files of Python's standard library and of packages: which module each imports besides those
    that are shown."""

    records: Records = dataclasses.field(default_factory=LibraryImports)
    """Where the records come from."""
    classes: PositiveInt = KNOWN
    """Number of known modules."""
    most: PositiveInt = 48
    """Modules that are shown at most; the later ones of a file are left out."""

    least_shown: Probability = 0.0
    """In training the share of the other modules that is shown is drawn from this to 1."""

    endings = (".py",)

    def record_of_file(self, content: bytes) -> Record:
        """The known modules that a file of Python imports."""
        known = set(self.names)
        return {self.items: [module for module in imported(content) if module in known]}
