"""Traces some steps of a run by JAX's profiler, for XProf, Perfetto and `jaxbig profile`."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxbig.cost.memory import peak_bytes
from jaxbig.errors import Refused
from jaxbig.system.json_files import write_json
from jaxbig.tracking.figures import optional

log = logging.getLogger("jaxbig")
WINDOW = "traced steps"
"""The name of a span in a trace, from before its first step until its last one is computed."""
READS_BATCH = "reads a batch"
"""The name of a span in which the loop waits for a batch and starts to move it."""
HLO_FILE = "train_step.hlo.txt"
FACTS_FILE = "steps.json"


def traced_steps(text: str, steps: int) -> range:
    """The steps of `--profile START:STOP`; none for "".

    Args:
      text: the option's value.
      steps: the run's last step.

    Raises:
      Refused: it is malformed, or not within the run.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if not found:
        raise Refused(
            f"--profile {text}: it must be START:STOP, as 100:105 for the steps 100 to 104."
        )
    traced = range(int(found[1]), int(found[2]))
    if not traced or traced[0] < 1:
        raise Refused(
            f"--profile {text} has no step: START is at least 1, and STOP, which is not traced, "
            f"is larger."
        )
    if traced[-1] > steps:
        raise Refused(
            f"--profile {text} ends at step {traced[-1]}, and the run at step {steps}: "
            f"give an earlier STOP, at most {steps + 1}, or more --steps."
        )
    return traced


def dump_step(program: Any, compiled: Any, folder: Path) -> None:
    """Writes the jaxpr and the optimized HLO of a train step into a folder.

    Args:
      program: a `Program`.
      compiled: its compiled train step.
      folder: it is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    traced = program.train_step.trace(program.abstract, program.train_batch)
    (folder / "train_step.jaxpr.txt").write_text(f"{traced.jaxpr}\n")
    (folder / HLO_FILE).write_text(compiled.as_text())
    log.info("wrote the jaxpr and the HLO of the train step: %s", folder)


class StepProfiler:
    """Traces a range of steps into `profile/` of a run's folder, and computes nothing.

    A trace appears there whole or not at all. If the run resumes or stops within the range, the
    trace has the steps that this process made. An error leaves none, and is no error of the run if
    it is the profiler's.

    Attributes:
      steps: the steps to trace.
      folder: where traces are kept, as XProf expects them below `plugins/profile`.
    """

    def __init__(self, steps: range = range(0), workdir: Path = Path()):
        self.steps = steps
        self.folder = workdir / "profile"
        self.first = 0
        """The first step of the trace that is being made; 0: there is none."""
        self.last = 0
        self.window: Any = None
        self.compiled: Any = None

    def open(self, step: int, compiled: Any) -> None:
        """Prepares for a run after `step` with a compiled step; says if it can trace nothing."""
        self.compiled = compiled
        if self.steps and step >= self.steps[-1]:
            log.warning(
                "no trace: steps %d to %d were made before, and the run continues from step %d; "
                "--profile takes later ones",
                self.steps[0],
                self.steps[-1],
                step,
            )

    def before(self, step: int, state: Any) -> None:
        """Starts the trace if `step` is the first to be in it."""
        if step not in self.steps or self.first:
            return
        jax.block_until_ready(state)  # what was started before is not in the trace
        with optional("no trace"):
            shutil.rmtree(self.partial, ignore_errors=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a span for each call would slow the host
            jax.profiler.start_trace(str(self.partial), profiler_options=options)
            self.first = step
            self.window = jax.profiler.TraceAnnotation(WINDOW)
            self.window.__enter__()
        if not self.first:
            self.steps = range(0)

    def after(self, step: int, state: Any) -> None:
        """Ends the trace if `step` was the last to be in it."""
        if self.first:
            self.last = step
            if step == self.steps[-1]:
                self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends the trace, if there is one, with the step that made `state`, and keeps it."""
        if not self.first:
            return
        jax.block_until_ready(state)
        self._end(self._keep)

    def close(self) -> None:
        """Drops a trace that an error has cut."""
        if self.first:
            self._end(lambda: shutil.rmtree(self.partial, ignore_errors=True))

    @property
    def partial(self) -> Path:
        """Where the profiler writes: a kill leaves an incomplete trace here, for the next to
        remove."""
        return self.folder / ".partial"

    def _end(self, then: Callable[[], None]) -> None:
        with optional("no trace"):
            self.window.__exit__(None, None, None)
            jax.profiler.stop_trace()
            then()
        self.first = 0

    def _keep(self) -> None:
        (made,) = self.partial.glob("plugins/profile/*")
        (made / HLO_FILE).write_text(self.compiled.as_text())
        peaks = [
            (each.memory_stats() or {}).get("peak_bytes_in_use") for each in jax.local_devices()
        ]
        facts = {
            "steps": [self.first, self.last],
            "peak_bytes": max((each for each in peaks if each), default=None),
            "step_bytes": peak_bytes(self.compiled),
        }
        write_json(made / FACTS_FILE, facts)
        kept = self.folder / "plugins" / "profile" / f"steps_{self.first}_to_{self.last}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        made.rename(kept)
        shutil.rmtree(self.partial, ignore_errors=True)
        log.info("traced steps %d to %d: %s", self.first, self.last, kept)
