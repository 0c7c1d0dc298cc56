"""ViT-S/16 on ImageNet-1k, 90 epochs, as Beyer et al. (2022).

    jaxbig train imagenet_vit_s16

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.imagenet import imagenet
from jaxbig.data.transforms.augment import Mixup
from jaxbig.data.transforms.randaugment import RandAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.vit import ViT
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = imagenet(
        batch=1024, more=(RandAugment(layers=2, magnitude=10),), mix=(Mixup(alpha=0.2),)
    )
    return Experiment(
        model=ViT(classes=data.classes, pooling="average", positions="sincos", dtype="bfloat16"),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1e-3, warmup=10_000), weight_decay=0.1, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=112_600,
        evaluate_every=1_251,
        checkpoint_every=1_251,
    )
