"""Commands on a trained run run in one process, and say so before they read anything."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

import jaxbig as jb
from jaxbig.cli import main

LINES = (
    "predict nowhere --text a",
    "generate nowhere --prompt a",
    "import nowhere --into pytext_transformer",
    "export digits_convnet nowhere --workdir nothing",
    "average nowhere",
)
CALLS: dict[str, Callable[[], Any]] = {
    "predict": lambda: jb.predict("nowhere", ["a"]),
    "generate": lambda: jb.generate("nowhere", "a"),
    "an import": lambda: jb.import_pretrained("nowhere", "run"),
    "an export": lambda: jb.export("nowhere", "folder"),
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_command_refuses_to_be_one_of_several(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    word = line.split()[0]
    with pytest.raises(jb.Refused, match=f"{word} runs in one process, and SLURM_STEP_.* of 4: "):
        main.run(line.split())


@pytest.mark.parametrize("name", CALLS)
def test_call_refuses_to_be_in_one_of_several(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(jb.Refused, match=f"{name} runs in one process"):
        CALLS[name]()


@pytest.mark.parametrize("line", ["import nowhere", "export digits_convnet nowhere"])
def test_options_of_several_processes_are_none_of_a_command_in_one(line: str) -> None:
    with pytest.raises(jb.Refused, match="no option --coordinator"):
        main.run([*line.split(), "--coordinator", "localhost:1"])
