"""`--verify`: the logits of an imported run against those of transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.inference.verify import verify

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.slow
def test_largest_difference_is_small_for_the_same_weights_alone(tmp_path: Path) -> None:
    fields = {"vocab_size": 256, "n_positions": 32, "n_embd": 12, "n_layer": 1, "n_head": 3}
    config: Any = transformers.GPT2Config(**fields, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "folder")
    run = jb.import_pretrained(
        tmp_path / "folder", tmp_path / "run", small("pytext_transformer"), take_fields=True
    )
    assert verify(run, tmp_path / "folder") < 1e-4
    doubled = run.state.replace(params=jax.tree.map(lambda x: 2 * x, run.state.params))
    run = dataclasses.replace(run, state=doubled)
    assert verify(run, tmp_path / "folder") > 1e-2
