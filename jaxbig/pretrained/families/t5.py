"""T5 (Raffel et al., 2020), 1.0 and 1.1."""

from collections.abc import Sequence
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.language_model import EncoderDecoder
from jaxbig.pretrained.family import FREE, Config, Family, in_blocks
from jaxbig.pretrained.weight_table import Row

ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


def attention(ours: str, theirs: str) -> list[Row]:
    """The rows of one attention layer."""
    return [
        Row(f"{ours}/query/kernel", f"{theirs}.q.weight", "(h k) d -> d h k"),
        Row(f"{ours}/key_value/kernel", f"{theirs}.k.weight", "(h k) d -> d 0 h k"),
        Row(f"{ours}/key_value/kernel", f"{theirs}.v.weight", "(h k) d -> d 1 h k"),
        Row(f"{ours}/out/kernel", f"{theirs}.o.weight", "d (h k) -> h k d"),
    ]


def stack(name: str, block: Sequence[Row]) -> list[Row]:
    """The rows of the encoder or the decoder."""
    relative = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *in_blocks(name, f"{name}.block.*", block),
        Row(f"{name}/relative/table/embedding", relative),
        Row(f"{name}/norm/scale", f"{name}.final_layer_norm.weight"),
    ]


class T5(Family):
    """T5, with ReLU or a gate, and a table for its output or none."""

    model_type = "t5"
    module = EncoderDecoder
    same = {
        "vocab": "vocab_size",
        "depth": "num_layers",
        "width": "d_model",
        "heads": "num_heads",
        "head_width": "d_kv",
        "mlp_width": "d_ff",
        "epsilon": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
        "scale_logits": "scale_decoder_outputs",
    }
    words = {"activation": ("feed_forward_proj", ACTIVATIONS)}
    ours = {
        "norm": "rms",
        "pre_norm": True,
        "bias": False,
        "positions": "relative",
        "attention_scale": 1.0,
        "scale_embedding": False,
    }
    free = (*FREE, "max_length")
    theirs = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    defaults = {
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
    }
    ignored = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
    heads = ("head/embedding",)
    tied = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }

    def fields(self, config: Config) -> dict[str, Any]:
        tied = config.get("tie_word_embeddings", True)  # where nothing else says it, it scales too
        fields = super().fields({"scale_decoder_outputs": tied, **config})
        layers = config.get("num_decoder_layers")
        if layers is not None and layers != fields["depth"]:
            raise Refused(
                f"config.json has num_decoder_layers {layers} and num_layers {fields['depth']}: of "
                f"t5 jaxbig has as many of both."
            )
        return fields

    def config(self, model: Any) -> Config:
        return {
            **super().config(model),
            "num_decoder_layers": model.depth,
            "is_encoder_decoder": True,
            "decoder_start_token_id": 0,
        }

    def architecture(self, model: Any) -> str:
        return "T5ForConditionalGeneration"

    def rows(self, model: Any) -> list[Row]:
        gated = model.activation in ("geglu", "swiglu")

        def mlp(layer: int) -> list[Row]:
            name = f"layer.{layer}.DenseReluDense"
            up = "wi_1" if gated else "wi"
            return [
                Row("mlp_norm/scale", f"layer.{layer}.layer_norm.weight"),
                Row("gate/kernel", f"{name}.wi_0.weight", "f d -> d f"),
                Row("up/kernel", f"{name}.{up}.weight", "f d -> d f"),
                Row("down/kernel", f"{name}.wo.weight", "d f -> f d"),
            ]

        own = [
            *attention("attention", "layer.0.SelfAttention"),
            Row("attention_norm/scale", "layer.0.layer_norm.weight"),
        ]
        cross = [
            *attention("cross", "layer.1.EncDecAttention"),
            Row("cross_norm/scale", "layer.1.layer_norm.weight"),
        ]
        return [
            Row("tokens/embedding", "shared.weight"),
            *stack("encoder", [*own, *mlp(1)]),
            *stack("decoder", [*own, *cross, *mlp(2)]),
            Row("head/embedding", "lm_head.weight"),
        ]
