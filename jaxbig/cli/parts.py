"""`jaxbig parts`: lists what an experiment can be made of, and the fields of a class."""

import dataclasses
from collections.abc import Sequence

import tyro

from jaxbig.cli.command import Command
from jaxbig.config.parts import describe_part, list_parts

WIDEST = 20
"""Characters of a default in the table; `--json` has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(Command):
    """The models, objectives, data, optimizers, ... that an experiment can be made of."""

    name: tyro.conf.Positional[str] = ""
    """A class, as AdamW, to see its fields; all are listed if it is not given."""

    @classmethod
    def completions(cls, arguments: Sequence[str]) -> list[str]:
        return [*super().completions(arguments), *(row["class"] for row in list_parts())]

    def __call__(self) -> int:
        if self.name:
            part = describe_part(self.name)
            title = f"{part['text']}\n\nfrom {part['module']} import {part['class']}\n"
            rows = [{**field, "default": _short(field["default"])} for field in part["fields"]]
            tables = [(title, rows or [{"field": "none"}])]
            if part["methods"]:
                tables.append(("\nto write in a class that derives from it", part["methods"]))
            return self.emit(part, *tables)
        found = list_parts()
        rooms = dict.fromkeys(row["room"] for row in found)
        tables = [
            (
                f"\n{room}",
                [
                    {"class": row["class"], "summary": row["summary"]}
                    for row in found
                    if row["room"] == room
                ],
            )
            for room in rooms
        ]
        return self.emit({"parts": found}, *tables)


def _short(default: object) -> object:
    if isinstance(default, str) and len(default) > WIDEST:
        return f"{default[: WIDEST - 3]}..."
    return default
