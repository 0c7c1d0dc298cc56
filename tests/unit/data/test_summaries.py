"""Functions as words, and the first sentences of their docstrings."""

import numpy as np
import pytest

from jaxbig.data.builtin import pydoc_summary
from jaxbig.data.builtin.pydoc import Function
from jaxbig.data.builtin.pydoc_summary import PySummary, Summaries, summary_of, words_of
from jaxbig.data.tokenize.tokenizers import Bytes


def test_a_function_becomes_words_and_a_docstring_a_sentence() -> None:
    code = "    def readLines2(self, HTTPPath=1):\n        return lines"
    assert words_of(code) == " read lines : http path return lines"
    assert summary_of("Read the\n  file. Then close it.") == " read the file."
    assert summary_of("Read it, e.g. now\n\nNo more.") == " read it, e.g. now"


def test_what_is_held_out_is_in_no_training_file(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {
        "train": [Function("def f(x):\n  return x", "f(x)", "Return the same number.")],
        "eval": [
            Function("def g(x):\n  return -x", "g(x)", "Return the same number."),
            Function("def f(x):\n  return x", "f(x)", "Return its only argument."),
            Function("def h(x):\n  return x + one", "h(x)", "Add one to it. No more."),
        ],
    }
    monkeypatch.setattr(pydoc_summary, "functions_of", both.__getitem__)
    expected = {"source": " h : x return one", "summary": " add one to it."}
    assert Summaries().open("eval") == [expected]


def test_a_function_to_summarize_is_read_as_in_training() -> None:
    of = PySummary(batch=1, tokenizer=Bytes(specials=("<start>", "<end>")))
    code = 'def read_all(path):\n    """Read."""\n    return open(path)'
    example = of.read_unlabeled(of.record_of_text(code))
    text = of.text(example["inputs"][: example["lengths"] - 1])
    assert text == "read all : path return open"
    assert example["targets"].shape == (20,) and example["inputs"].shape == (40,)
    with pytest.raises(ValueError, match="no function"):
        of.record_of_text("x = 1")
    long = of.read({"source": " a", "summary": " word" * 9})
    assert long["targets"][-1] == of.end and np.all(long["mask"] == 1)
