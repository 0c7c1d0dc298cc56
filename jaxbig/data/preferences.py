"""Data set of preferences: to each prompt two answers, of which one was chosen.

Legend: B batch, L length in tokens, n tokens of one chat, N examples of a split.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxbig.data.chats import Chats
from jaxbig.data.core.dataset import Record, Rows, Source, Spec
from jaxbig.data.core.examples import BadRecord, Example, RecordSource
from jaxbig.data.core.fields import as_bytes
from jaxbig.errors import Refused

REFERENCE_FILE = "reference.npz"
"""The file of a run's folder with the log-probabilities under the reference."""
KEY = "of"


@dataclasses.dataclass(frozen=True)
class ReferenceScores:
    """The log-probabilities of all answers under a reference."""

    of: Mapping[str, Any]
    """What they are of, plain JSON: `data_identity`, and what identifies the reference."""
    splits: Mapping[str, np.ndarray]
    """Those of the chosen and of the rejected answer of each example, float32 [N, 2], by split."""

    def to_bytes(self) -> bytes:
        """The content of `REFERENCE_FILE`."""
        file = io.BytesIO()
        key = np.frombuffer(json.dumps(self.of).encode(), np.uint8)
        arrays: dict[str, Any] = {KEY: key, **self.splits}
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def read(cls, folder: Path) -> "ReferenceScores | None":
        """Those kept in a run's folder; None: none that can be read."""
        try:
            with np.load(folder / REFERENCE_FILE) as arrays:
                splits = dict(arrays)
            return cls(json.loads(splits.pop(KEY).tobytes()), splits)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences(Chats):
    """Pairs of answers for `DPO`, such as JSON lines of
    `{"prompt": "...", "chosen": "...", "rejected": "..."}`.

    In place of a prompt, a record may have `messages` as those of `Chats`. The template is that of
    `Chats`; only the two answers are learned. A batch has `inputs`, `targets` and `mask` [B, L] of
    the chosen answers, `rejected` and `rejected_mask` [B, L], the targets and the mask of the
    others, and `reference` [B, 2], the log-probabilities of both under the reference: NaN where no
    run has computed them. A pair that is longer than `length` is cut; it is refused if its answers
    are equal then.
    """

    prompt: str = "prompt"
    """The record's field with the prompt, a text."""
    prompt_role: str = "user"
    """The role that says the prompt."""
    chosen: str = "chosen"
    """The record's field with the better answer, a text."""
    rejected: str = "rejected"
    """The record's field with the other answer, a text."""

    @property
    def features(self) -> tuple[str, ...]:
        return (self.prompt, self.chosen, self.rejected)

    def check_fields(self) -> None:
        super().check_fields()
        if self.packed:
            raise Refused("packed: pairs of answers are not packed: leave it out.")

    def spec(self) -> Spec:
        row = (self.length,)
        spec = self.batch_spec(inputs=row, targets=row, mask=row, rejected=row)
        return {
            **spec,
            "rejected_mask": spec["mask"],
            "reference": jax.ShapeDtypeStruct((self.batch, 2), np.float32),
        }

    def prepare(self) -> str:
        identity = super().prepare()
        vars(self)["identity"] = identity
        return identity

    def prepare_tokenizer(self, records: str) -> str:
        pairs = (self.feature, *self.features, self.prompt_role, self.length, self.keep)
        return f"{super().prepare_tokenizer(records)}; pairs {pairs}"

    def before(self, record: Record) -> list[tuple[str, str]]:
        """The role and content of each message before the answers."""
        if self.prompt not in record and self.feature in record:
            return self.listed(record)
        return [(self.prompt_role, self.content(record, self.prompt, "prompt"))]

    def content(self, record: Record, feature: str, option: str) -> str:
        """A field of a record, a text."""
        return as_bytes(record, feature, f"--data.{option}").decode()

    def answers_of(self, record: Record) -> list[str]:
        """The chosen answer and the rejected one."""
        return [
            self.content(record, self.chosen, "chosen"),
            self.content(record, self.rejected, "rejected"),
        ]

    def pair(self, record: Record) -> list[tuple[np.ndarray, np.ndarray]]:
        """What `encoded` returns of a chat, of both answers.

        Raises:
          ValueError: the answers are equal, or one has nothing within `length`.
        """
        before = self.before(record)
        prompt, _ = self.joined(before)
        answers = self.answers_of(record)
        if answers[0] == answers[1]:
            raise ValueError("its two answers are equal, so none is better")
        found = []
        for answer in answers:
            tokens, learned = self.joined([*before, (self.answers, answer)])
            learned[: len(prompt)] = False
            found.append(self.cut(tokens, learned))
        (first, _), (second, _) = found
        if np.array_equal(first, second):
            raise ValueError(
                f"its two answers are equal in the {self.length} tokens of --data.length, so none "
                f"is better"
            )
        return found

    def encoded(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """The longer one of a pair."""
        return max(self.pair(record), key=lambda found: len(found[0]))

    def read(self, record: Record) -> Example:
        chosen, rejected = (self.row(*found) for found in self.pair(record))
        return {**chosen, "rejected": rejected["targets"], "rejected_mask": rejected["mask"]}

    def read_unlabeled(self, record: Record) -> Example:
        return {**self.read(record), "reference": np.zeros(2, np.float32)}

    def texts_of(self, record: Record) -> Example:
        contents = [*(content for _, content in self.before(record)), *self.answers_of(record)]
        return {"texts": [content.encode() for content in contents]}

    @property
    def scores(self) -> ReferenceScores | None:
        """The log-probabilities under the reference, if they are known."""
        return vars(self).get("known")

    def know(self, scores: ReferenceScores | None) -> None:
        """Gives batches their field `reference`, and `kept` a file."""
        vars(self)["known"] = scores

    def kept(self) -> dict[str, bytes]:
        files = super().kept()
        return files if self.scores is None else {**files, REFERENCE_FILE: self.scores.to_bytes()}

    def with_kept(self, folder: Path) -> Self:
        data = super().with_kept(folder)
        data.know(ReferenceScores.read(folder))
        return data

    def source(self, split: str) -> Source:
        if "identity" not in vars(self):
            self.prepare()
        known = None
        if self.scores is not None:
            if self.scores.of["data_identity"] != vars(self)["identity"]:
                raise Refused(
                    f"{REFERENCE_FILE} of the run has the log-probabilities of other preferences "
                    f"than those of this data, so its loss is not known: only the run's own data "
                    f"can be evaluated."
                )
            known = self.scores.splits[split]
        empty = {name: each for name, each in self.empty().items() if name != "reference"}
        records = self.records.open(split)
        return PairSource(records, self.read, empty, self.skip_bad_records).knowing(known)


class PairSource(RecordSource):
    """A source that adds the log-probabilities under the reference."""

    known: np.ndarray | None = None

    def knowing(self, known: np.ndarray | None) -> Self:
        """Itself, with those of all its examples, [N, 2]."""
        self.known = known
        return self

    def read_rows(
        self, indices: np.ndarray, begin: Callable[[int], None] = lambda index: None
    ) -> tuple[Rows, list[BadRecord]]:
        rows, bad = super().read_rows(indices, begin)
        nothing = np.full((len(indices), 2), np.nan, np.float32)
        return {**rows, "reference": nothing if self.known is None else self.known[indices]}, bad
