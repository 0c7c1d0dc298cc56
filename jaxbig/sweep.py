"""A sweep: one experiment under many settings, each a run in a folder of its own, ranked at the end.

`sweep.json` in the sweep's folder holds all of it; a setting keeps its number, and so its folder, for ever.
"""

import dataclasses
import itertools
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, diff, find
from jaxbig.options import resolve
from jaxbig.tracking.metrics import read_json, write_json
from launch.children import Process, asked_to_stop, gpus, kill, spawn, tell

Setting = dict[str, Any]
"""Path of an option -> its value: a number, text, True, None, or a list of such."""
OWN = ("workdir", "fork", "smoke", "json")
"""What belongs to a run and not to its experiment."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: uniform, uniform in the logarithm, or whole ones, both ends included."""

    kind: str
    low: float
    high: float

    def draw(self, draw: random.Random) -> int | float:
        if self.kind == "int":
            return draw.randint(int(self.low), int(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.kind == "log" else (self.low, self.high)
        value = draw.uniform(low, high)
        return float(f"{math.exp(value) if self.kind == 'log' else value:.4g}")  # so that it can be read and written


def axis(text: str) -> tuple[str, list[Any] | Range]:
    """`optimizer.rate.peak=1e-3,3e-4` or `optimizer.rate.peak=log:1e-4:1e-2` as (path, values); `Refused` if neither."""
    path, equals, values = text.partition("=")
    if not equals or not path or not values:
        raise Refused(f"--set {text!r}: write OPTION=VALUE,VALUE or, with --random, OPTION=log:LOW:HIGH.")
    kind, *ends = values.split(":")
    if kind not in ("log", "uniform", "int"):
        return path, [literal(value) for value in values.split(",")]
    numbers = [literal(end) for end in ends]
    fits = len(numbers) == 2 and all(isinstance(n, int if kind == "int" else int | float) for n in numbers)
    if not fits or not numbers[0] < numbers[1] or (kind == "log" and numbers[0] <= 0):
        raise Refused(
            f"--set {text!r}: a range is {kind}:LOW:HIGH, two numbers, the lower one first (above 0 for log)."
        )
    return path, Range(kind, *numbers)


def literal(text: str) -> Any:
    """A number, True, False or None where the text is how one is written, or the text."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", text) else text


def settings(axes: Sequence[str], count: int | None, seed: int, file: Path | None, name: str) -> list[Setting]:
    """What a sweep is asked for: a file's lines, `count` draws from the axes, their grid, or the experiment's `sweep()`.

    The draws are fixed by the seed, and the first of them do not change with their number.
    """
    if file and (axes or count is not None):
        raise Refused("--list FILE names every setting: leave --set and --random out.")
    if file:
        return listed(file)
    read = [axis(text) for text in axes]
    if len(dict(read)) < len(read):
        raise Refused("--set names one option twice: write its values behind one =.")
    if count is not None:
        if not read or count < 1:
            raise Refused(
                f"--random {count}: it takes 1 or more draws from what --set names, which is {len(read)} options."
            )
        draws = [random.Random(f"{seed} {number}") for number in range(count)]
        return [{path: v.draw(d) if isinstance(v, Range) else d.choice(v) for path, v in read} for d in draws]
    if ranges := [path for path, values in read if isinstance(values, Range)]:
        raise Refused(f"--set {ranges[0]}=...: a range needs --random N, how many are drawn.")
    if read:
        values: list[Any] = [values for _, values in read]
        return [dict(zip(dict(read), each, strict=True)) for each in itertools.product(*values)]
    found = getattr(find(name), "sweep", None)
    if not callable(found):
        raise Refused(f"what shall be swept? Give --set or --list, or {name} a function sweep() that returns settings.")
    return checked(found(), f"sweep() of {name}")


def listed(file: Path) -> list[Setting]:
    """The lines of a JSON lines file, an object of options each."""
    try:
        return checked([json.loads(line) for line in file.read_text().splitlines() if line.strip()], str(file))
    except (OSError, ValueError) as error:
        raise Refused(f"--list {file}: {error}; it must hold a JSON object of options on each line.") from None


def checked(found: Any, where: str) -> list[Setting]:
    """The settings; `Refused` unless they are a list of dictionaries of plain values."""
    plain = (int, float, str, bool, type(None))
    for setting in found if isinstance(found, list) and found else [None]:
        if not isinstance(setting, dict) or not all(
            isinstance(path, str) and all(isinstance(each, plain) for each in (v if isinstance(v, list) else [v]))
            for path, v in setting.items()
        ):
            raise Refused(f"{where} must give a list of objects, OPTION: VALUE; it has {setting!r}.")
    return found


def options(setting: Setting) -> list[str]:
    """A setting as it is written on a command line."""
    words: list[str] = []
    for path, value in setting.items():
        name = path.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", name) or name in OWN:
            raise Refused(f"a sweep cannot set {path!r}: name an option of the experiment, as its --help shows them.")
        if isinstance(value, bool):
            *above, last = name.split(".")
            words.append("--" + ".".join([*above, last if value else f"no-{last}"]))
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words


class Sweep:
    """The runs of a sweep: `settings` and `experiments` by number; all is checked before any begins.

    A folder that holds a sweep of the same experiment is taken up: its settings keep their numbers, new ones follow.
    """

    def __init__(self, folder: Path, name: str, common: Sequence[str], asked: list[Setting]):
        self.folder, self.name, self.common = folder, name, list(common)
        now = {"experiment": name, "options": self.common}
        before = read_json(folder / "sweep.json") or {**now, "runs": []}
        if changes := diff({key: before.get(key) for key in now}, now):
            raise Refused(f"{folder} holds another sweep ({'; '.join(changes)}): give another --workdir.")
        self.settings: list[Setting] = [run["setting"] for run in before["runs"]]
        self.settings += [each for place, each in enumerate(asked) if each not in self.settings + asked[:place]]
        self.experiments: list[Experiment] = [resolve(name, [*common, *options(each)]) for each in self.settings]
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
        return read_json(self.place(number) / "summary.json") or {}

    def waiting(self) -> list[int]:
        """The runs that are not done."""
        return [n for n, each in enumerate(self.experiments) if self.summary(n).get("step") != each.steps]

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", self.result())

    def result(self) -> dict[str, Any]:
        """What `sweep.json` holds: the runs by number, and `ranked`, the numbers of those with a result, the best first."""
        objective, runs = self.experiments[0].objective, []
        for number, setting in enumerate(self.settings):
            summary, steps = self.summary(number), self.experiments[number].steps
            best = summary.get("best") or {}
            state = "done" if summary.get("step") == steps else "stopped" if summary else "not begun"
            run = {"number": number, "setting": setting, "folder": self.place(number).name}
            run |= {"state": "failed" if number in self.failures else state, "step": summary.get("step")}
            run |= {"best": best.get(f"eval/{objective.criterion}"), "best_step": best.get("step")}
            run |= {"last": summary.get("metrics", {}).get(f"eval/{objective.criterion}")}
            failed = {"error": self.failures[number]} if number in self.failures else {}
            runs.append(run | {"state_sha256": summary.get("state_sha256")} | failed)
        sign = -1 if objective.higher_is_better else 1
        ranked = sorted((run for run in runs if run["best"] is not None), key=lambda run: sign * run["best"])
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
        command = [sys.executable, "-m", "jaxbig", "train", self.name, *self.common, *self.arguments(number)]
        with (self.folder / f"{number:03d}.log").open("ab") as log:
            return spawn(command, environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, at_once: int, say: Callable[[str], None]) -> bool:
        """Runs what is not done, so many at once, each on a GPU of its own where there are such; False if it was asked to
        stop, by a signal that every run was told of: they save, a second one ends them."""
        visible, waiting, running = gpus(), self.waiting(), {}
        if visible and at_once > len(visible):
            raise Refused(f"--at-once {at_once}: there are {len(visible)} GPUs, and each run takes one.")
        free, told = list(range(at_once)), 0
        with asked_to_stop() as asked:
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
                        (tell if told == 1 else kill)(process for _, process in running.values())
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
            self.failures[number] = f"exit {code}: {next((w.strip() for w in reversed(words) if w.strip()), '')}"
        self.write()
        run = self.result()["runs"][number]
        say(f"run {number} {run['state']}" + (f": {run['error']}" if "error" in run else f" at step {run['step']}"))


def in_words(setting: Setting) -> str:
    return " ".join(f"{path}={value}" for path, value in setting.items())


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs as rows, the best first, those without a result last."""
    criterion, paths = (
        result["criterion"],
        list(dict.fromkeys(path for run in result["runs"] for path in run["setting"])),
    )
    rest = [run["number"] for run in result["runs"] if run["number"] not in result["ranked"]]
    rows = []
    for rank, number in enumerate([*result["ranked"], *rest], 1):
        run = result["runs"][number]
        row = {"rank": rank if number in result["ranked"] else "", "run": run["folder"]}
        row |= {path: str(run["setting"].get(path, "")) for path in paths}
        best = "" if run["best"] is None else f"{run['best']:.6g}"
        rows.append(row | {f"best {criterion}": best, "at step": run["best_step"] or "", "state": run["state"]})
    return rows


def draw(result: dict[str, Any], file: Path) -> bool:
    """The best criterion of each run over each option that was swept, as a PNG; False if no run has a result."""
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
        values = [value for value, _ in points]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not numeric:
            names = sorted({str(value) for value in values})
            axes.set_xticks(range(len(names)), names)
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
