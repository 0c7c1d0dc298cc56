"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
from pathlib import Path

from jaxbig.cli.command import Flag, OfExperiment, rows, run_name
from jaxbig.tools.inspect_batch import inspect
from jaxbig.tools.smoke_test import made_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrepare(OfExperiment):
    """Fetches the experiment's data, where it comes over the network, and makes it ready to read."""

    def __call__(self) -> int:
        self.experiment.check()
        self.experiment.data.fetch()
        identity = self.experiment.data.prepare()
        sizes = {
            f"{split} examples": len(self.experiment.data.source(split))
            for split in ("train", "eval")
        }
        return self.emit(
            {"identity": identity, **sizes}, ("", rows("prepared", {"identity": identity, **sizes}))
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInspect(OfExperiment):
    """What the model will see: the batch of a step, as a picture or as text, and what is in it."""

    step: int = 0
    """After so many steps; the batch is the one that the next step takes."""
    split: str = "train"
    """train or eval."""
    batches: int = 1
    """Of how many batches, from that one on, classes and padding are counted."""
    made_up: Flag = False
    """Of made-up records, where the data is not here."""
    picture: Path | None = None
    """Where images are drawn; NAME-train-STEP.png in this folder if it is not given."""

    def __call__(self) -> int:
        experiment = self.experiment
        if self.made_up:
            experiment = dataclasses.replace(experiment, data=made_up(experiment.data))
        experiment.check()
        experiment.data.prepare()
        picture = self.picture or Path(f"{run_name(self.name)}-{self.split}-{self.step}.png")
        found = inspect(experiment, self.step, self.split, self.batches, picture)
        told = {
            name: value
            for name, value in found.items()
            if name not in ("fields", "rows", "classes")
        }
        return self.emit(
            found,
            ("", rows("batch", told)),
            ("\nfields", found["fields"]),
            *[("\nclasses", rows("class", found["classes"]))] * bool(found["classes"]),
            *[("\nrows", [{k: repr(v)[1:-1] for k, v in row.items()} for row in found["rows"]])]
            * bool(found["rows"]),
        )
