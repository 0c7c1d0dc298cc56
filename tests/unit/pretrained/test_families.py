"""Families of language models: configs as published give models as large as published."""

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxbig.errors import Refused
from jaxbig.models.language_model import Decoder, EncoderDecoder
from jaxbig.models.layers.rotary_scaling import LinearScaling, Llama3Scaling
from jaxbig.pretrained.find_family import family_of_model, find_family
from jaxbig.pretrained.load import check_values
from jaxbig.pretrained.weight_table import Table

LLAMA31 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
GEMMA2 = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
T5 = {
    "model_type": "t5",
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "num_heads": 8,
    "num_layers": 6,
    "vocab_size": 32128,
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
PUBLISHED = {
    "Llama 3.1 8B": (LLAMA31, 8_030_261_248),
    "Llama 2 7B": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "rope_scaling": None,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "Mistral 7B": (MISTRAL, 7_241_732_096),
    "Mixtral 8x7B": (
        MISTRAL
        | {
            "model_type": "mixtral",
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "sliding_window": None,
        },
        46_702_792_704,
    ),
    "Qwen 2.5 0.5B": (QWEN2, 494_032_768),
    "Qwen 3 0.6B": (
        QWEN2
        | {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "sliding_window": None,
        },
        596_049_920,
    ),
    "Gemma 2 2B": (GEMMA2, 2_614_341_888),
    "T5 small": (T5, 60_506_624),
}


def model_of(config: dict[str, Any], **fields: Any) -> Any:
    family = find_family(config)
    return family.module(**family.fields(config), **fields)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    x = jnp.zeros((1, 8), jnp.int32)
    inputs = (x, x) if isinstance(model, EncoderDecoder) else (x,)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed)["params"])
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_gives_as_many_parameters_as_published(name: str) -> None:
    config, published = PUBLISHED[name]
    model = model_of(config, scan=True)
    leaves = shapes(model)
    assert sum(map(math.prod, leaves.values())) == published
    family = find_family(config)
    table = Table(family.rows(model), leaves)  # checks that each number is in it once
    assert set(table.of_leaf) == set(leaves)
    written = family.config_of(model)
    assert family.fields(written) == family.fields(config)
    assert family_of_model(model, config["model_type"]) is family


def test_fields_of_a_config_are_what_it_says() -> None:
    llama: Any = model_of(LLAMA31)
    assert llama.rotary_base == 500000.0
    assert llama.rotary_scaling == Llama3Scaling(factor=8.0)
    gemma: Any = model_of(GEMMA2)
    assert (gemma.window, gemma.window_pattern) == (4096, (True, False))
    assert (gemma.attention_scale, gemma.scale_embedding) == (1 / 16, True)
    small: Any = model_of(T5)
    assert (small.scale_logits, small.tie_embeddings, small.activation) == (True, True, "relu")
    newer: Any = model_of(T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    assert (newer.scale_logits, newer.tie_embeddings, newer.activation) == (False, False, "geglu")
    windows: Any = model_of(QWEN2 | {"use_sliding_window": True, "num_hidden_layers": 23})
    assert (windows.window, windows.window_pattern) == (32768, (False,) * 21 + (True,) * 2)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_positions_are_read_from_older_and_newer_keys(key: str) -> None:
    scaling = {"type": "linear", "factor": 4, "rope_theta": 77}
    found: Any = model_of({**LLAMA31, "rope_theta": 77, "rope_scaling": None, key: scaling})
    assert (found.rotary_base, found.rotary_scaling) == (77.0, LinearScaling(factor=4.0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            LLAMA31 | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rotary positions of type 'yarn': jaxbig has default, linear and llama3",
        ),
        (LLAMA31 | {"rope_scaling": {"rope_type": "llama3"}}, "has no factor"),
        (LLAMA31 | {"hidden_act": "relu"}, "hidden_act 'relu': .* 'silu'"),
        (GEMMA2 | {"layer_types": ["chunked_attention"] * 26}, "layer_types 'chunked_attention'"),
        (GEMMA2 | {"layer_types": ["full_attention"] * 3}, "3 layer_types and 26 layers"),
        (GEMMA2 | {"sliding_window": None}, "'sliding_attention' and no sliding_window"),
        (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (T5 | {"num_decoder_layers": 2}, "num_decoder_layers 2 and num_layers 6"),
        (T5 | {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
    ],
    ids=str,
)
def test_config_that_asks_for_more_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        find_family(config).fields(config)


@pytest.mark.parametrize("value", [None, "x", [], {}, 0, -1, 1.5], ids=repr)
@pytest.mark.parametrize("name", PUBLISHED)
def test_config_with_a_wrong_value_is_refused_in_a_sentence(name: str, value: Any) -> None:
    config = PUBLISHED[name][0]
    family = find_family(config)
    refused = 0
    for key in config.keys() - {"model_type", "architectures"}:
        try:
            check_values(Path("config.json"), family, {**config, key: value})
        except Refused as error:
            assert "config.json" in str(error)
            refused += 1
    assert refused


SMALL = {"vocab": 11, "depth": 2, "width": 16, "heads": 4, "activation": "swiglu"}


@pytest.mark.parametrize(
    ("model", "family", "words"),
    [
        (Decoder(**SMALL, attention_soft_cap=9.0), "llama", "attention_soft_cap"),
        (Decoder(**SMALL, qkv_bias=True), "llama", "qkv_bias"),
        (Decoder(**SMALL, qk_norm=True), "mistral", "qk_norm"),
        (Decoder(**SMALL), "mixtral", "experts"),
        (Decoder(**SMALL), "qwen2", "qkv_bias"),
        (Decoder(**SMALL, window=3), "llama", "window"),
        (Decoder(**SMALL, rotary_base=50.0, positions="none"), "llama", "positions"),
        (EncoderDecoder(**SMALL), "t5", "norm"),
    ],
    ids=str,
)
def test_model_of_another_family_is_refused_by_the_names_of_its_fields(
    model: Any, family: str, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        family_of_model(model, family)


def test_field_that_another_makes_unused_is_no_difference() -> None:
    config = {**GEMMA2, "sliding_window": 4}
    fields = find_family(config).fields(config)
    model = Decoder(**fields | {"window": None})
    assert find_family(config).differences(config, model) == ["window: 4 there, None here"]
