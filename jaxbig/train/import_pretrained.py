"""Makes a run, at step 0, of pretrained weights in a folder as Hugging Face has them."""

import dataclasses
from pathlib import Path

import jax

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import identity
from jaxbig.config.options import refuse_url
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused
from jaxbig.pretrained.load import open_pretrained
from jaxbig.pretrained.side_files import FOLDER, copy_side_files
from jaxbig.program.program import make_program
from jaxbig.system.disk import new_folder
from jaxbig.train.pretrained_experiment import WITHOUT, own_experiment, with_fields, with_tokenizer
from jaxbig.train.pretrained_state import pretrained_state, refuse_differences, refuse_misfit
from jaxbig.train.resume import prepare
from jaxbig.train.run import Run, begin_run, check_experiment, fitting, make_run


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
    if jax.process_count() > 1:
        raise Refused(
            "an import runs in one process: let the run read the folder itself, with "
            "--initialize-from.huggingface."
        )
    if experiment is not None:
        check_experiment(experiment)
    refuse_url("directory", Path(directory))
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
