"""Tic-tac-toe by self-play and search.

    jaxbig train tictactoe_alphazero

MEASURE Needs `pip install 'jaxbig[rl]'`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.episodes import Episodes
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.mlp import MLP
from jaxbig.objectives.alphazero import AlphaZero
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    return Experiment(
        model=MLP(widths=(256, 256), outputs=10),
        objective=AlphaZero(
            environment="tic_tac_toe",
            simulations=32,
            samples=32,
            explore=0.5,
            opponents=("random", "minimax", "every_line"),
        ),
        data=Episodes(batch=32, eval_examples=1_890, test_examples=0),
        optimizer=Adam(learning_rate=WarmupCosine(peak=2e-3, warmup=100), clip_norm=1.0),
        mesh=Mesh(data=-1),
        ema=0.99,
        steps=3_000,
        evaluate_every=1_500,
        checkpoint_every=1_500,
    )
