"""SimCLR: a ResNet-50 that learns without labels which two views are of one image of ImageNet.

    jaxbig data prepare imagenet_simclr_resnet50
    jaxbig train imagenet_simclr_resnet50

It has not been run here at full size; it needs the data. Crops, flips, colors, temperature,
projection and 100 epochs of 4,096 images as Chen et al. (2020); without blur and grayscale, with
colors changed always and not in 0.8 of the views, and with LAMB in place of LARS and a weight decay
of 1e-4 in place of 1e-6. The linear probe sees 10 of the labels of each class.
"""

from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.imagenet import NORMALIZE, imagenet
from jaxbig.data.transforms.augment import ColorJitter, Flip, ResizedCrop
from jaxbig.data.views import Views
from jaxbig.distributed.mesh import Mesh
from jaxbig.evaluators.linear_probe import LinearProbe
from jaxbig.models.dual_encoder import DualEncoder
from jaxbig.models.resnet import resnet
from jaxbig.objectives.contrastive import Contrastive
from jaxbig.optim.lamb import LAMB
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    images = imagenet(batch=4_096)
    jitter = ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    data = Views(
        records=images.records,
        batch=images.batch,
        size=images.size,
        classes=images.classes,
        canvas=images.canvas,
        augment=(ResizedCrop(), Flip(), jitter, NORMALIZE),
        center=images.center,
    )
    return Experiment(
        model=DualEncoder(
            tower=resnet(50, classes=2_048, dtype="bfloat16"),
            projection=(128,),
            temperature=0.1,
            learned_temperature=False,
        ),
        objective=Contrastive(within=True),
        data=data,
        optimizer=LAMB(
            learning_rate=WarmupCosine(peak=5e-3, warmup=3_130), weight_decay=1e-4, clip_norm=1.0
        ),
        evaluators=(Every(3_130, LinearProbe(most=10_000)),),
        mesh=Mesh(data=-1),
        steps=31_300,
        evaluate_every=3_130,
        checkpoint_every=313,
    )
