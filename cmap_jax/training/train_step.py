"""The objective of a batch and one step of the optimiser. Needs neither TensorFlow nor CLU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cmap_jax import scoring
from cmap_jax.losses import matching_loss, preservation_loss
from cmap_jax.models.cmap import CMAP, TrainingOutputs
from cmap_jax.training.optimizer import label_parameters, select_trained
from cmap_jax.training.train_state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def objective(outputs: TrainingOutputs, settings: Any) -> tuple[jax.Array, Metrics]:
    """Return the total loss of a batch and its terms (SPEC 2).

    Args:
        outputs: what the model made of the batch.
        settings: ``config.loss``. A variant with fewer levels uses the first weights.

    Returns:
        The total, and ``loss/total``, ``loss/matching`` and, where the variant has a preservation
        loss with a weight that is not 0, ``loss/preservation`` (weighted, as in the total).
    """
    levels = outputs.targets.shape[0]
    scores = scoring.score_levels(outputs.query, outputs.targets)
    terms = {
        "loss/matching": matching_loss(
            scores, outputs.logit_scale, settings.matching_weights[:levels]
        )
    }
    weights = settings.preservation_weights[:levels]
    if outputs.query.preservation is not None and any(weights):
        terms["loss/preservation"] = preservation_loss(
            outputs.query.preservation,
            outputs.targets,
            margins=settings.margins[:levels],
            level_weights=weights,
            alpha=settings.alpha,
            reduction=settings.preservation_reduction,
        )
    total = sum(terms.values())
    return total, {"loss/total": total, **terms}


def make_train_step(
    model: CMAP, tx: optax.GradientTransformation, schedule: optax.Schedule, config: Any
) -> TrainStep:
    """Return a pure function from (state, batch) to (state, metrics), to be jitted.

    Its metrics, float32 scalars: the loss and its terms, ``gradient_norm`` (of the trained
    parameters, before clipping), ``learning_rate`` and ``logit_scale``.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_function(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            outputs, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch["reference_image"],
                batch["target_image"],
                batch["text_tokens"],
                batch["text_lengths"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            total, terms = objective(outputs, config.loss)
            return total, (terms, updates)

        # Gradients of frozen parameters are used by nothing, so the compiler drops their work.
        gradients, (terms, updates) = jax.grad(loss_function, has_aux=True)(state.params)
        changes, opt_state = tx.update(gradients, state.opt_state, state.params)
        labels = label_parameters(gradients, config)
        metrics = {
            **terms,
            "gradient_norm": optax.tree.norm(select_trained(gradients, labels)),
            "learning_rate": jnp.asarray(schedule(state.step)),
            "logit_scale": state.params["logit_scale"],
        }
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=updates.get("batch_stats", state.batch_stats),
            opt_state=opt_state,
        )
        return state, metrics

    return train_step
