"""Data set of questions on a text, the context, which a part of it answers.

Letters in shape comments: L length in tokens, n tokens of one text.
"""

import dataclasses
import logging
import re

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Data, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, as_bytes, present
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import LENGTH_SAMPLE, Text
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
WORD = re.compile(r"(\s*)(\w+|[^\w\s])")
"""A word, or a sign, and the spaces before it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(Text):
    """Questions and contexts, each with a span of the context that answers it, as of SQuAD.

    A batch has a row of tokens, `inputs` [B, L], of the question, an end, the context and an end,
    their number `lengths` [B], `types` [B, L], 1 in the context, and the first and last token of
    the answer, `targets` [B, 2]: 0 and 0 where the answer is cut away. `offsets` [B, L, 2] are the
    places in the context where the word of a token starts and ends, in characters; 0 elsewhere,
    and in a first word that is cut.
    """

    question: str = "question"
    """The record's field with the question."""
    context: str = "context"
    """The record's field with the text that has the answer."""
    answers: str = "answers"
    """The record's field with the answers, of which the first is learned: lists `text` and
    `answer_start`, which counts characters."""
    question_length: PositiveInt = 64
    """The most tokens of a question. Longer ones are cut."""

    reads_texts = False
    endings = ()
    record_of_file = Data.record_of_file
    record_of_text = Data.record_of_text

    def check_fields(self) -> None:
        if self.keep != "beginning":
            raise Refused(f"keep {self.keep}: of questions and contexts the beginning is kept.")

    @property
    def features(self) -> tuple[str, ...]:
        return (self.question, self.context)

    def spec(self) -> Spec:
        row = (self.length,)
        return self.batch_spec(
            inputs=row, lengths=(), types=row, offsets=(*row, 2), targets=(2,), mask=()
        )

    def read(self, record: Record) -> Example:
        example = self.read_unlabeled(record)
        text, start = self.answers_of(record)[0]
        words = example["offsets"]
        inside = (words[:, 0] < start + len(text)) & (words[:, 1] > start)
        places = np.flatnonzero(inside & (example["types"] > 0))
        whole = len(places) and words[places[-1], 1] >= start + len(text.rstrip())
        if whole:
            example["targets"] = places[[0, -1]].astype(np.int32)
        return example

    def report_cut_texts(self) -> None:
        """Warns if some of a sample of training answers are cut away."""
        source = self.source("train")
        count = min(len(source), LENGTH_SAMPLE)
        rows = source.rows(np.arange(count) * len(source) // count)
        if lost := int(((rows["targets"][:, 1] == 0) & (rows["mask"] > 0)).sum()):
            log.warning(
                "the answers of %d of %d sampled questions are cut away with --data.length %d, and "
                "will be missed",
                lost,
                count,
                self.length,
            )

    def answers_of(self, record: Record) -> list[tuple[str, int]]:
        """Each answer and where it starts; raises ValueError if it is not there."""
        given = present(record, self.answers, "--data.answers")
        try:
            texts = [as_bytes({"text": text}, "text").decode() for text in given["text"]]
            starts = [int(start) for start in given["answer_start"]]
        except (KeyError, TypeError, IndexError):
            raise MismatchError(
                f"its {self.answers!r} are no lists `text` and `answer_start`"
            ) from None
        context = as_bytes(record, self.context).decode(errors="replace")
        found = list(zip(texts, starts, strict=True))
        if not found or not all(text for text in texts):
            raise ValueError(f"its {self.answers!r} are empty: at least one answer is needed")
        for text, start in found:
            if start < 0 or context[start : start + len(text)] != text:
                raise ValueError(f"the answer {text!r} is not at character {start} of its context")
        return found

    def read_unlabeled(self, record: Record) -> Example:
        question, _ = self.encoded(record, self.question, "--data.question")
        context, offsets = self.encoded(record, self.context, "--data.context")
        asked = np.append(question[: self.question_length], self.tokenizer.end)
        room = self.length - len(asked) - 1  # for the context
        if room < 1 or not len(context):
            raise ValueError(
                f"no token of the context fits behind the {len(asked)} of the question: "
                f"--data.length is {self.length}"
                if len(context)
                else f"its {self.context!r} has no word"
            )
        if len(context) > room:  # a word that is cut is left out
            ends = np.flatnonzero(np.any(offsets[1:] != offsets[:-1], axis=1)) + 1
            whole = max(ends[ends <= room], default=0)
            offsets = offsets[:whole]
            context = context[: whole or room]  # the first word stays, but has no place
        row = np.concatenate([asked, context, [self.tokenizer.end]]).astype(np.int32)
        of_context = slice(len(asked), len(asked) + len(context))
        types = np.zeros(self.length, np.int32)
        types[of_context] = 1
        places = np.zeros((self.length, 2), np.int32)
        places[len(asked) : len(asked) + len(offsets)] = offsets
        return {
            "inputs": self.padded(row),
            "lengths": np.int32(len(row)),
            "types": types,
            "offsets": places,
            "targets": np.zeros(2, np.int32),
            "mask": np.float32(1),
        }

    def encoded(self, record: Record, feature: str, option: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a text [n], word by word, and where the word of each starts and ends [n,
        2]."""
        words = list(WORD.finditer(as_bytes(record, feature, option).decode(errors="replace")))
        tokens = self.tokenizer.encode_many([f"{' ' * bool(word[1])}{word[2]}" for word in words])
        spans = np.array([word.span(2) for word in words], np.int32).reshape(-1, 2)
        counts = [len(each) for each in tokens]
        return np.concatenate([np.zeros(0, np.int32), *tokens]), np.repeat(spans, counts, axis=0)

    def synthetic(self) -> "Questions":
        data = super().synthetic()
        records = Synthetic(texts=self.features, spans=((self.answers, self.context),))
        return dataclasses.replace(data, records=records)  # type: ignore[return-value]
