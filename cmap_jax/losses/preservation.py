"""The self-contrastive preservation loss: the text must not name what is preserved.

See docs/method.md, section 2, for its released form and the library's variants.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmap_jax.numerics import NORM_FLOOR, l2_normalize
from cmap_jax.scoring import PreservationInputs


def _released(attention: jax.Array) -> jax.Array:
    return 2 * jnp.mean(attention, axis=-1, keepdims=True) - attention


def _maximum(attention: jax.Array) -> jax.Array:
    return jnp.max(attention, axis=-1, keepdims=True) - attention


# By the value of ``config.loss.preservation_reversal``, from A_p to A_r. Only the direction of
# A_r * t enters the loss, so that no reversal needs to sum to one.
REVERSALS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "released": _released,
    "clipped": lambda attention: jax.nn.relu(_released(attention)),
    "maximum": _maximum,
}


def preservation_loss(
    inputs: PreservationInputs,
    targets: Float[Array, "L B D"],
    *,
    margins: Sequence[float],
    level_weights: Sequence[float],
    alpha: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    reversal: Literal["released", "clipped", "maximum"] = "released",
    moves_text: bool = True,
) -> Float[Array, ""]:
    """Push the target's preserved part from the text and its reversed part towards it.

    See docs/method.md, section 2.

    With the reversed attention A_r, as released ``2 mean_D(A_p) - A_p``, and ``g(x) = alpha <m, x>
    + (1 - alpha) <T, x>``, a pair's loss at level i is
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
        reversal: how A_r is made of A_p; a key of `REVERSALS`.
        moves_text: whether m and T in g have a gradient.

    Returns:
        Weighted sum over levels, 0 or more.

    Raises:
        ValueError: not one margin and weight a level, an unknown reduction or reversal, or
            alpha < 1 for a variant without T.
    """
    if not targets.shape[0] == len(margins) == len(level_weights):
        raise ValueError(
            f"{targets.shape[0]} levels, but {len(margins)} margins and "
            f"{len(level_weights)} weights"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f'preservation_reduction must be "sum" or "mean", not {reduction!r}')
    if reversal not in REVERSALS:
        known = ", ".join(map(repr, REVERSALS))
        raise ValueError(f"preservation_reversal must be one of {known}, not {reversal!r}")
    guide = inputs.text
    if alpha != 1.0:
        if inputs.modification is None:
            raise ValueError(f"alpha = {alpha} mixes in T, which this variant does not have")
        guide = alpha * inputs.text + (1 - alpha) * inputs.modification
    if not moves_text:
        guide = jax.lax.stop_gradient(guide)
    attention = inputs.attention
    reverse = REVERSALS[reversal](attention)
    reduce = jnp.sum if reduction == "sum" else jnp.mean
    total = jnp.zeros((), guide.dtype)
    # Level by level, as in `models.composers.preserved_branch`.
    for target, margin, weight in zip(targets, margins, level_weights, strict=True):
        preserved = jnp.sum(guide * l2_normalize(attention * target), axis=-1)  # [B]
        reversed_ = jnp.sum(guide * l2_normalize(reverse * target), axis=-1)
        total += weight * reduce(jax.nn.relu(margin + preserved - reversed_))
    return total


def entropy_shortfall(
    attention: Float[Array, "B D"], floor: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return by how much attentions are more concentrated than a floor allows.

    See docs/method.md, section 2, the library's variants.

    Args:
        attention: weights that are 0 or more and sum to one over D.
        floor: least entropy as a part of the even attention's, log D; 0 to 1.

    Returns:
        The mean over the batch of ``max(0, floor log D - H(A))`` in nats.
    """
    # The floor keeps the gradient at a weight of 0 finite.
    entropy = -jnp.sum(attention * jnp.log(jnp.maximum(attention, NORM_FLOOR)), axis=-1)
    return jnp.mean(jax.nn.relu(floor * jnp.log(attention.shape[-1]) - entropy))


def ramp(
    step: Int[Array, ""] | int, *, start: Float[Array, ""] | float, length: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return the part of its weight that a loss has at a step: 0, then rising, then 1.

    It is a function of the step alone, so that a resumed run goes on as if it had not stopped.

    Args:
        step: number of steps done, from 0.
        start: steps in which it is 0.
        length: steps after them until it is 1; 0: it is 1 at once.
    """
    done = jnp.asarray(step, jnp.float32) - start + 1
    return jnp.clip(done / jnp.maximum(length, 1), 0, 1)
