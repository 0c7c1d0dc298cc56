"""Writes a run's model as StableHLO, in a folder that jax alone can run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.data.core.dataset import Data, Rows
from jaxbig.distributed.logical_axes import ROWS as SPLIT
from jaxbig.distributed.sharding import device_put_batch, local_rows, replicated
from jaxbig.errors import Failed, Refused
from jaxbig.inference import stablehlo_loader
from jaxbig.inference.parameter_files import Arrays, check_arrays, model_arrays, model_variables
from jaxbig.program.program import make_forward
from jaxbig.program.state import TrainState
from jaxbig.system.disk import new_folder
from jaxbig.system.json_files import to_json_text
from jaxbig.train.apply import DEFAULTS, check_model
from jaxbig.train.run import Run

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FULL = ("lengths", "sizes")
"""Fields of an example that are set to the inputs' length, in positions or pixels."""
LARGEST_EXAMPLE = 100_000
"""The most numbers of an output that `example.npz` has, the first ones."""
ROWS = "batch"
"""The name of the number of examples in shapes."""
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""The largest difference from the run's outputs, as a share of the largest of these, by the
model's dtype. Another compilation rounds sums in another order."""
README = """# {name} at step {step}

A trained model as StableHLO, with its parameters. `pip install jax` is enough to run it:

```python
from predict import load

model = load()
outputs = model({call})
```

Inputs, where `{rows}` is any number of examples:

{fields}

They are as the data set reads them from its files; what it does with a batch on the device, such as
a normalization, is part of the model.

Outputs:

{results}

`model.json` has this for programs. `python predict.py` computes an example again, to compare.
Written with jax {jax}, for {where}.
"""


def export_stablehlo(run: Run, folder: str | Path) -> dict[str, Any]:
    """Writes a run's model, as an evaluation calls it, as StableHLO with its parameters.

    The number of examples is free. The data's `transform` is part of the model; the fields of a
    batch that an example need not give, such as its mask, are not.

    Args:
      run: a run of `fit` or `restore`.
      folder: a new or empty folder for `model.stablehlo`, `parameters.npz`, `model.json`,
        `example.npz`, `predict.py` and `README.md`.

    Returns:
      `folder`, `step`, `inputs` and `outputs` as text, `platforms`, and `largest_difference`: that
      of the written model's outputs from the run's, on the example.

    Raises:
      Refused: the folder is not empty, or the model cannot be called on a batch of any size.
      Failed: the written model computes something else; nothing is left.
    """
    check_model(run.experiment.model)
    with new_folder(folder) as partial:
        model = make_model(run)
        arrays = {path: as_stored(array) for path, array in model_arrays(run).items()}
        exported = traced(run, model, arrays)
        rows, outputs = run_outputs(run, model, count=2)
        described = describe(run, exported, arrays)
        example = {f"inputs/{name}": field for name, field in rows.items()}
        for name, field in outputs.items():
            example[f"outputs/{name}"] = as_stored(field).ravel()[:LARGEST_EXAMPLE]
        save_npz(partial / "parameters.npz", arrays)
        save_npz(partial / "example.npz", example)
        (partial / "model.stablehlo").write_bytes(exported.mlir_module_serialized)
        (partial / "model.json").write_text(to_json_text(described, indent=1) + "\n")
        (partial / "predict.py").write_bytes(Path(stablehlo_loader.__file__).read_bytes())
        (partial / "README.md").write_text(readme(described))
        with np.load(partial / "parameters.npz") as read:
            check_arrays(dict(read), arrays, partial / "parameters.npz")
        difference = stablehlo_loader.largest_difference(partial)
        check_difference(difference, outputs, getattr(run.experiment.model, "dtype", "float32"))
    return {
        "folder": str(folder),
        "step": run.step,
        "inputs": texts(described["inputs"]),
        "outputs": texts(described["outputs"]),
        "platforms": ", ".join(PLATFORMS),
        "largest_difference": difference,
    }


def save_npz(file: Path, arrays: Arrays) -> None:
    """Writes arrays by path as `.npz`, which `numpy.load` reads."""
    named: Any = arrays
    np.savez(file, **named)


def given_fields(data: Data) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a batch that the written model takes, as the data's `spec` has them."""
    return {name: each for name, each in data.spec().items() if name not in DEFAULTS}


def make_model(run: Run) -> Callable[[Any, Any], dict[str, Any]]:
    """Returns `(variables, fields) -> outputs by path`: the forward function of a run.

    The kernel of attention is the plain one, which every platform has.
    """
    experiment = run.experiment
    model: Any = experiment.model
    if hasattr(model, "attention_kernel"):
        model = model.clone(attention_kernel="plain")
    forward = make_forward(experiment.replace(model=model))
    # a model with a memory starts from zeros where it gets no `starts`
    defaults = {
        name: each
        for name, each in experiment.data.spec().items()
        if name in DEFAULTS and name != "starts"
    }

    def model_of_fields(variables: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        count = fields["inputs"].shape[0]
        batch = dict(fields)
        for name, each in defaults.items():
            batch[name] = jnp.full((count, *each.shape[1:]), DEFAULTS[name], each.dtype)
        others = dict(variables)
        params = others.pop("params")
        state = TrainState(step=None, params=params, variables=others, opt_state=None)
        outputs = forward(state, batch)
        return {"outputs": outputs} if is_leaf(outputs) else flatten_with_paths(outputs)

    return model_of_fields


def is_leaf(value: Any) -> bool:
    """Whether this is an array and no tree of arrays."""
    return jax.tree.structure(value) == jax.tree.structure(0)


def as_stored(array: np.ndarray) -> np.ndarray:
    """An array that numpy alone can read: bfloat16 becomes float32, which has all its numbers."""
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def traced(run: Run, model: Callable[[Any, Any], Any], arrays: Arrays) -> export.Exported:
    """The model as a function of `arrays` by path, and of the fields of any number of examples.

    Raises:
      Refused: it cannot be called on a batch of any size.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(model_variables(run))
    dtypes = {path_name(path): leaf.dtype for path, leaf in leaves}

    def from_paths(arrays: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        cast = [arrays[path].astype(dtype) for path, dtype in dtypes.items()]
        return model(jax.tree.unflatten(structure, cast), fields)

    [rows] = export.symbolic_shape(ROWS)
    fields = {
        name: jax.ShapeDtypeStruct((rows, *each.shape[1:]), each.dtype)
        for name, each in given_fields(run.experiment.data).items()
    }
    try:
        return export.export(jax.jit(from_paths), platforms=PLATFORMS)(arrays, fields)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Refused(
            f"{type(run.experiment.model).__name__} cannot be exported for any number of examples "
            f"({reason}): in its code, use x.shape[0] instead of len(x), and no number computed "
            f"from the size of the batch as a Python int."
        ) from error


def sample(data: Data, count: int) -> Rows:
    """An example to compare outputs on: random images, tokens or numbers, full lengths."""
    spec = given_fields(data)
    random = np.random.default_rng(0)
    length = spec["inputs"].shape[1] if len(spec["inputs"].shape) > 1 else 1
    rows = {}
    for name, each in spec.items():
        shape = (count, *each.shape[1:])
        if np.issubdtype(each.dtype, np.floating):
            rows[name] = random.normal(size=shape).astype(each.dtype)
        elif each.dtype == np.uint8:
            rows[name] = random.integers(0, 256, shape, np.uint8)
        elif name == "inputs":
            rows[name] = random.integers(0, getattr(data, "vocab", 2), shape, each.dtype)
        else:
            rows[name] = np.full(shape, length if name in FULL else 1, each.dtype)
    return rows


def run_outputs(run: Run, model: Callable[[Any, Any], Any], count: int) -> tuple[Rows, Rows]:
    """An example for each device that splits rows, times `count`, and the model's outputs on the
    run's mesh."""
    mesh = run.program.mesh
    rows = sample(run.experiment.data, count * math.prod(mesh.shape[axis] for axis in SPLIT))
    mine = local_rows(mesh, len(rows["inputs"]))
    with run.program.activate():
        fields = device_put_batch({name: field[mine] for name, field in rows.items()}, mesh)
        call = jax.jit(model, out_shardings=replicated(mesh))
        outputs = jax.device_get(call(model_variables(run), fields))
    return rows, outputs


def describe(run: Run, exported: export.Exported, arrays: Arrays) -> dict[str, Any]:
    """What `model.json` has."""
    data = run.experiment.data
    (arguments, fields), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "name": run.directory.name,
        "step": run.step,
        "inputs": shapes(fields),
        "outputs": shapes(outputs),
        "classes": list(getattr(data, "names", ())),
        "parameters": shapes(arguments),
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "arguments": list(exported.module_kept_var_idx),
    }


def shapes(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays in JSON, as {"inputs": {"shape": "batch, 8, 8, 1", "dtype": "float32"}}."""
    return {
        name: {"shape": ", ".join(map(str, each.shape)), "dtype": str(each.dtype)}
        for name, each in arrays.items()
    }


def texts(fields: dict[str, Any]) -> dict[str, str]:
    """Arrays of `shapes` as {"inputs": "float32 [batch, 8, 8, 1]"}."""
    return {name: f"{each['dtype']} [{each['shape']}]" for name, each in fields.items()}


def readme(described: dict[str, Any]) -> str:
    """The text of `README.md`."""

    def listed(fields: dict[str, Any]) -> str:
        return "\n".join(f"- `{name}`: {text}" for name, text in texts(fields).items())

    names = list(described["inputs"])
    call = "inputs" if names == ["inputs"] else ", ".join(f"{name}={name}" for name in names)
    return README.format(
        **described,
        call=call,
        rows=ROWS,
        fields=listed(described["inputs"]),
        results=listed(described["outputs"]),
        where=", ".join(described["platforms"]),
    )


def check_difference(difference: float, outputs: Rows, dtype: str) -> None:
    """Raises `Failed` where the written model's outputs are not the run's."""
    size = max(float(np.max(np.abs(np.float64(each)))) for each in outputs.values())
    if not difference <= TOLERANCE.get(dtype, TOLERANCE["float32"]) * max(size, 1e-6):
        raise Failed(
            f"the written model's outputs differ from the run's by up to {difference:.3g}, where "
            f"the largest is {size:.3g}: nothing was exported."
        )
