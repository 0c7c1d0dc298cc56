"""An experiment with the options of a command line, as `jaxbig train NAME [options]` runs it."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxbig.config.config_file import load_with_config, naming_config
from jaxbig.config.experiment import Experiment
from jaxbig.config.options import ConfigOption, FolderOption, OutputOptions, TrainOptions, parse
from jaxbig.config.part_types import change_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overridden(OutputOptions, ConfigOption, TrainOptions, FolderOption):
    """The options of `jaxbig train EXPERIMENT` that every way to launch it has."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The experiment whose fields are options."""


OPTIONS_OF_RUN = {field.name for field in dataclasses.fields(Overridden)} - {"experiment"}
"""Options of a run, not of its experiment."""


def resolve(name: str, options: Sequence[str]) -> Experiment:
    """The experiment as `jaxbig train NAME [options]` would run it, with the same errors."""
    experiment, words = load_with_config(name, options)
    with naming_config(options, words):
        experiment, left = change_types(experiment, words)
        default = Overridden(experiment=experiment)
        return parse(Overridden, left, f"train {name}", default).experiment
