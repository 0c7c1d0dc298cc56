"""U-Net on the photographs of pets of Oxford-IIIT (Parkhi et al., 2012): what is pet, and what not.

    jaxbig train pets_unet

Pixels at the border, which the data leaves open, do not count. Full size, not run here: `jaxbig
data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.masks import Masks
from jaxbig.data.records.tfds import Tfds
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.unet import UNet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Masks(
        records=Tfds("oxford_iiit_pet", eval_split="test"),
        batch=64,
        size=256,
        classes=2,
        mask_feature="segmentation_mask",
        first=1,
        ignore=3,
        flip=True,
    )
    return Experiment(
        model=UNet(classes=data.classes, dtype="bfloat16"),
        objective=Classification(classes=data.classes, macro=True),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1e-3, warmup=200), weight_decay=0.05, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=5_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
