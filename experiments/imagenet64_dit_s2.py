"""DiT-S/2 on ImageNet at 64x64 pixels, 400,000 steps, by rectified flow.

    jaxbig train imagenet64_dit_s2

Batch, optimizer, average and steps are those of Peebles and Xie (2023), who diffuse latents of
32x32; here the pixels themselves are noisy. Full size, not run here: `jaxbig data prepare` fetches
its data first; `--smoke` tries it without.
"""

from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment
from jaxbig.data.images import Images
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.transforms.augment import Flip
from jaxbig.distributed.mesh import Mesh
from jaxbig.evaluators.samples import Samples
from jaxbig.models.dit import DiT
from jaxbig.objectives.diffusion import Diffusion
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant


def config() -> Experiment:
    data = Images(
        records=Tfds("imagenet_resized/64x64", eval_split="validation"),
        batch=256,
        size=64,
        classes=1000,
        augment=(Flip(),),
    )
    return Experiment(
        model=DiT(classes=data.classes, dtype="bfloat16"),
        objective=Diffusion(),
        data=data,
        optimizer=AdamW(learning_rate=Constant(1e-4), weight_decay=0.0),
        ema=0.9999,
        mesh=Mesh(data=-1),
        steps=400_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
        evaluators=(Every(50_000, Samples(most=1_000)),),
    )
