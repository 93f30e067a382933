"""The self-contrastive preservation loss: the text must not name what is preserved."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmap_jax.numerics import l2_normalize
from cmap_jax.scoring import PreservationInputs


def preservation_loss(
    inputs: PreservationInputs,
    targets: Float[Array, "L B D"],
    *,
    margins: Sequence[float],
    level_weights: Sequence[float],
    alpha: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Array, ""]:
    """Push the target's preserved part from the text and its reversed part towards it.

    See docs/method.md, section 2.

    With the reversed attention ``A_r = 2 mean_D(A_p) - A_p`` and ``g(x) = alpha <m, x> +
    (1 - alpha) <T, x>``, a pair's loss at level i is
    ``max(0, margin_i + g(l2(A_p * t_i)) - g(l2(A_r * t_i)))``. Only diagonal pairs enter, so the
    tensors are [B, D].

    Args:
        inputs: text m, its transform T and the preservation attention A_p, each [B, D].
        targets: the targets' pyramid, levels high to low.
        margins: one margin for each level, high to low.
        level_weights: one weight for each level, high to low.
        alpha: weight of the text in the mixture, 0 to 1; T has the rest.
        reduction: "sum" over the batch is the method. A sum grows with the batch: to carry a weight
            w tuned at batch size B to another size B', use w * B / B', or "mean" with w * B.

    Returns:
        Weighted sum over levels, 0 or more.

    Raises:
        ValueError: not one margin and weight a level, an unknown reduction, or alpha < 1 for a
            variant without T.
    """
    if not targets.shape[0] == len(margins) == len(level_weights):
        raise ValueError(
            f"{targets.shape[0]} levels, but {len(margins)} margins and "
            f"{len(level_weights)} weights"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f'preservation_reduction must be "sum" or "mean", not {reduction!r}')
    guide = inputs.text
    if alpha != 1.0:
        if inputs.modification is None:
            raise ValueError(f"alpha = {alpha} mixes in T, which this variant does not have")
        guide = alpha * inputs.text + (1 - alpha) * inputs.modification
    attention = inputs.attention
    reverse = 2 * jnp.mean(attention, axis=-1, keepdims=True) - attention
    reduce = jnp.sum if reduction == "sum" else jnp.mean
    total = jnp.zeros((), guide.dtype)
    # Level by level, as in `models.composers.preserved_branch`.
    for target, margin, weight in zip(targets, margins, level_weights, strict=True):
        preserved = jnp.sum(guide * l2_normalize(attention * target), axis=-1)  # [B]
        reversed_ = jnp.sum(guide * l2_normalize(reverse * target), axis=-1)
        total += weight * reduce(jax.nn.relu(margin + preserved - reversed_))
    return total
