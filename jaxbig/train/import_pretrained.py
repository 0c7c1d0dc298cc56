"""Makes a run of pretrained weights, at step 0, and its experiment where none is given."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import identity
from jaxbig.config.options import refuse_url
from jaxbig.config.serialize import to_json
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.errors import Refused
from jaxbig.pretrained.load import Pretrained, open_pretrained
from jaxbig.pretrained.side_files import FOLDER, copy_side_files
from jaxbig.pretrained.vocabulary import FILE as TOKENIZER
from jaxbig.pretrained.vocabulary import read_tokenizer, special_names, vocabulary
from jaxbig.program.program import make_program
from jaxbig.system.disk import new_folder
from jaxbig.train.pretrained_state import pretrained_state, refuse_differences, refuse_misfit
from jaxbig.train.resume import prepare
from jaxbig.train.run import Run, begin_run, check_experiment, fitting, make_run

WITHOUT = "pytext_transformer"
"""The experiment from which one is made where none is named."""
BATCH = 8
"""Rows for each device of an experiment that is made."""
LONGEST = 1024
"""Tokens of its examples, where the model has no learned positions."""


def import_pretrained(
    source: str | Path,
    directory: str | Path,
    experiment: Experiment | None = None,
    *,
    take_fields: bool = False,
) -> Run:
    """A run whose checkpoint of step 0 has the weights of a folder as Hugging Face has them.

    Args:
      source: a folder with config.json and model.safetensors, or several such files and an index.
      directory: the folder of the run, which must not be there or be empty. It is complete, or not
        there.
      experiment: whose run it becomes; with its data, its model is evaluated and trained on. None:
        one of the folder's language model, to generate and export; its data are synthetic texts.
      take_fields: give the experiment's model the fields of the folder's, and its data the folder's
        tokenizer; without it they must be equal.

    Returns:
      The run at step 0.

    Raises:
      Refused: the folder is not whole, of a family that jaxbig does not have, or of another model.
    """
    if experiment is not None:
        check_experiment(experiment)
    refuse_url("directory", Path(directory))
    if jax.process_count() > 1:
        raise Refused(
            "an import runs in one process: let the run read the folder itself, with "
            "--initialize-from.huggingface."
        )
    pretrained = open_pretrained(source)
    if experiment is None:
        experiment = own_experiment(source, load(WITHOUT))
    elif take_fields:
        experiment = with_tokenizer(with_fields(experiment, pretrained), pretrained)
    if isinstance(experiment.model, pretrained.family.module):
        refuse_differences(pretrained, experiment.model, how="take them with --take-fields")
    refuse_differences(pretrained, experiment.model)
    program = make_program(fitting(experiment))
    fixed = identity(to_json(experiment), prepare(experiment))
    refuse_misfit(pretrained, experiment)
    with new_folder(directory) as partial, program.activate():
        state, _ = pretrained_state(program, pretrained)
        begin_run(dataclasses.replace(program, experiment=experiment), partial, state, fixed=fixed)
        copy_side_files(pretrained.folder, partial / FOLDER)
    return make_run(Path(directory), program, state, 0)


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
