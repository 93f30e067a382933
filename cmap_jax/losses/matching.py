"""The matching loss: telling which of the batch's targets belongs to a query."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matching_loss(
    scores: Float[Array, "L B B"],
    logit_scale: Float[Array, ""],
    level_weights: Sequence[float],
) -> Float[Array, ""]:
    """Cross-entropy of each query against the batch's targets (SPEC 2).

    Args:
        scores: score of query b (row) against target t (column) at each level; the right target is
            on the diagonal.
        logit_scale: log of the inverse temperature, shared by the levels.
        level_weights: one weight a level, high to low.

    Returns:
        Weighted sum over levels of the mean over queries, in nats.

    Raises:
        ValueError: the batch axes differ, or there is not one weight a level.
    """
    if scores.ndim != 3 or scores.shape[1] != scores.shape[2]:
        raise ValueError(f"scores must be [L, B, B], with a square batch; got {scores.shape}")
    if scores.shape[0] != len(level_weights):
        raise ValueError(f"{scores.shape[0]} levels, but the weights are {tuple(level_weights)}")
    log_probabilities = jax.nn.log_softmax(jnp.exp(logit_scale) * scores, axis=-1)
    diagonal = jnp.diagonal(log_probabilities, axis1=1, axis2=2)  # [L, B]
    weights = jnp.asarray(level_weights, scores.dtype)
    return -jnp.sum(weights * jnp.mean(diagonal, axis=1))
