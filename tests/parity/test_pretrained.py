"""Pretrained weights in and out: the same logits as transformers, and the same bits again.

A family is one entry of `MODELS`, or several: configs with odd sizes, with and without what it may
lack. transformers makes random weights of each.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from support.pretrained import read, save, untie

from jaxbig.inference.export import write_weights
from jaxbig.models.language_model import EncoderDecoder
from jaxbig.pretrained.load import Loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GPT2 = {"vocab_size": 37, "n_positions": 19, "n_embd": 12, "n_layer": 2, "n_head": 3}
BERT = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "max_position_embeddings": 19,
}
LLAMA = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
GROUPED = LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6}
GEMMA = GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 7}
T5 = {"vocab_size": 37, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
QUICK = ("gpt2, untied", "roberta, classes", "gemma2", "t5 1.1, untied")
"""The models that the fast tests have."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model of transformers."""

    config: str
    """The class of its config."""
    model: str
    """Its own class."""
    fields: Mapping[str, Any]
    """Of the config."""


MODELS = {
    "gpt2": Reference("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2, untied": Reference(
        "GPT2Config",
        "GPT2LMHeadModel",
        GPT2 | {"tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu"},
    ),
    "bert": Reference("BertConfig", "BertForMaskedLM", BERT),
    "bert, untied": Reference(
        "BertConfig", "BertForMaskedLM", BERT | {"tie_word_embeddings": False}
    ),
    "bert, classes": Reference(
        "BertConfig", "BertForSequenceClassification", BERT | {"num_labels": 5}
    ),
    "roberta": Reference("RobertaConfig", "RobertaForMaskedLM", BERT | {"type_vocab_size": 1}),
    "roberta, untied": Reference(
        "RobertaConfig", "RobertaForMaskedLM", BERT | {"tie_word_embeddings": False}
    ),
    "roberta, classes": Reference(
        "RobertaConfig", "RobertaForSequenceClassification", BERT | {"num_labels": 3}
    ),
    "llama": Reference("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama 3.1, tied, biases": Reference(
        "LlamaConfig",
        "LlamaForCausalLM",
        GROUPED
        | {
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama, linear, biases of attention": Reference(
        "LlamaConfig",
        "LlamaForCausalLM",
        LLAMA
        | {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 99.0, "factor": 4.0},
            "attention_bias": True,
        },
    ),
    "mistral": Reference("MistralConfig", "MistralForCausalLM", GROUPED | {"sliding_window": 4}),
    "mistral, no window": Reference(
        "MistralConfig",
        "MistralForCausalLM",
        LLAMA | {"sliding_window": None, "tie_word_embeddings": True},
    ),
    "mixtral": Reference("MixtralConfig", "MixtralForCausalLM", GROUPED | {"num_local_experts": 3}),
    "qwen2": Reference("Qwen2Config", "Qwen2ForCausalLM", LLAMA),
    "qwen2, windows, tied": Reference(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        LLAMA
        | {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": Reference("Qwen3Config", "Qwen3ForCausalLM", GROUPED),
    "qwen3, biases, tied": Reference(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        GROUPED | {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "gemma2": Reference(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2, untied, biases": Reference(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        GEMMA
        | {"attention_bias": True, "tie_word_embeddings": False, "final_logit_softcapping": None},
    ),
    "t5": Reference("T5Config", "T5ForConditionalGeneration", T5),
    "t5 1.1, untied": Reference(
        "T5Config",
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}


def make(reference: Reference, folder: Path) -> Any:
    """Random weights of a model, in a folder; no bias is 0 and no scale 1."""
    config = getattr(transformers, reference.config)(**reference.fields)
    torch.manual_seed(0)
    model = getattr(transformers, reference.model)(config).eval()
    if reference.fields.get("tie_word_embeddings") is False:
        untie(model)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape) * 0.3)
    save(model, folder, tied=reference.fields.get("tie_word_embeddings"))
    return model


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 37, (2, 15))  # none of padding


def inputs(model: Any) -> list[np.ndarray]:
    """Tokens, and for an encoder-decoder those of its target too."""
    pairs = [tokens(), tokens()[:, ::-2].copy()]
    return pairs if isinstance(model, EncoderDecoder) else pairs[:1]


def theirs(model: Any) -> np.ndarray:
    more = {}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = torch.tensor(tokens()[:, ::-2].copy())
    with torch.no_grad():
        return model(torch.tensor(tokens()), **more).logits.numpy()


def ours(model: Any, loaded: Loaded) -> np.ndarray:
    variables = unflatten_dict(loaded.leaves, sep="/")
    return np.asarray(jax.jit(model.apply)(variables, *inputs(model)))


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_imported_weights_give_their_logits_and_are_exported_to_the_same(
    name: str, tmp_path: Path
) -> None:
    reference = make(MODELS[name], tmp_path / "theirs")
    expected = theirs(reference)
    assert np.abs(expected).max() > 0.5
    for scan in (False, True):
        source, model, loaded = read(tmp_path / "theirs", scan=scan)
        assert loaded.fresh == ()
        np.testing.assert_allclose(ours(model, loaded), expected, rtol=0, atol=1e-4)
        folder = tmp_path / f"ours-{scan}"
        folder.mkdir()
        write_weights(model, loaded.leaves, folder, source.family, config={})
        again = type(reference).from_pretrained(folder).eval()
        np.testing.assert_allclose(theirs(again), expected, rtol=0, atol=1e-4)
        _, same, back = read(folder, scan=scan)
        assert same == model and back.left_out == () == back.fresh
        for path, leaf in loaded.leaves.items():
            np.testing.assert_array_equal(leaf, back.leaves[path])
