"""A sweep: one experiment under many settings, each a run in its own folder, ranked at the end.

`sweep.json` in the sweep's folder describes it. A setting keeps its number, and so its folder.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import diff
from jaxbig.config.options import names
from jaxbig.config.overrides import resolve
from jaxbig.errors import Refused
from jaxbig.sweep.search_space import Setting, format_setting, options
from jaxbig.system.child_processes import Process, collect_stop_signals, kill, spawn
from jaxbig.system.exit_codes import DONE, INTERRUPTED
from jaxbig.system.json_files import read_json, write_json
from jaxbig.system.local_gpus import gpus


class Sweep:
    """The runs of a sweep: `settings` and `experiments` by number, checked before any run starts.

    A sweep of the same experiment in the folder is resumed: its settings keep their numbers, and
    new ones follow.
    """

    def __init__(self, folder: Path, name: str, common: Sequence[str], asked: list[Setting]):
        self.folder = folder
        self.name = name
        self.common = list(common)
        now = {"experiment": name, "options": self.common}
        before = read_json(folder / "sweep.json") or {**now, "runs": []}
        if (folder / "run.json").exists():
            raise Refused(f"{folder} is the folder of a run: give the sweep another --workdir.")
        if not is_sweep(before):
            raise Refused(f"{folder}/sweep.json was not written by jaxbig: give another --workdir.")
        if changes := diff({key: before.get(key) for key in now}, now):
            raise Refused(
                f"{folder} holds another sweep ({'; '.join(changes)}): give another --workdir."
            )
        self.settings: list[Setting] = [run["setting"] for run in before["runs"]]
        # compared as text: in Python True equals 1 and 1.0
        known = {json.dumps(setting, sort_keys=True) for setting in self.settings}
        for setting in asked:
            text = json.dumps(setting, sort_keys=True)
            if text not in known:
                known.add(text)
                self.settings.append(setting)
        if any("epochs" in setting for setting in self.settings) or "--epochs" in names(common):
            raise Refused("a sweep compares runs by their steps: give --steps, and no --epochs.")
        self.experiments: list[Experiment] = [
            resolve(name, [*common, *options(each)]) for each in self.settings
        ]
        for experiment in self.experiments:
            experiment.check()
        self.failures: dict[int, str] = {}
        self.write()

    def place(self, number: int) -> Path:
        """The folder of a run."""
        place = self.folder / f"{number:03d}"
        if place.is_symlink():
            raise Refused(f"{place} is a link: a sweep's runs must be in its own folder.")
        return place

    def arguments(self, number: int) -> list[str]:
        """The options of one run besides the common ones."""
        return [*options(self.settings[number]), "--workdir", str(self.place(number))]

    def summary(self, number: int) -> dict[str, Any]:
        """The summary of a finished run; empty if there is none or it is damaged."""
        with contextlib.suppress(Refused):
            return read_json(self.place(number) / "summary.json") or {}
        return {}

    def waiting(self) -> list[int]:
        """Numbers of the runs that are not done."""
        return [
            n for n, each in enumerate(self.experiments) if not is_done(self.summary(n), each.steps)
        ]

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", self.result())

    def result(self) -> dict[str, Any]:
        """The content of `sweep.json`: the runs by number; `ranked` has the numbers, best first."""
        objective = self.experiments[0].objective
        runs = [self.describe(number) for number in range(len(self.settings))]
        sign = -1 if objective.higher_is_better else 1
        ranked = sorted(
            (run for run in runs if run["best"] is not None), key=lambda run: sign * run["best"]
        )
        return {
            "experiment": self.name,
            "options": self.common,
            "criterion": objective.criterion,
            "higher_is_better": objective.higher_is_better,
            "ranked": [run["number"] for run in ranked],
            "runs": runs,
        }

    def describe(self, number: int) -> dict[str, Any]:
        """A run in `sweep.json`."""
        criterion = f"eval/{self.experiments[0].objective.criterion}"
        summary = self.summary(number)
        best = summary.get("best") or {}
        run = {
            "number": number,
            "setting": self.settings[number],
            "folder": self.place(number).name,
            "state": self.state(number, summary),
            "step": summary.get("step"),
            "best": best.get(criterion),
            "best_step": best.get("step"),
            "last": summary.get("metrics", {}).get(criterion),
            "state_sha256": summary.get("state_sha256"),
        }
        if number in self.failures:
            run["error"] = self.failures[number]
        return run

    def state(self, number: int, summary: dict[str, Any]) -> str:
        """Whether a run failed, is done, was stopped, or has not started."""
        if number in self.failures:
            return "failed"
        if is_done(summary, self.experiments[number].steps):
            return "done"
        return "stopped" if summary else "not started"

    def start(self, number: int, environment: dict[str, str]) -> Process:
        """Starts `jaxbig train ...` for a run; its output goes to NUMBER.log beside its folder."""
        command = [
            sys.executable,
            "-m",
            "jaxbig",
            "train",
            self.name,
            *self.common,
            *self.arguments(number),
        ]
        with (self.folder / f"{number:03d}.log").open("ab") as log:
            return spawn(command, environment, log, subprocess.STDOUT)

    def run(self, at_once: int, say: Callable[[str], None]) -> bool:
        """Runs what is not done, `at_once` at a time, each on its own GPU if there are GPUs.

        Returns:
          False if a signal stopped it. On the first signal all runs save and exit; a second kills
          them.
        """
        visible = gpus()
        if visible and at_once > len(visible):
            raise Refused(
                f"--at-once {at_once}: there are {len(visible)} GPUs, and each run takes one."
            )
        waiting = self.waiting()
        running: dict[int, tuple[int, Process]] = {}
        free = list(range(at_once))
        with collect_stop_signals() as signals:
            try:
                while running or (waiting and not signals):
                    while waiting and free and not signals:
                        number = waiting.pop(0)
                        slot = free.pop(0)
                        environment = {"CUDA_VISIBLE_DEVICES": visible[slot]} if visible else {}
                        running[number] = slot, self.start(number, environment)
                        say(f"run {number} starts: {format_setting(self.settings[number])}")
                    time.sleep(0.1)
                    signals.pass_on(process for _, process in running.values())
                    for number, (slot, process) in list(running.items()):
                        if process.poll() is not None:
                            del running[number]
                            free.append(slot)
                            self.ended(number, process.returncode, say)
            finally:
                kill(process for _, process in running.values())
        return not signals

    def ended(self, number: int, code: int, say: Callable[[str], None]) -> None:
        """Records and reports the end of a run."""
        if code not in (DONE, INTERRUPTED):
            lines = (self.folder / f"{number:03d}.log").read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            self.failures[number] = f"exit {code}: {last}"
        self.write()
        run = self.describe(number)
        how = f": {run['error']}" if "error" in run else f" at step {run['step']}"
        say(f"run {number} {run['state']}{how}")


def is_done(summary: dict[str, Any], steps: int) -> bool:
    """Whether a run's `summary.json` is of one that has made its steps, or stopped early."""
    return summary.get("step") == steps or bool(summary.get("stopped_early"))


def is_sweep(value: dict[str, Any]) -> bool:
    """Whether a value has the parts of `sweep.json` that are read."""
    runs = value.get("runs")
    return isinstance(runs, list) and all(
        isinstance(run, dict) and isinstance(run.get("setting"), dict) for run in runs
    )
