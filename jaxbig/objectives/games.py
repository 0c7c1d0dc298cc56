"""Board games of two players, those of pgx (Koyamada et al., 2023), and simple opponents.

Letters in shape comments: A actions, T moves.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.errors import Refused
from jaxbig.objectives.reinforcement import Environment

GAMES = (
    "animal_shogi", "chess", "connect_four", "gardner_chess", "go_19x19", "go_9x9", "hex",
    "othello", "shogi", "tic_tac_toe",
)  # fmt: skip
"""Those without chance in which both see all and move in turn."""
Opponent = Literal["random", "minimax", "every_line"]


class Game(Environment):
    """A game of pgx; its methods are of one game, and values are those of the player to move.

    Attributes:
      actions: how many there are; not all are legal.
      limit: moves of a game at most; one that is longer is a draw.
      mctx: the library of searches.
    """

    def __init__(self, name: str, limit: int):
        if name not in GAMES:
            raise Refused(f"--objective.environment {name}: of pgx's games, {', '.join(GAMES)}.")
        with jax.ensure_compile_time_eval():  # imports make arrays, which no trace may keep
            try:
                import mctx  # here: extras, and slow to import
                import pgx
            except ImportError:
                raise Refused(
                    f"environment {name} needs pgx and mctx: pip install 'jaxbig[rl]'."
                ) from None
            self.game: Any = pgx.make(name)  # type: ignore[arg-type]
            self.actions = int(self.game.num_actions)
        self.mctx = mctx
        self.limit = limit

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        state = self.game.init(key)
        return upcast(state.observation), state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        """As an environment's; the reward is that of the player who moves: 1, 0 or -1."""
        after = self.game.step(state, action)
        ended = after.terminated | (after._step_count >= self.limit)
        reward = after.rewards[state.current_player]
        return upcast(after.observation), after, reward, after.terminated, ended


def minimax(game: Game, state: Any, depth: int) -> jax.Array:
    """The value of each action [A] after `depth` moves, 0 where the game is not over by then, and
    -inf of what is not legal."""

    def value(action: jax.Array) -> jax.Array:
        _, after, reward, _, ended = game.step(jax.random.key(0), state, action)
        if depth == 1:
            return reward
        return jnp.where(ended, reward, -jnp.max(minimax(game, after, depth - 1)))

    values = jax.vmap(value)(jnp.arange(game.actions))
    return jnp.where(state.legal_action_mask, values, -jnp.inf)


def opposed(
    kind: Opponent, game: Game, state: Any, depth: int, line: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An opponent's action, and what is left of its line.

    Args:
      kind: it draws from all legal actions, or from the best of minimax, or plays line `line`: the
        numbers of its actions are digits, of a base that is how many are legal.
      game: what is played.
      state: of the game.
      depth: of minimax.
      line: a scalar; lines 0, 1, ... are all that there are.
      key: a random key.
    """
    choices = state.legal_action_mask
    if kind == "every_line":
        count = jnp.sum(choices)
        return jnp.argmax(jnp.cumsum(choices) > line % count), line // count
    if kind == "minimax":
        values = minimax(game, state, depth)
        choices &= values == jnp.max(values)
    return jax.random.categorical(key, jnp.where(choices, 0, -jnp.inf)), line


def outcomes(
    rewards: jax.Array, ended: jax.Array, discount: float
) -> tuple[jax.Array, jax.Array]:
    """How games ended for the player to move, at each move [T], and whether it is known [T].

    Args:
      rewards: of the player who moved [T].
      ended: whether that was a game's last move [T]; the end of what follows the last is not known.
      discount: factor of an outcome one move earlier.
    """

    def step(later: Any, now: Any) -> tuple[Any, Any]:
        reward, end = now
        found = jnp.where(end, reward, -discount * later[0]), end | later[1]
        return found, found

    first = jnp.zeros_like(rewards[0]), jnp.zeros_like(ended[0])
    return jax.lax.scan(step, first, (rewards, ended), reverse=True)[1]
