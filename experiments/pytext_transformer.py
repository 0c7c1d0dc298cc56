"""Byte-level Transformer in the manner of GPT on the source text of Python's standard library.

    jaxbig train pytext_transformer

Two cores of an AMD EPYC. Bits per byte on the 614,254 held-out bytes of Python 3.11.7's library
after 1,200 steps, seeds 0 to 2: 2.033, 2.038, 2.061; a model of byte 4-grams with Witten-Bell
smoothing, fitted on the same training text, has 2.098 (benchmarks/baselines.py). LayerNorm,
biases and GELU as GPT-2, positions rotary: learned ones had 2.593 after 1,000 steps.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.pytext import PyText
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.language_model import Decoder
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = PyText(batch=8, length=128)
    return Experiment(
        model=Decoder(vocab=data.vocab, depth=4, width=128, heads=4, norm="layer", bias=True),
        objective=NextToken(vocab=data.vocab, bytes_per_token=1.0),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=2e-3, warmup=70),
            b2=0.98,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        mesh=Mesh(data=-1),
        steps=1_200,
        evaluate_every=600,
        checkpoint_every=300,
    )
