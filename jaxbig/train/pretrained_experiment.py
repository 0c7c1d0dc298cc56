"""Experiments with the model and tokenizer of a folder of pretrained weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.errors import Refused
from jaxbig.pretrained.load import Pretrained, open_pretrained
from jaxbig.pretrained.vocabulary import FILE as TOKENIZER
from jaxbig.pretrained.vocabulary import read_tokenizer, special_names, vocabulary
from jaxbig.train.pretrained_state import refuse_differences

WITHOUT = "pytext_transformer"
"""The experiment from which one is made where none is named."""
BATCH = 8
"""Rows for each device of an experiment that is made."""
LONGEST = 1024
"""Tokens of its examples, where the model has no learned positions."""


def own_experiment(source: str | Path, base: Experiment) -> Experiment:
    """An experiment with the causal language model of a folder, on synthetic texts.

    Args:
      source: the folder, which has a tokenizer too.
      base: gives the rest.
    """
    pretrained = open_pretrained(source)
    tokenizer = tokenizer_of(pretrained)
    if tokenizer is None or not isinstance(base.model, pretrained.family.module):
        raise Refused(
            f"{pretrained.folder}: give --into EXPERIMENT: without it, a folder must have a causal "
            f"language model and a {TOKENIZER}."
        )
    experiment = with_fields(base, pretrained)
    model: Any = experiment.model
    data = Tokens(
        records=Synthetic(texts=("text",)),
        tokenizer=tokenizer,
        batch=BATCH * jax.device_count(),
        length=min(model.max_length, LONGEST) if model.positions == "learned" else LONGEST,
    )
    changes = {"objective.vocab": model.vocab, "objective.bytes_per_token": None}
    return experiment.replace(data=data, **changes)


def tokenizer_of(pretrained: Pretrained) -> BytePairs | None:
    """The tokenizer of a folder, if it has one that we read."""
    file = pretrained.folder / TOKENIZER
    if not file.exists():
        return None
    found = read_tokenizer(file.read_bytes(), file)
    vocab = max(*vocabulary(found).values(), pretrained.fields["vocab"] - 1) + 1
    return BytePairs(file=str(file), vocab=vocab, specials=special_names(found))


def with_tokenizer(experiment: Experiment, pretrained: Pretrained) -> Experiment:
    """The experiment with a folder's tokenizer, where its data has one as a field."""
    tokenizer = tokenizer_of(pretrained)
    data: Any = experiment.data
    names = [field.name for field in dataclasses.fields(data)]
    if tokenizer is None or "tokenizer" not in names:
        return experiment
    changes: dict[str, Any] = {"data": dataclasses.replace(data, tokenizer=tokenizer)}
    if hasattr(experiment.objective, "vocab"):
        changes["objective.vocab"] = pretrained.fields["vocab"]
    return experiment.replace(**changes)


def with_fields(experiment: Experiment, pretrained: Pretrained) -> Experiment:
    """The experiment with the fields of a folder's model; raises `Refused` for another class."""
    model: Any = experiment.model
    if not isinstance(model, pretrained.family.module):
        refuse_differences(pretrained, model)
    return experiment.replace(model=model.clone(**pretrained.fields))
