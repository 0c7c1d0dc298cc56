"""Questions with answers in a text, and those on functions of Python."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.constraints import validate
from jaxbig.data.builtin.pydoc import Function, functions
from jaxbig.data.builtin.pydoc_questions import WORDINGS, FunctionQuestions, asked_in, questions
from jaxbig.data.questions import Questions
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.errors import Refused
from jaxbig.objectives.span import text_of

DOC = """Scale an array by a factor.

Args:
  x: the array; it
    may be empty.
  *rest (list of int): ignored.

Returns:
  The product. Not a copy."""
NUMPY = """Scale an array.

Parameters
----------
x : ndarray, shape (n,)
    The array.
by : float, default: 2
    The factor, which is
    not 0.

Returns
-------
out : ndarray
    The product."""


def data(length: int = 64) -> Questions:
    records = Synthetic(texts=("question", "context"))
    return Questions(records=records, batch=1, length=length, tokenizer=Bytes(specials=("<end>",)))


def record(context: str, text: str, start: int) -> dict[str, Any]:
    answers = {"text": [text], "answer_start": [start]}
    return {"question": "which?", "context": context, "answers": answers}


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "of", "x_1", "(", ").", "é", "Köln"]), min_size=1),
    gaps=st.lists(st.sampled_from([" ", "\n  ", "  "]), min_size=1),
    where=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_the_target_is_the_answer_or_nothing(
    words: list[str], gaps: list[str], where: tuple[int, int]
) -> None:
    context = "".join(word + gaps[i % len(gaps)] for i, word in enumerate(words))
    first, last = sorted(number % len(words) for number in where)
    before = sum(len(words[i] + gaps[i % len(gaps)]) for i in range(first))
    answer = context[before:].split(words[first], 1)
    text = "".join(word + gaps[i % len(gaps)] for i, word in enumerate(words) if first <= i <= last)
    text = text.rstrip()
    assert answer[0] == "" and context[before : before + len(text)] == text
    of = data()
    example = of.read(record(context, text, before))
    known = text_of(example["inputs"], example["targets"], of)
    if example["targets"].any():
        assert known == " ".join(text.split())
        assert example["offsets"][example["targets"][0], 0] == before
    else:
        assert len(context.encode()) > 64 - 8 - len(text.encode())


def test_an_answer_that_is_cut_away_has_no_target() -> None:
    context = "word " * 20 + "answer"
    assert not data(64).read(record(context, "answer", 100))["targets"].any()
    assert data(128).read(record(context, "answer", 100))["targets"].tolist() == [106, 112]


def test_a_word_that_is_cut_is_left_out() -> None:
    context = "word " * 10 + "answer"
    for length in range(20, 65):
        example = data(length).read(record(context, "answer", 50))
        shown = data().text(example["inputs"][example["types"] > 0])
        assert shown.split()[-1] == ("answer" if len(shown) == len(context) else "word")
        assert example["targets"].any() == (len(shown) == len(context))


@settings(max_examples=50, deadline=None)
@given(
    context=st.text("ab \n(é", min_size=1, max_size=40).filter(str.strip), length=st.integers(9, 60)
)
def test_a_question_fits_any_length_that_has_room_for_a_token(context: str, length: int) -> None:
    word = context.split()[0]
    example = data(length).read(record(context, word, context.index(word)))
    shown = example["inputs"][example["types"] > 0]
    assert example["lengths"] == 7 + len(shown) + 1  # which?<end>, and an end
    letters = bytes(int(token) for token in shown).replace(b" ", b"")
    assert len(shown) and "".join(context.split()).encode().startswith(letters)
    assert example["targets"].any() == letters.startswith(word.encode())


def test_the_end_of_a_context_cannot_be_kept() -> None:
    with pytest.raises(Refused, match="keep end: of questions and contexts the beginning"):
        validate(dataclasses.replace(data(), keep="end"))


def test_an_answer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'blue' is not at character 2"):
        data().read(record("a red house", "blue", 2))
    with pytest.raises(ValueError, match="no lists `text` and `answer_start`"):
        data().read({**record("a", "a", 0), "answers": "a"})
    with pytest.raises(ValueError, match="no word"):
        data().read(record(" ", " ", 0))


def test_docstrings_answer_in_the_styles_of_google_and_numpy() -> None:
    found = {(kind, of): DOC[slice(*span)] for kind, of, span in asked_in(DOC, "scale")}
    assert found == {
        ("purpose", "scale"): "Scale an array by a factor",
        ("meaning", "x"): "the array",
        ("meaning", "rest"): "ignored",
        ("type", "rest"): "list of int",
        ("result", "scale"): "The product",
    }
    found = {(kind, of): NUMPY[slice(*span)] for kind, of, span in asked_in(NUMPY, "scale")}
    assert found == {
        ("purpose", "scale"): "Scale an array",
        ("type", "x"): "ndarray, shape (n,)",
        ("meaning", "x"): "The array",
        ("type", "by"): "float, default: 2",
        ("meaning", "by"): "The factor, which is\n    not 0",
        ("result", "scale"): "The product",
    }


def test_signatures_answer_and_each_answer_is_in_its_context() -> None:
    records = [
        each
        for name in "abcdefghijkl"
        for each in questions(f"{name}(x: int, /, y: list[str]=(1, 'é'[:0]), *, z=-1.5)", "Do it.")
        or questions(f"{name}(x: int, /, y: list[str]=(1, 2), *, z=-1.5)", "Do it.")
    ]
    answers = {each["answers"]["text"][0] for each in records}
    assert answers == {"int", "list[str]", "(1, 2)", "-1.5", "Do it"}
    assert len({each["question"].split()[0] for each in records}) > 2
    for each in records:
        start = each["answers"]["answer_start"][0]
        text = each["answers"]["text"][0]
        assert each["context"][start : start + len(text)] == text
    assert all("{}" in wording for wordings in WORDINGS.values() for wording in wordings)


def test_a_function_is_found_without_its_docstring() -> None:
    text = (
        "class A:\n    def readLines2(self, HTTPPath=1):\n"
        '        """Read.\n\n        More."""\n        return 1\n'
    )
    (found,) = functions(text)
    assert found.signature == "readLines2(self, HTTPPath=1)" and found.doc == "Read.\n\nMore."
    assert found.code == "    def readLines2(self, HTTPPath=1):\n        return 1"
    assert list(functions("print 1")) == []


def test_a_function_of_one_line_is_left_out_and_lines_are_those_of_python() -> None:
    [found] = functions('def f(x): "Do it."\n\x0c\ndef g(x):\n    """Do it."""\n    return x\n')
    assert found.code == "def g(x):\n    return x"


def test_what_is_held_out_is_in_no_training_file(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [Function("def f(x):\n  return x", "f(x)", "Return the same number.")]
    held_out = [
        Function("def g(x):\n  return -x", "g(x)", "Return the same number."),
        Function("def f(x):\n  return x", "f(x)", "Return its only argument."),
        Function("def h(x):\n  return 2 * x", "h(x)", "Double what is given."),
    ]
    both = {"train": train, "eval": held_out}
    monkeypatch.setattr("jaxbig.data.builtin.pydoc_questions.functions_of", both.__getitem__)
    contexts = {each["context"] for each in FunctionQuestions().open("eval")}
    assert contexts == {"h(x)\nDouble what is given."}
