"""Go, 9x9 points, by self-play and search (Silver et al., 2018; Danihelka et al., 2022).

    jaxbig train go_9x9_alphazero --mesh.data 8
    jaxbig train go_9x9_alphazero --smoke     # 20 steps of a shrunken copy

It has not been trained in full. The 32 simulations of a search and the komi of 7.5 are those of
pgx's baseline (Koyamada et al., 2023). The network has plain convolutions where AlphaZero's has
residual blocks with batch statistics, and a hidden layer over all points before both heads. A
quarter of the moves is random, as of no paper, and no position is turned or mirrored. The opponent
that looks one move ahead wins only by passing while it is ahead, so it is a weak one. Needs `pip
install 'jaxbig[rl]'`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.episodes import Episodes
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.convnet import Conv, ConvNet, Dense
from jaxbig.objectives.alphazero import AlphaZero
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    return Experiment(
        model=ConvNet(
            layers=(*(Conv(128) for _ in range(8)), Conv(8), Dense(256)),
            classes=83,
            dtype="bfloat16",
        ),
        objective=AlphaZero(
            environment="go_9x9",
            moves=162,
            simulations=32,
            play=32,
            play_every=32,
            capacity=2_048,
            samples=4,
            depth=1,
        ),
        data=Episodes(batch=1_024),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1e-3, warmup=1_000), weight_decay=1e-4, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=100_000,
        evaluate_every=5_000,
        checkpoint_every=5_000,
    )
