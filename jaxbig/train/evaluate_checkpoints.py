"""Evaluates each checkpoint of a run, also while it trains; rows are in `evaluations.jsonl`."""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxbig.checkpoint.manager import CheckpointManager, CorruptCheckpointError
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.watchdog import Heartbeat, watchdog
from jaxbig.errors import Failed, Refused
from jaxbig.system.disk import sync
from jaxbig.system.json_files import to_json_text
from jaxbig.train.evaluate import SavedRun
from jaxbig.train.run_description import read_run, read_summary

log = logging.getLogger("jaxbig")
FILE = "evaluations.jsonl"
"""In the run's directory; a line a row: `step`, `split`, the metrics, and the checkpoint's
`state_sha256`. The run itself does not read it."""
POLL_S = 2.0
"""Seconds between two looks for a new checkpoint."""


def evaluate_checkpoints(
    experiment: Experiment,
    workdir: Path,
    split: str = "eval",
    *,
    evaluators: bool = False,
    watch: bool = False,
) -> Iterator[dict[str, Any]]:
    """Evaluates each checkpoint in a directory once, the oldest first.

    A checkpoint is known by its digest, so that one of a run that has gone back counts as another.

    Args:
      experiment: gives the model and the data; those of the run.
      workdir: the run directory.
      split: "eval" or "test".
      evaluators: whether to run the experiment's evaluators too.
      watch: wait for further checkpoints, until the run is finished.

    Yields:
      The rows that it adds to `evaluations.jsonl`.

    Raises:
      Refused: as `evaluate_run`, or another process does the same.
    """
    given = {"workdir": str(workdir), "split": split}
    assert_same_on_all({**given, **dict(flat(to_json(experiment)))})
    splits = [split]
    if evaluators:
        splits += [each.evaluator.split for each in experiment.evaluators]
    lock = filelock.FileLock(workdir / f"{FILE}.lock", timeout=0)
    with watchdog(experiment.guard.stuck_after) as heartbeat:
        if watch:
            wait_for_the_first(workdir, heartbeat)
        saved = SavedRun(experiment, workdir, split, which="last", heartbeat=heartbeat)
        if evaluators:
            saved.check_evaluators()
        on_process_zero(lambda: take(lock))
        skipped: list[int] = []
        try:
            while True:
                finished = on_process_zero(lambda: is_finished(workdir))  # before looking
                due = on_process_zero(lambda: next_due(workdir, saved.checkpoints, splits, skipped))
                if due is not None:
                    yield from evaluate_one(saved, workdir, due, skipped=skipped)
                elif finished or not watch:
                    return
                else:
                    wait(heartbeat)
        finally:
            lock.release()


def evaluate_one(
    saved: SavedRun, workdir: Path, due: tuple[int, list[str]], *, skipped: list[int]
) -> Iterator[dict[str, Any]]:
    """Evaluates a checkpoint, and yields its rows; one that was removed meanwhile is `skipped`."""
    step, splits = due
    try:
        _, state_sha256, found = saved.evaluate([step], splits)
    except (Failed, Refused):
        if on_process_zero(saved.checkpoints.path(step).is_dir):
            raise
        log.warning("the run has removed its checkpoint of step %s meanwhile: it is skipped", step)
        skipped.append(step)
        return
    rows = [
        {"step": step, "split": name, **values, "state_sha256": state_sha256}
        for name, values in found.items()
    ]
    on_process_zero(lambda: append(workdir / FILE, rows))
    yield from rows


def next_due(
    workdir: Path, checkpoints: CheckpointManager, splits: list[str], skipped: list[int]
) -> tuple[int, list[str]] | None:
    """The oldest checkpoint that is not evaluated, and the splits that it has no row of yet."""
    done = {(row["state_sha256"], row["split"]) for row in read_rows(workdir / FILE)}
    for step in checkpoints.steps():
        if step in skipped:
            continue
        try:
            state_sha256 = checkpoints.manifest(step)["state_sha256"]
        except CorruptCheckpointError:
            if not checkpoints.path(step).is_dir():
                continue  # removed just now
            return step, splits  # evaluating it names what is wrong
        missing = [name for name in splits if (state_sha256, name) not in done]
        if missing:
            return step, missing
    return None


def wait_for_the_first(workdir: Path, heartbeat: Heartbeat) -> None:
    """Returns once the run has a checkpoint."""
    checkpoints = CheckpointManager(workdir / "checkpoints")
    waits = False
    while not on_process_zero(lambda: bool(checkpoints.steps())):
        if not waits:
            log.info("%s has no checkpoint yet: this waits for the first; Ctrl-C ends it", workdir)
        waits = True
        wait(heartbeat)


def wait(heartbeat: Heartbeat) -> None:
    """Waits until it is time to look for a new checkpoint."""
    heartbeat(0, "")  # it may take long
    time.sleep(POLL_S)


def is_finished(workdir: Path) -> bool:
    """Whether the run in a directory has made all the steps it was last started for."""
    summary = read_summary(workdir)
    run = read_run(workdir)
    if not run or summary.get("interrupted", True):
        return False
    asked = run["experiment"].get("steps", math.inf)
    return bool(summary.get("stopped_early")) or summary.get("step", 0) >= asked


def take(lock: filelock.FileLock) -> None:
    """Takes the lock of the file; raises `Refused` if another process has it."""
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Refused(
            f"{lock.lock_file}: another process evaluates this run's checkpoints now: let it."
        ) from None
    except OSError as error:
        raise Refused(f"cannot write {lock.lock_file}: {error.strerror or error}.") from None


def append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a file, after completing a line that a kill cut off."""
    try:
        cut = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
        with file.open("a") as lines:
            lines.write("\n" * bool(cut) + "".join(f"{to_json_text(row)}\n" for row in rows))
        sync(file)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror or error}.") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file that are whole."""
    rows = []
    for text in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            row = json.loads(text)
        except ValueError:  # cut off by a kill
            continue
        if isinstance(row, dict) and {"step", "split", "state_sha256"} <= row.keys():
            rows.append(row)
    return rows
