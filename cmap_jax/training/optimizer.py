"""AdamW, its learning-rate schedules, and the labels of frozen parameters.

See docs/method.md, section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmap_jax.training.parameter_groups import (
    GROUPS,
    groups_of,
    is_frozen,
    learning_rates,
    weight_decays,
)

TRAINED, FROZEN = "trained", "frozen"


def halving_epochs(epochs: int, every: int, faster_from: int, faster_every: int) -> list[int]:
    """Return the epochs at whose start the stepped schedule halves the learning rate.

    See docs/method.md, section 3.

    With the recipe's 4, 20 and 2 these are 4, 8, 12, 16, 20 and from there 22, 24, ...

    Args:
        epochs: length of the run; epochs count from 0.
        every: epochs between two halvings, up to and with epoch ``faster_from``.
        faster_from: the last epoch that counts by ``every``.
        faster_every: epochs between two halvings after it.
    """
    slow = range(every, min(faster_from, epochs - 1) + 1, every)
    fast = range(faster_from + faster_every, epochs, faster_every)
    return [*slow, *fast]


def make_schedule(config: Any, steps_per_epoch: int) -> optax.Schedule:
    """Build the learning rate as a function of the step.

    Args:
        config: a whole config.
        steps_per_epoch: number of steps that the schedule counts as one epoch.

    Raises:
        ValueError: an unknown schedule.
    """
    settings = config.optimizer
    total = config.train.epochs * steps_per_epoch
    if settings.schedule == "stepped":
        halved_at = halving_epochs(
            config.train.epochs,
            every=settings.halve_every,
            faster_from=settings.halve_faster_from,
            faster_every=settings.halve_faster_every,
        )
        return optax.piecewise_constant_schedule(
            settings.learning_rate, {epoch * steps_per_epoch: 0.5 for epoch in halved_at}
        )
    if settings.schedule == "cosine":
        # A debug run may be shorter than the warm-up of the config that it shortens.
        warmup = min(settings.warmup_steps, total // 2)
        return optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, total)
    raise ValueError(
        f'config.optimizer.schedule must be "stepped" or "cosine", not {settings.schedule!r}'
    )


def label_parameters(params: Any, config: Any) -> Any:
    """Return "trained" or "frozen" for every parameter, in their tree (docs/method.md, section 3).

    Args:
        params: the parameters of a `CMAP`.
        config: a whole config, which freezes groups of parameters; see `parameter_groups`.
    """
    frozen = {group for group in GROUPS if is_frozen(group, config)}
    groups = groups_of(params, config)
    return jax.tree.map(lambda group: FROZEN if group in frozen else TRAINED, groups)


def select_trained(tree: Any, labels: Any) -> list[jax.Array]:
    """Return the leaves of a tree shaped like the parameters that are trained."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(labels), strict=True)
    return [leaf for leaf, label in pairs if label == TRAINED]


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Build AdamW with the groups' learning rates and weight decays; frozen ones never move.

    See docs/method.md, section 3. By default all trained parameters decay and learn alike.
    """
    settings = config.optimizer
    adamw = optax.chain(
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        _decay_and_scale(config),
        optax.scale_by_learning_rate(schedule),
    )
    if settings.clip_norm is not None:
        # Inside the partition: the norm is that of the trained parameters alone.
        adamw = optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)
    return optax.partition(
        {TRAINED: adamw, FROZEN: optax.set_to_zero()},
        lambda params: label_parameters(params, config),
    )


def _decay_and_scale(config: Any) -> optax.GradientTransformation:
    """Add each parameter's weight decay, and multiply by its factor of the learning rate.

    It has no state of its own, like `optax.add_decayed_weights`, in whose place it stands: the
    states of runs without groups have the same form.
    """

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def change(update: jax.Array, param: jax.Array, decay: float, factor: Any) -> jax.Array:
            if decay:
                update = update + decay * param
            return update if np.all(factor == 1) else update * jnp.asarray(factor, update.dtype)

        decays, factors = weight_decays(params, config), learning_rates(params, config)
        return jax.tree.map(change, updates, params, decays, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
