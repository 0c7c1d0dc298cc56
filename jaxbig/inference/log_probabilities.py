"""Log probabilities of texts under a run's language model, and what it writes after others.

Letters in shape comments: R rows, L length, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.batch_mask import batch_mask
from jaxbig.arrays.dtypes import upcast
from jaxbig.data.tokenize.tokenizers import Tokenizer
from jaxbig.distributed.sharding import (
    batch_sharding,
    check_batch,
    device_put_batch,
    local_rows,
    replicated,
)
from jaxbig.errors import Refused
from jaxbig.inference.decoding import padded_length, translates
from jaxbig.inference.generate import check_model, generate, most_positions
from jaxbig.program.apply_model import make_apply
from jaxbig.program.program import Program
from jaxbig.train.run import Run


class Span(NamedTuple):
    """Tokens whose probability is asked for."""

    before: np.ndarray
    """The tokens before them, one or more."""
    tokens: np.ndarray
    """These tokens."""


class LanguageModelScores:
    """Probabilities of texts under a run's language model, and texts that it writes."""

    def __init__(self, run: Run, *, batch: int | None = None, length: int | None = None):
        """
        Args:
          run: of a language model on texts.
          batch: rows that are computed at once; None: the batch of the run's data.
          length: the most tokens that the model sees at once; None: those of its training.

        Raises:
          Refused: the model is no language model, or its data has no texts.
        """
        model: Any = run.experiment.model
        data: Any = run.experiment.data
        check_model(model)
        if translates(model) or not hasattr(data, "tokenizer"):
            raise Refused(
                f"this run has {type(model).__name__} on {type(data).__name__}: probabilities of "
                f"texts need a language model on texts."
            )
        self.run = run
        self.tokenizer: Tokenizer = data.tokenizer
        self.batch: int = batch or data.batch
        check_batch(self.batch, run.program.mesh)
        self.length = int(min(length or data.length, most_positions(model)))
        start = self.tokenizer.special("start")
        self.first = self.tokenizer.end if start is None else start
        """The token before each text, as in training."""
        self._compute = make_log_probabilities(run.program)

    def log_probabilities(self, spans: Sequence[Span]) -> list[tuple[float, bool]]:
        """Of each span the log probability in nats, and whether each token is the likeliest.

        What does not fit into `length` before a span is left out.
        """
        found: list[tuple[float, bool]] = [(0.0, True)] * len(spans)
        cut = [self.cut(span) for span in spans]
        lengths = [padded_length(len(span.before) + len(span.tokens) - 1) for span in cut]
        order = sorted(range(len(cut)), key=lambda number: lengths[number])
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            rows = as_rows([cut[number] for number in numbers], self.batch, lengths[numbers[-1]])
            for number, total, greedy in zip(numbers, *self.compute(rows), strict=False):
                found[number] = (float(total), bool(greedy))
        return found

    def compute(self, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """For `as_rows` the log probability of each row's tokens, and whether all are likeliest."""
        program = self.run.program
        mine = local_rows(program.mesh, self.batch)
        with program.activate():
            batch = device_put_batch(
                {name: field[mine] for name, field in rows.items()}, program.mesh
            )
            variables = dict(self.run.variables)
            variables.pop("carry", None)  # each row is a text of its own
            return jax.device_get(self._compute(variables, batch))

    def cut(self, span: Span) -> Span:
        """A span with as much before it as fits."""
        if len(span.tokens) > self.length:
            raise Refused(
                f"a continuation has {len(span.tokens)} tokens, and the model sees {self.length} "
                f"at once: give a larger length."
            )
        room = self.length + 1 - len(span.tokens)
        return Span(span.before[-room:], span.tokens)

    def continuation(self, context: str, continuation: str) -> Span:
        """A continuation after a context; spaces at the end of the context belong to it."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        before = self.encode(context)
        whole = self.encode(context + continuation)
        return Span(np.append(self.first, before), whole[len(before) :])

    def windows(self, text: str) -> list[Span]:
        """Spans of a text: each token is in one, with as much before it as fits."""
        tokens = np.append(self.first, self.encode(text))
        spans = [Span(tokens[:1], tokens[1 : self.length + 1])] if len(tokens) > 1 else []
        for start in range(self.length + 1, len(tokens), self.length):
            spans.append(Span(tokens[:start], tokens[start : start + self.length]))
        return spans

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text), np.int32)

    def write(
        self, contexts: Sequence[str], *, until: Sequence[str], max_tokens: int, **options: Any
    ) -> list[str]:
        """What the model writes after each context, before the first of the strings `until`.

        What does not fit before `max_tokens` tokens is left out at the beginning of a context.
        """
        room = max(1, self.length - max_tokens)
        prompts = [np.append(self.first, self.encode(each))[-room:] for each in contexts]
        written = generate(self.run, prompts, max_tokens=max_tokens, batch=self.batch, **options)
        texts = [self.tokenizer.decode(tokens) for tokens in written]
        return [before_first(text, until) for text in texts]


def before_first(text: str, ends: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    places = [place for end in ends if end and (place := text.find(end)) >= 0]
    return text[: min(places, default=len(text))]


def as_rows(spans: Sequence[Span], batch: int, length: int) -> dict[str, np.ndarray]:
    """Spans as arrays [R, L]: `inputs`, `targets`, `mask` (1 for real inputs) and `asked`."""
    rows = {name: np.zeros((batch, length), np.int32) for name in ("inputs", "targets")}
    rows |= {name: np.zeros((batch, length), np.float32) for name in ("mask", "asked")}
    for row, span in enumerate(spans):
        tokens = np.concatenate([span.before, span.tokens])
        count = len(tokens) - 1
        rows["inputs"][row, :count] = tokens[:-1]
        rows["targets"][row, :count] = tokens[1:]
        rows["mask"][row, :count] = 1
        rows["asked"][row, len(span.before) - 1 : count] = 1
    return rows


def make_log_probabilities(program: Program) -> Any:
    """Returns `(variables, as_rows) -> (log probabilities [R], whether all are likeliest [R])`."""

    def compute(variables: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def outputs(model: nn.Module) -> jax.Array:
            called: Any = model
            with batch_mask(rows["mask"]):
                return called(rows["inputs"], train=False)

        apply = make_apply(program.experiment, outputs, mutable=True)
        logits = upcast(apply(variables)[0])  # [R, L, V]
        chosen = jnp.take_along_axis(logits, rows["targets"][..., None], axis=-1)[..., 0]
        nats = (chosen - jax.nn.logsumexp(logits, axis=-1)) * rows["asked"]
        likeliest = jnp.argmax(logits, axis=-1) == rows["targets"]
        return nats.sum(axis=1), jnp.all(likeliest | (rows["asked"] == 0), axis=1)

    at = batch_sharding(program.mesh)
    return jax.jit(compute, in_shardings=(None, at), out_shardings=replicated(program.mesh))
