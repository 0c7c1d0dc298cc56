"""ViT-S/16, pre-trained on ImageNet-21k, fine-tuned on ImageNet-1k, as Steiner et al. (2022).

    jaxbig data prepare imagenet_vit_s16_finetune
    jaxbig train imagenet_vit_s16_finetune

It starts from the folder `vit_small_patch16_224.augreg_in21k` as timm has it, with `config.json`
and `model.safetensors`; `--initialize-from.huggingface` names another, of timm or transformers.
Full size, not run here; `--smoke` tries it without data and folder.
"""

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.builtin.imagenet import imagenet
from jaxbig.data.transforms.augment import Normalize
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.vit import ViT
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    # pixels in [-1, 1], as in pre-training
    data = imagenet(batch=512, normalize=Normalize(mean=(0.5,), std=(0.5,)))
    return Experiment(
        model=ViT(classes=data.classes, pooling="token", positions="learned", dtype="bfloat16"),
        objective=Classification(classes=data.classes),
        data=data,
        initialize_from=InitializeFrom(huggingface="vit_small_patch16_224.augreg_in21k"),
        optimizer=SGD(
            learning_rate=WarmupCosine(peak=0.03, warmup=500), momentum=0.9, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=20_000,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
