"""AdamW, its learning-rate schedules, and the labels of frozen parameters.

See docs/method.md, section 3.
"""

from typing import Any

import jax
import optax

from cmap_jax.models.encoders import image_entry, text_entry

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

    Under ``config.model.image.frozen`` and ``config.model.text.frozen``, the parts that the
    encoders' entries name are frozen; everything else trains.

    Args:
        params: the parameters of a `CMAP`.
        config: a whole config.
    """
    model = config.model
    frozen = {
        (module, part)
        for module, is_frozen, entry in (
            ("image_encoder", model.image.frozen, image_entry(model)),
            ("text_encoder", model.text.frozen, text_entry(model)),
        )
        if is_frozen
        for part in entry.frozen
    }

    def label(path: tuple, _: Any) -> str:
        return FROZEN if tuple(entry.key for entry in path[:2]) in frozen else TRAINED

    return jax.tree_util.tree_map_with_path(label, params)


def select_trained(tree: Any, labels: Any) -> list[jax.Array]:
    """Return the leaves of a tree shaped like the parameters that are trained."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(labels), strict=True)
    return [leaf for leaf, label in pairs if label == TRAINED]


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Build AdamW with weight decay on all trained parameters; frozen ones never move.

    See docs/method.md, section 3.
    """
    settings = config.optimizer
    adamw = optax.adamw(
        schedule,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    if settings.clip_norm is not None:
        # Inside the partition: the norm is that of the trained parameters alone.
        adamw = optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)
    return optax.partition(
        {TRAINED: adamw, FROZEN: optax.set_to_zero()},
        lambda params: label_parameters(params, config),
    )
