"""A Llama of 1.1 billion parameters, in the shape of TinyLlama (Zhang et al., 2024), on C4.

    jaxbig train c4_llama_1b

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
        model=parent.model.clone(depth=22, width=2048, kv_heads=4, mlp_width=5632),
        data=dataclasses.replace(parent.data, length=2048),  # type: ignore[type-var]
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-4, warmup=2_000, end=4e-5),
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )
