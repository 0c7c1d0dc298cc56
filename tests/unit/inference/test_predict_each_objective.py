"""One embedded experiment of each objective: its predictions have its evaluation's numbers."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import EMBEDDED, one_of_each_objective, small
from support.programs import share_programs

import jaxbig as jb
from jaxbig.cli import main as command_line
from jaxbig.data.boxes import Boxes
from jaxbig.data.builtin.pytext import Library
from jaxbig.data.chats import Chats
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.interactions import Interactions
from jaxbig.data.questions import Questions
from jaxbig.data.views import Views
from jaxbig.inference.outputs import without_picture
from jaxbig.train import evaluate, trainer
from jaxbig.train import run as api_run

Rows = list[dict[str, Any]]
TEXT = 1_500
"""Bytes of the library's text."""
BATCH = 16
"""Of `small`."""
EXAMPLES = 40
"""Of other data; the last batch is not full."""


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little data, and a run is compiled once though it is restored by a command."""
    joined = Library.joined
    monkeypatch.setattr(Library, "joined", lambda data, split: joined(data, split)[:TEXT])
    monkeypatch.setattr(trainer, "draw_attention", lambda *arguments: False)  # slow to compile
    count = ArraySource.__len__
    monkeypatch.setattr(ArraySource, "__len__", lambda source: min(count(source), EXAMPLES))
    make = share_programs()
    for module in (trainer, evaluate, api_run):
        monkeypatch.setattr(module, "make_program", lambda e: make(e, jax.devices()[:1]))
    yield


def mean(rows: Rows, name: str, weight: str = "") -> float:
    """The mean of a number of the rows, each of which is a mean over as many as `weight`."""
    weights = [row[weight] if weight else 1 for row in rows]
    counts = [row[name] * each for row, each in zip(rows, weights, strict=True)]
    exact = [round(each) if abs(each - round(each)) < 1e-6 else each for each in counts]
    return sum(exact) / sum(weights)


def found_in_batches(rows: Rows) -> list[float]:
    """For each half of a pair whether its other half has the largest score of its batch, on either
    side."""
    found = []
    for start in range(0, len(rows), BATCH):
        sides = [
            np.array([row[name] for row in rows[start : start + BATCH]])
            for name in ("vector", "other_vector")
        ]
        both = np.concatenate(sides)  # [2 B, D]
        scores = both @ both.T - np.diag(np.full(len(both), np.inf))
        own = np.roll(np.arange(len(both)), len(both) // 2)
        found += (scores.argmax(axis=1) == own).astype(float).tolist()
    return found


def exact(rows: Rows) -> dict[str, float]:
    """The metrics of an evaluation that are counts, computed from the rows."""
    if "exact_match" in rows[0]:
        return {"exact_match": mean(rows, "exact_match")}
    if "edits" in rows[0]:
        return {"exact_match": np.mean([row["edits"] == 0 for row in rows])}
    if "answer" in rows[0]:
        return {"exact_span": np.mean([row["exact_span"] for row in rows])}
    if "masked" in rows[0]:
        counted = [{**row, "tokens": len(row["masked"])} for row in rows if row["masked"]]
        return {"accuracy": mean(counted, "accuracy", "tokens")}
    if "tokens" in rows[0]:
        return {"accuracy": mean(rows, "accuracy", "tokens")}
    if "games" in rows[0]:
        games = [game for row in rows for game in row["games"] if game["opponent"] == "random"]
        return {"wins_against_random": np.mean([game["result"] == "win" for game in games])}
    if "rank" in rows[0]:
        return {"hit_rate": np.mean([row["rank"] <= 10 for row in rows])}
    if "vector" in rows[0]:
        return {"accuracy": np.mean(found_in_batches(rows))}
    if "class" in rows[0]:
        return {"accuracy": np.mean([row["class"] == row["target"] for row in rows])}
    return {}


def close(rows: Rows) -> dict[str, float]:
    """Those that are sums of floats."""
    if "masked" in rows[0]:
        counted = [{**row, "tokens": len(row["masked"])} for row in rows if row["masked"]]
        return {"loss": mean(counted, "loss", "tokens")}
    if "tokens" in rows[0]:
        return {"loss": mean(rows, "loss", "tokens")}
    if "objects" in rows[0]:
        counted = [{**row, "count": max(len(row["targets"]), 1)} for row in rows]
        return {"loss": mean(counted, "loss", "count")}
    if "rank" in rows[0]:
        return {"ndcg": np.mean([(row["rank"] <= 10) / np.log2(1 + row["rank"]) for row in rows])}
    if "actions" in rows[0]:
        return {name: mean(rows, name) for name in ("loss", "return")}
    if "games" in rows[0] or "asked" in rows[0]:
        return {"loss": mean(rows, "loss")}
    if "value" in rows[0]:
        values = np.array([row["value"] for row in rows])
        targets = np.array([row["target"] for row in rows])
        return {"r2": 1 - np.mean((values - targets) ** 2) / targets.var()}
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*one_of_each_objective(EMBEDDED), "pytext_lstm"])
def test_predictions_have_the_numbers_of_the_evaluation(name: str, tmp_path: Path) -> None:
    experiment = small(name, steps=3, evaluate_every=3, checkpoint_every=3)
    run = jb.fit(experiment, tmp_path / "run")
    rows = [without_picture(row) for row in jb.predict(run, split="eval")]
    evaluated = {name: run.metrics[f"eval/{name}"] for name in {**exact(rows), **close(rows)}}
    assert evaluated
    assert exact(rows) == {name: evaluated[name] for name in exact(rows)}
    assert close(rows) == pytest.approx({name: evaluated[name] for name in close(rows)}, rel=2e-5)

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command_line.run(["predict", f"{tmp_path}/run", "--split", "eval"]) == 0
    assert [json.loads(line) for line in printed.getvalue().splitlines()] == rows

    source = experiment.data.source("eval")
    if getattr(source, "contiguous", False):
        return  # an evaluation remembers what came before
    chosen = [len(source) - 1, 3, 17, 0]
    fields = source.rows(np.array(chosen))
    records = [{name: each[i] for name, each in fields.items()} for i in range(len(chosen))]
    # these read no arrays of theirs
    if isinstance(experiment.data, Boxes | Chats | Interactions | Questions | Views):
        stored = experiment.data.records.open("eval")
        records = [stored[i] for i in chosen]
    answers = [without_picture(row) for row in jb.predict(run, records)]
    for index, answer in zip(chosen, answers, strict=True):
        same = {name: value for name, value in rows[index].items() if name in answer}
        assert answer == {**same, "record": answer["record"]}
