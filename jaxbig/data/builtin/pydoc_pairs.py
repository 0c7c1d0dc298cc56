"""Data set of Python functions, as words, and the words of what their docstrings say first.

The functions, their split and what is left out are those of pydoc_summary.py.
"""

import dataclasses
from collections.abc import Sequence

from jaxbig.constraints import PositiveInt
from jaxbig.data.builtin.pydoc_summary import WORD, PySummary, Summaries
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.text import TextPairs
from jaxbig.data.tokenize.tokenizers import BytePairs, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionPairs(Summaries):
    """Records of `PyPairs`: the words of a function, `source`, and those of the first sentence of
    its docstring, `summary`, which are split as those of the function are."""

    def open(self, split: str) -> Sequence[Record]:
        return [
            {"source": pair["source"], "summary": split_words(pair["summary"])}
            for pair in super().open(split)
        ]


def split_words(text: str) -> str:
    """The words of a text in small letters, identifiers split as `words_of` does; each begins with
    a space."""
    return "".join(f" {word.lower()}" for word in WORD.findall(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyPairs(TextPairs):
    """Functions of Python's standard library and of packages, and what their docstrings say first,
    both as words."""

    records: Records = FunctionPairs()
    """Where the records come from."""
    source_feature: str = "source"
    target_feature: str = "summary"
    length: PositiveInt = 64
    target_length: PositiveInt | None = 24
    tokenizer: Tokenizer = BytePairs(vocab=3_072, specials=("<start>", "<end>"))
    """Converts text to tokens."""

    endings = PySummary.endings
    record_of_file = PySummary.record_of_file
    record_of_text = PySummary.record_of_text
