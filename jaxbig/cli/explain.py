"""`jaxbig explain`: which pixels or tokens a run's answers depend on."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from jaxbig.cli.restored_run import RestoredRunCommand
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Refused
from jaxbig.inference.inputs import check_paths, inputs_at, inputs_of
from jaxbig.inference.outputs import cleanly
from jaxbig.inference.predict import (
    HostBatch,
    in_words,
    named,
    read_batches,
    split_batches,
    with_batch,
)
from jaxbig.tools.explain import Explanation, draw, make_explain
from jaxbig.train.run import Run, open_run_split

log = logging.getLogger("jaxbig")
TOKENS = "integrated gradients"
"""The map by which tokens are colored."""


class Explained(NamedTuple):
    """An example that is explained."""

    name: str | int
    example: dict[str, np.ndarray]
    """Arrays [...] by field."""
    found: Explanation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(RestoredRunCommand):
    """Which pixels or tokens a run's answers depend on: a picture, or colored text."""

    inputs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, patterns, tables, or - for lines of standard input, as predict takes them."""
    text: tuple[str, ...] = ()
    """Texts to explain, in place of files."""
    split: str = ""
    """Explain examples of a split of the run's data: train, eval, or test if it has one."""
    count: int = 4
    """How many examples to explain, at most."""
    answer: int = -1
    """The number of the class to explain; -1: the likeliest."""
    picture: Path = Path("explain.png")
    """Where images are drawn."""

    def __call__(self) -> int:
        refuse_started_together("explain")
        if bool(self.inputs) + bool(self.text) + bool(self.split) != 1:
            raise Refused("explain needs one of files (or - for lines), --text, and --split.")
        if self.count < 1:
            raise Refused(f"--count {self.count}: it must be 1 or more.")
        if self.picture.suffix != ".png":
            raise Refused(f"--picture {self.picture}: its name must end in .png.")
        check_paths(self.inputs)
        run = self.restored()
        if "carry" not in run.state.variables:  # which has a row for each of the training's
            run = with_batch(run, jax.device_count())
        explained = self.explained(run)
        if not explained:
            raise Refused("there is nothing to explain: the inputs have no record.")
        rows = [row_of(run, each) for each in explained]
        if explained[0].example["inputs"].ndim == 3:
            images = [each.example["inputs"] for each in explained]
            titles = [row["class"] for row in rows]
            with cleanly(self.picture):
                draw(images, [each.found for each in explained], titles, self.picture)
            log.info("drawn: %s", self.picture)
            return self.emit({"explained": rows, "picture": str(self.picture)}, ("", rows))
        texts = [tokens_of(run, each) for each in explained]
        if not self.json:
            for text in texts:
                print_colored(text)
        result = [{**row, **text} for row, text in zip(rows, texts, strict=True)]
        return self.emit({"explained": result}, ("", rows))

    def explained(self, run: Run) -> list[Explained]:
        """The first examples with their explanations."""
        explain = make_explain(run, self.answer)
        found: list[Explained] = []
        for batch in self.batches(run):
            places = batch.places[: self.count - len(found)]
            names = batch.names[: len(places)]
            for name, place in zip(names, places, strict=True):
                if place in batch.errors:
                    error = in_words(batch.errors[place])
                    raise Refused(f"{named(name)} cannot be read: {error}.")
            explanations = explain(batch.rows, places)
            for name, place, each in zip(names, places, explanations, strict=True):
                example = {field: rows[place] for field, rows in batch.rows.items()}
                found.append(Explained(name, example, each))
            if len(found) == self.count:
                break
        return found

    def batches(self, run: Run) -> Iterator[HostBatch]:
        """Batches of the examples to explain."""
        data = run.experiment.data
        if self.split:
            return split_batches(open_run_split(run, self.split), self.split, data.batch)
        given = inputs_of(data, list(self.text)) if self.text else inputs_at(data, self.inputs)
        return read_batches(data, given)


def row_of(run: Run, each: Explained) -> dict[str, Any]:
    """What is printed in the table."""
    row: dict[str, Any] = {"record": each.name}
    if each.found.answer < 0:
        return {**row, "loss": each.found.score}
    return {
        **row,
        "class": run.experiment.data.class_name(each.found.answer),
        "logit": each.found.score,
        "completeness error": each.found.missing,
    }


def tokens_of(run: Run, each: Explained) -> dict[str, Any]:
    """The tokens of a text, and how much each counts by each method."""
    length = int(each.example.get("lengths", len(each.example["inputs"])))
    tokens = each.example["targets" if each.found.answer < 0 else "inputs"][:length]
    return {
        "tokens": [run.experiment.data.text(tokens[i : i + 1]) for i in range(length)],
        "maps": {name: values[:length].tolist() for name, values in each.found.maps.items()},
    }


def print_colored(text: dict[str, Any]) -> None:
    """Prints tokens on red where they are for the answer, or cost much; blue: against it."""
    values = text["maps"].get(TOKENS) or text["maps"]["loss"]
    most = max(map(abs, values)) or 1.0
    colored = Text()
    for token, value in zip(text["tokens"], values, strict=True):
        faded = round(255 * (1 - abs(value) / most))
        color = f"rgb(255,{faded},{faded})" if value > 0 else f"rgb({faded},{faded},255)"
        colored.append(token, style=f"black on {color}")
    Console(highlight=False).print(colored)
