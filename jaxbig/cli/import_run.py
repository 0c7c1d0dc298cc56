"""`jaxbig import`: makes a run from pretrained weights."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tyro

from jaxbig.cli.experiment_command import FolderCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.options import Flag
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Refused
from jaxbig.inference.verify import load_reference, verify
from jaxbig.system.exit_codes import DONE
from jaxbig.train.import_pretrained import import_pretrained
from jaxbig.train.pretrained_experiment import WITHOUT, own_experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import(FolderCommand):
    """Makes the folder of a run from pretrained weights: jaxbig import FOLDER --into EXPERIMENT.

    FOLDER has config.json and safetensors, as Hugging Face has them. The run is at step 0: it can
    be evaluated, and training continues from there. Options of the experiment follow.
    """

    into: str = ""
    """The experiment whose run it becomes. Empty: one of the folder's language model, to generate
    and export; its data are synthetic texts."""
    take_fields: Flag = False
    """Give the experiment's model the fields of the folder's config.json, and its data the folder's
    tokenizer; else they must be equal."""
    verify: Flag = False
    """Compare logits on random tokens with those of transformers, which must be installed."""
    source: tyro.conf.Suppress[Path] = Path()

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str], **given: Any) -> Self:
        if arguments[:1] in (["-h"], ["--help"]):
            return super().from_arguments(word, arguments)
        if not arguments or arguments[0].startswith("-"):
            raise Refused(
                f"{word} needs a folder first, as in jaxbig {word} FOLDER --into EXPERIMENT."
            )
        source, *options = arguments
        words = [part for option in options for part in option.split("=", 1)]
        into = words[words.index("--into") + 1] if "--into" in words[:-1] else WITHOUT
        return super().from_arguments(word, [into, *options], source=Path(source))

    @classmethod
    def as_typed(cls, word: str, name: str) -> str:
        return f"{word} FOLDER --into {name}"

    def complete(self, word: str) -> list[str]:
        program, command, _, *options = super().complete(word)
        return [program, command, str(self.source), *options]

    @property
    def folder(self) -> Path:
        """The folder of the run; by default that of the weights' name."""
        return self.workdir or Path("runs") / self.source.resolve().name

    def __call__(self) -> int:
        refuse_started_together("import")
        screen = self.screen()
        if self.verify:
            load_reference(self.source)
        experiment = self.experiment
        if not self.into:
            experiment = own_experiment(self.source, experiment)
        run = import_pretrained(self.source, self.folder, experiment, take_fields=self.take_fields)
        result: dict[str, Any] = {"workdir": str(run.directory), "step": run.step}
        if self.verify:
            result["largest_difference"] = verify(run, self.source)
        self.emit(result, ("", pairs("imported", result)))
        for command in ("evaluate", "train") if self.into else ("generate",):
            screen.say(shlex.join(["jaxbig", command, str(run.directory)]))
        return DONE
