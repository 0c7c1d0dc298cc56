"""ConvNeXt-T on ImageNet, in 300 epochs.

    jaxbig data prepare imagenet_convnext_t
    jaxbig train imagenet_convnext_t

It has not been run here at full size; it needs the data. Batch, rate, warm-up of 20 epochs, weight
decay, drop path label smoothing, RandAugment, random erasing, mixup and CutMix of Liu et al.
(2022); without averaging.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.imagenet import imagenet
from jaxbig.data.transforms.augment import CutMix, Either, Erasing, Mixup
from jaxbig.data.transforms.randaugment import RandAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.convnext import ConvNeXt
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = imagenet(
        batch=4096,
        more=(RandAugment(layers=2, magnitude=9), Erasing(probability=0.25)),
        mix=(Either(first=Mixup(alpha=0.8), second=CutMix(alpha=1.0)),),
    )
    return Experiment(
        model=ConvNeXt(classes=data.classes, drop_path=0.1, dtype="bfloat16"),
        objective=Classification(classes=data.classes, smoothing=0.1),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-3, warmup=6_240, end=1e-6), weight_decay=0.05
        ),
        mesh=Mesh(data=-1),
        steps=93_600,
        evaluate_every=936,
        checkpoint_every=936,
    )
