"""Takes a run back to an earlier checkpoint; moves what came after it aside, deletes nothing."""

import logging
import shutil
from pathlib import Path
from typing import Any

from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.run_description import read_summary

log = logging.getLogger("jaxbig")


def keep_aside(workdir: Path, checkpoints: CheckpointManager, step: int) -> None:
    """Moves the checkpoints after a step, and a copy of the metrics, to `rewound_N` in the folder.

    A kill at any moment loses nothing: metrics go first, then the newest checkpoint, so that the
    run is at one of the others.
    """
    later = [each for each in checkpoints.steps() if each > step]
    if not later and all(line["step"] <= step for line in read_metrics(workdir)):
        return
    numbers = [int(folder.name.split("_")[-1]) for folder in workdir.glob("rewound_[0-9]*")]
    target = workdir / f"rewound_{max(numbers, default=0) + 1}"
    (target / "checkpoints").mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json"):
        if (workdir / name).exists():
            shutil.copy2(workdir / name, target / name)
    (workdir / "summary.json").unlink(missing_ok=True)
    for each in reversed(later):
        checkpoints.path(each).rename(target / "checkpoints" / str(each))
    log.info("going back to step %s: what came after it is kept in %s", step, target)


def is_rewound(run: dict[str, Any] | None, experiment: Any, workdir: Path, which: str) -> bool:
    """Whether this command has taken the run back to the step before, and did not end since.

    The same command must resume a run that was interrupted, not go back again: by a scheduler it
    may be repeated many times.

    Args:
      run: the content of `run.json`, None if there is none.
      experiment: of this command, as JSON.
      workdir: the run directory.
      which: what it is taken back to, as the user gave it.
    """
    if run is None or run.get("rewound_to") != which or run["experiment"] != experiment:
        return False
    summary = read_summary(workdir)
    return not summary or bool(summary.get("interrupted"))
