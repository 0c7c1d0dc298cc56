"""The experiments that come with jaxbig, and small copies of them."""

import dataclasses
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Transcripts
from jaxbig.data.chats import Chats
from jaxbig.data.questions import Questions
from jaxbig.data.tabular import Categories
from jaxbig.models.convnet import Conv, Dense, Dropout, Pool
from jaxbig.models.detr import DETR
from jaxbig.models.dual_encoder import DualEncoder
from jaxbig.objectives.diffusion import Diffusion
from jaxbig.program.teacher import without_teacher

ROOT = Path(__file__).parents[2]
HAS_GYMNAX = importlib.util.find_spec("gymnax") is not None
HAS_GAMES = all(importlib.util.find_spec(name) for name in ("mctx", "pgx"))
NEEDS = {"cartpole": HAS_GYMNAX, "minatar": HAS_GYMNAX, "go": HAS_GAMES, "tictactoe": HAS_GAMES}
SHIPPED = sorted(file.stem for file in (ROOT / "experiments").glob("[a-z]*.py"))
# those whose libraries are installed
EXPERIMENTS = [name for name in SHIPPED if NEEDS.get(name.split("_")[0], True)]
# those whose data is made on this machine
MADE = "cartpole|dates|diabetes|digits|morse|pychat|pydoc|pyimports|pymodule|pytext|tictactoe"
EMBEDDED = [name for name in EXPERIMENTS if re.match(MADE, name)]
# those that begin with another's run, and made small are its program again
ADAPTED = [
    "digits_distill",
    "digits_vit_probe",
    "imdb_gpt2_finetune",
    "pychat_sft",
    "pytext_llama_lora",
]


def one_of_each_kind(names: Iterable[str]) -> list[str]:
    """The first of those that have the same kinds of model and objective."""
    first: dict[tuple[type, type], str] = {}
    for name in names:
        loaded = load(name)
        first.setdefault((type(loaded.model), type(loaded.objective)), name)
    return list(first.values())


def one_of_each_objective(names: Iterable[str]) -> list[str]:
    """The first of those that have the same kind of objective."""
    first: dict[type, str] = {}
    for name in names:
        first.setdefault(type(load(name).objective), name)
    return list(first.values())


# one of each kind of loop: plain, with batch statistics, with a carried state, with decoding
SPINE = ["digits_convnet", "digits_resnet", "digits_rnn", "pytext_transformer", "pytext_lstm"]

# What makes a model small, by field; counts that must fit its data or each other are set elsewhere
SMALL: dict[str, dict[str, Any]] = {
    "AlexNet": {"channels": (8, 8, 16, 16, 8), "width": 16},
    "Conformer": {"depth": 2, "width": 16, "heads": 2, "kernel": 5},
    "ConvNet": {"layers": (Conv(8), Pool(), Dropout(0.25), Conv(16), Pool(), Dense(16))},
    "ConvNeXt": {"stages": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "layer_scale": 0.5},
    "Decoder": {"depth": 2, "width": 32, "heads": 4, "mlp_width": 48},
    "DLRM": {"width": 8, "bottom": (16,), "top": (16, 16)},
    "BagOfTokens": {"width": 16},
    "DeltaNet": {"depth": 2, "width": 16, "heads": 2, "key_width": 4, "value_width": 8, "chunk": 8},
    "DETR": {"depth": 2, "width": 16, "heads": 2, "mlp_width": 24},
    "DiT": {"depth": 2, "width": 32, "heads": 2},
    "DualEncoder": {},
    "Jasper": {"width": 16, "depth": 2},
    "Encoder": {"depth": 2, "width": 32, "heads": 4},
    "EncoderDecoder": {"depth": 2, "width": 32, "heads": 4},
    "Griffin": {"depth": 3, "width": 16, "heads": 2, "window": 8},
    "MLP": {"widths": (16,)},
    "ResNet": {"stages": (1, 1, 1), "width": 8},
    "RNN": {"width": 16},
    "RNNEncoderDecoder": {"width": 16},
    "RNNLanguageModel": {"width": 16},
    "TwoTower": {"width": 16, "query_widths": (32,)},
    "UNet": {"levels": 2, "width": 8},
    "ViT": {"depth": 2, "width": 32, "heads": 2},
}


def small(name: str, **changes: Any) -> Experiment:
    """An experiment that ships, with a model of a few thousand parameters on little data.

    `changes` are its fields.
    """
    experiment = load(name)
    model: Any = experiment.model
    fields = dict(SMALL[type(model).__name__])
    if getattr(model, "kv_heads", None):
        fields["kv_heads"] = 2
    if getattr(model, "mlp_chunks", 0):
        fields["mlp_chunks"] = 3
    if name == "digits_resnet":
        fields["width"] = 8
    data: Any = dataclasses.replace(experiment.data, batch=16)
    objective: Any = without_teacher(experiment.objective)
    if isinstance(objective, Diffusion):
        objective = dataclasses.replace(objective, sample_steps=2)
    if hasattr(data, "length"):
        data = dataclasses.replace(data, length=32)
    if isinstance(data, Chats):  # the answers
        data = dataclasses.replace(data, keep="end")
    if isinstance(data, Transcripts) and data.samples > 16_000:
        data = dataclasses.replace(data, samples=16_000, letters=8)
    records: Any = getattr(data, "records", None)
    if hasattr(records, "eval_examples"):  # records that are made
        data = dataclasses.replace(data, records=dataclasses.replace(records, eval_examples=40))
    if isinstance(data, Categories):  # whose tables have the rows of a model
        few_rows = tuple((name, min(rows, 16)) for name, rows in data.categories)
        data = dataclasses.replace(data, categories=few_rows)
        fields["vocab"] = -(-data.vocab // 8) * 8
    if isinstance(model, DETR):
        backbone = {"stages": (1, 1), "width": 8, "groups": 4, "norm": "group"}
        fields |= {"backbone": dataclasses.replace(model.backbone, **backbone), "dtype": "float32"}
    if getattr(data, "size", 0) > 32:
        size = {"AlexNet": 67}.get(type(model).__name__, 32)
        data = dataclasses.replace(data, size=size)
        if getattr(data, "canvas", 0):
            data = dataclasses.replace(data, canvas=2 * size)
    if isinstance(data, Questions):
        data = dataclasses.replace(data, question_length=8)
    if getattr(data, "vocab", 0) > 300 and hasattr(data, "tokenizer"):
        vocab = 264 if name in EMBEDDED else 128  # what is learned has all bytes
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, vocab=vocab))
        fields["vocab"] = vocab
        tokens = {"vocab": vocab, "chunks": 8}
        objective = dataclasses.replace(
            objective, **{k: v for k, v in tokens.items() if hasattr(objective, k)}
        )
    if isinstance(model, DualEncoder):
        vocab = {"vocab": fields.pop("vocab")} if "vocab" in fields else {}
        for field in ("tower", "other_tower"):
            if tower := getattr(model, field):
                small_tower = SMALL[type(tower).__name__]
                vocab_of = vocab if hasattr(tower, "vocab") else {}
                fields[field] = dataclasses.replace(tower, **small_tower, **vocab_of)
    model = dataclasses.replace(model, **fields)
    initialize_from = dataclasses.replace(experiment.initialize_from, run="", huggingface="")
    few = {"model": model, "objective": objective, "data": data, "initialize_from": initialize_from}
    few["evaluators"] = ()  # they may need another run
    return dataclasses.replace(experiment, **(few | changes))
