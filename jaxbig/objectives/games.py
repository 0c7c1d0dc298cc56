"""Board games of two players, those of pgx (Koyamada et al., 2023), and simple opponents.

Letters in shape comments: A actions, T moves.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import Refused
from jaxbig.objectives.reinforcement import Environment

GAMES = (
    "animal_shogi", "chess", "connect_four", "gardner_chess", "go_19x19", "go_9x9", "hex",
    "othello", "shogi", "tic_tac_toe",
)  # fmt: skip
"""Those without chance in which both see all and move in turn."""
STONES = ("connect_four", "go_19x19", "go_9x9", "othello", "tic_tac_toe")
"""Those of square fields, whose observations begin with the stones of the player to move and of the
other."""
SIDE = 32
"""Pixels of a field's side in a picture."""
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
            known = ", ".join(GAMES)
            raise Refused(f"--objective.environment {name}: it must be one of pgx's {known}.")

        def made() -> tuple[Any, int, Any]:
            import mctx  # here: extras, and slow to import
            import pgx

            game = pgx.make(name)  # type: ignore[arg-type]
            return game, int(game.num_actions), mctx

        try:  # imports make arrays: in a thread of their own, which knows no trace and no mesh
            with ThreadPoolExecutor(1) as aside:
                self.game, self.actions, self.mctx = aside.submit(made).result()
        except ImportError as error:
            raise Refused(
                f"environment {name} needs pgx and mctx ({error}): pip install 'jaxbig[rl]'."
            ) from None
        self.limit = limit

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        state = self.game.init(key)
        return state.observation, state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        """As an environment's; the reward is that of the player who moves: 1, 0 or -1."""
        after = self.game.step(state, action)
        ended = after.terminated | (after._step_count >= self.limit)
        reward = after.rewards[state.current_player]
        return after.observation, after, reward, after.terminated, ended


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


def contest(
    game: Game,
    player: Callable[[Any, jax.Array], dict[str, jax.Array]],
    opponents: Sequence[Opponent],
    depth: int,
    number: jax.Array,
    which: jax.Array,
) -> tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]:
    """A game of a player, who moves first where its number is even, against one of its opponents.

    Args:
      game: what is played.
      player: `(state, key)` -> its `action`, and what else is to be kept.
      opponents: all that there are.
      depth: of minimax.
      number: of the game, a scalar: what is random follows from it, and half of it is the line.
      which: of the opponents, a scalar.

    Returns:
      `actions` [T], of which the first `length` count, and the `result`: 1, 0 or -1; the last
      state; and what the player gave at each move, arrays [T, ...] by name, with how the game ended
      for the one who moved (`reward` and `ended`), and which moves are the player's (`mine`).
    """
    key = jax.random.fold_in(jax.random.key(number), which)
    _, state = game.reset(key)

    def step(now: Any, time: jax.Array) -> tuple[Any, Any]:
        state, over, line = now
        of_player, of_opponent, of_step = jax.random.split(jax.random.fold_in(key, time), 3)
        found = player(state, of_player)
        answers = [opposed(kind, game, state, depth, line, of_opponent) for kind in opponents]
        other, left = (jnp.stack(each)[which] for each in zip(*answers, strict=True))
        mine = (number + time) % 2 == 0
        action = jnp.where(mine, found["action"], other)
        _, after, reward, _, ended = game.step(of_step, state, action)
        new = after, ended, jnp.where(mine, line, left)
        new = jax.tree.map(lambda x, like: jnp.where(over, like, x), new, now)
        seen = {"action": action, "reward": reward, "ended": ended & ~over, "mine": mine & ~over}
        return new, {**found, **seen, "real": ~over}

    first = jax.tree.map(jnp.asarray, (state, jnp.bool_(False), number // 2))
    (last, _, _), seen = jax.lax.scan(step, first, jnp.arange(game.limit))
    signs = jnp.where(seen["mine"], 1, -1)
    result = jnp.sum(jnp.where(seen["ended"], signs * seen["reward"], 0))
    played = {"actions": seen["action"], "length": jnp.sum(seen["real"])}
    return {**played, "result": result.astype(jnp.int32)}, last, seen


def outcomes(moves: Mapping[str, jax.Array], discount: float) -> tuple[jax.Array, jax.Array]:
    """What positions are worth to the player to move [T], and whether it is known [T].

    That is how the game ended; before a random move, which is not what the player wanted, it is
    what the search found.

    Args:
      moves: `reward` of the player who moved, `ended` where it was a game's last move, `random`
        where it was drawn, and the `searched` value of the position before it; each [T].
      discount: factor of an outcome one move earlier.
    """

    def step(later: Any, now: Any) -> tuple[Any, Any]:
        value = jnp.where(now["ended"], now["reward"], -discount * later[0])
        value = jnp.where(now["random"], now["searched"], value)
        known = now["random"] | now["ended"] | later[1]
        return (value, known), (value, known)

    now = {name: moves[name] for name in ("reward", "ended", "random", "searched")}
    first = jnp.zeros_like(now["reward"][0]), jnp.zeros_like(now["ended"][0])
    return jax.lax.scan(step, first, now, reverse=True)[1]


def picture_of(board: np.ndarray, first: bool) -> np.ndarray:
    """A position of a game of `STONES` as a picture, uint8 [SIDE * Y, SIDE * X, 3]: black stones
    are those of the player who moves first.

    Args:
      board: what is seen of it [Y, X, *].
      first: whether that player is to move.
    """
    black, white = (board[..., plane] > 0 for plane in ((0, 1) if first else (1, 0)))
    places = np.arange(SIDE) - (SIDE - 1) / 2
    round_ = places[:, None] ** 2 + places**2 < (0.4 * SIDE) ** 2
    field = np.ones((SIDE, SIDE), bool)
    field[0] = field[:, 0] = False  # a line between two
    picture = np.kron(np.ones_like(black), field)[..., None] * np.array([222, 184, 120])
    for stones, shade in ((black, 0), (white, 255)):
        picture[np.kron(stones, round_) > 0] = shade
    return picture.astype(np.uint8)
