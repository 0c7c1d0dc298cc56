"""Compares the outputs of a run with those of transformers, from the folder of its weights."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.arrays.tree import to_host
from jaxbig.errors import Refused
from jaxbig.pretrained.load import open_pretrained
from jaxbig.train.run import Run

TOKENS = (2, 16)
"""Texts, and tokens of each."""


def verify(run: Run, folder: str | Path) -> float:
    """The largest difference of logits between a run and transformers, on random tokens.

    Args:
      run: of a language model.
      folder: with the same weights, as Hugging Face has them.

    Raises:
      Refused: transformers is not installed, or the model takes no tokens.
    """
    torch, kind = load_reference(folder)
    model: Any = run.experiment.model
    vocab = model.vocab
    length = min(TOKENS[1], getattr(model, "max_length", TOKENS[1]))
    first = min(vocab - 1, 4)  # none of padding, from which RoBERTa counts its positions
    tokens = np.random.default_rng(0).integers(first, vocab, (TOKENS[0], length), dtype=np.int32)
    reference = kind.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        there = reference(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    whole = jax.tree.map(to_host, run.variables)  # no mesh: two texts do not divide over it
    here = jax.jit(model.clone(dtype="float32").apply)(whole, tokens)
    return float(np.abs(np.asarray(here) - there).max())


def load_reference(folder: str | Path) -> tuple[Any, Any]:
    """torch, and the class of transformers that loads a folder.

    Raises:
      Refused: as of `verify`.
    """
    source = open_pretrained(folder)
    module: Any = source.family.module
    [architecture, *_] = source.config.get("architectures") or [""]
    try:
        torch = importlib.import_module("torch")
        kind = getattr(importlib.import_module("transformers"), architecture, None)
    except ImportError:
        raise Refused(
            "--verify compares with transformers, which is not installed: pip install "
            "'jaxbig[parity]'."
        ) from None
    takes_tokens = any(field.name == "vocab" for field in dataclasses.fields(module))
    if kind is None or not takes_tokens or hasattr(module, "encode"):
        raise Refused(
            f"--verify compares language models that take tokens, not {architecture or module}."
        )
    return torch, kind
