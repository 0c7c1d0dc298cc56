"""Data set of Python functions, as words, and the first sentences of their docstrings.

The functions are those of pydoc.py.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from jaxbig.constraints import PositiveInt
from jaxbig.data.builtin.pydoc import JaxbigPydoc, functions, functions_of
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.records.tfds_builder import identity, prepared
from jaxbig.data.text import Pairs
from jaxbig.data.tokenize.tokenizers import BytePairs, Tokenizer

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*:])|\n\s*\n|:\s*\n|\s*>>>")
"""Where the first sentence of a docstring ends."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""A word of an identifier, as `parse`, `HTTP` and `Error` of `parse_HTTPError`."""
FEWEST = 3  # words of a summary
MOST = 14
DROPPED = {"def", "async", "self", "cls"}


def words_of(code: str) -> str:
    """The words of a function in small letters: those of its name, a colon, and the others of its
    code, each once, in the order in which they occur.

    Each begins with a space, so that byte pairs are the same wherever a word is.
    """
    name, _, rest = code.partition("(")
    parts = [
        dict.fromkeys(word for word in map(str.lower, WORD.findall(part)) if word not in DROPPED)
        for part in (name, rest)
    ]
    return "".join(f" {word}" for word in (*parts[0], ":", *parts[1]))


def summary_of(doc: str) -> str:
    """The first sentence of a docstring in small letters, on one line."""
    return "".join(f" {word}" for word in SENTENCE.split(doc.strip())[0].lower().split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summaries(Records):
    """Records of `PySummary`: the words of a function, `source`, and its `summary`.

    Pairs that occur before are left out, and of those held out the ones whose source or summary
    occurs in training.
    """

    def prepare(self) -> str:
        return identity(prepared(JaxbigPydoc))

    def open(self, split: str) -> Sequence[Record]:
        pairs = self.pairs("train")
        if split == "eval":
            sources = {source for source, _ in pairs}
            summaries = {summary for _, summary in pairs}
            pairs = {
                (source, summary): None
                for source, summary in self.pairs("eval")
                if source not in sources and summary not in summaries
            }
        return [{"source": source, "summary": summary} for source, summary in pairs]

    def pairs(self, split: str) -> dict[tuple[str, str], None]:
        """Each source with its summary, in order."""
        pairs = [(words_of(each.code), summary_of(each.doc)) for each in functions_of(split)]
        return {pair: None for pair in pairs if FEWEST <= len(pair[1].split()) <= MOST}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PySummary(Pairs):
    """Functions of Python's standard library and of packages, as words, and the first sentences of
    their docstrings."""

    records: Records = Summaries()
    """Where the records come from."""
    source_feature: str = "source"
    target_feature: str = "summary"
    length: PositiveInt = 40
    target_length: PositiveInt | None = 20
    tokenizer: Tokenizer = BytePairs(vocab=3_072, specials=("<start>", "<end>"))
    """Converts text to tokens."""

    endings = (".py",)

    def record_of_file(self, content: bytes) -> Record:
        """The words of the first function of a file that has a docstring."""
        return self.record_of_text(content.decode())

    def record_of_text(self, text: str) -> Record:
        """The words of the first function that has a docstring, which is left out; if none has one,
        those of what begins with the first `def`."""
        start = text.find("def ")
        if start < 0:
            raise ValueError("it has no function: `def` is missing")
        code = next((each.code for each in functions(text)), text[start:])
        return {"source": words_of(code)}

    def text(self, tokens: Any) -> str:
        return super().text(tokens).strip()
