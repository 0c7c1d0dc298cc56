"""The ImageNet-1k data set with the usual crops: random in training, central in evaluation."""

from jaxbig.data.images import Images
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.transforms.augment import (
    Augmentation,
    CentralCrop,
    Flip,
    Mixing,
    Normalize,
    ResizedCrop,
)

NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def imagenet(
    batch: int,
    size: int = 224,
    more: tuple[Augmentation, ...] = (),
    mix: tuple[Mixing, ...] = (),
    last: tuple = (),
    normalize: Normalize = NORMALIZE,
) -> Images:
    """The data set `imagenet2012` with Inception's crops (Szegedy et al., 2015) and flips.

    Evaluation takes the central 7/8 of the shorter side, as 224 of 256.

    Args:
      batch: size of the global batch.
      size: height and width of the model's input, in pixels.
      more: operations in training after the flip.
      mix: operations that mix the images of a batch in training.
      last: operations in training after the normalization.
      normalize: the normalization.
    """
    return Images(
        records=Tfds("imagenet2012", eval_split="validation"),
        batch=batch,
        size=size,
        classes=1000,
        canvas=384,
        augment=(ResizedCrop(), Flip(), *more, normalize, *last),
        center=(CentralCrop(), normalize),
        mix=mix,
    )
