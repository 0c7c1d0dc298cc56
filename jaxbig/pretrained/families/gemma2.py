"""Gemma 2 (Gemma Team, 2024): soft caps, every other layer with a window, four norms a block."""

from typing import Any

from jaxbig.errors import Refused
from jaxbig.pretrained.families.llama import ACTIVATIONS, ATTENTION, MLP, Llama
from jaxbig.pretrained.families.qwen2 import FULL, SLIDING, window_config, window_fields
from jaxbig.pretrained.family import Config, field_values
from jaxbig.pretrained.weight_table import Row

NORMS = (
    Row("attention_norm/scale", "input_layernorm.weight"),
    Row("attention_out_norm/scale", "post_attention_layernorm.weight"),
    Row("mlp_norm/scale", "pre_feedforward_layernorm.weight"),
    Row("mlp_out_norm/scale", "post_feedforward_layernorm.weight"),
)


class Gemma2(Llama):
    """Gemma 2 of text."""

    model_type = "gemma2"
    same = {
        **{name: key for name, key in Llama.same.items() if name != "mlp_bias"},
        "attention_soft_cap": "attn_logit_softcapping",
        "logit_soft_cap": "final_logit_softcapping",
    }
    words = {"activation": ("hidden_activation", ACTIVATIONS)}
    ours = {
        "norm": "rms_plus_one",
        "sandwich_norm": True,
        "scale_embedding": True,
        "mlp_bias": False,
    }
    defaults = {
        **Llama.defaults,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    block = (*ATTENTION, *NORMS, *MLP)

    def fields(self, config: Config) -> dict[str, Any]:
        config = {**self.defaults, **config}
        fields = super().fields(config)
        if config.get("use_bidirectional_attention"):
            raise Refused("config.json has use_bidirectional_attention: a Decoder is causal.")
        types = config.get("layer_types") or [
            FULL if layer % 2 else SLIDING for layer in range(fields["depth"])
        ]
        return {
            **fields,
            "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
            **window_fields(types, config["sliding_window"], fields["depth"]),
        }

    def config(self, model: Any) -> Config:
        return {
            **super().config(model),
            "query_pre_attn_scalar": round(field_values(model)["attention_scale"] ** -2),
            **window_config(model),
        }

    def architecture(self, model: Any) -> str:
        return "Gemma2ForCausalLM"
