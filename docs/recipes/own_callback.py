"""A callback of your own: the norm of the parameters, noted every few steps."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class NoteNorms(jb.Callback):
    """Writes a line of JSON for the first step, and for each multiple of `every`."""

    file: str = "norms.jsonl"
    """Where to."""
    every: int = 10
    """Steps between two lines."""

    def after_step(self, step: int, metrics: Mapping[str, Any], state: Any) -> None:
        if step == 1 or step % self.every == 0:
            norm = float(optax.global_norm(state.params))
            with Path(self.file).open("a") as lines:
                lines.write(json.dumps({"step": step, "norm": norm}) + "\n")


def config() -> jb.Experiment:
    return jb.load("digits_convnet").replace(callbacks=(NoteNorms(),), steps=100)


def main() -> None:
    jb.fit(config(), "runs/noted")
    print(Path("norms.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    main()
