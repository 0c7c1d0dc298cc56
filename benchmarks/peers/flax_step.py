"""The train step of flax.linen's examples: `TrainState`, optax, one jitted function."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import DECAY, RATE
from flax import traverse_util
from flax.training import train_state
from side import Side, with_sizes


class TrainState(train_state.TrainState):
    batch_stats: Any


def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Any]:
    """One update, and the loss and accuracy of the batch before it."""

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(
            variables, batch["inputs"], train=True, mutable=["batch_stats", "losses"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        loss = jnp.average(losses, weights=batch.get("mask"))
        loss += sum(jax.tree.leaves(changed.get("losses", {})))
        return loss, (logits, changed.get("batch_stats", {}))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, batch_stats=stats)
    right = jnp.argmax(logits, -1) == batch["targets"]
    accuracy = jnp.average(right, weights=batch.get("mask"))
    return state, {"loss": loss, "accuracy": accuracy}


def make(case: str, model: Any, ours: dict[str, np.ndarray], rows: dict[str, np.ndarray]) -> Side:
    """The rival of a case and our model, with our parameters.

    Raises:
      ValueError: its parameters have other names or shapes.
    """
    module = importlib.import_module(f"flax_{case}")
    rival = with_sizes(module.Model, model)
    names = ["inputs", "targets"] + ([] if rows["mask"].all() else ["mask"])
    batch = {name: jnp.asarray(rows[name]) for name in names}

    def init() -> Any:
        return rival.init(jax.random.key(0), batch["inputs"], train=True)

    params = traverse_util.unflatten_dict(module.from_ours(ours), sep="/")
    params = jax.tree.map(jnp.array, params)
    wanted = jax.tree.map(jnp.shape, jax.eval_shape(init)["params"])
    given = jax.tree.map(jnp.shape, params)
    if wanted != given:
        raise ValueError(f"{case}: flax's parameters are {wanted}, ours give {given}.")
    state = TrainState.create(
        apply_fn=rival.apply,
        params=params,
        tx=optax.adamw(RATE, weight_decay=DECAY),
        batch_stats=jax.jit(lambda: init().get("batch_stats", {}))(),
    )
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Side(step, sum(leaf.size for leaf in jax.tree.leaves(params)), compiled)
