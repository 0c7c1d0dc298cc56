"""Llama 2 70B (Touvron et al., 2023), with grouped queries, on C4.

    jaxbig train c4_llama_70b

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import c4_llama_7b
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    parent = c4_llama_7b.config()
    return dataclasses.replace(
        parent,
        model=parent.model.clone(
            depth=80,
            width=8192,
            heads=64,
            kv_heads=8,
            mlp_width=28_672,
            mlp_chunks=2,
            splash_fused=True,
        ),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1.5e-4, warmup=2_000, end=1.5e-5),
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )
