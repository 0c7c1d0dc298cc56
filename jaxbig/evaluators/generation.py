"""The evaluator of written texts: what the model generates, scored against references."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.data.core.dataset import Data
from jaxbig.errors import Refused
from jaxbig.evaluators.text_scores import TextScore, check_scores, score_texts
from jaxbig.inference.decoding import translates
from jaxbig.inference.generate import Prompt, check_model, generate
from jaxbig.train.passes import Evaluation, evenly
from jaxbig.train.run import Run

AT_ONCE = 64
"""Prompts between two looks whether the run is asked to stop."""


@dataclasses.dataclass(frozen=True)
class Generation(Evaluator):
    """Texts that the model writes, as `jb.generate`, scored against references.

    A translator writes translations of the data's sources. A language model continues the prompts
    of a file of JSON lines, {"prompt": ..., "reference": ...}.
    """

    scores: tuple[TextScore, ...] = ("bleu", "exact_match")
    """bleu, rouge1, rouge2, rougeL, exact_match, wer."""
    file: str = ""
    """JSON lines with the texts `prompt` and `reference`; empty: the sources and targets of the
    data."""
    of: str = "eval"
    """The split of the data: train, eval, or test where the data has such a split."""
    most: PositiveInt = 200
    """The most prompts, evenly spread over all."""
    max_tokens: PositiveInt = 100
    """The most tokens of each text."""
    temperature: NonNegativeFloat = 0.0
    """Divides the logits; 0: always the likeliest token."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings."""

    def check(self, evaluation: Evaluation) -> None:
        check_scores(self.scores)
        model = evaluation.experiment.model
        check_model(model)
        if not self.file and not translates(model):
            raise Refused(
                f"{type(model).__name__} continues prompts, which the data does not have: give "
                f'file="prompts.jsonl" with lines {{"prompt": ..., "reference": ...}}.'
            )
        self.pairs(evaluation)

    def pairs(self, evaluation: Evaluation) -> list[tuple[Any, str]]:
        """The prompts, texts or arrays of tokens, each with its reference."""
        data = evaluation.experiment.data
        if self.file:
            return read_pairs(Path(self.file))[: self.most]
        source = evenly(evaluation.source(self.of), self.most)
        rows = source.rows(np.arange(len(source)))
        lengths = rows.get("lengths", np.full(len(source), rows["inputs"].shape[1]))
        end = int(getattr(evaluation.experiment.objective, "end", -1))
        return [
            (inputs[:length], as_text(data, target[mask > 0], end))
            for inputs, length, target, mask in zip(
                rows["inputs"], lengths, rows["targets"], rows["mask"], strict=True
            )
        ]

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        experiment = evaluation.experiment
        run = Run(
            directory=Path(),
            experiment=experiment,
            step=0,
            state=state,
            metrics={},
            history=[],
            program=evaluation.program,
        )
        pairs = self.pairs(evaluation)
        prompts: list[Prompt] = [prompt for prompt, _ in pairs]
        texts: list[Any] = []
        for start in range(0, len(prompts), AT_ONCE):
            evaluation.pause()
            texts += generate(
                run,
                prompts[start : start + AT_ONCE],
                seed=experiment.seed,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                stop=self.stop,
            )
        written = [
            each if isinstance(each, str) else as_text(experiment.data, each) for each in texts
        ]
        references = [reference for _, reference in pairs]
        return evaluation.on_process_zero(lambda: score_texts(written, references, self.scores))


def as_text(data: Data, tokens: np.ndarray, end: int = -1) -> str:
    """Tokens as text, up to the end token."""
    ends = np.flatnonzero(tokens == end)
    return data.text(tokens[: ends[0]] if len(ends) else tokens)


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """The prompts and references of a file of JSON lines.

    Raises:
      Refused: it cannot be read, or a line has no such texts.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise Refused(f"file {file} cannot be read: {error}.") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pair = (record["prompt"], record["reference"])
        except (ValueError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(each, str) for each in pair):
            raise Refused(
                f"{file}, line {number}: it must be an object with the texts prompt and reference."
            )
        if not pair[0]:
            raise Refused(f"{file}, line {number}: its prompt is empty.")
        pairs.append(pair)
    if not pairs:
        raise Refused(f"file {file} has no line: give one or more.")
    return pairs
