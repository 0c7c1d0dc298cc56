"""Byte-level Transformer on the source text of Python's standard library.

jaxbig train pytext_transformer
"""

from jaxbig.data.pytext import PyText
from jaxbig.experiment import Experiment
from jaxbig.mesh import Mesh
from jaxbig.models.transformers import Decoder
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = PyText(batch=16, length=256)
    return Experiment(
        model=Decoder(vocab=data.vocab, depth=4, width=128, heads=4),
        objective=NextToken(vocab=data.vocab),
        data=data,
        optimizer=AdamW(rate=WarmupCosine(peak=3e-3, warmup=50), weight_decay=0.1, clip=1.0),
        mesh=Mesh(data=-1),
        steps=600,
        evaluate_every=200,
        checkpoint_every=200,
    )
