"""Data set of Python's library: questions on its functions, and the docstrings that answer them.

The split is by file, as in pytext: an encoder or decoder pretrained there has seen no held-out
answer. Prepared once in TFDS's folder.
"""

import ast
import dataclasses
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from jaxbig.constraints import PositiveInt
from jaxbig.data.builtin.pytext import held_out, library_files
from jaxbig.data.chats import Chats
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.records.tfds_builder import Builder, columns, identity, prepared

SHORTEST = 12  # characters of an answer
LONGEST = 100
MOST_SIGNATURE = 80


class JaxbigPychat(Builder):
    """Questions on the functions of the standard library, and their answers."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"python_{platform.python_version()}")
    ]

    def features(self) -> dict[str, Any]:
        return {"question": tfds.features.Text(), "answer": tfds.features.Text()}

    def records(self) -> dict[str, list[Record]]:
        splits: dict[str, dict[str, str]] = {"train": {}, "eval": {}}
        for name, text in library_files().items():
            split = "eval" if held_out(name) else "train"
            for question, answer in questions(name, text):
                splits[split].setdefault(question, answer)
        new = {q: a for q, a in splits["eval"].items() if a not in {*splits["train"].values()}}
        return {
            split: [{"question": question, "answer": answer} for question, answer in pairs.items()]
            for split, pairs in {"train": splits["train"], "eval": new}.items()
        }


def questions(name: str, text: bytes) -> Iterator[tuple[str, str]]:
    """Yields a question and its answer for each documented function of a file."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a file that is read by another Python
        return
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (ast.get_docstring(node) or "").strip().split("\n")
        signature = f"{node.name}({ast.unparse(node.args)})"
        answer = lines[0].strip()
        if SHORTEST <= len(answer) <= LONGEST and len(signature) <= MOST_SIGNATURE:
            yield f"What does {signature} of {module} do?", answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryQuestions(Records):
    """The chats of `PyChat`: a question and its answer each."""

    def prepare(self) -> str:
        return identity(prepared(JaxbigPychat))

    def open(self, split: str) -> Sequence[Record]:
        found = columns(prepared(JaxbigPychat), split)
        pairs = zip(found["question"], found["answer"], strict=True)
        return [chat(question.decode(), answer.decode()) for question, answer in pairs]


def chat(question: str, answer: str) -> Record:
    """A question and its answer as a record of `Chats`."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyChat(Chats):
    """Questions on the functions of Python's standard library, answered by their docstrings."""

    records: Records = LibraryQuestions()
    """Where the records come from."""
    length: PositiveInt = 256
    """Tokens (bytes) an example. Longer chats are cut."""
