"""A run's parameters as arrays by path, and their export as one `.safetensors`."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from jaxbig.arrays.tree import path_name, to_host
from jaxbig.config.serialize import to_json
from jaxbig.errors import Failed
from jaxbig.system.disk import new_folder
from jaxbig.train.run import Run

Arrays = dict[str, np.ndarray]
CARRIED = "carry"
"""The collection of what a model remembers from batch to batch, which has a batch's rows."""
FILE = "parameters.safetensors"


def export_parameters(run: Run, folder: str | Path) -> dict[str, Any]:
    """Writes a run's parameters and other variables, such as `batch_stats`, as one `.safetensors`.

    A name is a path, as `params/head/kernel`; dtypes are those of the run. The file's metadata has
    the model's fields as JSON, and the step.

    Args:
      run: a run of `fit` or `restore`.
      folder: a new or empty folder for `parameters.safetensors`.

    Returns:
      `file`, `step`, and the number of `arrays`, of `parameters` and of `bytes`.

    Raises:
      Refused: the folder is not empty.
      Failed: the file cannot be written, or reads differently; nothing is left.
    """
    with new_folder(folder) as partial:
        arrays = model_arrays(run)
        model = json.dumps(to_json(run.experiment.model))
        metadata = {"step": str(run.step), "model": model}
        try:
            safetensors.numpy.save_file(arrays, partial / FILE, metadata=metadata)
        except SafetensorError as error:  # as on a full disk
            raise Failed(f"cannot write {Path(folder) / FILE}: {error}.") from None
        # the library lets the user alone read it
        (partial / FILE).chmod(partial.stat().st_mode & 0o666)
        check_arrays(safetensors.numpy.load_file(partial / FILE), arrays, partial / FILE)
    return {
        "file": str(Path(folder) / FILE),
        "step": run.step,
        "arrays": len(arrays),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "bytes": sum(array.nbytes for array in arrays.values()),
    }


def model_variables(run: Run) -> dict[str, Any]:
    """What the model is called with: `params` and its other collections, by name."""
    return {name: each for name, each in run.variables.items() if name != CARRIED}


def model_arrays(run: Run) -> Arrays:
    """The leaves of `model_variables` on the host by path, in the order of the tree.

    Every process of a run must call this.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(model_variables(run))
    return {path_name(path): np.asarray(to_host(leaf), order="C") for path, leaf in leaves}


def check_arrays(read: Arrays, written: Arrays, file: Path) -> None:
    """Raises `Failed` unless what was read has the bits of what was written."""
    if set(read) != set(written):
        raise Failed(f"{file.name} has {len(read)} arrays after writing {len(written)}.")
    for path, array in written.items():
        same = read[path].dtype == array.dtype and read[path].shape == array.shape
        if not same or read[path].tobytes() != array.tobytes():
            raise Failed(f"{file.name} reads differently from what was written, at {path}.")
