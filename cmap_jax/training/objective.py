"""The objective of a batch: each device scores its own queries against all targets."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cmap_jax import scoring, sharding
from cmap_jax.losses import entropy_shortfall, matching_loss, preservation_loss, ramp
from cmap_jax.models.cmap import TrainingOutputs

Metrics = dict[str, jax.Array]

_WHOLE, _PYRAMID = PartitionSpec(), PartitionSpec(None, sharding.BATCH_AXES)  # [L, B, D]


def objective(
    outputs: TrainingOutputs,
    settings: Any,
    mesh: Mesh,
    parts: int = 1,
    step: jax.Array | int | None = None,
) -> tuple[jax.Array, Metrics]:
    """Return the total loss of a batch and its terms (docs/method.md, section 2).

    Args:
        outputs: queries and target embeddings of B triplets.
        settings: ``config.loss``; a variant with fewer levels uses the first weights.
        mesh: the devices over which the B rows are sharded.
        parts: number of pieces in which a device scores its queries; it then holds
            B / devices / parts x B scores at a time, and recomputes them in the backward pass.
        step: number of steps done, on which the weight of the preservation loss may depend; None:
            the weight is full.

    Returns:
        The total, and ``loss/total``, ``loss/matching`` and, where the variant has a preservation
        attention, ``loss/preservation`` if a weight of it is not 0 and ``loss/entropy`` if the
        entropy has a floor (all weighted, as in the total).
    """
    levels = outputs.targets.shape[0]
    terms = {
        "loss/matching": _matching(outputs, tuple(settings.matching_weights[:levels]), mesh, parts)
    }
    if outputs.query.preservation is not None:
        terms |= _preservation(outputs, settings, step)
    total = sum(terms.values())
    return total, {"loss/total": total, **terms}


def _preservation(outputs: TrainingOutputs, settings: Any, step: jax.Array | int | None) -> Metrics:
    """Return the terms of the preservation attention that the settings ask for."""
    levels = outputs.targets.shape[0]
    terms, weights = {}, settings.preservation_weights[:levels]
    if any(weights):
        loss = preservation_loss(
            outputs.query.preservation,
            outputs.targets,
            margins=settings.margins[:levels],
            level_weights=weights,
            alpha=settings.alpha,
            reduction=settings.preservation_reduction,
            reversal=settings.preservation_reversal,
            moves_text=settings.preservation_moves_text,
        )
        start, length = settings.preservation_start_steps, settings.preservation_ramp_steps
        if step is not None and (start or length):
            loss = ramp(step, start=start, length=length).astype(loss.dtype) * loss
        terms["loss/preservation"] = loss
    if settings.entropy_floor and settings.entropy_weight:
        shortfall = entropy_shortfall(outputs.query.preservation.attention, settings.entropy_floor)
        terms["loss/entropy"] = settings.entropy_weight * shortfall
    return terms


def _matching(
    outputs: TrainingOutputs, weights: tuple[float, ...], mesh: Mesh, parts: int
) -> jax.Array:
    """Return the mean matching loss of all queries.

    Each device scores its own queries against all targets. The targets are all-gathered once; in
    the backward pass a reduce-scatter gives each device the gradient of its own rows.
    """

    def local(
        query: scoring.ComposedQuery, targets: jax.Array, logit_scale: jax.Array
    ) -> jax.Array:
        everyone = jax.lax.all_gather(targets, sharding.BATCH_AXES, axis=1, tiled=True)
        rows = targets.shape[1]
        correct = jax.lax.axis_index(sharding.BATCH_AXES) * rows + jnp.arange(rows)

        def loss(query: scoring.ComposedQuery, correct: jax.Array) -> jax.Array:
            scores = scoring.score_levels(query, everyone)
            return matching_loss(scores, logit_scale, weights, correct=correct)

        if parts == 1:
            mean = loss(query, correct)
        else:
            query = jax.tree.map(
                lambda x: x.reshape(len(x), parts, -1, x.shape[2]).swapaxes(0, 1), query
            )
            # A part's scores take the memory; they are recomputed instead of kept.
            loss = jax.checkpoint(loss, prevent_cse=False)
            losses = jax.lax.map(lambda part: loss(*part), (query, correct.reshape(parts, -1)))
            mean = losses.mean()
        return jax.lax.pmean(mean, sharding.BATCH_AXES)

    split = jax.shard_map(local, mesh=mesh, in_specs=(_PYRAMID, _PYRAMID, _WHOLE), out_specs=_WHOLE)
    query = outputs.query.replace(preservation=None)
    return split(query, outputs.targets, outputs.logit_scale)
