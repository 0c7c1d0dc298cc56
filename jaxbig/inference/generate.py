"""Texts of a run's model: a language model continues prompts, a translator translates sources."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.data.core.dataset import Data
from jaxbig.data.text import Pairs, Tokens
from jaxbig.data.tokenize.tokenizers import Tokenizer
from jaxbig.distributed.multihost import refuse_several
from jaxbig.errors import Refused
from jaxbig.inference.beam_search import beam_search
from jaxbig.inference.chat import Message, chat_tokens, ends, is_chat
from jaxbig.inference.decoding import STEPS, Decoding, Writer, padded_length, translates
from jaxbig.inference.sampling import Sampling
from jaxbig.train.run import Run, restore

SPLIT = ("fsdp", "tensor", "sequence", "expert", "stage")
"""The axes of a mesh that split a model or its rows' positions."""
MOST = 2**24
"""The most tokens of a text, places of a cache, and texts at once."""
STEEPEST = 8
"""The largest power of a length."""
Prompt = str | Sequence[int] | np.ndarray | Sequence[Message]
placed: weakref.WeakKeyDictionary[Run, dict[Any, Any]] = weakref.WeakKeyDictionary()
"""The variables of each run on the devices that write, by how they are placed."""


def generate(
    run: Run | str | Path,
    prompts: Prompt | Iterable[Prompt],
    *,
    seed: int = 0,
    max_tokens: int = 100,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    batch: int = 8,
    cache: int = 256,
    reproducible: bool | None = None,
    show: Callable[[int, str], None] | None = None,
) -> list[Any]:
    """Texts that a run's model writes after prompts, or translations of sources.

    A text is a pure function of the seed, its prompt and the settings: the same alone, among
    others, or repeated. Equal prompts have equal texts; another seed has others.

    Args:
      run: a run, or the folder of one, whose last checkpoint is taken.
      prompts: a text, or several; or their tokens, as lists or arrays of integers; or a chat, as a
        list of messages `{"role": "user", "content": "..."}`, whose next answer is written.
      seed: of the random choices.
      max_tokens: the most tokens of each text; a text ends earlier at the model's end token, or
        where the model has no more positions.
      temperature: divides the logits; 0: always the likeliest token. None: 1 for a language model,
        0 for a translator.
      top_k: draw from the k likeliest tokens; 0: from all.
      top_p: draw from the likeliest tokens that together have this probability.
      min_p: draw from the tokens with this share of the likeliest one's probability or more.
      repetition_penalty: above 1, makes tokens that a text has already less likely.
      beams: above 1: how many unfinished texts of a prompt are continued at once (beam
        search); the temperature is 0 then.
      length_penalty: the power of the length by which a beam's logarithmic probability is divided.
      stop: a text ends before the first of these strings. The name of a special token of the
        tokenizer, as "<end>", stands for that token.
      batch: how many texts each device writes at once. Another number may round differently.
      cache: how many tokens the model's cache holds at first; it doubles when it is full.
      reproducible: each device holds the whole model and writes texts by itself, so that they are
        the same over any mesh. None: so if the experiment is reproducible, or its mesh splits rows
        only.
      show: is called with a prompt's number and each new piece of its text.

    Returns:
      A text for each prompt, without the prompt; for tokens an array of tokens.

    Raises:
      Refused: the model writes no texts, a prompt is empty or too long, or a setting is wrong.
    """
    refuse_several("generate")
    if not isinstance(run, Run):
        run = restore(run, for_training=False)
    model: Any = run.experiment.model
    check_model(model)
    if temperature is None:
        temperature = 0.0 if translates(model) or beams > 1 else 1.0
    if beams > 1 and temperature:
        raise Refused(f"beams {beams} with temperature {temperature}: beam search draws nothing.")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    sampling.check()
    named = {"max_tokens": max_tokens, "beams": beams, "batch": batch, "cache": cache}
    for name, value in named.items():
        if not 1 <= value <= MOST:
            raise Refused(f"{name} {value}: it must be 1 to {MOST:,}.")
    if not -STEEPEST <= length_penalty <= STEEPEST:
        raise Refused(f"length_penalty {length_penalty}: it must be -{STEEPEST} to {STEEPEST}.")
    if not 0 <= seed < 2**32:
        raise Refused(f"seed {seed}: it must be 0 to {2**32 - 1}.")
    language = Language(run.experiment.data, model)
    stops = language.stops([stop] if isinstance(stop, str) else stop)
    stops[1].extend(ends(run))
    given = listed(prompts)
    are_texts = [isinstance(each, str) or is_chat(each) for each in given]
    if stops[0] and not all(are_texts):
        raise Refused(
            f"stop {stops[0][0]!r} with prompts of tokens: their texts are tokens, which end at "
            f"special tokens alone: give texts, or leave the string out."
        )
    tokens = [
        language.tokens(number, chat_tokens(run, each) if is_chat(each) else each)
        for number, each in enumerate(given)
    ]
    decoding = decoding_of(
        run,
        sampling,
        batch=max(batch // beams, 1) * beams,
        end=end_of(run, language),
        reproducible=reproducible,
    )
    limits = [room_of(model, each, max_tokens) for each in tokens]
    texts = [
        Text(language, stops, () if translates(model) else prompt.tolist())
        if is_text
        else Text(None, stops)
        for is_text, prompt in zip(are_texts, tokens, strict=True)
    ]

    def after(number: int, new: np.ndarray) -> bool:
        """Adds tokens to a text; whether it has ended."""
        piece = texts[number].add(new, decoding.end)
        if show is not None and piece:
            show(number, piece)
        return texts[number].ended

    with decoding.activate():
        variables = variables_of(run, decoding)
        same = {"limits": limits, "start": start_of(run), "cache": cache}
        if beams > 1:
            search_all(
                decoding, variables, tokens, after, **same, beams=beams, power=length_penalty
            )
        else:
            steps = 4 if show else STEPS
            write_all(decoding, variables, tokens, after, **same, seed=seed, steps=steps)
    for number, text in enumerate(texts):
        if show is not None and (rest := text.rest()):
            show(number, rest)
    return [text.value for text in texts]


def write_all(
    decoding: Decoding,
    variables: Any,
    prompts: Sequence[np.ndarray],
    after: Callable[[int, np.ndarray], bool],
    *,
    limits: Sequence[int],
    start: int | None,
    seed: int,
    cache: int,
    steps: int = STEPS,
) -> None:
    """Writes texts, and calls `after` with the number and new tokens of each.

    Args:
      decoding: how and where.
      variables: of the model, where `decoding` has them.
      prompts: the tokens [n] of each.
      after: gets a prompt's number and its new tokens; whether the text has ended.
      limits: the most tokens of each text.
      start: the token before a translation; None: the model continues its prompts.
      seed: of the noise.
      cache: the places of the cache at first.
      steps: how many tokens are written between two calls of `after`.
    """
    for numbers in groups([padded_length(len(each)) for each in prompts], decoding.rows):
        writer = Writer(
            decoding,
            variables,
            [prompts[number] for number in numbers],
            start=start,
            limits=[limits[number] for number in numbers],
            seed=seed,
            cache=cache,
        )
        counts = dict.fromkeys(numbers, 0)
        while not writer.ended.all():
            alive = ~writer.ended
            new = writer.next(steps)
            for row, number in enumerate(numbers):
                if alive[row]:
                    part = new[row, : limits[number] - counts[number]]
                    counts[number] += len(part)
                    writer.ended[row] |= after(number, part)


def search_all(
    decoding: Decoding,
    variables: Any,
    prompts: Sequence[np.ndarray],
    after: Callable[[int, np.ndarray], bool],
    *,
    limits: Sequence[int],
    start: int | None,
    cache: int,
    beams: int,
    power: float,
) -> None:
    """`write_all` with beam search; `beams` and `power` are as of `beam_search`."""
    lengths = [padded_length(len(each)) for each in prompts]
    for numbers in groups(lengths, decoding.rows // beams):
        found = beam_search(
            decoding,
            variables,
            [prompts[number] for number in numbers],
            beams=beams,
            power=power,
            start=start,
            limits=[limits[number] for number in numbers],
            cache=cache,
        )
        for number, text in zip(numbers, found, strict=True):
            after(number, text)


def groups(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The numbers of at most `size` prompts of one padded length each, in order."""
    for length in dict.fromkeys(lengths):
        numbers = [number for number, each in enumerate(lengths) if each == length]
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


class Language:
    """Converts a run's texts to the tokens that its model reads, and back."""

    def __init__(self, data: Data, model: Any) -> None:
        self.data = data
        self.model = model
        self.tokenizer: Tokenizer | None = getattr(data, "tokenizer", None)

    @property
    def vocab(self) -> int:
        """Number of tokens that the model reads."""
        return self.model.vocab

    def required(self) -> Tokenizer:
        """The tokenizer; raises `Refused` if the data has none."""
        if self.tokenizer is None:
            raise Refused(
                f"{type(self.data).__name__} has no tokenizer: give prompts as lists of tokens."
            )
        return self.tokenizer

    def tokens(self, number: int, prompt: Prompt) -> np.ndarray:
        """The tokens of a prompt, as in training; raises `Refused` if it cannot be continued."""
        if isinstance(prompt, str):
            tokens = self.required().encode(prompt)
            if not len(tokens):
                raise Refused(f"prompt {number} is empty: it needs one token at least.")
            before, behind = self.around()
            tokens = np.concatenate([before, tokens, behind])
        else:
            tokens = np.asarray(prompt)
            if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
                raise Refused(f"prompt {number} is neither a text nor a list of tokens.")
            if not tokens.size:
                raise Refused(f"prompt {number} is empty: it needs one token at least.")
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise Refused(
                f"prompt {number} has token {wrong}, and the model reads 0 to {self.vocab - 1}."
            )
        most = most_positions(self.model)
        least = 0 if translates(self.model) else 1
        if len(tokens) + least > most:
            raise Refused(
                f"prompt {number} has {len(tokens)} tokens, and the model {most} positions: "
                f"give {most - least} or fewer."
            )
        return tokens.astype(np.int32)

    def around(self) -> tuple[list[int], list[int]]:
        """The tokens before and behind each text in training."""
        tokenizer = self.required()
        if translates(self.model):
            return [], [tokenizer.end] if isinstance(self.data, Pairs) else []
        start = tokenizer.special("start")
        if start is None and isinstance(self.data, Tokens):
            start = tokenizer.end  # each of its texts follows one
        return [] if start is None else [start], []

    def stops(self, stop: Sequence[str]) -> tuple[list[str], list[int]]:
        """The strings and the tokens that end a text.

        Raises:
          Refused: a string is empty, or the tokenizer does not know it.
        """
        if not stop:
            return [], []
        tokenizer = self.required()
        special = tokenizer.special_tokens
        for each in stop:
            if each not in special and (
                not each or tokenizer.decode(tokenizer.encode(each)) != each
            ):
                names = ", ".join(special) or "none"
                raise Refused(
                    f"stop {each!r}: the tokenizer writes no such text; its special tokens are "
                    f"{names}."
                )
        tokens = [special[each] for each in stop if each in special]
        return [each for each in stop if each not in special], tokens


class Text:
    """A text that grows; what may be the beginning of a stop string is held back."""

    def __init__(
        self,
        language: Language | None,
        stops: tuple[list[str], list[int]],
        prompt: Sequence[int] = (),
    ) -> None:
        """
        Args:
          language: of the text; None: it is tokens.
          stops: of `Language.stops`.
          prompt: the tokens that it continues; a tokenizer may write a token otherwise where it is
            the first one, such as without the space before it.
        """
        self.language = language
        self.prompt = prompt
        self.before = len(language.required().decode(prompt)) if language and prompt else 0
        self.strings, self.stop_tokens = stops
        self.numbers: list[int] = []
        self.shown = 0
        self.text = ""
        self.ended = False

    def add(self, new: np.ndarray, end: int) -> str:
        """Adds tokens up to an end; the piece of text that is certain since then."""
        for token in new.tolist():
            if token == end or token in self.stop_tokens:
                self.ended = True
                break
            self.numbers.append(token)
        if self.language is None:
            return ""
        whole = self.language.required().decode([*self.prompt, *self.numbers])
        self.text = whole[self.before :]
        found = [at for each in self.strings if (at := self.text.find(each)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.ended = True
        certain = len(self.text) if self.ended else self.certain()
        piece = self.text[self.shown : certain]
        self.shown = max(certain, self.shown)
        return piece

    def certain(self) -> int:
        """How much of the text no later token changes."""
        whole = self.text.rstrip("\ufffd")  # a character's first bytes
        longest = max(map(len, self.strings), default=1) - 1
        for size in range(min(longest, len(whole)), 0, -1):
            if any(each.startswith(whole[-size:]) for each in self.strings if size < len(each)):
                return len(whole) - size
        return len(whole)

    def rest(self) -> str:
        """What has not been shown."""
        return self.text[self.shown :]

    @property
    def value(self) -> Any:
        """The text, or an array of the tokens of a prompt of tokens."""
        return np.array(self.numbers, np.int32) if self.language is None else self.text


def check_model(model: Any) -> None:
    """Raises `Refused` for a model that writes no texts."""
    continues = hasattr(model, "hidden") and hasattr(model, "next_logits")
    if not continues and not translates(model):
        raise Refused(
            f"{type(model).__name__} writes no texts: generate needs a run of a language model "
            f"(Decoder, DeltaNet, Griffin, RNNLanguageModel) or a translator (EncoderDecoder, "
            f"RNNEncoderDecoder)."
        )


def listed(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """The prompts as a list; one may be given by itself."""
    if isinstance(prompts, str):
        return [prompts]
    found: list[Any] = list(prompts)
    if found and all(isinstance(each, int | np.integer) for each in found):
        return [np.array(found)]
    if is_chat(found):
        return [found]
    if not found:
        raise Refused("there is no prompt: give a text, or several.")
    return found


def most_positions(model: Any) -> float:
    """How many positions a model has; infinity if they are not learned."""
    learned = getattr(model, "positions", "") == "learned"
    return model.max_length if learned else float("inf")


def room_of(model: Any, prompt: np.ndarray, max_tokens: int) -> int:
    """The most tokens of a text: as asked for, or as many as the model has positions for."""
    before = 0 if translates(model) else len(prompt)
    return int(min(max_tokens, most_positions(model) - before))


def start_of(run: Run) -> int | None:
    """The token before a translation; None for a language model."""
    if not translates(run.experiment.model):
        return None
    return int(getattr(run.experiment.objective, "start", 0))


def end_of(run: Run, language: Language) -> int:
    """The token that ends a text; -1 if there is none."""
    end = getattr(run.experiment.objective, "end", None)
    if end is None and language.tokenizer is not None:
        end = language.tokenizer.special("end")
    return -1 if end is None else int(end)


def decoding_of(
    run: Run, sampling: Sampling, *, batch: int, end: int, reproducible: bool | None
) -> Decoding:
    """How and where a run's texts are written; `reproducible` as of `generate`."""
    mesh = run.program.mesh
    if reproducible is None:
        splits = any(mesh.shape[axis] > 1 for axis in SPLIT)
        reproducible = bool(run.experiment.reproducible) or not splits
    model: Any = run.experiment.model
    vocab = getattr(model, "target_vocab", None) or model.vocab
    rules = () if reproducible else run.program.rules
    return Decoding(model, mesh, rules, batch=batch, sampling=sampling, end=end, vocab=vocab)


def variables_of(run: Run, decoding: Decoding) -> Any:
    """The run's variables where `decoding` needs them; kept while the run is."""
    variables = dict(run.variables)
    variables.pop("carry", None)
    if decoding.rules:
        return variables
    of_run = placed.setdefault(run, {})
    if decoding.mesh not in of_run:
        of_run[decoding.mesh] = jax.device_put(
            variables, NamedSharding(decoding.mesh, PartitionSpec())
        )
    return of_run[decoding.mesh]
