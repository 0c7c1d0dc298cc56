"""`jaxbig export`: writes the weights of a run for other programs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tyro

from jaxbig.cli.experiment_command import FolderCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.options import Flag
from jaxbig.config.serialize import flat
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Refused
from jaxbig.inference.export import Format, export, restored
from jaxbig.inference.verify import verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(FolderCommand):
    """Writes the weights of a run for other programs: jaxbig export RUN FOLDER.

    What is written is read again and compared with the run before the folder has its name.
    """

    format: Format = "huggingface"
    """huggingface: config.json and safetensors, as transformers reads them; safetensors: parameters
    by path; stablehlo: a program that needs jax alone."""
    step: str = "last"
    """Which checkpoint: last, best, or the number of its step."""
    family: str = ""
    """The model_type of huggingface, such as gpt2; empty: as imported, or the first that fits."""
    verify: Flag = False
    """Of huggingface: compare logits on random tokens with those of transformers, which must be
    installed."""
    target: tyro.conf.Suppress[Path] = Path()

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str], **given: Any) -> Self:
        if not arguments or {"-h", "--help"} & {*arguments[:2]}:
            return super().from_arguments(word, arguments)
        if len(arguments) < 2 or arguments[1].startswith("-"):
            raise Refused(
                f"{word} needs the folder to write second, as in jaxbig {word} RUN FOLDER."
            )
        name, target, *options = arguments
        return super().from_arguments(word, [name, *options], target=Path(target))

    @classmethod
    def as_typed(cls, word: str, name: str) -> str:
        return f"{word} {name} FOLDER"

    def complete(self, word: str) -> list[str]:
        program, command, name, *options = super().complete(word)
        return [program, command, name, str(self.target), *options]

    def __call__(self) -> int:
        refuse_started_together("export")
        self.screen()
        run = restored(self.folder, step=self.step, experiment=self.experiment)
        result = export(run, self.target, format=self.format, family=self.family)
        if self.verify:
            result["largest_difference"] = verify(run, self.target)
        rows = dict(flat(result))
        return self.emit(result, (f"{self.target}, from step {run.step}", pairs("export", rows)))
