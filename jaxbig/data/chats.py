"""Data set of chats for supervised fine-tuning: the loss is that of the answers alone.

Legend: B batch, L length in tokens, n tokens of one chat.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.examples import BadRecord, Example, RecordSource
from jaxbig.data.core.fields import present
from jaxbig.data.text import LENGTH_SAMPLE, PROGRESS_INTERVAL_S, READ_AT_ONCE, Tokens, log
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chats(Tokens):
    """Chats, such as JSON lines of `{"messages": [{"role": "user", "content": "..."}, ...]}`.

    Each message is its header, its content and its footer; an answer, what the role `answers` says,
    has the tokenizer's end token as footer. `mask` [B, L] is 1 for the contents of answers and
    their end tokens, and 0 for all else. The other fields of a batch are those of `Tokens`; if
    packed, each chat is a segment. A chat longer than `length` is cut, packed or not.
    """

    feature: str = "messages"
    """The record's field with the list of messages."""
    header: str = "<|{role}|>\n"
    """What comes before each message's content, with `{role}` for its role."""
    footer: str = "\n"
    """What comes after the content of a message that is no answer."""
    answers: str = "assistant"
    """The role whose messages are learned."""

    synthetic = None  # type: ignore[assignment]

    def check_fields(self) -> None:
        if "{role}" not in self.header:
            raise Refused(f"header {self.header!r}: it must hold {{role}}, as '<|{{role}}|>\\n'.")

    def prepare_tokenizer(self, records: str) -> str:
        template = (self.header, self.footer, self.answers)
        return f"{super().prepare_tokenizer(records)}; chats {template}"

    def messages(self, record: Record) -> list[tuple[str, str]]:
        """The role and content of each message of a record; raises ValueError if it has none."""
        found = self.listed(record)
        if not any(role == self.answers for role, _ in found):
            roles = ", ".join(dict.fromkeys(role for role, _ in found))
            raise ValueError(
                f"no message has the role {self.answers!r}, so there is no answer to learn: its "
                f"roles are {roles}; --data.answers names another"
            )
        return found

    def listed(self, record: Record) -> list[tuple[str, str]]:
        """The same of a record that may have no answer."""
        messages: Any = present(record, self.feature, "--data.feature")
        if not isinstance(messages, list | tuple) or not messages:
            raise ValueError(f"its {self.feature!r} is no list of messages: {_short(messages)}")
        found = []
        for number, message in enumerate(messages):
            parts = message if isinstance(message, Mapping) else {}
            role = parts.get("role")
            content = parts.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise ValueError(
                    f"its message {number} must have a role and a content, both text: "
                    f"{_short(message)}"
                )
            found.append((role, content))
        return found

    def encoded(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """A chat's tokens, int32 [n], and which of them are learned, bool [n]; cut to `length`.

        Raises:
          ValueError: it has no answer, or none within `length`.
        """
        return self.cut(*self.joined(self.messages(record)))

    def joined(self, messages: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of messages, int32 [n], and which of them are learned, bool [n]."""
        tokens: list[np.ndarray] = []
        learned: list[np.ndarray] = []
        for role, content in messages:
            is_answer = role == self.answers
            head = self.tokenizer.encode(self.header.replace("{role}", role))
            body = self.tokenizer.encode(content)
            tail = [self.tokenizer.end] if is_answer else self.tokenizer.encode(self.footer)
            tokens += [head, body, np.asarray(tail, np.int32)]
            learned += [np.zeros(len(head), bool), np.full(len(body) + len(tail), is_answer)]
        return np.concatenate(tokens).astype(np.int32), np.concatenate(learned)

    def cut(self, whole: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [n] and which of them are learned [n], cut to `length`; raises as `encoded`."""
        part = slice(self.length) if self.keep == "beginning" else slice(-self.length, None)
        if not mask[part].any():
            raise ValueError(
                f"its first answer begins after token {int(np.argmax(mask))}, and --data.length is "
                f"{self.length}: there is no answer to learn"
            )
        return whole[part], mask[part]

    def read(self, record: Record) -> Example:
        return self.row(*self.encoded(record))

    def row(self, tokens: np.ndarray, learned: np.ndarray) -> Example:
        """The example of what `encoded` returned."""
        targets = self.padded(tokens)
        inputs = np.append(np.int32(self.tokenizer.end), targets[:-1])
        mask = self.padded(learned).astype(np.float32)
        return {"inputs": inputs, "targets": targets, "mask": mask}

    def texts_of(self, record: Record) -> Example:
        return {"texts": [content.encode() for _, content in self.messages(record)]}

    def report_cut_texts(self) -> None:
        """Warns if some of a sample of chats are longer than `length`, and so are cut."""
        records = self.records.open("train")
        count = min(len(records), LENGTH_SAMPLE)
        longer = 0
        for number in range(count):
            try:
                tokens, _ = dataclasses.replace(self, length=2**30).encoded(
                    records[number * len(records) // count]
                )
            except ValueError:
                continue  # reported when a run needs it
            longer += len(tokens) > self.length
        if longer:
            log.warning(
                "%d of %d sampled chats are longer than --data.length %d and are cut; their %s is "
                "kept",
                longer,
                count,
                self.length,
                self.keep,
            )

    def tokenized_documents(
        self, records: Records, split: str, bad: list[BadRecord]
    ) -> Iterator[np.ndarray]:
        """Yields each chat of a split as numbers [n]: twice the token, plus 1 where it is
        learned."""
        logged = time.monotonic()
        reading = RecordSource(records.open(split), self.doubled, {}, self.skip_bad_records)
        reading.check(split)
        for start in range(0, len(reading), READ_AT_ONCE):
            found: list[BadRecord] = []
            some = list(range(start, min(start + READ_AT_ONCE, len(reading))))
            examples = reading.examples(some, lambda index: None, found)
            reading.leave_out(found)
            bad += found
            yield from (example["doubled"] for example in examples if example)
            if time.monotonic() > logged + PROGRESS_INTERVAL_S:
                logged = time.monotonic()
                log.info("%d of %d chats of %s are packed", start, len(reading), split)

    def doubled(self, record: Record) -> Example:
        """A chat as `tokenized_documents` yields it."""
        tokens, learned = self.encoded(record)
        return {"doubled": 2 * tokens + learned}

    def example_of_row(self, row: Record) -> Example:
        example = super().example_of_row({**row, "tokens": row["tokens"] // 2})
        return {**example, "mask": (row["tokens"] % 2).astype(np.float32)}


def _short(value: Any) -> str:
    """A value in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
