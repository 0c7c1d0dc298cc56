"""The evaluator of written texts, on models that have learned one text by heart."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.tracking.console import Screen
from jaxbig.train.passes import Evaluation, check_evaluators
from jaxbig.train.trainer import fit

Generation = jb.evaluators.Generation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Same(jb.data.Records):
    """One record again and again."""

    record: dict[str, str]

    def open(self, split: str) -> list[dict[str, Any]]:
        return [self.record] * 16


def learning_by_heart(**changes: Any) -> Experiment:
    """Sixty steps of a tiny language model on the text "to be"."""
    fields: dict[str, Any] = {
        "data": jb.data.Tokens(records=Same(record={"text": "to be"}), length=8, batch=8),
        "model": jb.models.Decoder(vocab=257, depth=1, width=16, heads=2),
        "objective": jb.objectives.NextToken(vocab=257),
        "optimizer": jb.optim.Adam(learning_rate=jb.optim.Constant(0.02)),
        "steps": 60,
        "evaluate_every": 60,
        "checkpoint_every": 60,
    }
    return small("pytext_transformer", **{**fields, **changes})


def prompts(folder: Path, *lines: Any) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return str(file)


@pytest.mark.slow
def test_language_model_that_knows_a_text_continues_it(tmp_path: Path) -> None:
    given = [
        {"prompt": "to", "reference": " be"},
        {"prompt": "t", "reference": "o be"},
        {"prompt": "to b", "reference": "e or"},
    ]
    file = prompts(tmp_path, *given)
    written = Generation(scores=("exact_match",), file=file, max_tokens=8, stop=("\0",))
    experiment = learning_by_heart(evaluators=(jb.Every(60, written),))
    summary = fit(experiment, tmp_path / "run", Screen(quiet=True))
    assert summary["metrics"]["eval/accuracy"] == 1
    assert summary["metrics"]["generation/exact_match"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_translator_that_knows_a_translation_writes_it(tmp_path: Path) -> None:
    data = jb.data.Pairs(
        records=Same(record={"from": "salt", "to": "sal"}),
        source_feature="from",
        target_feature="to",
        length=8,
        batch=8,
    )
    vocab = data.tokenizer.vocab
    written = Generation(scores=("exact_match",), max_tokens=8)
    experiment = learning_by_heart(
        data=data,
        model=jb.models.EncoderDecoder(vocab=vocab, target_vocab=vocab, depth=1, width=16, heads=2),
        objective=jb.objectives.Seq2Seq(vocab=vocab, start=data.start, end=data.end),
        evaluators=(jb.Every(60, written),),
    )
    summary = fit(experiment, tmp_path, Screen(quiet=True))
    assert summary["metrics"]["eval/exact_match"] == 1
    assert summary["metrics"]["generation/exact_match"] == 1


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        (Generation(), "Decoder continues prompts, which the data does not have"),
        (Generation(file="missing.jsonl"), "file missing.jsonl cannot be read"),
        (Generation(scores=("blue",)), "no score 'blue'"),  # type: ignore[arg-type]
    ],
)
def test_generation_that_does_not_fit_is_refused(evaluator: Any, said: str) -> None:
    program = make_program(learning_by_heart(evaluators=(jb.Every(1, evaluator),)))
    with program.activate(), pytest.raises(Refused, match=f"evaluators: generation: .*{said}"):
        check_evaluators(Evaluation(program))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "a"}, "line 1: it must be an object with the texts"),
        ([1], "line 1"),
        ({"prompt": "", "reference": "a"}, "line 1: its prompt is empty"),
    ],
)
def test_wrong_line_of_prompts_is_refused(line: Any, said: str, tmp_path: Path) -> None:
    evaluator = Generation(scores=("exact_match",), file=prompts(tmp_path, line))
    program = make_program(learning_by_heart(evaluators=(jb.Every(1, evaluator),)))
    with program.activate(), pytest.raises(Refused, match=said):
        check_evaluators(Evaluation(program))


def test_model_that_writes_no_texts_is_refused() -> None:
    evaluator = Generation(scores=("exact_match",))
    program = make_program(small("digits_convnet", evaluators=(jb.Every(1, evaluator),)))
    with program.activate(), pytest.raises(Refused, match="ConvNet writes no texts"):
        check_evaluators(Evaluation(program))
