"""The AlphaZero objective: a policy and a value for board games, from self-play by search.

Letters in shape comments: B actors, C capacity of a memory, S samples of it, A actions,
O opponents, T moves.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import serialization

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt, Probability
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Found, Sums, Words, as_numbers, masked
from jaxbig.objectives.games import STONES, Game, Opponent, contest, opposed, outcomes, picture_of
from jaxbig.objectives.reinforcement import CARRY, Actors, frozen, over_time

LEAST = 1e-9
"""Chance of a position whose game is not over, so that there are some before any is."""
RESULTS = {1: "win", 0: "draw", -1: "loss"}


@dataclasses.dataclass(frozen=True)
class AlphaZero(Actors):
    """AlphaZero (Silver et al., 2018) with the Gumbel search of Danihelka et al. (2022).

    The model gives the value of a position for the player to move, before a tanh, and then a logit
    for each action. Actors play against themselves; the policy learns what the search prefers, and
    the value how the game ended, from positions of each actor's last games. A share of moves is
    random, so that they see what other players do. The loss is the cross entropy of the policy and
    the squared error of the value.

    In an evaluation it plays a game from each number against each opponent; it moves first where
    the number is even. Metrics are the shares of `wins`, `draws` and `losses` against each, and the
    `loss` over its own positions, whose policy is among legal actions; in training, where it is
    among all, also `decided`, the actors whose last game had a winner.
    """

    environment: str
    """Name in pgx, as tic_tac_toe."""
    play: PositiveInt = 9
    """Moves of each actor, before it learns from them."""
    discount: Probability = 1.0
    """Factor of an outcome one move earlier."""
    moves: PositiveInt = 9
    """Of a game at most; one that is longer is a draw."""
    simulations: PositiveInt = 16
    """Positions that a search adds to its tree."""
    explore: Probability = 0.25
    """Share of moves in self-play that are drawn from all legal ones."""
    play_every: PositiveInt = 4
    """Train steps from one play to the next."""
    capacity: PositiveInt = 180
    """Positions that each actor remembers; a multiple of `play`."""
    samples: PositiveInt = 16
    """Positions drawn from each memory in a train step."""
    value_weight: NonNegativeFloat = 1.0
    """Factor of the value's squared error."""
    opponents: tuple[Opponent, ...] = ("random", "minimax")
    """In an evaluation: random moves, the best of minimax, or, by number, each line of play."""
    depth: PositiveInt = 2
    """Moves that minimax looks ahead."""

    criterion: ClassVar[str] = "losses_to_minimax"
    higher_is_better = False

    def check_fields(self) -> None:
        if self.capacity % self.play:
            raise Refused(f"capacity {self.capacity}: it must be a multiple of play, {self.play}.")
        if "minimax" not in self.opponents:
            raise Refused("opponents: minimax must be one of them, it selects the best checkpoint.")

    def world(self) -> Game:
        return Game(self.environment, self.moves)

    def outputs(self, actions: int) -> int:
        return 1 + actions

    def numbers(self) -> tuple[str, ...]:
        results = ("wins_against", "draws_with", "losses_to")
        return "loss", *(f"{each}_{kind}" for kind in self.opponents for each in results)

    def memory(self, observation: jax.Array) -> dict[str, jax.Array]:
        shape = (observation.shape[0], self.capacity)
        return {
            "observation": jnp.zeros((*shape, *observation.shape[1:]), observation.dtype),
            "policy": jnp.zeros((*shape, self.world().actions)),
            "reward": jnp.zeros(shape),
            "ended": jnp.zeros(shape, bool),
            "random": jnp.zeros(shape, bool),
            "searched": jnp.zeros(shape),
            "value": jnp.zeros(shape),
            "known": jnp.zeros(shape, bool),
        }

    def search(
        self, model: Any, variables: Any, state: Any, key: jax.Array, noise: float
    ) -> dict[str, jax.Array]:
        """The `action` that a search chooses in one position, the `policy` [A] and the value
        (`searched`) that it prefers to the model's, and these, `value` and `logits` [A].

        Args:
          model: the model, with its variables, as of `frozen`.
          variables: likewise.
          state: of the game.
          key: a random key.
          noise: the scale of its Gumbel noise; 0: the action is the likeliest of the policy.
        """
        game = self.world()
        mctx = game.mctx

        def judged(states: Any) -> tuple[jax.Array, jax.Array]:
            outputs = upcast(model.apply(variables, upcast(states.observation), train=False))
            logits = jnp.where(
                states.legal_action_mask, outputs[:, 1:], jnp.finfo(outputs.dtype).min
            )
            return logits, jnp.tanh(outputs[:, 0])

        def expand(_: Any, key: jax.Array, action: jax.Array, states: Any) -> tuple[Any, Any]:
            _, after, reward, _, ended = jax.vmap(game.step, (None, 0, 0))(key, states, action)
            logits, value = judged(after)
            discount = jnp.where(ended, 0, -jnp.float32(self.discount))
            found = mctx.RecurrentFnOutput(
                reward=reward, discount=discount, prior_logits=logits, value=value
            )
            return found, after

        states = jax.tree.map(lambda each: each[None], state)  # one, so no other's draws matter
        logits, value = judged(states)
        found = mctx.gumbel_muzero_policy(
            params=(),
            rng_key=key,
            root=mctx.RootFnOutput(prior_logits=logits, value=value, embedding=states),
            recurrent_fn=expand,
            num_simulations=self.simulations,
            invalid_actions=~states.legal_action_mask,
            gumbel_scale=noise,
        )
        policy = found.action_weights[0]
        return {
            "action": found.action[0] if noise else jnp.argmax(policy),
            "policy": policy,
            "searched": found.search_tree.summary().value[0],
            "value": value[0],
            "logits": logits[0],
        }

    def choose(
        self, model: Any, variables: Any, actors: Any, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        game = self.world()
        like = jax.eval_shape(game.reset, jax.random.key(0))[1]

        def one(state: Any, key: jax.Array) -> dict[str, jax.Array]:
            state = serialization.from_state_dict(like, state)
            of_search, of_chance, of_action = jax.random.split(key, 3)
            found = self.search(model, variables, state, of_search, 1.0)
            is_random = jax.random.uniform(of_chance) < self.explore
            other, _ = opposed("random", game, state, 0, jnp.int32(0), of_action)
            action = jnp.where(is_random, other, found["action"])
            return {**found, "action": action, "random": is_random}

        found = jax.vmap(one)(actors["state"], keys)
        return found["action"], {name: found[name] for name in ("policy", "searched", "random")}

    def learn(self, forward: nn.Module, batch: Batch, key: jax.Array) -> Sums:
        model, variables = frozen(forward)
        inputs = batch["inputs"]
        of_play, of_draw = jax.random.split(key)
        actors = forward.get_variable(CARRY, "actors")
        memory = forward.get_variable(CARRY, "memory")
        count = actors["count"]  # [B], all equal

        def played() -> tuple[Any, Any]:
            after, happened = self._play(model, variables, actors, inputs, of_play)
            plays = count // self.play_every
            return after, jax.vmap(self.remembered)(memory, happened, plays)

        actors, memory = jax.lax.cond(
            jnp.max(count) % self.play_every == 0, played, lambda: (actors, memory)
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(of_draw, inputs)
        used = jax.vmap(self.sample)(memory, keys)  # [B, S, ...]

        outputs = upcast(over_time(partial(forward, train=True), upcast(used["observation"])))
        logs = jax.nn.log_softmax(outputs[..., 1:])  # [B, S, A]
        known = used["known"]
        least = jnp.maximum(jnp.sum(known, axis=1), 1)
        policy = -jnp.sum(used["policy"] * logs, axis=-1)
        value = (jnp.tanh(outputs[..., 0]) - used["value"]) ** 2
        terms = {"loss": policy + self.value_weight * value, "value_error": value}
        forward.put_variable(CARRY, "actors", {**actors, "count": count + 1})
        forward.put_variable(CARRY, "memory", memory)
        sums = {name: jnp.sum(known * each, axis=1) / least for name, each in terms.items()}
        sums["decided"] = jnp.abs(actors["last"])
        return {name: masked(each, batch["mask"]) for name, each in sums.items()}

    def remembered(self, memory: Any, happened: Any, plays: jax.Array) -> Any:
        """One actor's memory with new moves in place of its oldest, and what is known by them.

        Args:
          memory: arrays [C, ...] by name.
          happened: arrays [play, ...] by name.
          plays: how often it played before, a scalar.
        """
        begin = plays * self.play % self.capacity
        new = {
            name: jax.lax.dynamic_update_slice_in_dim(memory[name], each, begin, 0)
            for name, each in happened.items()
            if name in memory
        }
        oldest = begin + self.play
        in_turn = jax.tree.map(lambda each: jnp.roll(each, -oldest, axis=0), new)
        value, known = (jnp.roll(each, oldest) for each in outcomes(in_turn, self.discount))
        filled = jnp.arange(self.capacity) < (plays + 1) * self.play
        return {**new, "value": value, "known": known & filled}

    def sample(self, memory: Any, key: jax.Array) -> Any:
        """Positions of one actor's memory, arrays [S, ...] by name; each that is `known` has the
        same chance."""
        chances = jnp.maximum(memory["known"], LEAST)
        places = jax.random.choice(
            key, self.capacity, (self.samples,), p=chances / jnp.sum(chances)
        )
        return jax.tree.map(lambda each: each[places], memory)

    def episodes(self, forward: nn.Module, inputs: jax.Array) -> dict[str, jax.Array]:
        """A game of each number [B] against each opponent.

        Returns:
          `actions` [B, O, T], of which the first `length` [B, O] count; `result` [B, O], 1 of a
          win, 0 of a draw and -1 of a loss; the last `board` [B, ...]; `numbers` by name, [B].
        """
        game = self.world()
        model, variables = frozen(forward)
        player = partial(self.search, model, variables, noise=0.0)

        def play(number: jax.Array, which: jax.Array) -> dict[str, jax.Array]:
            found, last, seen = contest(game, player, self.opponents, self.depth, number, which)
            never = jnp.zeros_like(seen["ended"])
            wanted, _ = outcomes({**seen, "random": never}, self.discount)  # [T]
            entropy = -jnp.sum(seen["policy"] * jax.nn.log_softmax(seen["logits"]), axis=-1)
            losses = entropy + self.value_weight * (seen["value"] - wanted) ** 2
            mine = seen["mine"]
            loss = jnp.sum(jnp.where(mine, losses, 0)) / jnp.maximum(jnp.sum(mine), 1)
            return {**found, "loss": loss, "board": upcast(last.observation)}

        kinds = jnp.arange(len(self.opponents))
        found = jax.vmap(jax.vmap(play, (None, 0)), (0, None))(inputs, kinds)
        shares = jnp.stack([found["result"] == each for each in RESULTS], axis=-1)  # [B, O, 3]
        shares = upcast(shares).reshape(len(inputs), -1)
        numbers = [jnp.mean(found["loss"], axis=1), *jnp.moveaxis(shares, 1, 0)]
        board = found["board"][:, -1]
        return {**found, "board": board, **dict(zip(self.numbers(), numbers, strict=True))}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`loss`, and `games`, each with its `opponent`, `result` and the `actions` of both; a
        `picture` of how the last one ended, where the game has stones."""
        rows = zip(self.opponents, found["result"], found["actions"], found["length"], strict=True)
        games = [
            {
                "opponent": kind,
                "result": RESULTS[int(result)],
                "actions": as_numbers(moves[:length]),
            }
            for kind, result, moves, length in rows
        ]
        row = {"loss": as_numbers(found["loss"]), "games": games}
        if self.environment in STONES:
            row["picture"] = picture_of(found["board"], first=found["length"][-1] % 2 == 0)
        return row
