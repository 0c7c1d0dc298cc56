"""What a sweep runs: settings of an experiment's options, as a grid, a list, or draws from ranges."""

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
from jaxbig.errors import Refused

Setting = dict[str, Any]
"""Path of an option -> its value: a number, text, True, None, or a list of such."""
OWN = ("workdir", "fork", "adopt", "smoke", "json")
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
        low, high = (
            (math.log(self.low), math.log(self.high))
            if self.kind == "log"
            else (self.low, self.high)
        )
        value = draw.uniform(low, high)
        return float(
            f"{math.exp(value) if self.kind == 'log' else value:.4g}"
        )  # so that it can be read and written


def axis(text: str) -> tuple[str, list[Any] | Range]:
    """`model.dropout=0,0.1` or `optimizer.learning_rate.peak=log:1e-4:1e-2` as (path, values); `Refused` if it is neither."""
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
            f"--set {text!r}: a range is {kind}:LOW:HIGH, two numbers, the lower one first (above 0 for log)."
        )
    return path, Range(kind, *numbers)


def literal(text: str) -> Any:
    """A number, True, False or None where the text is how one is written, or the text: 007 is a name."""
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
    """What a sweep is asked for: a file's lines, `count` draws from axes, their grid, or the experiment's `sweep()`.

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
            f"what shall be swept? Give --set or --list, or {name} a function sweep() that returns settings."
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
    """The settings; `Refused` unless they are a list of dictionaries of plain values."""
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
    """A setting as it is written on a command line."""
    words: list[str] = []
    for path, value in setting.items():
        name = path.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", name) or name in OWN:
            raise Refused(
                f"a sweep cannot set {path!r}: name an option of the experiment, as its --help shows them."
            )
        if isinstance(value, bool):
            *above, last = name.split(".")
            words.append("--" + ".".join([*above, last if value else f"no-{last}"]))
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words
