"""Tokenizers: text to numbers and back; as bytes, as byte pairs learned from the texts themselves, or from a file.

A special token stands for no text: none is ever made of a text that spells its name, and it is left out of a text.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import build_once, cache_folder, sha256
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 2  # of a learned tokenizer; raise it when the same texts would give another
BYTES = 256
Text = bytes | str
# What each special token is called, here first, then by others.
SPECIAL = {
    "end": ("<end>", "</s>", "<|endoftext|>", "<eos>", "[EOS]", "<|end_of_text|>", "[SEP]"),
    "start": ("<start>", "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "[CLS]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}


@contextlib.contextmanager
def extra(library: str) -> Iterator[None]:
    """Around what imports a library that not everyone has."""
    try:
        yield
    except ImportError as error:  # of it, or of its version
        raise Refused(
            f"this tokenizer needs {library}, which is not there: pip install 'jaxbig[text]'."
        ) from error


class Tokenizer(abc.ABC):
    """Text to token numbers and back."""

    @property
    @abc.abstractmethod
    def vocab(self) -> int:
        """How many different tokens there are, the special ones too; known before it is prepared."""

    @abc.abstractmethod
    def encode(self, text: Text) -> np.ndarray:
        """The tokens of a text (bytes are UTF-8), int32 [n]; no special one among them."""

    def encode_many(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """The tokens of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Any) -> str:
        """The text of tokens [n]; raises Refused if one is none of `vocab`."""
        tokens = np.asarray(tokens, np.int64)
        if wrong := tokens[(tokens < 0) | (tokens >= self.vocab)].tolist():
            raise Refused(f"token {wrong[0]} is none of the {self.vocab} of {type(self).__name__}.")
        return self.text(tokens[~np.isin(tokens, list(self.numbers.values()))].tolist())

    @abc.abstractmethod
    def text(self, tokens: list[int]) -> str:
        """The text of tokens that are all of `vocab`, and none special."""

    @property
    @abc.abstractmethod
    def numbers(self) -> dict[str, int]:
        """The special tokens' numbers by name."""

    library: ClassVar[str] = ""
    """What makes tokens of texts, where it is not this module."""

    @property
    def version(self) -> str:
        """Of the library, on which tokens may depend: part of the key of what is kept of them."""
        if not self.library:
            return ""
        with extra(self.library):
            return f"{self.library} {importlib.metadata.version(self.library)}"

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        """Makes it ready, learning it from the texts if it has to, once on a machine; gives its identity.

        key: a text that says which texts these are, so that they are read only if the tokenizer is not there yet.
        """
        return f"{self} sha256:{sha256(repr(self))}"

    def kept(self) -> dict[str, bytes]:
        """The files, by name, that belong to a run that uses it; it is prepared."""
        return {}

    def special(self, role: str) -> int | None:
        """The number of the token that is the "end", "start", "pad" or "mask", if there is one."""
        return next((self.numbers[name] for name in SPECIAL[role] if name in self.numbers), None)

    def needed(self, role: str) -> int:
        if (number := self.special(role)) is None:
            raise Refused(
                f"{type(self).__name__} has no {role} token, but {', '.join(self.numbers) or 'none'}: name one of "
                f"{' '.join(SPECIAL[role])} among its specials."
            )
        return number

    end = property(lambda self: self.needed("end"), doc="The token after a text's last.")
    start = property(lambda self: self.needed("start"), doc="The token before a text's first.")
    pad = property(lambda self: self.needed("pad"), doc="The token where there is none.")
    mask = property(
        lambda self: self.needed("mask"), doc="The token in place of one that is to be found."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """The bytes of UTF-8, and after them the special tokens. Without one for the end that is byte 0."""

    specials: tuple[str, ...] = ()
    """Names of special tokens: <end>, <start>, <pad>, <mask>, or any others."""

    @property
    def vocab(self) -> int:
        return BYTES + len(self.specials)

    @property
    def numbers(self) -> dict[str, int]:
        return {name: BYTES + number for number, name in enumerate(self.specials)}

    def special(self, role: str) -> int | None:
        number = super().special(role)
        return 0 if number is None and role == "end" else number

    def encode(self, text: Text) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(
            np.int32
        )

    def text(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromFile(Tokenizer):
    """A tokenizer that is a file, whose bytes it holds from when it is prepared; they are pickled with it."""

    vocab: PositiveInt = 32_000  # type: ignore[assignment]
    """How many different tokens there are, the special ones too; a file may have fewer."""
    file: str = ""
    """The file."""

    name = ""  # of the file with a run

    @functools.cached_property
    def data(self) -> bytes:
        """The file's bytes."""
        if not self.file:
            raise Refused(f"{type(self).__name__} has neither a file nor been prepared.")
        try:
            return Path(self.file).expanduser().read_bytes()
        except OSError as error:
            raise Refused(
                f"tokenizer file {self.file} cannot be read: {error.strerror or error}."
            ) from error

    @property
    def model(self) -> Any:
        """What the library makes of the file."""
        try:
            return self.load()
        except Refused:
            raise
        except Exception as error:  # the libraries raise no narrower one
            raise Refused(
                f"tokenizer file {self.file} is none of {type(self).__name__}: {error}"
            ) from error

    @abc.abstractmethod
    def load(self) -> Any: ...

    @abc.abstractmethod
    def found(self) -> int:
        """How many tokens the file has."""

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        count, numbers = (
            self.found(),
            ", ".join(f"{name} {number}" for name, number in self.numbers.items()),
        )
        if count > self.vocab:
            raise Refused(
                f"tokenizer file {self.file} has {count} tokens, more than vocab {self.vocab}: raise that."
            )
        return f"{type(self).__name__} of {count} tokens ({numbers}) sha256:{hashlib.sha256(self.data).hexdigest()}"

    def kept(self) -> dict[str, bytes]:
        return {self.name: self.data}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytePairs(FromFile):
    """Byte pairs (Sennrich et al., 2016) over bytes, as GPT-2 has them, by the library `tokenizers`.

    They are learned from the training texts and kept in the folder that JAXBIG_CACHE names, or are a file: a
    `tokenizer.json`, as the Hugging Face hub has them. Bytes that are not UTF-8 become U+FFFD.
    """

    specials: tuple[str, ...] = ("<end>",)
    """Names of special tokens: <end>, <start>, <pad>, <mask>, those of a file. Learned ones are first."""

    name = "tokenizer.json"
    library = "tokenizers"

    @property
    def numbers(self) -> dict[str, int]:
        if not self.file:
            return {name: number for number, name in enumerate(self.specials)}
        found = {name: self.model.token_to_id(name) for name in self.specials}
        if lost := [name for name, number in found.items() if number is None]:
            known = [
                token.content
                for token in self.model.get_added_tokens_decoder().values()
                if token.special
            ]
            raise Refused(
                f"tokenizer file {self.file} has no token {lost[0]}; its special ones are {' '.join(known) or 'none'}."
            )
        return found

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        if not self.file:
            object.__setattr__(self, "data", self.learned(texts, key))  # in place of the file's
        return super().prepare(texts, key)

    def learned(self, texts: Callable[[], Iterable[bytes]], key: str) -> bytes:
        if self.vocab < BYTES + len(self.specials):
            raise Refused(
                f"vocab {self.vocab} is too small: it has {BYTES} bytes and {len(self.specials)} specials."
            )
        key = (
            key
            or hashlib.sha256(
                b"".join(hashlib.sha256(text).digest() for text in texts())
            ).hexdigest()
        )
        what = sha256(repr([VERSION, self.version, self.vocab, self.specials, key]))[:24]
        folder = build_once(
            cache_folder("tokenizers") / what,
            lambda part: (part / self.name).write_text(
                learn(texts(), self.vocab, self.specials), encoding="utf-8"
            ),
        )
        return (folder / self.name).read_bytes()

    def load(self) -> Any:
        return load_byte_pairs(self.data)

    def found(self) -> int:
        return max(self.model.get_vocab().values()) + 1

    def encode(self, text: Text) -> np.ndarray:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[Text]) -> list[np.ndarray]:
        unicode = [
            text if isinstance(text, str) else text.decode(errors="replace") for text in texts
        ]
        found = self.model.encode_batch_fast(unicode, add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in found]

    def text(self, tokens: list[int]) -> str:
        return self.model.decode(tokens)


@extra("tokenizers")
@functools.lru_cache(maxsize=8)
def load_byte_pairs(data: bytes) -> Any:
    import tokenizers  # here: it is an extra

    model = tokenizers.Tokenizer.from_str(data.decode())
    model.encode_special_tokens = True  # a text that spells one is a text
    model.no_padding()
    model.no_truncation()
    return model


@extra("tokenizers")
def learn(texts: Iterable[bytes], vocab: int, specials: tuple[str, ...]) -> str:
    """A `tokenizer.json` of byte pairs learned from texts; the same for the same texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    log.info("learning %d byte pairs (once)", vocab)
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        (text.decode(errors="replace") for text in texts),
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=list(specials),
            initial_alphabet=every_byte,
            show_progress=False,
        ),
    )
    return model.to_str()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece(FromFile):
    """A `.model` file of SentencePiece (Kudo and Richardson, 2018). It may change a text before it cuts it (most bring
    it into a normal form), so that decoding gives that one back."""

    name = "tokenizer.model"
    library = "sentencepiece"

    def load(self) -> Any:
        return load_sentence_piece(self.data)[0]

    def found(self) -> int:
        return self.model.vocab_size()

    @property
    def numbers(self) -> dict[str, int]:
        """Those that the file says are no text: </s>, <s>, <pad>, <mask> and others."""
        _ = self.model
        return load_sentence_piece(self.data)[1]

    def encode(self, text: Text) -> np.ndarray:
        return np.array(self.model.encode(text, out_type=int), np.int32)

    def text(self, tokens: list[int]) -> str:
        return self.model.decode([token for token in tokens if token < self.found()])


@extra("sentencepiece")
@functools.lru_cache(maxsize=8)
def load_sentence_piece(data: bytes) -> tuple[Any, dict[str, int]]:
    """The library's tokenizer, and the numbers of its control symbols."""
    import sentencepiece  # here: it is an extra

    model: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
    return model, {
        model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_control(i)
    }
