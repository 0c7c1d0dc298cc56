"""Mixtral (Jiang et al., 2024): Mistral with a mixture of experts."""

from typing import Any

from jaxbig.errors import Refused
from jaxbig.pretrained.families.llama import ATTENTION, NORMS
from jaxbig.pretrained.families.mistral import Mistral
from jaxbig.pretrained.family import Config
from jaxbig.pretrained.weight_table import Row

EXPERTS = (
    Row("experts/router_kernel", "block_sparse_moe.gate.weight", "e d -> d e"),
    Row("experts/gate_kernel", "block_sparse_moe.experts.#.w1.weight", "f d -> # d f"),
    Row("experts/up_kernel", "block_sparse_moe.experts.#.w3.weight", "f d -> # d f"),
    Row("experts/down_kernel", "block_sparse_moe.experts.#.w2.weight", "d f -> # f d"),
)


class Mixtral(Mistral):
    """Mixtral; the weight of its router's loss is the experiment's own."""

    model_type = "mixtral"
    same = {
        **Mistral.same,
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
    }
    block = (*ATTENTION, *NORMS, *EXPERTS)

    def config(self, model: Any) -> Config:
        if not model.experts:
            raise Refused("it has no experts")
        return super().config(model)

    def architecture(self, model: Any) -> str:
        return "MixtralForCausalLM"
