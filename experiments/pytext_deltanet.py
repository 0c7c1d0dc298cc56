"""Gated DeltaNet on the source text of Python's standard library: each head has a matrix as its
memory, corrected by the delta rule.

    jaxbig train pytext_deltanet

Data, optimizer and steps are those of `pytext_griffin`; of parameters it has 637,184 and this model
630,748.
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
