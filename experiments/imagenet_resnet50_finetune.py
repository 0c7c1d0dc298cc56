"""ResNet-50 of ImageNet at 224 pixels, fine-tuned for larger images (Touvron et al., 2019).

    jaxbig data prepare imagenet_resnet50_finetune
    jaxbig train imagenet_resnet50_finetune

It starts from the folder `resnet-50` as transformers has it, with `config.json` and
`model.safetensors`; `--initialize-from.huggingface` names another, of transformers or timm.
Training sees the crops of evaluation, so that objects have the size that they have there. Full
size, not run here; `--smoke` tries it without data and folder.
"""

import dataclasses

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.builtin.imagenet import NORMALIZE, imagenet
from jaxbig.data.transforms.augment import CentralCrop, Flip
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.resnet import resnet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = imagenet(batch=512, size=288)
    data = dataclasses.replace(data, augment=(CentralCrop(), Flip(), NORMALIZE))
    return Experiment(
        model=resnet(50, classes=data.classes, dtype="bfloat16"),
        objective=Classification(classes=data.classes, smoothing=0.1),
        data=data,
        initialize_from=InitializeFrom(huggingface="resnet-50"),
        optimizer=SGD(
            learning_rate=WarmupCosine(peak=0.01, warmup=500), momentum=0.9, nesterov=True, l2=1e-4
        ),
        mesh=Mesh(data=-1),
        steps=25_000,
        evaluate_every=2_500,
        checkpoint_every=2_500,
    )
