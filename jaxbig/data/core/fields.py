"""Reads a field of a record and checks its type, range and shape.

A value is taken as it is meant or refused: nothing is silently rounded, cut off or wrapped around.
"""

import decimal
import difflib
import reprlib
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Record

SIMILAR = 0.3
"""Least similarity of two names, as of `difflib`, for one to be offered in place of the other."""
MAX_LISTED = 20
"""Names of fields that an error lists at most."""


class MismatchError(ValueError):
    """A record does not fit the experiment; the message names the experiment's field and a fix."""


def field(record: Record, name: str, option: str = "") -> Any:
    """A field of a record; raises with the nearest name if there is none.

    Args:
      record: The record.
      name: The field.
      option: The experiment's field that names it, such as `--data.label`.
    """
    if name in record:
        return record[name]
    raise missing(record, name, option)


def missing(record: Record, name: str, option: str = "") -> MismatchError:
    """The error about a field that a record does not have."""
    names = {str(each): str(each) if str(each).isprintable() else repr(each) for each in record}
    near = difflib.get_close_matches(name, names, 1, SIMILAR)
    listed = ", ".join(
        each if len(each) < 60 else f"{each[:57]}..." for each in [*names.values()][:MAX_LISTED]
    )
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    there = f"but {listed}{more}" if names else "and no other field"
    nearest = f"; the nearest is {names[near[0]]}" if near else ""
    return MismatchError(
        f"it has no {name!r}, {f'which {option} names, ' if option else ''}{there}{nearest}"
    )


def present(record: Record, name: str, option: str = "") -> Any:
    """A field of a record; raises ValueError if it is null."""
    value = field(record, name, option)
    if value is None:
        raise ValueError(f"its {name!r} is null")
    return value


def class_of(
    record: Record, feature: str, classes: int, option: str = "", names: tuple[str, ...] = ()
) -> np.int32:
    """The class of a record, from 0 to `classes` - 1; raises ValueError if there is none.

    Args:
      record: The record.
      feature: The field with the label: a number, or one of the names.
      classes: Number of classes.
      option: The experiment's field that names the feature.
      names: The names of the classes, if they have some.
    """
    value = present(record, feature, option)
    if (name := text_of(value)) in names:
        return np.int32(names.index(name))
    if names and (name := word(value)) is not None:
        near = difflib.get_close_matches(name, names, 1, SIMILAR)
        known = f"they are {', '.join(names[:MAX_LISTED])}"
        if near:
            known = f"the nearest is {near[0]!r}"
        raise MismatchError(
            f"its {feature!r} is {format_value(name)}, and no class has that name; {known}"
        )
    number = whole_number(value)
    if number is None:
        raise MismatchError(
            f"its {feature!r} is {format_value(value)}: a class is a whole number of 0 to "
            f"{classes - 1}{fix(value)}"
        )
    if not 0 <= number < classes:
        without = (
            "; a split without labels often has -1: name another split" if number == -1 else ""
        )
        raise MismatchError(
            f"its {feature!r} is {reprlib.repr(number)}, and --data.classes {classes} means 0 to "
            f"{classes - 1}: give more classes, or number them from 0{without}"
        )
    return np.int32(number)


def word(label: Any) -> str | None:
    """A label that is a word; None for a number, even as text, and for anything else."""
    text = text_of(label)
    return None if text is None or whole_number(text) is not None else text


def text_of(label: Any) -> str | None:
    """A label that is text, even digits; None for anything else, and for empty text."""
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if isinstance(label, np.ndarray | np.generic) and label.size == 1 and label.dtype.kind in "SU":
        label = label.item()
    try:
        text = label.decode() if isinstance(label, bytes) else label
    except UnicodeDecodeError:
        return None
    return text if isinstance(text, str) and text.strip() else None


def whole_number(value: Any) -> int | None:
    """A label that is a whole number; None for anything else.

    It may be an integer, a bool, a float without a fraction, decimal digits, or an array or list of
    one of them.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1 or value.dtype.kind not in "biufSU":  # dates would become numbers
            return None
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | decimal.Decimal):
        return int(value) if np.isfinite(float(value)) and value == int(value) else None
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return (
        int(text)
        if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 10
        else None
    )


def fix(label: Any) -> str:
    """What to do about a label that is no whole number."""
    if isinstance(label, str | bytes) or getattr(getattr(label, "dtype", None), "kind", "") in (
        "S",
        "U",
    ):
        return ", and this is a word: name the classes with --data.class-names"
    if np.size(label) > 1:
        return (
            ", and this is not one number: of a one-hot row it is the index of the 1 (numpy.argmax)"
        )
    if isinstance(label, float | np.floating):
        return "; where numbers are to be learned, not classes, use Columns with classes None"
    return ""


def numbers(record: Record, name: str, option: str = "") -> np.ndarray:
    """A field as float32 [...]; raises ValueError if it is missing or not of finite numbers."""
    value = array(present(record, name, option), name)
    if value.dtype.kind == "U" and not value.ndim:
        text = reprlib.repr(value.item())
        raise MismatchError(f"its {name!r} is text, {text}, and not of numbers: {instead(option)}")
    if value.dtype.kind not in "biuf":
        raise MismatchError(f"its {name!r} is {kind(value)}, and not of numbers")
    return finite(value, name)


def instead(option: str) -> str:
    """What to do about text where numbers are needed.

    option: the experiment's field that names the text.
    """
    number = "number it first (0, 1, ...)"
    if option == "--data.inputs":
        return f"{number}, or leave it out of {option}"
    if option == "--data.targets":
        return f"{number}, or give the number of different ones as --data.classes"
    return number


def finite(value: np.ndarray, name: str) -> np.ndarray:
    """Numbers [...] as float32; raises ValueError if one is not finite or too large for it."""
    with np.errstate(over="ignore"):
        found = value.astype(np.float32)
    good = np.isfinite(found)
    if not good.all():
        bad = value.ravel()[np.flatnonzero(~good)[0]]
        where = f" (number {np.flatnonzero(~good)[0]})" if value.ndim else ""
        why = (
            "has a number that is not finite"
            if not np.isfinite(bad)
            else "has a number beyond float32"
        )
        raise ValueError(f"its {name!r} {why}: {bad}{where}")
    return found


def array(value: Any, name: str) -> np.ndarray:
    """A value as an array; raises if it is none, such as a list of rows of unequal lengths."""
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise MismatchError(f"its {name!r} is no array: {error}") from error


def kind(value: np.ndarray) -> str:
    """The dtype of an array, or the type of the Python object it holds."""
    return (
        type(value.item()).__name__
        if value.dtype == object and value.size == 1
        else str(value.dtype)
    )


def as_bytes(record: Record, name: str, option: str = "--data.feature") -> bytes:
    """A text field as UTF-8; raises ValueError if it is missing or no text."""
    value = present(record, name, option)
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "SU":
        value = value.item()
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise MismatchError(f"its {name!r} is {format_value(value)}, and no text")
    return value


def format_value(value: Any) -> str:
    """A value for a message, shortened."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, np.ndarray | np.generic):
        return f"{reprlib.repr(value.item())} ({value.dtype})"
    return reprlib.repr(value)


def cast(value: Any, dtype: Any, name: str) -> np.ndarray:
    """An example's field in the dtype of its data set.

    It raises if that would change a number by more than the rounding of floats.
    """
    found = np.asarray(value)
    if found.dtype == dtype:
        return found
    with np.errstate(all="ignore"):
        new = found.astype(dtype) if found.dtype.kind in "biuf" else None
        same = new is not None and (
            (new == found).all()
            if new.dtype.kind in "biu"
            else np.isfinite(new[np.isfinite(found)]).all()
        )
    if new is None or not same:
        extent = f" from {found.min()} to {found.max()}" if new is not None and found.size else ""
        raise MismatchError(
            f"its {name} is {kind(found)}{extent}, and {np.dtype(dtype)} cannot hold that"
        )
    return new
