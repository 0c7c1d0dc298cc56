"""Qwen 3 (Yang et al., 2025): Llama with normalized queries and keys."""

from typing import Any

from jaxbig.pretrained.families.llama import Llama
from jaxbig.pretrained.families.qwen2 import Qwen2


class Qwen3(Qwen2):
    """Qwen 3, without its mixtures of experts."""

    model_type = "qwen3"
    same = {**Qwen2.same, "bias": "attention_bias"}
    ours = {"qk_norm": True, "mlp_bias": False}
    defaults = {**Llama.defaults, "head_dim": 128}

    def architecture(self, model: Any) -> str:
        return "Qwen3ForCausalLM"
