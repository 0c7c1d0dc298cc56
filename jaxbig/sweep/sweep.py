"""A sweep: one experiment under many settings, each a run in a folder of its own, ranked at the end.

`sweep.json` in the sweep's folder holds all of it; a setting keeps its number, and so its folder, for ever.
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
from jaxbig.config.overrides import resolve
from jaxbig.errors import Refused
from jaxbig.sweep.search_space import Setting, literal, options
from jaxbig.system.json_files import read_json, write_json
from jaxbig.system.process_group import Process, collect_stop_signals, gpus, kill, spawn, terminate
from jaxbig.tracking.figures import PLAIN, optional, printable


class Sweep:
    """The runs of a sweep: `settings` and `experiments` by number; all is checked before any begins.

    A folder that holds a sweep of the same experiment is taken up: its settings keep their numbers, new ones follow.
    """

    def __init__(self, folder: Path, name: str, common: Sequence[str], asked: list[Setting]):
        self.folder, self.name, self.common = folder, name, list(common)
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
        known = {
            json.dumps(each, sort_keys=True) for each in self.settings
        }  # in Python True is 1, and 1.0
        for each in asked:
            if (text := json.dumps(each, sort_keys=True)) not in known:
                known.add(text)
                self.settings.append(each)
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
            raise Refused(f"{place} is a link: a sweep's runs lie in its own folder.")
        return place

    def arguments(self, number: int) -> list[str]:
        """What a run has besides what all have."""
        return [*options(self.settings[number]), "--workdir", str(self.place(number))]

    def summary(self, number: int) -> dict[str, Any]:
        """What a run has written at its end; empty if it has not, or cannot be read: the run writes it again."""
        with contextlib.suppress(Refused):
            return read_json(self.place(number) / "summary.json") or {}
        return {}

    def waiting(self) -> list[int]:
        """The runs that are not done."""
        return [
            n
            for n, each in enumerate(self.experiments)
            if self.summary(n).get("step") != each.steps
        ]

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", self.result())

    def result(self) -> dict[str, Any]:
        """What `sweep.json` holds: the runs by number, and `ranked`, the numbers of those with a result, best first."""
        objective, runs = self.experiments[0].objective, []
        for number, setting in enumerate(self.settings):
            summary, steps = self.summary(number), self.experiments[number].steps
            best = summary.get("best") or {}
            state = (
                "done" if summary.get("step") == steps else "stopped" if summary else "not begun"
            )
            run = {"number": number, "setting": setting, "folder": self.place(number).name}
            run |= {
                "state": "failed" if number in self.failures else state,
                "step": summary.get("step"),
            }
            run |= {"best": best.get(f"eval/{objective.criterion}"), "best_step": best.get("step")}
            run |= {"last": summary.get("metrics", {}).get(f"eval/{objective.criterion}")}
            failed = {"error": self.failures[number]} if number in self.failures else {}
            runs.append(run | {"state_sha256": summary.get("state_sha256")} | failed)
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

    def start(self, number: int, environment: dict[str, str]) -> Process:
        """`jaxbig train ...` of a run; what it prints goes to NUMBER.log beside its folder."""
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
        """Runs what is not done, so many at once, each on a GPU of its own where there are such.

        False if it was asked to stop: on the first signal all save and leave, on a second they are ended.
        """
        visible, waiting, running = gpus(), self.waiting(), {}
        if visible and at_once > len(visible):
            raise Refused(
                f"--at-once {at_once}: there are {len(visible)} GPUs, and each run takes one."
            )
        free, told = list(range(at_once)), 0
        with collect_stop_signals() as asked:
            try:
                while running or (waiting and not asked):
                    while waiting and free and not asked:
                        number, slot = waiting.pop(0), free.pop(0)
                        mine = {"CUDA_VISIBLE_DEVICES": visible[slot]} if visible else {}
                        running[number] = slot, self.start(number, mine)
                        say(f"run {number} begins: {in_words(self.settings[number])}")
                    time.sleep(0.1)
                    if len(asked) > told:
                        told = len(asked)
                        (terminate if told == 1 else kill)(
                            process for _, process in running.values()
                        )
                    for number, (slot, process) in list(running.items()):
                        if process.poll() is not None:
                            del running[number]
                            free.append(slot)
                            self.ended(number, process.returncode, say)
            finally:
                kill(process for _, process in running.values())
        return not asked

    def ended(self, number: int, code: int, say: Callable[[str], None]) -> None:
        """Tells of a run that has ended, and writes it down."""
        if code not in (0, 75):
            words = (self.folder / f"{number:03d}.log").read_text(errors="replace").split("\n")
            self.failures[number] = (
                f"exit {code}: {next((w.strip() for w in reversed(words) if w.strip()), '')}"
            )
        self.write()
        run = self.result()["runs"][number]
        say(
            f"run {number} {run['state']}"
            + (f": {run['error']}" if "error" in run else f" at step {run['step']}")
        )


def is_sweep(value: dict[str, Any]) -> bool:
    """Whether it is what `sweep.json` holds, as far as it is taken up."""
    runs = value.get("runs")
    return isinstance(runs, list) and all(
        isinstance(run, dict) and isinstance(run.get("setting"), dict) for run in runs
    )


def in_words(setting: Setting) -> str:
    return " ".join(f"{path}={value}" for path, value in setting.items())


def draw(result: dict[str, Any], file: Path) -> bool:
    """The best criterion of each run over each option that was swept, as a PNG; False if there is none."""
    with optional(f"no picture {file}"):
        return _draw(result, file)
    return False


def _draw(result: dict[str, Any], file: Path) -> bool:
    from matplotlib.figure import Figure  # here: slow to import

    runs = [result["runs"][number] for number in result["ranked"]]
    paths = list(dict.fromkeys(path for run in runs for path in run["setting"]))
    if not paths:
        return False
    figure = Figure(figsize=(4 * len(paths), 3.5), layout="constrained")
    for place, (path, axes) in enumerate(
        zip(paths, figure.subplots(1, len(paths), sharey=True, squeeze=False)[0], strict=True)
    ):
        points = [(run["setting"][path], run["best"]) for run in runs if path in run["setting"]]
        values = [literal(value) if isinstance(value, str) else value for value, _ in points]
        numeric = all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )
        if not numeric:
            names = sorted({str(value) for value in values})
            axes.set_xticks(range(len(names)), [printable(name) for name in names], **PLAIN)
            values = [names.index(str(value)) for value in values]
        elif min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        axes.plot(values, [best for _, best in points], "o", alpha=0.7)
        axes.plot(values[:1], [points[0][1]], "o", color="C1")  # the best of all
        axes.set_xlabel(path)
        if place == 0:
            axes.set_ylabel(f"best eval/{result['criterion']}")
    figure.savefig(file, dpi=100)
    return True
