"""Byte-level Transformer with a mixture of experts in each block on the source text of Python's
standard library.

    jaxbig train pytext_moe

One core of an AMD EPYC. Bits per byte on the 614,254 held-out bytes of Python 3.11.7's library
after 1,200 steps, seeds 0 to 2: 2.006, 2.004, 2.033; a model of byte 4-grams with Witten-Bell
smoothing, fitted on the same training text, has 2.098 (benchmarks/baselines.py), and
pytext_transformer, its parent, 2.033, 2.038, 2.061. Eight experts of half the parent's hidden
width, two a token: about as many FLOPs a token.
"""

import dataclasses

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import pytext_transformer


def config() -> Experiment:
    parent = pytext_transformer.config()
    model = parent.model.clone(
        experts=8, experts_per_token=2, mlp_width=256, bias=False, norm="rms"
    )
    return dataclasses.replace(parent, model=model)
