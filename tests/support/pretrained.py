"""Folders of transformers' models, and our models of them with their weights."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.models.language_model import EncoderDecoder
from jaxbig.pretrained.load import Loaded, Pretrained, load, open_pretrained

TOKENS = np.zeros((1, 3), np.int32)


def untie(reference: Any) -> None:
    """Gives the head a table of its own: transformers ties that of T5 whatever its config says."""
    weight = reference.get_output_embeddings().weight
    reference.get_output_embeddings().weight = type(weight)(weight.detach().clone())


def save(reference: Any, folder: Path, *, tied: bool | None) -> None:
    """Writes a model of transformers.

    tied: what config.json says of its embeddings, as folders on the web have it; None: as it is.
    """
    reference.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if tied is not None:
        config["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))


def abstract(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of a model on the first device."""
    inputs = [TOKENS, TOKENS] if isinstance(model, EncoderDecoder) else [TOKENS]
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in flatten_with_paths(nn.meta.unbox(boxed)).items()
    }


def read(folder: Path, **fields: Any) -> tuple[Pretrained, Any, Loaded]:
    """A folder, our model of it, and its leaves."""
    source = open_pretrained(folder)
    model = source.family.module(**source.fields, **fields)
    assert source.differences(model) == []
    return source, model, load(source, model, abstract(model))
