"""Mixtral 8x7B (Jiang et al., 2024), eight experts of which each token is seen by two, on C4.

    jaxbig train c4_mixtral_8x7b

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import c4_llama_7b


def config() -> Experiment:
    parent = c4_llama_7b.config()
    model = parent.model.clone(kv_heads=8, mlp_width=14_336, rotary_base=1e6)
    model = model.clone(experts=8, experts_per_token=2, mlp_chunks=4, weigh_hidden=True)
    return dataclasses.replace(parent, model=model)
