"""Runs the model in this folder, `model.stablehlo`. It needs jax alone.

    from predict import load

    model = load()             # or load("DIR") from elsewhere
    outputs = model(inputs)    # or model(inputs=..., lengths=...); any number of examples

`model.json` has the names, shapes and dtypes of inputs and outputs. `python predict.py` computes
the example in `example.npz` again, and prints the largest difference from the outputs there.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import core, export

FOLDER = Path(__file__).resolve().parent


def load(folder: str | Path = FOLDER) -> Callable[..., Any]:
    """The model in a folder: a function of the fields `inputs` of its `model.json`.

    Its outputs are an array, or several by name.
    """
    described = json.loads((Path(folder) / "model.json").read_text())
    module = (Path(folder) / "model.stablehlo").read_bytes()
    with np.load(Path(folder) / "parameters.npz") as arrays:
        parameters = jax.device_put(dict(arrays))
    call = jax.jit(as_exported(described, module).call)

    def model(inputs: Any, **others: Any) -> Any:
        fields = {"inputs": inputs, **others}
        if set(fields) != set(described["inputs"]):
            raise ValueError(f"give {', '.join(described['inputs'])}, not {', '.join(fields)}")
        outputs = call(parameters, fields)
        return outputs["outputs"] if list(outputs) == ["outputs"] else outputs

    return model


def as_exported(described: dict[str, Any], module: bytes) -> export.Exported:
    """The module as `jax.export` has it; `Exported.deserialize` would need another package."""
    scope = export.SymbolicScope()  # of the batch's size, one number in all shapes

    def arrays(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name: core.ShapedArray(
                export.symbolic_shape(field["shape"], scope=scope), np.dtype(field["dtype"])
            )
            for name, field in fields.items()
        }

    given = (arrays(described["parameters"]), arrays(described["inputs"]))
    in_avals, in_tree = jax.tree.flatten((given, {}))
    out_avals, out_tree = jax.tree.flatten(arrays(described["outputs"]))
    values = {
        "fun_name": "model",
        "in_tree": in_tree,
        "in_avals": tuple(in_avals),
        "out_tree": out_tree,
        "out_avals": tuple(out_avals),
        "_has_named_shardings": True,
        "_in_named_shardings": (None,) * len(in_avals),
        "_out_named_shardings": (None,) * len(out_avals),
        "in_shardings_hlo": (None,) * len(in_avals),
        "out_shardings_hlo": (None,) * len(out_avals),
        "nr_devices": 1,
        "platforms": tuple(described["platforms"]),
        "ordered_effects": (),
        "unordered_effects": (),
        "disabled_safety_checks": (),
        "mlir_module_serialized": module,
        "calling_convention_version": described["calling_convention_version"],
        "module_kept_var_idx": tuple(described["arguments"]),
        "uses_global_constants": True,
    }
    # fields differ a little between versions of jax
    names = [field.name for field in dataclasses.fields(export.Exported)]
    make: Any = export.Exported
    return make(**{name: values.get(name) for name in names})


def largest_difference(folder: str | Path = FOLDER) -> float:
    """The largest difference of the model's outputs from those of its `example.npz`."""
    with np.load(Path(folder) / "example.npz") as arrays:
        example = dict(arrays)
    fields = {name[7:]: field for name, field in example.items() if name.startswith("inputs/")}
    outputs = load(folder)(**fields)
    outputs = outputs if isinstance(outputs, dict) else {"outputs": outputs}
    differences = [
        np.max(np.abs(np.float64(np.ravel(output)[: len(expected)]) - expected))
        for name, output in outputs.items()
        for expected in [example[f"outputs/{name}"]]
    ]
    return float(np.max(differences))


if __name__ == "__main__":
    print(f"largest difference from the outputs in example.npz: {largest_difference():.3g}")
