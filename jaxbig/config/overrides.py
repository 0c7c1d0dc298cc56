"""An experiment with the options of a command line, as `jaxbig train NAME [options]` runs it."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.options import FolderOption, OutputOptions, TrainOptions, parse
from jaxbig.config.part_types import change_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overridden(OutputOptions, TrainOptions, FolderOption):
    """The options of `jaxbig train EXPERIMENT` that every way to launch it has."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The experiment whose fields are options."""


OPTIONS_OF_RUN = {field.name for field in dataclasses.fields(Overridden)} - {"experiment"}
"""Options of a run, not of its experiment."""


def resolve(name: str, options: Sequence[str]) -> Experiment:
    """The experiment as `jaxbig train NAME [options]` would run it, with the same errors."""
    experiment, left = change_types(load(name), options)
    default = Overridden(experiment=experiment)
    return parse(Overridden, left, f"train {name}", default).experiment
