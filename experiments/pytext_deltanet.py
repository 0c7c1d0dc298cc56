"""Gated DeltaNet on the source text of Python's standard library: each head has a matrix as its
memory, corrected by the delta rule.

    jaxbig train pytext_deltanet

Two cores of an AMD EPYC. Bits per byte on the 614,254 held-out bytes of Python 3.11.7's library
after 1,000 steps, seeds 0 to 2: 1.984, 2.025, 1.996; a model of byte 4-grams with Witten-Bell
smoothing, fitted on the same training text, has 2.098 (benchmarks/baselines.py). Data, optimizer
and steps are those of `pytext_griffin`, which has 2.066, 2.080, 2.072 with 637,184 parameters; this
model has 630,748, and an LSTM of two layers of 184 channels has 2.244, 2.272, 2.264 with 637,376.
"""

from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import pytext_griffin
from jaxbig.models.deltanet import DeltaNet


def config() -> Experiment:
    parent = pytext_griffin.config()
    data: Any = parent.data
    model = DeltaNet(vocab=data.vocab, depth=3, width=128, heads=2, key_width=24, value_width=48)
    return parent.replace(model=model)
