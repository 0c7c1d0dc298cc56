"""Mistral (Jiang et al., 2023): Llama with a window."""

from typing import Any

from jaxbig.pretrained.families.llama import Llama


class Mistral(Llama):
    """Mistral; its newer models have no window."""

    model_type = "mistral"
    same = {
        **{name: key for name, key in Llama.same.items() if "bias" not in name},
        "window": "sliding_window",
    }
    defaults = {**Llama.defaults, "sliding_window": None}

    def architecture(self, model: Any) -> str:
        return "MistralForCausalLM"
