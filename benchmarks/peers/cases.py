"""Our side of the comparison: the experiments, and random batches of their shapes."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data
from jaxbig.errors import Refused
from jaxbig.models.convnet import Conv, ConvNet, Dense, Pool
from jaxbig.models.language_model import Decoder, Encoder
from jaxbig.models.resnet import resnet
from jaxbig.models.rnn import RNNLanguageModel
from jaxbig.models.vit import ViT
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant

CLASSES = 10
RATE = 1e-3
DECAY = 0.01
"""AdamW's weight decay, of every parameter, as optax and PyTorch have it by default."""
MASK_TOKEN = 103
"""Of BERT's vocabulary."""
HIDDEN = 0.15
"""The share of BERT's tokens that it must find."""


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
    """One batch, always the same. `mask` says which targets count."""
    draw = np.random.default_rng(0)
    model: Any = experiment.model
    spec = experiment.data.spec()
    shape = spec["inputs"].shape
    targets = spec["targets"].shape
    if spec["inputs"].dtype != np.int32:
        inputs = draw.standard_normal(shape, np.float32)
        numbers = draw.integers(0, model.classes, targets, np.int32)
        return {"inputs": inputs, "targets": numbers, "mask": np.ones(targets, np.float32)}
    inputs = draw.integers(0, model.vocab, shape, np.int32)
    if not isinstance(model, Encoder):
        numbers = draw.integers(0, model.vocab, shape, np.int32)
        return {"inputs": inputs, "targets": numbers, "mask": np.ones(shape, np.float32)}
    hidden = draw.random(shape) < HIDDEN
    seen = np.where(hidden, np.int32(MASK_TOKEN), inputs)
    return {"inputs": seen, "targets": inputs, "mask": hidden.astype(np.float32)}


def experiment(model: Any, batch: int, *shape: int) -> Experiment:
    data = Random(batch=batch, shape=shape)
    return Experiment(
        model=model,
        # of BERT's tokens the mask leaves those to find
        objective=NextToken(vocab=model.vocab) if data.tokens else Classification(model.classes),
        data=data,
        optimizer=AdamW(learning_rate=Constant(RATE), weight_decay=DECAY, decayed="."),
        steps=100,
        evaluate_every=100,
        checkpoint_every=100,
    )


def gpt(depth: int = 6, width: int = 384, heads: int = 6, length: int = 256) -> Experiment:
    """GPT-2's block; untied, without dropout."""
    model = Decoder(
        vocab=256,
        depth=depth,
        width=width,
        heads=heads,
        norm="layer",
        bias=True,
        positions="learned",
        max_length=length,
    )
    return experiment(model, 8, length)


def convnet(batch: int = 128) -> Experiment:
    """That of PyTorch's MNIST example, without dropout."""
    layers = (Conv(32, padding="valid"), Conv(64, padding="valid"), Pool(), Dense(128))
    return experiment(ConvNet(layers=layers, classes=CLASSES), batch, 28, 28, 1)


def resnet18(batch: int = 32) -> Experiment:
    return experiment(resnet(18, classes=CLASSES, stem="small"), batch, 32, 32, 3)


def lstm(width: int = 128, batch: int = 128, length: int = 100) -> Experiment:
    """A language model of two layers."""
    return experiment(RNNLanguageModel(vocab=256, width=width, layers=2), batch, length)


def vit(
    depth: int = 12, width: int = 384, heads: int = 6, batch: int = 8, side: int = 224
) -> Experiment:
    """ViT-S/16, with a class token."""
    model = ViT(classes=1000, depth=depth, width=width, heads=heads)
    return experiment(model, batch, side, side, 3)


def bert(
    vocab: int = 30_522, depth: int = 12, width: int = 768, heads: int = 12, length: int = 128
) -> Experiment:
    """BERT-base that finds hidden tokens, without dropout."""
    model = Encoder(vocab=vocab, depth=depth, width=width, heads=heads, types=2)
    return experiment(model, 4, length)


def moe(depth: int = 4, width: int = 128, heads: int = 4, length: int = 128) -> Experiment:
    """The mixture of experts of `pytext_moe`, with learned positions."""
    model = Decoder(
        vocab=256,
        depth=depth,
        width=width,
        heads=heads,
        positions="learned",
        max_length=length,
        experts=8,
        experts_per_token=2,
        mlp_width=2 * width,
    )
    return experiment(model, 8, length)


CASES = {each.__name__: each for each in (gpt, convnet, resnet18, lstm, vit, bert, moe)}
SMALL: dict[str, dict[str, int]] = {
    "gpt": {"depth": 2, "width": 32, "heads": 2, "length": 16},
    "convnet": {"batch": 4},
    "resnet18": {"batch": 4},
    "lstm": {"width": 16, "batch": 4, "length": 8},
    "vit": {"depth": 2, "width": 32, "heads": 2, "batch": 2, "side": 32},
    "bert": {"vocab": 120, "depth": 2, "width": 32, "heads": 2, "length": 16},
    "moe": {"depth": 2, "width": 32, "heads": 2, "length": 16},
}
"""Sizes that only try whether both sides agree."""
