"""Scores of written texts against numbers by hand, and libraries that are not installed."""

import importlib.util
from typing import Any

import pytest

from jaxbig.errors import Refused
from jaxbig.evaluators.text_scores import check_scores, score_texts


def score(texts: list[str], references: list[str], name: str) -> float:
    check_scores([name])
    return score_texts(texts, references, [name])[name]


def test_exact_match_is_the_share_of_equal_texts_but_for_spaces_around() -> None:
    assert score(["a b ", "c", "d"], ["a b", "C", "d"], "exact_match") == pytest.approx(2 / 3)


def test_word_error_rate_counts_wrong_missing_and_additional_words() -> None:
    pytest.importorskip("jiwer")
    texts = ["the cat sat", "a dog ran away", "one two"]
    references = ["the cat sat down", "a dig ran", ""]
    errors = 1 + (1 + 1) + 2  # missing; wrong and additional; additional
    assert score(texts, references, "wer") == pytest.approx(errors / 7)


def test_bleu_is_that_of_sacrebleu_in_percent() -> None:
    pytest.importorskip("sacrebleu")
    reference = ["the quick brown fox jumps over it"]
    assert score(reference, reference, "bleu") == pytest.approx(100)
    # 6 of 6, 4 of 5, 3 of 4 and 2 of 3 n-grams; 6 words for 7
    found = score(["the quick brown fox jumps it"], reference, "bleu")
    assert found == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3) ** 0.25 * 2.718281828 ** (1 - 7 / 6)
    )


def test_rouge_is_the_mean_f_measure_of_words() -> None:
    pytest.importorskip("rouge_score")
    texts = ["a c b", "x"]
    references = ["a b d e", "x"]
    f1 = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert score(texts, references, "rouge1") == pytest.approx((f1 + 1) / 2)
    assert score(texts, references, "rougeL") == pytest.approx((f1 + 1) / 2)
    assert score(["a b x"], ["a b d e"], "rouge2") == pytest.approx(2 * (1 / 2) * (1 / 3) / (5 / 6))


def test_score_without_its_library_is_refused_with_the_command(monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"wer needs jiwer.*pip install 'jaxbig\[scores\]'"):
        check_scores(["wer"])
    check_scores(["exact_match"])


@pytest.mark.parametrize(
    ("names", "said"), [((), "scores are empty"), (("blue",), "no score 'blue'")]
)
def test_unknown_score_is_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(Refused, match=said):
        check_scores(names)
