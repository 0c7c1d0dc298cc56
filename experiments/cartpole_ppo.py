"""PPO that balances a pole on a cart.

jaxbig train cartpole_ppo
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.episodes import Episodes
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.mlp import MLP
from jaxbig.objectives.ppo import PPO
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    return Experiment(
        model=MLP(widths=(64, 64), outputs=3, activation="tanh"),
        objective=PPO(environment="CartPole-v1", value_weight=0.05),
        data=Episodes(batch=16),
        optimizer=Adam(learning_rate=WarmupCosine(peak=2e-3, warmup=100), clip_norm=0.5),
        mesh=Mesh(data=-1),
        steps=4_000,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
