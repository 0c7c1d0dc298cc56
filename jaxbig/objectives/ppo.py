"""The PPO objective: a policy and a value, from what actors did with the policy before.

Letters in shape comments: B actors, T steps of a rollout, A actions.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import FractionBelowOne, NonNegativeFloat, PositiveInt, Probability
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Sums, masked
from jaxbig.objectives.reinforcement import CARRY, Reinforcement, frozen, over_time


@dataclasses.dataclass(frozen=True)
class PPO(Reinforcement):
    """Proximal policy optimization (Schulman et al., 2017, equations 7 and 9), with generalized
    advantages (Schulman et al., 2016).

    The model gives the value of what it sees, and then a logit for each action. A train step learns
    from a part of each actor's rollout, and each `epochs * parts` steps the actors play again. An
    actor's advantages have mean 0 and standard deviation 1 over its rollout, so that they depend on
    no other actor.
    """

    play: PositiveInt = 128
    """Steps of the environment in a rollout; a multiple of `parts`."""
    epochs: PositiveInt = 4
    """How often a rollout is used."""
    parts: PositiveInt = 4
    """Train steps of an epoch, each with another part of the rollout."""
    clip: FractionBelowOne = 0.2
    """How far the ratio of new and old probability may be from 1 before it stops to pay."""
    trace: Probability = 0.95
    """Lambda of the advantages: 0 trusts the next value, 1 the rewards."""
    value_weight: NonNegativeFloat = 0.5
    """Factor of the value's squared error."""
    entropy_weight: NonNegativeFloat = 0.01
    """Factor of the entropy in nats, which is made large."""

    def check_fields(self) -> None:
        if self.play % self.parts:
            raise Refused(f"play {self.play}: it must be a multiple of parts, {self.parts}.")

    def outputs(self, actions: int) -> int:
        return 1 + actions

    def act(self, outputs: jax.Array, key: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.categorical(key, outputs[1:])

    def best(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jnp.argmax(outputs[..., 1:], axis=-1), outputs[..., 0], outputs[..., 0]

    def memory(self, observation: jax.Array) -> dict[str, jax.Array]:
        shape = (observation.shape[0], self.play)
        return {
            "observation": jnp.zeros((*shape, *observation.shape[1:]), observation.dtype),
            "action": jnp.zeros(shape, jnp.int32),
            "log_probability": jnp.zeros(shape),
            "advantage": jnp.zeros(shape),
            "wanted": jnp.zeros(shape),
            "order": jnp.zeros(shape, jnp.int32),
        }

    def learn(self, forward: nn.Module, batch: Batch, key: jax.Array) -> Sums:
        model, variables = frozen(forward)
        inputs = batch["inputs"]
        of_play, of_order = jax.random.split(key)
        actors = forward.get_variable(CARRY, "actors")
        memory = forward.get_variable(CARRY, "memory")
        turn = actors["count"] % (self.epochs * self.parts)  # [B], all equal

        def rollout() -> tuple[Any, Any]:
            after, happened = self._play(model, variables, actors, inputs, of_play)
            values = over_time(partial(model.apply, variables), happened["next"])[..., 0]
            return after, {**self.judged(happened, values), "order": memory["order"]}

        actors, memory = jax.lax.cond(jnp.max(turn) == 0, rollout, lambda: (actors, memory))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(of_order, inputs)
        orders = jax.vmap(lambda each: jax.random.permutation(each, self.play))(keys)  # [B, T]
        begins = (turn % self.parts == 0)[:, None]
        memory = {**memory, "order": jnp.where(begins, orders, memory["order"])}
        part = memory["order"].reshape(len(inputs), self.parts, -1)
        places = part[jnp.arange(len(inputs)), turn % self.parts]  # [B, T / parts]
        used = jax.vmap(lambda of, at: jax.tree.map(lambda each: each[at], of))(memory, places)

        outputs = upcast(over_time(partial(forward, train=True), used["observation"]))
        logs = jax.nn.log_softmax(outputs[..., 1:])  # [B, T / parts, A]
        log = jnp.take_along_axis(logs, used["action"][..., None], axis=-1)[..., 0]
        ratio = jnp.exp(log - used["log_probability"])
        policy = -clipped(ratio, used["advantage"], self.clip)
        value = (outputs[..., 0] - used["wanted"]) ** 2
        entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
        losses = policy + self.value_weight * value - self.entropy_weight * entropy
        forward.put_variable(CARRY, "actors", {**actors, "count": actors["count"] + 1})
        forward.put_variable(CARRY, "memory", memory)
        terms = {"loss": losses, "value_error": value, "entropy": entropy}
        sums = {name: jnp.mean(each, axis=1) for name, each in terms.items()}
        sums["return"] = actors["last"]
        return {name: masked(each, batch["mask"]) for name, each in sums.items()}

    def judged(self, happened: dict[str, jax.Array], after: jax.Array) -> dict[str, jax.Array]:
        """What a rollout is remembered by.

        Args:
          happened: arrays [B, T, ...] by name.
          after: the value of what was seen next [B, T].
        """
        outputs = upcast(happened["outputs"])
        value = outputs[..., 0]
        find = partial(advantages, discount=self.discount, trace=self.trace)
        found = jax.vmap(find)(
            happened["reward"], value, after, happened["terminated"], happened["ended"]
        )
        mean = jnp.mean(found, axis=1, keepdims=True)
        deviation = jnp.std(found, axis=1, keepdims=True)
        logs = jax.nn.log_softmax(outputs[..., 1:])
        log = jnp.take_along_axis(logs, happened["action"][..., None], axis=-1)[..., 0]
        return {
            "observation": happened["observation"],
            "action": happened["action"],
            "log_probability": log,
            "advantage": (found - mean) / (deviation + 1e-8),
            "wanted": found + value,
        }


def advantages(
    rewards: jax.Array,
    values: jax.Array,
    after: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    discount: float,
    trace: float,
) -> jax.Array:
    """Generalized advantages of an actor's steps [T] (Schulman et al., 2016, equation 16).

    Args:
      rewards: [T].
      values: of what was seen at each step [T].
      after: of what was seen next [T], which is not the next step's where an episode ended.
      terminated: where an episode ended by itself [T]: nothing follows.
      ended: where it ended by itself or by its limit of steps [T].
      discount: factor of a reward one step later.
      trace: lambda.
    """
    errors = rewards + discount * jnp.where(terminated, 0, after) - values

    def step(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, end = now
        found = error + discount * trace * jnp.where(end, 0, later)
        return found, found

    return jax.lax.scan(step, jnp.zeros_like(errors[0]), (errors, ended), reverse=True)[1]


def clipped(ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """The clipped surrogate (Schulman et al., 2017, equation 7), each [...]."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
