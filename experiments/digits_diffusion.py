"""A small diffusion Transformer that draws handwritten digits, by rectified flow.

    jaxbig train digits_convnet && jaxbig train digits_diffusion

Not measured yet. What it has to beat: `python benchmarks/baselines.py --only samples`, by the same
`frechet` and `recognized`.
"""

from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.digits import Digits
from jaxbig.distributed.mesh import Mesh
from jaxbig.evaluators.samples import Samples
from jaxbig.models.dit import DiT
from jaxbig.objectives.diffusion import Diffusion
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Digits(batch=64)
    return Experiment(
        model=DiT(classes=data.classes, patch=2, depth=4, width=96, heads=4),
        objective=Diffusion(sample_steps=20, guidance=1.1, eta=1.0),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=2e-3, warmup=100), weight_decay=0.01, clip_norm=1.0
        ),
        ema=0.99,
        mesh=Mesh(data=-1),
        steps=2_000,
        evaluate_every=500,
        checkpoint_every=500,
        evaluators=(Every(1_000, Samples(classifier="runs/digits_convnet")),),
    )
