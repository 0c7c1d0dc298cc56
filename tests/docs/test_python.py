"""The notebook and the first snippet of docs/python.md run as they are written."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.compiling import HASTY
from support.experiments import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def first_lines() -> list[str]:
    """The lines of code of the first snippet."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert found is not None
    return [line for line in found[1].splitlines() if line]


def test_twelve_lines_train_plot_apply_and_restore() -> None:
    lines = first_lines()
    assert len(lines) <= 12
    for call in ("load(", "steps=100", "fit(", "plot(", "apply(", "restore("):
        assert any(call in line for line in lines), call


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs the cells in a process of their own; all that they show."""
    environment = {**HASTY, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


@pytest.mark.slow
def test_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # in less time
        cell.source = cell.source.replace("steps=100, ", "**{'data.batch': 32}, steps=100, ")
    lines = "\n".join(first_lines()).replace("runs/", "lines/").replace("100", "30")  # in less time
    notebook.cells.append(nbformat.v4.new_code_cell(lines))
    shown = execute(notebook, tmp_path, monkeypatch)
    texts = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in shown]
    for steps in (100, 30):  # the bar
        assert sum(f"step {steps}/{steps}  loss" in text for text in texts) == 1
    assert any(
        text.startswith("Run('runs/a', step 150 of 150, eval/accuracy 0.9") for text in texts
    )
    pictures = [each for each in shown if "image/png" in each.get("data", {})]
    assert len(pictures) == 4  # a batch, curves, digits, the curve of the twelve lines
    assert (tmp_path / "lines" / "c" / "checkpoints" / "30").is_dir()
    warned = "".join(each.text for each in shown if each.get("name") == "stderr").splitlines()
    # a machine with much to do may wait for data
    assert [line for line in warned if line and "the devices waited for data" not in line] == []
