"""Llama (Touvron et al., 2023), 2, 3, 3.1 and later of text; and what its relatives share."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxbig.errors import Refused
from jaxbig.models.language_model import Decoder
from jaxbig.models.layers.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling
from jaxbig.pretrained.family import Config, Family, field_values, get, in_blocks
from jaxbig.pretrained.weight_table import Row

ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
LLAMA3 = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}
"""Our field of `Llama3Scaling`, and its key."""
ATTENTION = (
    Row("attention/query/kernel", "self_attn.q_proj.weight", "(h k) d -> d h k"),
    Row("attention/query/bias", "self_attn.q_proj.bias", "(h k) -> h k"),
    Row("attention/key_value/kernel", "self_attn.k_proj.weight", "(h k) d -> d 0 h k"),
    Row("attention/key_value/bias", "self_attn.k_proj.bias", "(h k) -> 0 h k"),
    Row("attention/key_value/kernel", "self_attn.v_proj.weight", "(h k) d -> d 1 h k"),
    Row("attention/key_value/bias", "self_attn.v_proj.bias", "(h k) -> 1 h k"),
    Row("attention/query_norm/scale", "self_attn.q_norm.weight"),
    Row("attention/key_norm/scale", "self_attn.k_norm.weight"),
    Row("attention/out/kernel", "self_attn.o_proj.weight", "d (h k) -> h k d"),
    Row("attention/out/bias", "self_attn.o_proj.bias"),
)
NORMS = (
    Row("attention_norm/scale", "input_layernorm.weight"),
    Row("mlp_norm/scale", "post_attention_layernorm.weight"),
)
MLP = (
    Row("gate/kernel", "mlp.gate_proj.weight", "f d -> d f"),
    Row("gate/bias", "mlp.gate_proj.bias"),
    Row("up/kernel", "mlp.up_proj.weight", "f d -> d f"),
    Row("up/bias", "mlp.up_proj.bias"),
    Row("down/kernel", "mlp.down_proj.weight", "d f -> f d"),
    Row("down/bias", "mlp.down_proj.bias"),
)


class Llama(Family):
    """Llama, and the base class of those that differ from it in a few fields."""

    model_type = "llama"
    module = Decoder
    same = {
        "vocab": "vocab_size",
        "depth": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "mlp_width": "intermediate_size",
        "epsilon": "rms_norm_eps",
        "max_length": "max_position_embeddings",
        "tie_embeddings": "tie_word_embeddings",
        "bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    }
    words: ClassVar[Mapping[str, Any]] = {"activation": ("hidden_act", ACTIVATIONS)}
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    prefix = "model."
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    heads = ("head/embedding",)
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    block: ClassVar[Sequence[Row]] = (*ATTENTION, *NORMS, *MLP)
    """The rows of one block."""

    def fields(self, config: Config) -> dict[str, Any]:
        if config.get("num_key_value_heads") is None:
            config = {**config, "num_key_value_heads": get(config, "num_attention_heads")}
        fields = super().fields(config)
        head_width = config.get("head_dim") or fields["width"] // fields["heads"]
        return {**fields, "head_width": head_width, **rotary_fields(config)}

    def config(self, model: Any) -> Config:
        return {
            **super().config(model),
            "head_dim": field_values(model)["head_width"],
            **rotary_config(model.rotary_base, model.rotary_scaling),
        }

    def architecture(self, model: Any) -> str:
        return "LlamaForCausalLM"

    def rows(self, model: Any) -> list[Row]:
        return [
            Row("tokens/embedding", "model.embed_tokens.weight"),
            *in_blocks("blocks", "model.layers.*", self.block),
            Row("blocks/norm/scale", "model.norm.weight"),
            Row("head/embedding", "lm_head.weight"),
        ]


def rotary_fields(config: Config) -> dict[str, Any]:
    """Our fields of rotary positions; raises `Refused` for a scaling that we do not have."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    base = float(found.get("rope_theta", config.get("rope_theta", 10_000.0)))
    if kind == "default":
        return {"rotary_base": base, "rotary_scaling": RotaryScaling()}
    if kind == "linear":
        scaling: RotaryScaling = LinearScaling(factor=float(get(found, "factor")))
    elif kind == "llama3":
        given = {name: get(found, key) for name, key in LLAMA3.items()}
        length = given.pop("original_length")
        factors = {name: float(value) for name, value in given.items()}
        scaling = Llama3Scaling(**factors, original_length=length)
    else:
        raise Refused(
            f"config.json has rotary positions of type {kind!r}: jaxbig has default, linear and "
            f"llama3."
        )
    return {"rotary_base": base, "rotary_scaling": scaling}


def rotary_config(base: float, scaling: RotaryScaling) -> Config:
    """The keys of rotary positions, as the newest transformers and as those before read them."""
    if isinstance(scaling, LinearScaling):
        found: Config = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        found = {
            "rope_type": "llama3",
            **{key: getattr(scaling, name) for name, key in LLAMA3.items()},
        }
    else:
        found = {"rope_type": "default"}
    return {
        "rope_parameters": {"rope_theta": base, **found},
        "rope_theta": base,
        "rope_scaling": None if found["rope_type"] == "default" else found,
    }
