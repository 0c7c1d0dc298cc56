"""Compares the outputs of a run with those of transformers, from the folder of its weights."""

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
    source = open_pretrained(folder)
    model = run.experiment.model
    vocab = getattr(model, "vocab", None)
    [architecture, *_] = source.config.get("architectures") or [""]
    try:
        torch: Any = importlib.import_module("torch")
        kind: Any = getattr(importlib.import_module("transformers"), architecture, None)
    except ImportError:
        raise Refused(
            "--verify compares with transformers, which is not installed: pip install "
            "'jaxbig[parity]'."
        ) from None
    if vocab is None or kind is None or hasattr(model, "encode"):
        raise Refused(f"--verify compares language models that take tokens, not {architecture}.")
    length = min(TOKENS[1], getattr(model, "max_length", TOKENS[1]))
    first = min(vocab - 1, 4)  # none of padding, from which RoBERTa counts its positions
    tokens = np.random.default_rng(0).integers(first, vocab, (TOKENS[0], length), dtype=np.int32)
    reference = kind.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        there = reference(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    whole = jax.tree.map(to_host, run.variables)  # no mesh: two texts do not divide over it
    here = jax.jit(model.clone(dtype="float32").apply)(whole, tokens)
    return float(np.abs(np.asarray(here) - there).max())
