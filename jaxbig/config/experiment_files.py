"""The experiment files by name and their first lines, read without importing them or JAX."""

import ast
import os
from pathlib import Path


def available() -> dict[str, Path]:
    """The experiment files by name: those in ./experiments, then those that come with jaxbig."""
    folders = [Path.cwd() / "experiments", Path(__file__).parents[1] / "experiments"]
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.py"))
        if file.stem != "__init__"
    ]
    return {file.stem: file for file in reversed(files)}


def run_folder(name: str) -> Path | None:
    """The run's folder that stands for an experiment, as `runs/x`; None for a file or a name."""
    if name in available() or name.endswith(".py"):
        return None
    return Path(name) if os.sep in name or Path(name).is_dir() else None


def command_for(folder: Path) -> str:
    """How to train the run of a folder that bears an experiment's name, in brackets; else empty."""
    return f" (`jaxbig train {folder.name}`)" if folder.name in available() else ""


def summary(file: Path) -> str:
    """The first line of an experiment file's docstring, without running it."""
    try:
        return (ast.get_docstring(ast.parse(file.read_bytes())) or "").split("\n")[0]
    except (SyntaxError, ValueError) as error:
        return f"cannot be read: line {getattr(error, 'lineno', None) or '?'}: {error}"
