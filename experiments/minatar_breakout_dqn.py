"""Q-learning of MinAtar's Breakout with a small conv net (Young and Tian, 2019).

    jaxbig train minatar_breakout_dqn --mesh.data 8
    jaxbig train minatar_breakout_dqn --smoke     # 20 steps of a shrunken copy

It has not been trained in full. The network, the replay of 100,000 steps and the share of random
actions are the paper's. 32 actors play at once where the paper has one, so that its 5,000,000 steps
are 156,250 of these, and the target network is copied each 1,024 steps, not 1,000; Adam takes the
place of RMSProp. gymnax's game repeats no action at random, and ends after 1,000 steps. Needs `pip
install 'jaxbig[rl]'`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.episodes import Episodes
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.convnet import Conv, ConvNet, Dense
from jaxbig.objectives.q_learning import QLearning
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import Constant


def config() -> Experiment:
    return Experiment(
        model=ConvNet(layers=(Conv(16, padding="valid"), Dense(128)), classes=3),
        objective=QLearning(
            environment="Breakout-MinAtar",
            double=False,
            capacity=3_125,
            samples=32,
            copy_every=32,
            explore_end=0.1,
            explore_steps=3_125,
        ),
        data=Episodes(batch=32),
        optimizer=Adam(learning_rate=Constant(2.5e-4)),
        mesh=Mesh(data=-1),
        steps=156_250,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
