"""Byte-level Transformer with a mixture of experts in each block on the source text of Python's standard library.

jaxbig train pytext_moe
"""

import dataclasses

from experiments import pytext_transformer
from jaxbig.experiment import Experiment


def config() -> Experiment:
    parent = pytext_transformer.config()
    model = parent.model.clone(experts=8, experts_per_token=2, mlp_width=256, bias=False, norm="rms")
    return dataclasses.replace(parent, model=model)
