"""The objective of a batch: each device scores its own queries against all targets."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cmap_jax import scoring, sharding
from cmap_jax.losses import matching_loss, preservation_loss
from cmap_jax.models.cmap import TrainingOutputs

Metrics = dict[str, jax.Array]

_WHOLE, _PYRAMID = PartitionSpec(), PartitionSpec(None, sharding.BATCH_AXES)  # [L, B, D]


def objective(
    outputs: TrainingOutputs, settings: Any, mesh: Mesh, parts: int = 1
) -> tuple[jax.Array, Metrics]:
    """Return the total loss of a batch and its terms (docs/method.md, section 2).

    Args:
        outputs: queries and target embeddings of B triplets.
        settings: ``config.loss``; a variant with fewer levels uses the first weights.
        mesh: the devices over which the B rows are sharded.
        parts: number of pieces in which a device scores its queries; it then holds
            B / devices / parts x B scores at a time, and recomputes them in the backward pass.

    Returns:
        The total, and ``loss/total``, ``loss/matching`` and, where the variant has a preservation
        loss with a weight that is not 0, ``loss/preservation`` (weighted, as in the total).
    """
    levels = outputs.targets.shape[0]
    terms = {
        "loss/matching": _matching(outputs, tuple(settings.matching_weights[:levels]), mesh, parts)
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
