"""AlexNet on ImageNet, in 90 epochs.

    jaxbig data prepare imagenet_alexnet
    jaxbig train imagenet_alexnet

It has not been run here at full size; it needs the data. Batch, momentum, weight decay and peak
rate of Krizhevsky et al. (2012), with half a cosine in place of three drops, and Inception's crops
in place of theirs; without their noise of colors.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.imagenet import imagenet
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.alexnet import AlexNet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = imagenet(batch=128, size=227)
    return Experiment(
        model=AlexNet(classes=data.classes, dtype="bfloat16"),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=SGD(learning_rate=WarmupCosine(peak=0.01, warmup=10_000), momentum=0.9, l2=5e-4),
        mesh=Mesh(data=-1),
        steps=900_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
