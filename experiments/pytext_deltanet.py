"""Gated DeltaNet on the source text of Python's standard library: a matrix of memory a head,
corrected by the delta rule.

    jaxbig train pytext_deltanet

"""

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import pytext_griffin
from jaxbig.models.deltanet import DeltaNet


def config() -> Experiment:
    parent = pytext_griffin.config()
    vocab = parent.model.vocab
    return parent.replace(
        model=DeltaNet(vocab=vocab, depth=3, width=128, heads=2, key_width=24, value_width=48)
    )
