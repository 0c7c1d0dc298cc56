"""Scores of written texts against references, by the libraries that define them."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from jaxbig.errors import Refused

TextScore = Literal["bleu", "rouge1", "rouge2", "rougeL", "exact_match", "wer"]
PACKAGES = {
    "bleu": "sacrebleu",
    "rouge1": "rouge_score",
    "rouge2": "rouge_score",
    "rougeL": "rouge_score",
    "wer": "jiwer",
}
"""The module that computes each score; `exact_match` needs none."""


def check_scores(names: Sequence[str]) -> None:
    """Raises `Refused` for a score that is not known, or whose library is not installed."""
    known = get_args(TextScore)
    if not names:
        raise Refused(f"scores are empty: give one or more of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise Refused(f"there is no score {name!r}: it must be one of {', '.join(known)}.")
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise Refused(
                f"the score {name} needs {package}, which is not installed: pip install "
                f"'jaxbig[scores]'."
            )


def score_texts(
    texts: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
    """The scores of texts against references, by name.

    Args:
      texts: what was written.
      references: what should have been written, one for each.
      names: of the scores. `bleu` is of all texts together, in percent (sacrebleu's tokens);
        `rouge1`, `rouge2` and `rougeL` are mean F-measures of words; `exact_match` is the share of
        texts that are the reference but for spaces around; `wer` is the number of wrong, missing
        and additional words, divided by the number of the references' words.
    """
    functions: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
        "bleu": bleu,
        "exact_match": exact_match,
        "wer": word_error_rate,
    }
    found = {name: functions[name](texts, references) for name in names if name in functions}
    found |= rouge(texts, references, [name for name in names if name.startswith("rouge")])
    return {name: found[name] for name in names}


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    from sacrebleu import corpus_bleu  # here: only who asks for BLEU needs it

    return float(corpus_bleu(list(texts), [list(references)]).score)


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    pairs = zip(texts, references, strict=True)
    return float(np.mean([text.strip() == reference.strip() for text, reference in pairs]))


def rouge(
    texts: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
    if not names:
        return {}
    from rouge_score.rouge_scorer import RougeScorer  # here: only who asks for ROUGE needs it

    scorer = RougeScorer(list(names))
    pairs = zip(texts, references, strict=True)
    scores = [scorer.score(reference, text) for text, reference in pairs]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}


def word_error_rate(texts: Sequence[str], references: Sequence[str]) -> float:
    """The word error rate; of an empty reference, which jiwer refuses, every word is additional."""
    import jiwer  # here: only who asks for it needs it

    pairs = list(zip(texts, references, strict=True))
    additional = sum(len(text.split()) for text, reference in pairs if not reference.strip())
    rest = [pair for pair in pairs if pair[1].strip()]
    if not rest:
        return float("nan")
    found = jiwer.process_words([pair[1] for pair in rest], [pair[0] for pair in rest])
    errors = found.substitutions + found.deletions + found.insertions
    words = found.substitutions + found.deletions + found.hits
    return (errors + additional) / words
