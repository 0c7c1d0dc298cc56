"""The settings that a sweep runs: a grid, random draws, a list of a file or of an experiment."""

import dataclasses
import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbig.config.discover import find
from jaxbig.config.options import option_words
from jaxbig.config.overrides import OPTIONS_OF_RUN
from jaxbig.errors import Refused

Setting = dict[str, Any]
"""Path of an option -> its value: a number, text, True, None, or a list of these."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: uniform, log-uniform, or integers with both ends included."""

    kind: str
    low: float
    high: float

    def draw(self, draw: random.Random) -> int | float:
        if self.kind == "int":
            return draw.randint(int(self.low), int(self.high))
        if self.kind == "log":
            value = math.exp(draw.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = draw.uniform(self.low, self.high)
        return float(f"{value:.4g}")  # short enough to read and to write


def parse_axis(text: str) -> tuple[str, list[Any] | Range]:
    """Reads `model.dropout=0,0.1` or `optimizer.learning_rate.peak=log:1e-4:1e-2`.

    Returns:
      The option's path and its values.
    """
    path, equals, values = text.partition("=")
    if not equals or not path or not values:
        raise Refused(
            f"--set {text!r}: write OPTION=VALUE,VALUE or, with --random, OPTION=log:LOW:HIGH."
        )
    kind, *ends = values.split(":")
    if kind not in ("log", "uniform", "int"):
        return path, [literal(value) for value in values.split(",")]
    numbers = [literal(end) for end in ends]
    fits = len(numbers) == 2 and all(
        isinstance(n, int if kind == "int" else int | float) for n in numbers
    )
    if not fits or not numbers[0] < numbers[1] or (kind == "log" and numbers[0] <= 0):
        raise Refused(
            f"--set {text!r}: a range is {kind}:LOW:HIGH, two numbers, the lower one first "
            f"(above 0 for log)."
        )
    return path, Range(kind, *numbers)


def literal(text: str) -> Any:
    """A number, True, False or None if the text is written as one, else the text (as 007 is)."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    if re.fullmatch(r"0|-?[1-9][0-9]*", text):
        return int(text)
    if re.fullmatch(
        r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", text
    ) and math.isfinite(number := float(text)):
        return number
    return text


def settings(
    axes: Sequence[str], count: int | None, seed: int, file: Path | None, name: str
) -> list[Setting]:
    """The settings of a sweep: from a file, draws, a grid, or the experiment's `sweep()`.

    The seed fixes the draws; the first draws do not depend on `count`.

    Args:
      axes: what is swept, as `parse_axis` reads it.
      count: number of draws; None: the grid of all values.
      seed: of the draws.
      file: JSON lines, a setting each.
      name: the experiment, whose `sweep()` gives the settings if nothing else does.
    """
    if file and (axes or count is not None):
        raise Refused("--list FILE names every setting: leave --set and --random out.")
    if file:
        return listed(file)
    read = [parse_axis(text) for text in axes]
    if len(dict(read)) < len(read):
        raise Refused("--set names one option twice: write all its values after one =.")
    if count is not None:
        if not read or count < 1:
            raise Refused(
                f"--random {count}: it needs 1 or more draws from the options that --set names, "
                f"which are {len(read)}."
            )
        draws = [random.Random(f"{seed} {number}") for number in range(count)]
        return [
            {path: v.draw(d) if isinstance(v, Range) else d.choice(v) for path, v in read}
            for d in draws
        ]
    if ranges := [path for path, values in read if isinstance(values, Range)]:
        raise Refused(f"--set {ranges[0]}=...: a range needs --random N, how many are drawn.")
    if read:
        values: list[Any] = [values for _, values in read]
        return [dict(zip(dict(read), each, strict=True)) for each in itertools.product(*values)]
    found = getattr(find(name), "sweep", None)
    if not callable(found):
        raise Refused(
            f"nothing to sweep: give --set or --list, or give {name} a function sweep() that "
            f"returns settings."
        )
    return checked(found(), f"sweep() of {name}")


def listed(file: Path) -> list[Setting]:
    """The lines of a JSON lines file, an object of options each."""
    try:
        return checked(
            [json.loads(line) for line in file.read_text().splitlines() if line.strip()], str(file)
        )
    except (OSError, ValueError) as error:
        raise Refused(
            f"--list {file}: {error}; it must hold a JSON object of options on each line."
        ) from None


def checked(found: Any, where: str) -> list[Setting]:
    """Returns the settings, or raises `Refused` unless they are dictionaries of plain values."""
    plain = (int, float, str, bool, type(None))
    for setting in found if isinstance(found, list) and found else [None]:
        if not isinstance(setting, dict) or not all(
            isinstance(path, str)
            and all(isinstance(each, plain) for each in (v if isinstance(v, list) else [v]))
            for path, v in setting.items()
        ):
            raise Refused(
                f"{where} must give a list of objects, OPTION: VALUE; it has {setting!r}."
            )
    return found


def options(setting: Setting) -> list[str]:
    """A setting as options of a command line."""
    words: list[str] = []
    for path, value in setting.items():
        name = path.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", name) or name in OPTIONS_OF_RUN:
            raise Refused(
                f"a sweep cannot set {path!r}: name an option of the experiment, as its --help "
                f"shows them."
            )
        words += option_words(path, value)
    return words


def format_setting(setting: Setting) -> str:
    """A setting as a line of text."""
    return " ".join(f"{path}={value}" for path, value in setting.items())
