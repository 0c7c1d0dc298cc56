"""`jaxbig data prepare` (downloads, prepares) and `data inspect` (shows a batch as text or PNG)."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.text import Text

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.options import Flag, run_name
from jaxbig.tools.inspect_batch import inspect
from jaxbig.tools.smoke_test import synthetic_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrepare(ExperimentCommand):
    """Downloads the experiment's data if needed, and makes it ready to read."""

    def __call__(self) -> int:
        data = self.experiment.data
        self.experiment.check()
        data.fetch()
        result: dict[str, Any] = {"identity": data.prepare()}
        for split in ("train", "eval", "test")[: 2 + data.has_test()]:
            result[f"{split} examples"] = len(data.source(split))
        return self.emit(result, ("", pairs("prepared", result)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInspect(ExperimentCommand):
    """Shows what the model receives: the batch of a step as a picture or text, and statistics."""

    step: int = 0
    """Number of steps before; the batch is that of the next step."""
    split: str = "train"
    """train, eval, or test where the data has such a split."""
    batches: int = 1
    """Number of batches, from that step on, over which classes and padding are counted."""
    synthetic: Flag = False
    """Use synthetic records if the real data is missing."""
    picture: Path | None = None
    """Where images are drawn; NAME-train-STEP.png in this folder if it is not given."""

    def __call__(self) -> int:
        experiment = self.experiment
        if self.synthetic:
            experiment = dataclasses.replace(experiment, data=synthetic_data(experiment.data))
        experiment.check()
        experiment.data.prepare()
        picture = self.picture or Path(f"{run_name(self.name)}-{self.split}-{self.step}.png")
        result = inspect(experiment, self.step, self.split, self.batches, picture)
        summary = {
            name: value
            for name, value in result.items()
            if name not in ("fields", "rows", "classes")
        }
        tables = [("", pairs("batch", summary)), ("\nfields", result["fields"])]
        if result["classes"]:
            tables.append(("\nclasses", pairs("class", result["classes"])))
        if result["rows"]:
            escaped = [
                {"text (what is learned is green)": colored(row["parts"])}
                if "parts" in row
                else {name: repr(text)[1:-1] for name, text in row.items()}
                for row in result["rows"]
            ]
            tables.append(("\nrows", escaped))
        return self.emit(result, *tables)


def colored(parts: list[tuple[str, bool]]) -> Text:
    """Parts of a text as one, what is learned in green."""
    styled = [(repr(text)[1:-1], "bold green" if learned else "dim") for text, learned in parts]
    return Text.assemble(*styled)
