"""The first state of a run with pretrained weights of a folder as Hugging Face has them."""

import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from jaxbig.adapt.other_run import AVERAGES, FROZEN_PARAMETERS
from jaxbig.adapt.weights import MASTERS
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data
from jaxbig.data.tokenize.tokenizers import BytePairs, Bytes
from jaxbig.errors import Refused
from jaxbig.pretrained.load import PARAMETERS, VARIABLES, Pretrained, choose, load, table_name
from jaxbig.pretrained.preprocessing import preprocessing_differences
from jaxbig.pretrained.vocabulary import FILE as TOKENIZER
from jaxbig.pretrained.vocabulary import first_difference, read_tokenizer, vocabulary
from jaxbig.program.program import Program
from jaxbig.program.state import TrainState

log = logging.getLogger("jaxbig")


def pretrained_state(
    program: Program, source: Pretrained, *, pattern: str = ".*"
) -> tuple[TrainState, list[str]]:
    """A state before the first step with the weights of a folder; logs which it does not have.

    Args:
      program: of the run.
      source: the folder, of a model with the same fields.
      pattern: regular expression for the paths of the parameters that are taken.

    Returns:
      The state; and the names of parameters, and batch statistics, that begin fresh.

    Raises:
      Refused: a tensor is missing, left over, or of another shape.
    """
    leaves = weights_of(program.plain)
    loaded = load(source, program.experiment.model, leaves, pattern=pattern)
    variables = flatten_with_paths({"variables": program.abstract.variables})
    given: dict[str, Any] = {}
    left: dict[str, Any] = {}  # what no folder has, as what a model carries from batch to batch
    for path, leaf in {**variables, **weights_of(program.abstract)}.items():
        name = re.sub(f"^({FROZEN_PARAMETERS}|{AVERAGES})", PARAMETERS, path)
        if name not in loaded.leaves:
            left[path] = leaf
        elif path.startswith(AVERAGES):  # a step may use the memory of both
            given[path] = jnp.copy(loaded.leaves[name])
        else:
            given[path] = loaded.leaves[name]
    tree = unflatten_dict({**given, **draw(program, left)}, sep="/")
    log.info("%s of %s leaves are those of %s", len(loaded.leaves), len(leaves), source.folder)
    fresh = [table_name(path) for path in loaded.fresh]
    if fresh:
        log.info("fresh, as the folder does not have them: %s", ", ".join(fresh))
    data = program.experiment.data
    for line in preprocessing_differences(source.folder, source.config, data):
        log.warning("images are prepared otherwise than for %s: %s", source.folder, line)
    if loaded.left_out:
        log.info("left out, as the model does not have them: %s", ", ".join(loaded.left_out))
    return program.begin(tree["params"], tree.get("variables", {})), fresh


def missing_weights(program: Program, source: Pretrained, *, pattern: str = ".*") -> list[str]:
    """The names that `pretrained_state` would return; raises as it does, and reads no weight."""
    leaves = weights_of(program.plain)
    chosen = choose(source, program.experiment.model, leaves, pattern=pattern)
    return [table_name(path) for path in leaves if path not in chosen.found]


def weights_of(state: Any) -> dict[str, Any]:
    """The parameters and batch statistics of a state, or of its shapes, by path; float32.

    Of parameters with float32 master weights these are taken.
    """
    leaves = flatten_with_paths(state)
    found = {}
    for path, leaf in leaves.items():
        if path.startswith(PARAMETERS):
            found[path] = leaves.get(MASTERS + path.removeprefix(PARAMETERS), leaf)
        elif path.startswith((f"{VARIABLES}batch_stats/", FROZEN_PARAMETERS)):
            found[path] = leaf
    return {path: in_float32(leaf) for path, leaf in found.items()}


def in_float32(leaf: Any) -> Any:
    """An array, or its shape, in float32 if it is in half precision."""
    if leaf.dtype != jnp.bfloat16:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
    return leaf.astype(jnp.float32)


def draw(program: Program, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Some leaves of a first state as they are without pretrained weights.

    Args:
      program: of the run.
      leaves: their shapes and shardings, by path. Only these are computed.
    """
    if not leaves:
        return {}

    def some() -> dict[str, jax.Array]:
        state = program.init()
        found = {**flatten_with_paths({"variables": state.variables}), **weights_of(state)}
        return {path: found[path] for path in leaves}

    return jax.jit(some, out_shardings={path: leaf.sharding for path, leaf in leaves.items()})()


def refuse_misfit(source: Pretrained, experiment: Experiment, *, heads: bool = True) -> None:
    """Raises `Refused` if a folder's model or its tokens are not the experiment's.

    Args:
      source: the folder.
      experiment: with data that is prepared.
      heads: whether the heads of the models are compared too.
    """
    refuse_differences(source, experiment.model, heads=heads)
    refuse_other_tokens(source, experiment.data)


def refuse_differences(
    source: Pretrained, model: Any, *, heads: bool = True, how: str = "give the model these fields"
) -> None:
    """Raises `Refused` if the folder's model is another; the message names every difference.

    Args:
      source: the folder.
      model: ours.
      heads: whether the heads of the models are compared too.
      how: the first thing that the message proposes.
    """
    lines = source.differences(model, heads=heads)
    if lines:
        raise Refused(
            f"{source.folder} has another model ({'; '.join(lines)}): {how}, or name another "
            f"folder."
        )


def refuse_other_tokens(source: Pretrained, data: Data) -> None:
    """Raises `Refused` if the folder has a tokenizer.json, and the data another vocabulary."""
    file = source.folder / TOKENIZER
    tokenizer = getattr(data, "tokenizer", None)
    if not file.exists() or not isinstance(tokenizer, BytePairs | Bytes):
        return
    there = vocabulary(read_tokenizer(file.read_bytes(), file))
    here = {}
    if isinstance(tokenizer, BytePairs):
        here = vocabulary(read_tokenizer(tokenizer.data, Path(tokenizer.file)))
    if difference := first_difference(there, here):
        raise Refused(
            f"{file} has {len(there):,} tokens, and {type(data).__name__} has others, "
            f"{tokenizer.vocab:,} of {type(tokenizer).__name__} ({difference}): the model knows "
            f"its own alone; take data with a tokenizer, and give it this file."
        )
