"""SQuAD's exact match and F1: by hand, and as the script of its authors has them."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.evaluators.answers import exact, f1

WORD = st.sampled_from(["The", "a", "cat", "cat's", "x.y", "-", "  ", "An", "ant", "théâtre"])
TEXT = st.lists(WORD, max_size=6).map(" ".join)


def test_case_articles_and_punctuation_do_not_count() -> None:
    assert exact("The cat.", "a Cat") == 1
    assert exact("x.y", "xy") == 1
    assert exact("cats", "cat") == 0
    assert f1("the black cat", "a cat sleeps") == pytest.approx(2 * 0.5 * 0.5)
    assert f1("the", "cat") == 0 == f1("cat", "dog")
    assert f1("the", "an") == 1
    # a word that is there twice counts twice
    assert f1("cat cat", "cat") == pytest.approx(2 / 3)


def normalize_answer(text: str) -> str:
    """That of evaluate-v1.1.py."""
    exclude = set(string.punctuation)
    unsigned = "".join(letter for letter in text.lower() if letter not in exclude)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", unsigned).split())


@settings(max_examples=200, deadline=None)
@given(answer=TEXT, right=TEXT)
def test_they_are_those_of_the_authors(answer: str, right: str) -> None:
    one = normalize_answer(answer)
    other = normalize_answer(right)
    assert exact(answer, right) == (one == other)
    same = sum((Counter(one.split()) & Counter(other.split())).values())
    if one and other:  # the script has 0 where both are empty; that of SQuAD 2.0 has 1
        precision = same / len(one.split())
        recall = same / len(other.split())
        expected = 2 * precision * recall / (precision + recall) if same else 0
        assert f1(answer, right) == pytest.approx(expected, rel=1e-12)
