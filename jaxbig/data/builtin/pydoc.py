"""Data sets of installed Python packages: functions, and the docstrings that say what they do.

The files are those of `PyImports`: the standard library and packages that jaxbig needs, without
tests. They differ between versions, so their sha256 is the data's identity. The split is by file,
as in pytext. Prepared once in TFDS's folder.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxbig.data.builtin.pyimports import package_files, versions
from jaxbig.data.builtin.pytext import held_out, library_files
from jaxbig.data.core.dataset import Record
from jaxbig.data.records.tfds_builder import Builder, columns, prepared

TEST = re.compile(r"(^|/)test_|_tests?\.py$|(^|/)conftest\.py$")


class Function(NamedTuple):
    """A function that has a docstring."""

    code: str
    """Its source without the docstring."""
    signature: str
    """As `name(a, b=1)`."""
    doc: str
    """Its docstring."""


class JaxbigPydoc(Builder):
    """Each function with a docstring, and its file."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=versions())]  # noqa: RUF012

    def features(self) -> dict[str, Any]:
        return {name: tfds.features.Text() for name in ("file", *Function._fields)}

    def records(self) -> dict[str, list[Record]]:
        splits: dict[str, list[Record]] = {"train": [], "eval": []}
        for name, text in [*library_files().items(), *package_files()]:
            if not TEST.search(name):
                split = "eval" if held_out(name) else "train"
                found = functions(text.decode(errors="replace"))
                splits[split] += [{"file": name, **each._asdict()} for each in found]
        return splits


def functions(text: str) -> Iterator[Function]:
    """Yields the functions of a file that have a docstring; no code is run.

    There are none in a file that this Python cannot parse. A function of one line is left out.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of the file's own code
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = re.split(r"\r\n|\r|\n", text)  # as Python counts them
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            doc := ast.get_docstring(node)
        ):
            at = node.body[0]
            if at.lineno == node.lineno:
                continue
            code = lines[node.lineno - 1 : at.lineno - 1] + lines[at.end_lineno : node.end_lineno]
            yield Function("\n".join(code), f"{node.name}({ast.unparse(node.args)})", doc)


def functions_of(split: str) -> list[Function]:
    """The functions of a split; `JaxbigPydoc` is prepared."""
    found = columns(prepared(JaxbigPydoc), split)
    rows = zip(*(found[name] for name in Function._fields), strict=True)
    return [Function(*(text.decode() for text in row)) for row in rows]
