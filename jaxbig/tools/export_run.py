"""Writes the weights of a run for other programs."""

import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxbig.arrays.tree import to_host
from jaxbig.config.options import refuse_url
from jaxbig.errors import Failed, Refused
from jaxbig.pretrained.family import Config, Family
from jaxbig.pretrained.find_family import family_of_model, find_family
from jaxbig.pretrained.load import load, open_pretrained, table_name
from jaxbig.pretrained.side_files import CONFIG, FOLDER, copy_side_files
from jaxbig.pretrained.weight_files import SHARD_BYTES, read_object, write_tensors
from jaxbig.pretrained.weight_table import Slot, Table
from jaxbig.system.disk import replace
from jaxbig.tools.import_run import emptied, refuse_used
from jaxbig.train.pretrained_state import weights_of
from jaxbig.train.run import Run, restore

Format = Literal["huggingface"]


def export(
    run: Run | str | Path,
    folder: str | Path,
    *,
    format: Format = "huggingface",
    family: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the weights of a run to a folder, for other programs.

    The folder is read again and compared with the run, number by number, before it has its name.

    Args:
      run: a run, or the folder of one, whose last checkpoint is taken.
      folder: a new folder; it is complete, or not there.
      format: huggingface: config.json and safetensors, as transformers reads them.
      family: of huggingface, the `model_type`; empty: that of the folder that the run was imported
        from, or the first that has such a model.
      shard_bytes: the most bytes of tensors in a file, but for a larger tensor.

    Returns:
      The folder.

    Raises:
      Refused: there is such a folder, or the model is of no family.
      Failed: what was written is not what was read.
    """
    folder = Path(folder)
    refuse_url("folder", folder)
    refuse_used(folder)
    if jax.process_count() > 1:
        raise Refused("an export runs in one process: run it on one host, on the run's folder.")
    if not isinstance(run, Run):
        run = restore(run)
    partial = folder.with_name(f"{folder.name}.partial")
    original = run.directory / FOLDER
    chosen = choose_family(run, original, family)
    emptied(partial)
    copy_side_files(original, partial, leave_out=(CONFIG,))
    write_huggingface(run, partial, chosen, shard_bytes=shard_bytes)
    compare(run, partial)
    replace(partial, folder)
    return folder


def choose_family(run: Run, original: Path, name: str) -> Family:
    """The family as which a run's model is written.

    Args:
      run: the run.
      original: where it keeps the config.json that it was imported with, if it was.
      name: what is asked for.
    """
    model = run.experiment.model
    if not name and (original / CONFIG).exists():
        return family_of_model(model, find_family(read_object(original / CONFIG)).model_type)
    return family_of_model(model, name)


def write_huggingface(run: Run, folder: Path, family: Family, *, shard_bytes: int) -> None:
    """Writes config.json and the weights."""
    model = run.experiment.model
    config: Config = {}
    if (run.directory / FOLDER / CONFIG).exists():
        config = read_object(run.directory / FOLDER / CONFIG)
    config |= family.config(model) | {"dtype": "float32"}
    config.pop("torch_dtype", None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    leaves = {table_name(path): leaf for path, leaf in weights_of(run.state).items()}
    table = Table(family.rows(model), {name: leaf.shape for name, leaf in leaves.items()})
    if missing := [name for name in leaves if name not in table.of_leaf]:
        raise Refused(f"{family.model_type} has no tensor for {', '.join(missing)}.")

    def part(name: str, slot: Slot) -> np.ndarray:
        return to_host(leaves[name][slot])

    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in table.shapes.items()}
    write_tensors(folder, shapes, lambda name: table.make(name, part), shard_bytes=shard_bytes)


def compare(run: Run, folder: Path) -> None:
    """Reads an exported folder again; raises `Failed` if it is not the run's weights."""
    source = open_pretrained(folder)
    leaves = weights_of(run.state)
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for path, leaf in leaves.items()
    }
    problems = source.differences(run.experiment.model)
    loaded: dict[str, Any] = load(source, run.experiment.model, abstract).leaves
    problems += [
        path
        for path, leaf in leaves.items()
        if path not in loaded or not same_bits(to_host(leaf), to_host(loaded[path]))
    ]
    if problems:
        raise Failed(f"{folder} was read again and is not what was written: {problems[0]}.")


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same bytes, also where they are not numbers."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()
