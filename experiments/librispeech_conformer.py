"""A Conformer (M) with CTC on LibriSpeech's 960 hours of books read aloud (Panayotov et al., 2015).

    jaxbig train librispeech_conformer

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
SpecAugment as Gulati et al. (2020), section 3.1, and a kernel of 31 for their
32; targets are letters.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Transcripts
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.transforms.spec_augment import SpecAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.speech import Conformer
from jaxbig.objectives.ctc import CTC
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import WarmupInverseRoot


def config() -> Experiment:
    data = Transcripts(
        records=Tfds(
            "librispeech",
            train_split="train_clean100+train_clean360+train_other500",
            eval_split="dev_clean",
        ),
        feature="speech",
        batch=256,
        samples=35 * 16_000,
        letters=640,
        masks=SpecAugment(frequency_masks=2, time_masks=10, time_width=3_500, time_share=0.05),
    )
    return Experiment(
        model=Conformer(classes=data.classes, dtype="bfloat16"),
        objective=CTC(classes=data.classes, stride=4, beam=8, space=data.space),
        data=data,
        optimizer=Adam(
            learning_rate=WarmupInverseRoot(peak=3e-3, warmup=10_000), b2=0.98, epsilon=1e-9
        ),
        mesh=Mesh(data=-1),
        steps=100_000,
        evaluate_every=5_000,
        checkpoint_every=5_000,
    )
