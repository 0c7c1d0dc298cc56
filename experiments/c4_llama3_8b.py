"""Llama 3 8B (Grattafiori et al., 2024), with a vocabulary of 128,256, on C4.

    jaxbig train c4_llama3_8b

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.experiments import c4_llama_7b
from jaxbig.objectives.next_token import NextToken


def config() -> Experiment:
    parent = c4_llama_7b.config()
    vocab = 128_256
    model = parent.model.clone(vocab=vocab, kv_heads=8, mlp_width=14_336, rotary_base=500_000.0)
    tokenizer = BytePairs(vocab=vocab)
    text: Any = parent.data
    data = dataclasses.replace(text, length=8192, tokenizer=tokenizer)
    return dataclasses.replace(
        parent, model=model, data=data, objective=NextToken(vocab=vocab, chunks=16)
    )
