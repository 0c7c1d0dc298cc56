"""Our side of the comparison: the four experiments, and random batches of their shapes."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data
from jaxbig.errors import Refused
from jaxbig.models.convnet import Conv, ConvNet, Dense, Pool
from jaxbig.models.language_model import Decoder
from jaxbig.models.resnet import resnet
from jaxbig.models.rnn import RNNLanguageModel
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant

VOCAB = 256
CLASSES = 10
RATE = 1e-3
DECAY = 0.01
"""AdamW's weight decay, of every parameter, as optax and PyTorch have it by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Data):
    """The shapes of images [B, *shape], or of tokens [B, *shape] where that is one axis."""

    shape: tuple[int, ...]
    """Of a row."""

    @property
    def tokens(self) -> bool:
        return len(self.shape) == 1

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        inputs = (self.batch, *self.shape)
        targets = inputs if self.tokens else inputs[:1]
        return {
            "inputs": jax.ShapeDtypeStruct(inputs, np.int32 if self.tokens else np.float32),
            "targets": jax.ShapeDtypeStruct(targets, np.int32),
            "mask": jax.ShapeDtypeStruct(targets, np.float32),
        }

    def prepare(self) -> str:
        return "random"

    def source(self, split: str) -> Any:
        raise Refused(f"{split}: random rows have no splits, `random_rows` draws them.")


def random_rows(experiment: Experiment) -> dict[str, np.ndarray]:
    """One batch, always the same."""
    draw = np.random.default_rng(0)
    spec = experiment.data.spec()
    inputs = spec["inputs"]
    targets = spec["targets"].shape
    tokens = inputs.dtype == np.int32
    return {
        "inputs": draw.integers(0, VOCAB, inputs.shape, np.int32)
        if tokens
        else draw.standard_normal(inputs.shape, np.float32),
        "targets": draw.integers(0, VOCAB if tokens else CLASSES, targets, np.int32),
        "mask": np.ones(targets, np.float32),
    }


def experiment(model: Any, batch: int, *shape: int) -> Experiment:
    data = Random(batch=batch, shape=shape)
    return Experiment(
        model=model,
        objective=NextToken(vocab=VOCAB) if data.tokens else Classification(classes=CLASSES),
        data=data,
        optimizer=AdamW(learning_rate=Constant(RATE), weight_decay=DECAY, decayed="."),
        steps=100,
        evaluate_every=100,
        checkpoint_every=100,
    )


def gpt() -> Experiment:
    """GPT-2's block, six of them; untied, without dropout."""
    model = Decoder(
        vocab=VOCAB,
        depth=6,
        width=384,
        heads=6,
        norm="layer",
        bias=True,
        positions="learned",
        max_length=256,
    )
    return experiment(model, 8, 256)


def convnet() -> Experiment:
    """That of PyTorch's MNIST example, without dropout."""
    layers = (Conv(32, padding="valid"), Conv(64, padding="valid"), Pool(), Dense(128))
    return experiment(ConvNet(layers=layers, classes=CLASSES), 128, 28, 28, 1)


def resnet18() -> Experiment:
    return experiment(resnet(18, classes=CLASSES, stem="small"), 32, 32, 32, 3)


def lstm() -> Experiment:
    """A language model of two layers."""
    return experiment(RNNLanguageModel(vocab=VOCAB, width=128, layers=2), 128, 100)


CASES = {each.__name__: each for each in (gpt, convnet, resnet18, lstm)}
