"""Tokenizers: bytes, byte pairs (BPE) learned from the data or from a file, and SentencePiece.

A special token is never the token of a text, even of one that spells its name, and decoding omits
it.
"""

import abc
import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import build_once, cache_folder, sha256
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 2  # of learned tokenizers; increase it when the same texts give another one
BYTES = 256
Text = bytes | str
# Names of each special token: ours first, then those of published tokenizers.
SPECIAL_NAMES = {
    "end": ("<end>", "</s>", "<|endoftext|>", "<eos>", "[EOS]", "<|end_of_text|>", "[SEP]"),
    "start": ("<start>", "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "[CLS]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}


@contextlib.contextmanager
def import_extra(library: str) -> Iterator[None]:
    """Context of the import of an optional library: raises `Refused` if it is not installed."""
    try:
        yield
    except ImportError as error:  # also of importlib.metadata
        raise Refused(
            f"this tokenizer needs {library}, which is not installed: pip install 'jaxbig[text]'."
        ) from error


class Tokenizer(abc.ABC):
    """Converts text to tokens and back."""

    @property
    @abc.abstractmethod
    def vocab(self) -> int:
        """Number of different tokens, special ones included; known before `prepare`."""

    @abc.abstractmethod
    def encode(self, text: Text) -> np.ndarray:
        """The tokens of a text (bytes are UTF-8), int32 [n], without special tokens."""

    def encode_many(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """The tokens of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Any) -> str:
        """The text of tokens [n], special ones omitted; raises `Refused` if one is invalid."""
        tokens = np.asarray(tokens, np.int64)
        if wrong := tokens[(tokens < 0) | (tokens >= self.vocab)].tolist():
            raise Refused(
                f"token {wrong[0]} is not one of the {self.vocab} of {type(self).__name__}."
            )
        return self.text(tokens[~np.isin(tokens, list(self.special_tokens.values()))].tolist())

    @abc.abstractmethod
    def text(self, tokens: list[int]) -> str:
        """The text of valid tokens without special ones."""

    @property
    @abc.abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """The special tokens by name."""

    library: ClassVar[str] = ""
    """Name of the library that tokenizes; empty: none."""

    @property
    def version(self) -> str:
        """Name and version of the library, on which tokens may depend; part of cache keys."""
        if not self.library:
            return ""
        with import_extra(self.library):
            return f"{self.library} {importlib.metadata.version(self.library)}"

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        """Loads the tokenizer, or learns it from texts once on a machine.

        Args:
          texts: reads the texts to learn from; called only if nothing is cached.
          key: identifies the texts in the cache.

        Returns:
          The identity of the tokenizer.
        """
        return f"{self} sha256:{sha256(repr(self))}"

    def kept(self) -> dict[str, bytes]:
        """Files by name to store with a run that uses it. Requires `prepare`."""
        return {}

    def with_kept(self, folder: Path) -> Self:
        """A copy that has what `kept` has saved in a run's folder."""
        return copy.copy(self)

    def special(self, role: str) -> int | None:
        """The token of a role, "end", "start", "pad" or "mask"; None if there is none."""
        for name in SPECIAL_NAMES[role]:
            if name in self.special_tokens:
                return self.special_tokens[name]
        return None

    def require_special(self, role: str) -> int:
        """The token of a role; raises `Refused` if there is none."""
        token = self.special(role)
        if token is None:
            raise Refused(
                f"{type(self).__name__} has no {role} token, but "
                f"{', '.join(self.special_tokens) or 'none'}: add one of "
                f"{' '.join(SPECIAL_NAMES[role])} to its specials."
            )
        return token

    @property
    def end(self) -> int:
        """The token after the last one of a text."""
        return self.require_special("end")

    @property
    def start(self) -> int:
        """The token before the first one of a text."""
        return self.require_special("start")

    @property
    def pad(self) -> int:
        """The padding token."""
        return self.require_special("pad")

    @property
    def mask(self) -> int:
        """The token that replaces a masked one."""
        return self.require_special("mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """The bytes of UTF-8, then the special tokens. Without <end>, byte 0 ends a text."""

    specials: tuple[str, ...] = ()
    """Names of special tokens: <end>, <start>, <pad>, <mask>, or any others."""

    @property
    def vocab(self) -> int:
        return BYTES + len(self.specials)

    @property
    def special_tokens(self) -> dict[str, int]:
        return {name: BYTES + number for number, name in enumerate(self.specials)}

    def special(self, role: str) -> int | None:
        number = super().special(role)
        return 0 if number is None and role == "end" else number

    def encode(self, text: Text) -> np.ndarray:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def text(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTokenizer(Tokenizer):
    """A tokenizer read from a file, whose bytes it keeps and pickles once it is prepared."""

    vocab: PositiveInt = 32_000  # type: ignore[assignment]
    """Number of tokens, special ones included; a file may have fewer."""
    file: str = ""
    """Path of the tokenizer file."""

    name = ""  # of the copy of the file in a run's folder

    @functools.cached_property
    def data(self) -> bytes:
        """Contents of the file."""
        if not self.file:
            raise Refused(f"{type(self).__name__} has no file and is not prepared.")
        try:
            return Path(self.file).expanduser().read_bytes()
        except OSError as error:
            raise Refused(
                f"tokenizer file {self.file} cannot be read: {error.strerror or error}."
            ) from error

    @property
    def model(self) -> Any:
        """The tokenizer object of the library."""
        try:
            return self.load()
        except Refused:
            raise
        except Exception as error:  # the libraries raise nothing narrower
            raise Refused(
                f"tokenizer file {self.file} is not a valid {type(self).__name__} file: {error}"
            ) from error

    @abc.abstractmethod
    def load(self) -> Any:
        """Makes the tokenizer object of the library from `data`."""

    @abc.abstractmethod
    def token_count(self) -> int:
        """Number of tokens in the file."""

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        count = self.token_count()
        special = ", ".join(f"{name} {number}" for name, number in self.special_tokens.items())
        if count > self.vocab:
            raise Refused(
                f"tokenizer file {self.file} has {count} tokens, more than vocab {self.vocab}: "
                f"increase vocab."
            )
        digest = hashlib.sha256(self.data).hexdigest()
        return f"{type(self).__name__} of {count} tokens ({special}) sha256:{digest}"

    def kept(self) -> dict[str, bytes]:
        return {self.name: self.data}

    def with_kept(self, folder: Path) -> Self:
        tokenizer = super().with_kept(folder)
        file = folder / self.name
        if file.exists():
            vars(tokenizer)["data"] = file.read_bytes()
        return tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytePairs(FileTokenizer):
    """Byte-pair encoding (Sennrich et al., 2016) of bytes, as in GPT-2, by library `tokenizers`.

    Learned from the training texts and cached in JAXBIG_CACHE, or read from a file
    `tokenizer.json`, as on the Hugging Face Hub. Bytes that are not UTF-8 become U+FFFD.
    """

    specials: tuple[str, ...] = ("<end>",)
    """Names of special tokens: <end>, <start>, <pad>, <mask>, or those of the file. In a learned
    tokenizer they are the first tokens."""

    name = "tokenizer.json"
    library = "tokenizers"

    @property
    def special_tokens(self) -> dict[str, int]:
        if not self.file:
            return {name: number for number, name in enumerate(self.specials)}
        tokens = {name: self.model.token_to_id(name) for name in self.specials}
        if lost := [name for name, token in tokens.items() if token is None]:
            known = [
                token.content
                for token in self.model.get_added_tokens_decoder().values()
                if token.special
            ]
            raise Refused(
                f"tokenizer file {self.file} has no token {lost[0]}; its special tokens are "
                f"{' '.join(known) or 'none'}."
            )
        return tokens

    def prepare(self, texts: Callable[[], Iterable[bytes]], key: str = "") -> str:
        if not self.file:
            vars(self)["data"] = self.learned(texts, key)  # instead of a file's contents
        return super().prepare(texts, key)

    def learned(self, texts: Callable[[], Iterable[bytes]], key: str) -> bytes:
        """Contents of the `tokenizer.json` learned from texts; cached by `key`, or their digest."""
        if self.vocab < BYTES + len(self.specials):
            raise Refused(
                f"vocab {self.vocab} is too small for {BYTES} bytes and {len(self.specials)} "
                f"specials."
            )
        if not key:
            digests = b"".join(hashlib.sha256(text).digest() for text in texts())
            key = hashlib.sha256(digests).hexdigest()
        digest = sha256(repr([VERSION, self.version, self.vocab, self.specials, key]))[:24]

        def build(folder: Path) -> None:
            text = learn_byte_pairs(texts(), self.vocab, self.specials)
            (folder / self.name).write_text(text, encoding="utf-8")

        folder = build_once(cache_folder("tokenizers") / digest, build)
        return (folder / self.name).read_bytes()

    def load(self) -> Any:
        return load_byte_pairs(self.data)

    def token_count(self) -> int:
        return max(self.model.get_vocab().values()) + 1

    def encode(self, text: Text) -> np.ndarray:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[Text]) -> list[np.ndarray]:
        unicode = [
            text if isinstance(text, str) else text.decode(errors="replace") for text in texts
        ]
        encodings = self.model.encode_batch_fast(unicode, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_markup(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 [n], in which names of special tokens are these tokens."""
        model = load_byte_pairs(self.data, literal=False)
        return np.array(model.encode(text, add_special_tokens=False).ids, np.int32)

    def text(self, tokens: list[int]) -> str:
        return self.model.decode(tokens)


@import_extra("tokenizers")
@functools.lru_cache(maxsize=8)
def load_byte_pairs(data: bytes, literal: bool = True) -> Any:
    """The library's tokenizer of a `tokenizer.json`.

    Args:
      data: content of that file.
      literal: whether the names of special tokens are text as any other.
    """
    import tokenizers  # here: optional

    model = tokenizers.Tokenizer.from_str(data.decode())
    model.encode_special_tokens = literal
    model.no_padding()
    model.no_truncation()
    return model


@import_extra("tokenizers")
def learn_byte_pairs(texts: Iterable[bytes], vocab: int, specials: tuple[str, ...]) -> str:
    """Learns byte pairs from texts, deterministically; returns a `tokenizer.json`."""
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
class SentencePiece(FileTokenizer):
    """A `.model` file of SentencePiece (Kudo and Richardson, 2018).

    Most files normalize a text before they split it; decoding then returns the normalized text.
    """

    name = "tokenizer.model"
    library = "sentencepiece"

    def load(self) -> Any:
        return load_sentence_piece(self.data)[0]

    def token_count(self) -> int:
        return self.model.vocab_size()

    @property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens of the file: </s>, <s>, <pad>, <mask> and others."""
        _ = self.model  # raises if the file is invalid
        return load_sentence_piece(self.data)[1]

    def encode(self, text: Text) -> np.ndarray:
        return np.array(self.model.encode(text, out_type=int), np.int32)

    def text(self, tokens: list[int]) -> str:
        return self.model.decode([token for token in tokens if token < self.token_count()])


@import_extra("sentencepiece")
@functools.lru_cache(maxsize=8)
def load_sentence_piece(data: bytes) -> tuple[Any, dict[str, int]]:
    """The library's tokenizer, and its control tokens by name."""
    import sentencepiece  # here: optional

    model: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
    return model, {
        model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_control(i)
    }
