"""GPT-2 (Radford et al., 2019)."""

from typing import Any

from jaxbig.models.language_model import Decoder
from jaxbig.pretrained.family import Config, Family, field_values, in_blocks
from jaxbig.pretrained.weight_table import Row

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
BLOCK = (
    Row("attention_norm/scale", "ln_1.weight"),
    Row("attention_norm/bias", "ln_1.bias"),
    Row("attention/query/kernel", "attn.c_attn.weight", "d (0 h k) -> d h k"),
    Row("attention/key_value/kernel", "attn.c_attn.weight", "d (1 h k) -> d 0 h k"),
    Row("attention/key_value/kernel", "attn.c_attn.weight", "d (2 h k) -> d 1 h k"),
    Row("attention/query/bias", "attn.c_attn.bias", "(0 h k) -> h k"),
    Row("attention/key_value/bias", "attn.c_attn.bias", "(1 h k) -> 0 h k"),
    Row("attention/key_value/bias", "attn.c_attn.bias", "(2 h k) -> 1 h k"),
    Row("attention/out/kernel", "attn.c_proj.weight", "(h k) d -> h k d"),
    Row("attention/out/bias", "attn.c_proj.bias"),
    Row("mlp_norm/scale", "ln_2.weight"),
    Row("mlp_norm/bias", "ln_2.bias"),
    Row("up/kernel", "mlp.c_fc.weight"),
    Row("up/bias", "mlp.c_fc.bias"),
    Row("down/kernel", "mlp.c_proj.weight"),
    Row("down/bias", "mlp.c_proj.bias"),
)


class GPT2(Family):
    """GPT-2: its kernels are stored inputs first, as ours are."""

    model_type = "gpt2"
    module = Decoder
    same = {
        "vocab": "vocab_size",
        "depth": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "max_length": "n_positions",
        "epsilon": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
    }
    words = {"activation": ("activation_function", ACTIVATIONS)}
    ours = {"norm": "layer", "bias": True, "positions": "learned"}
    theirs = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    defaults = {
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "activation_function": "gelu_new",
    }
    prefix = "transformer."
    ignored = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
    heads = ("head/embedding",)
    tied = {"lm_head.weight": "transformer.wte.weight"}

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        return {**fields, "mlp_width": config.get("n_inner") or 4 * fields["width"]}

    def config(self, model: Any) -> Config:
        return {**super().config(model), "n_inner": field_values(model)["mlp_width"]}

    def architecture(self, model: Any) -> str:
        return "GPT2LMHeadModel"

    def rows(self, model: Any) -> list[Row]:
        return [
            Row("tokens/embedding", "transformer.wte.weight"),
            Row("positions/embedding", "transformer.wpe.weight"),
            *in_blocks("blocks", "transformer.h.*", BLOCK),
            Row("blocks/norm/scale", "transformer.ln_f.weight"),
            Row("blocks/norm/bias", "transformer.ln_f.bias"),
            Row("head/embedding", "lm_head.weight"),
        ]
