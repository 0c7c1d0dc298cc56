"""ConvNeXt-T on ImageNet, in 300 epochs.

    tfds build imagenet2012 --file_format=array_record
    jaxbig train imagenet_convnext_t

It has not been run here at full size; it needs the data. Batch, rate, warm-up of 20 epochs, weight decay, drop path
and label smoothing of Liu et al. (2022); without their mixup, cutmix, RandAugment, random erasing and averaging.
"""

from jaxbig.data.tfds import Images
from jaxbig.experiment import Experiment
from jaxbig.mesh import Mesh
from jaxbig.models.convnext import ConvNeXt
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Images(name="imagenet2012", batch=4096, size=224, classes=1000, eval_split="validation")
    return Experiment(
        model=ConvNeXt(classes=data.classes, drop_path=0.1, dtype="bfloat16"),
        objective=Classification(classes=data.classes, smoothing=0.1),
        data=data,
        optimizer=AdamW(rate=WarmupCosine(peak=4e-3, warmup=6_240, end=1e-6), weight_decay=0.05),
        mesh=Mesh(data=-1),
        steps=93_600,
        evaluate_every=936,
        checkpoint_every=936,
    )
