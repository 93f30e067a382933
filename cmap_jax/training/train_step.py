"""One training step. This module needs neither TensorFlow nor CLU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.gradients import make_gradient_function
from cmap_jax.training.moving_average import update_average
from cmap_jax.training.objective import Metrics
from cmap_jax.training.optimizer import label_parameters, select_trained
from cmap_jax.training.train_state import TrainState

TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(
    model: CMAP,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Any,
    mesh: Mesh,
) -> TrainStep:
    """Return a pure function from (state, batch) to (state, metrics), to be jitted.

    The metrics are scalars: the loss and its terms, ``gradient_norm`` (that of the trained
    parameters, before clipping), ``learning_rate`` and ``logit_scale`` in float32, and
    ``skipped_steps`` in int32. If ``config.train.non_finite`` is "skip", a step whose loss or
    gradient is not finite changes the state's two counters and nothing else.

    Args:
        model: the model to train.
        tx: the optimiser, as `make_optimizer` returns it.
        schedule: learning rate as a function of the optimiser's steps, for the metrics.
        config: a whole config.
        mesh: the devices over which the batch is sharded.
    """
    gradients_of = make_gradient_function(model, config, mesh)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradients, terms, batch_stats = gradients_of(
            state.params, state.batch_stats, batch, dropout_key, state.step
        )
        # A device needs the summed gradient of its own shard of the parameters alone, and the
        # compiler can use a reduce-scatter in place of an all-reduce.
        gradients = jax.lax.with_sharding_constraint(gradients, sharding.by_size(gradients, mesh))
        # Nothing uses the gradients of frozen parameters; the compiler drops their computation.
        changes, opt_state = tx.update(gradients, state.opt_state, state.params)
        gradient_norm = optax.tree.norm(
            select_trained(gradients, label_parameters(gradients, config))
        )
        new = state.replace(
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.average is not None:
            updates = state.step - state.skipped
            new = new.replace(
                average=update_average(
                    state.average, new.variables, config.train.ema_decay, updates
                )
            )
        if config.train.non_finite == "skip":
            good = jnp.isfinite(terms["loss/total"] + gradient_norm)
            new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
            new = new.replace(skipped=state.skipped + ~good)
        metrics = {
            **terms,
            "gradient_norm": gradient_norm,
            # The optimiser does not count skipped steps.
            "learning_rate": jnp.asarray(schedule(state.step - state.skipped)),
            "logit_scale": state.params["logit_scale"],
            "skipped_steps": new.skipped,
        }
        return new.replace(step=state.step + 1), metrics

    return train_step
