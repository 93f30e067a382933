"""The matching loss: a classification of each query over the batch's targets."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def matching_loss(
    scores: Float[Array, "L B N"],
    logit_scale: Float[Array, ""],
    level_weights: Sequence[float],
    *,
    correct: Int[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of each query against the batch's targets (docs/method.md, section 2).

    Args:
        scores: score of query b (row) against target t (column) at each level.
        logit_scale: log of the inverse temperature, shared by the levels.
        level_weights: one weight for each level, high to low.
        correct: column of each query's right target; None: the diagonal, for square scores. It is
            needed where the rows are a part of the batch.

    Returns:
        Weighted sum over levels of the mean over queries, in nats.

    Raises:
        ValueError: the batch axes do not fit, or there is not one weight a level.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be [L, B, N]; got {scores.shape}")
    if correct is None:
        if scores.shape[1] != scores.shape[2]:
            raise ValueError(f"scores must be [L, B, B], with a square batch; got {scores.shape}")
        correct = jnp.arange(scores.shape[1])
    if scores.shape[0] != len(level_weights):
        raise ValueError(f"{scores.shape[0]} levels, but the weights are {tuple(level_weights)}")
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
        jnp.exp(logit_scale) * scores, jnp.broadcast_to(correct, scores.shape[:2])
    )  # [L, B]
    weights = jnp.asarray(level_weights, scores.dtype)
    return jnp.sum(weights * jnp.mean(losses, axis=1))
