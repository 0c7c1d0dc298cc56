"""A run as a model of lm-eval: probabilities against the model's logits, and a task of our own."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.errors import Refused
from jaxbig.evaluators.lm_eval_model import generation_options, lm_eval_model
from jaxbig.inference.log_probabilities import LanguageModelScores, before_first
from jaxbig.program.program import make_program
from jaxbig.train.run import Run, make_run

LENGTH = 12
LONGEST = 16
"""Of a text with what is before it."""


@pytest.fixture(scope="module")
def run() -> Run:
    """A language model on bytes, as it is initialized."""
    experiment = small(
        "pytext_transformer",
        data=jb.data.Tokens(records=jb.data.TextFiles(files="x"), length=LENGTH, batch=8),
        model=jb.models.Decoder(vocab=256, depth=1, width=16, heads=2),
        objective=jb.objectives.NextToken(vocab=256),
    )
    program = make_program(experiment)
    with program.activate():
        state = program.init()
    return make_run(Path("nowhere"), program, state, 0)


def log_probabilities(run: Run, before: bytes, text: bytes) -> tuple[float, bool]:
    """Of a text after other bytes, by the model's logits."""
    tokens = np.frombuffer(before + text, np.uint8).astype(np.int32)
    padded = np.pad(tokens, (0, LONGEST - len(tokens)))  # causal: the padding changes nothing
    logits = jax.jit(run.experiment.model.apply)({"params": run.state.params}, padded[None])
    logits = np.asarray(logits[0], np.float64)[len(before) - 1 : len(tokens) - 1]  # type: ignore
    highest = logits.max(axis=1, keepdims=True)
    scores = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    asked = tokens[len(before) :]
    chosen = scores[np.arange(len(asked)), asked]
    return float(chosen.sum()), bool((scores.argmax(axis=1) == asked).all())


def test_continuations_have_the_probabilities_of_the_logits(run: Run) -> None:
    scores = LanguageModelScores(run)
    pairs = [("", "abc"), ("ab", "c"), ("ab ", "cd"), ("", "x")] * 3  # more than a batch
    found = scores.log_probabilities([scores.continuation(*pair) for pair in pairs])
    spaced = [("", "abc"), ("ab", "c"), ("ab", " cd"), ("", "x")] * 3
    for (context, text), (total, greedy) in zip(spaced, found, strict=True):
        expected, likeliest = log_probabilities(run, b"\0" + context.encode(), text.encode())
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy == likeliest


@pytest.mark.slow
def test_likeliest_token_is_greedy(run: Run) -> None:
    scores = LanguageModelScores(run)
    each = [scores.continuation("a", chr(number)) for number in range(1, 128)]
    found = scores.log_probabilities(each)
    [whole] = scores.write(["a"], until=[], max_tokens=1, temperature=0.0)
    likeliest = [chr(number) for number, (_, greedy) in enumerate(found, 1) if greedy]
    assert likeliest == ([whole] if whole.isascii() and whole > "\0" else [])


def test_long_context_is_cut_at_its_beginning(run: Run) -> None:
    scores = LanguageModelScores(run)
    [(total, _)] = scores.log_probabilities([scores.continuation("0123456789abcdef", "xyz")])
    kept = "0123456789abcdef"[-(LENGTH + 1 - 3) :]
    assert total == pytest.approx(log_probabilities(run, kept.encode(), b"xyz")[0], abs=1e-4)
    with pytest.raises(Refused, match="a continuation has 13 tokens, and the model sees 12"):
        scores.log_probabilities([scores.continuation("", "x" * 13)])


def test_rolling_windows_are_those_of_lm_eval(run: Run) -> None:
    scores = LanguageModelScores(run, length=4)
    windows = scores.windows("0123456789")
    seen = [scores.cut(span) for span in windows]
    texts = [(bytes(each.before.tolist()), bytes(each.tokens.tolist())) for each in seen]
    assert texts == [(b"\0", b"0123"), (b"3", b"4567"), (b"567", b"89")]
    assert scores.windows("") == []
    found = sum(total for total, _ in scores.log_probabilities(windows))
    expected = sum(log_probabilities(run, *each)[0] for each in texts)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"until": [], "max_tokens": 256, "temperature": 0.0}),
        (
            {"until": "\n", "max_gen_toks": 5, "do_sample": True, "top_p": 0.9},
            {"until": ["\n"], "max_tokens": 5, "temperature": 1.0, "top_p": 0.9},
        ),
        (
            {"until": ["a", "b"], "temperature": 0.0, "do_sample": False},
            {"until": ["a", "b"], "max_tokens": 256, "temperature": 0.0},
        ),
    ],
)
def test_options_of_a_generation_are_ours(given: Any, options: Any) -> None:
    assert generation_options(given) == options


def test_text_ends_before_the_first_of_the_strings() -> None:
    assert before_first("one\ntwo.", [".", "\n"]) == "one"
    assert before_first("one", [".", ""]) == "one"


def test_run_of_another_kind_is_refused() -> None:
    program = make_program(small("digits_convnet"))
    run: Any = SimpleNamespace(experiment=program.experiment, program=program)
    with pytest.raises(Refused, match="ConvNet writes no texts"):
        LanguageModelScores(run)


def test_without_lm_eval_the_command_to_install_it_is_named(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'jaxbig\[lm_eval\]'"):
        lm_eval_model(run)


@pytest.mark.slow
def test_task_of_our_own_has_the_accuracy_of_the_probabilities(run: Run, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    questions = [{"q": "a", "choices": ["b", "cc"], "gold": n % 2} for n in range(4)]
    questions += [{"q": "xyz", "choices": ["1", "2"], "gold": 0}]

    class Ours(ConfigurableTask):
        VERSION = 1

        def __init__(self) -> None:
            config = {
                "task": "ours",
                "output_type": "multiple_choice",
                "custom_dataset": lambda **_: {"test": Dataset.from_list(questions)},
                "test_split": "test",
                "doc_to_text": "{{q}}",
                "doc_to_target": "gold",
                "doc_to_choice": "{{choices}}",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }
            super().__init__(config=config)

    found = lm_eval.simple_evaluate(
        model=lm_eval_model(run), tasks=[Ours()], bootstrap_iters=0, log_samples=False
    )
    right = []
    for each in questions:
        before = b"\0" + each["q"].encode()
        totals = [log_probabilities(run, before, choice.encode())[0] for choice in each["choices"]]
        right.append(int(np.argmax(totals)) == each["gold"])
    assert found["results"]["ours"]["acc,none"] == pytest.approx(np.mean(right))
