"""`jb.export`: writes a run's model for other programs; the format of Hugging Face."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import numpy as np

from jaxbig.adapt.weights import adapts
from jaxbig.arrays.tree import to_host
from jaxbig.config.options import refuse_url
from jaxbig.distributed.multihost import refuse_several
from jaxbig.errors import Failed, Refused
from jaxbig.inference.parameter_files import export_parameters
from jaxbig.inference.stablehlo import export_stablehlo
from jaxbig.pretrained.family import Config, Family, class_names
from jaxbig.pretrained.find_family import family_of_model, find_family
from jaxbig.pretrained.load import load, open_pretrained, table_name
from jaxbig.pretrained.preprocessing import write_preprocessing
from jaxbig.pretrained.side_files import CONFIG, FOLDER, copy_side_files
from jaxbig.pretrained.vocabulary import FILE as TOKENIZER
from jaxbig.pretrained.weight_files import SHARD_BYTES, read_object, write_tensors
from jaxbig.pretrained.weight_table import Slot, Table
from jaxbig.system.disk import new_folder
from jaxbig.train.pretrained_state import weights_of
from jaxbig.train.run import Run, restore

Format = Literal["huggingface", "safetensors", "stablehlo"]


def export(
    run: Run | str | Path,
    folder: str | Path,
    *,
    format: Format = "huggingface",
    family: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes a run's model to a folder, for other programs.

    What is written is read again and compared with the run before the folder has its name.

    Args:
      run: a run, or the folder of one, whose last checkpoint is taken.
      folder: a new or empty folder; it is complete, or not there.
      format: huggingface: config.json and safetensors, as transformers reads them; safetensors:
        parameters by path; stablehlo: a program that needs jax alone.
      family: of huggingface, the `model_type`; empty: that of the folder that the run was imported
        from, or the first that has such a model.
      shard_bytes: of huggingface, the most bytes of tensors in a file, but for a larger tensor.

    Returns:
      What was written: `step`, and more that depends on the format.

    Raises:
      Refused: there is such a folder, or the model is of no family.
      Failed: what was written is not what was read, or a file cannot be written.
    """
    refuse_several("an export")
    refuse_url("folder", Path(folder))
    if format not in get_args(Format):
        raise Refused(f"format {format!r}: it must be one of {', '.join(get_args(Format))}.")
    if not isinstance(run, Run):
        run = restored(run)
    if format == "stablehlo":
        return export_stablehlo(run, folder)
    if format == "safetensors":
        return export_parameters(run, folder)
    return export_huggingface(run, folder, family=family, shard_bytes=shard_bytes)


def restored(folder: str | Path, **given: Any) -> Run:
    """A run with what an export needs: of the optimizer's state only master weights, if it has any.

    Args:
      folder: the run's.
      **given: as for `restore`.
    """
    run = restore(folder, **given, for_training=False)
    if run.experiment.precision.parameters != "bfloat16_master":
        return run
    return restore(folder, **given)


def export_huggingface(
    run: Run, folder: str | Path, *, family: str, shard_bytes: int
) -> dict[str, Any]:
    """Writes config.json, weights and tokenizer; arguments as of `export`."""
    original = run.directory / FOLDER
    chosen = choose_family(run, original, family)
    with new_folder(folder) as partial:
        copy_side_files(original, partial, leave_out=(CONFIG,))
        copy_tokenizer(run, partial)
        file = original / CONFIG
        config = read_object(file) if file.exists() else {}
        leaves = exported_weights(run)
        model = run.experiment.model
        data = run.experiment.data
        write_weights(
            model, leaves, partial, chosen, config=config, data=data, shard_bytes=shard_bytes
        )
        compare(run, partial)
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    return {"folder": str(folder), "family": chosen.model_type, "step": run.step, "files": files}


def exported_weights(run: Run) -> dict[str, jax.Array]:
    """The weights of a run by their path in a state, as an evaluation uses them.

    Averages are in place of parameters, and adapters merged; else master weights are taken.
    """
    if not adapts(run.experiment):
        return weights_of(run.state)
    variables = dict(run.variables)
    return weights_of({"params": variables.pop("params"), "variables": variables})


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


def copy_tokenizer(run: Run, folder: Path) -> None:
    """Adds the tokenizer that a run's data has learned or read, where no other came along."""
    kept = run.directory / TOKENIZER
    if (folder / TOKENIZER).exists() or not kept.exists():
        return
    shutil.copyfile(kept, folder / TOKENIZER)
    tokenizer: Any = getattr(run.experiment.data, "tokenizer", None)
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    roles = {"end": "eos_token", "start": "bos_token", "pad": "pad_token", "mask": "mask_token"}
    found = {key: tokenizer.special(role) for role, key in roles.items()}
    described = {key: names[number] for key, number in found.items() if number is not None}
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


def write_weights(
    model: nn.Module,
    leaves: Mapping[str, jax.Array],
    folder: Path,
    family: Family,
    *,
    config: Config,
    data: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights of a model.

    Args:
      model: of the family.
      leaves: its parameters and batch statistics, by their path in a state.
      folder: where to.
      family: as which it is written.
      config: keys that are kept where the model does not tell them.
      data: whose preparation of images and names of classes are written too; None: of none.
      shard_bytes: the most bytes of tensors in a file, but for a larger tensor.
    """
    named = {table_name(path): leaf for path, leaf in leaves.items()}
    shapes_here = {name: leaf.shape for name, leaf in named.items()}
    added = family.complete(family.config_of(model), shapes_here)
    config = {**config, **added, **named_classes(added, config, data), "dtype": "float32"}
    config.pop("torch_dtype", None)
    if family.image_processor is not None:
        config = write_preprocessing(folder, config, family.image_processor, data=data)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    table = Table(family.rows(model), shapes_here)
    if missing := [name for name in named if name not in table.of_leaf]:
        raise Refused(f"{family.model_type} has no tensor for {', '.join(missing)}.")

    def part(name: str, slot: Slot) -> np.ndarray:
        return to_host(named[name][slot])

    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in table.shapes.items()}
    write_tensors(folder, shapes, lambda name: table.make(name, part), shard_bytes=shard_bytes)


def named_classes(added: Config, before: Config, data: Any) -> Config:
    """The keys of a config that name its classes, as the data or the config before has them.

    Args:
      added: the config of a model, which may have numbered them.
      before: that of the folder that the run was imported from.
      data: of the run, or None.
    """
    own = list(getattr(data, "names", ()))
    if own and len(own) == added.get("num_classes"):  # of timm
        return {"label_names": own}
    if "id2label" not in added:
        return {}
    labels = before.get("id2label", {})
    numbers = sorted(labels, key=int)  # a file may have them in the order of their text
    for names in (own, [labels[number] for number in numbers]):
        if len(names) == len(added["id2label"]):
            return class_names(names)
    return {}


def compare(run: Run, folder: Path) -> None:
    """Reads an exported folder again; raises `Failed` if it is not the run's weights."""
    source = open_pretrained(folder)
    leaves = exported_weights(run)
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
