"""What a forward pass keeps for its gradient, and what is computed again instead."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from cmap_jax.models.layers import PRODUCT

Remat = Literal["none", "products", "blocks"]


def rematerialize(
    function: Callable, remat: Remat, *, transform: Callable[..., Any] = jax.checkpoint
) -> Callable:
    """Return a function with the same values and gradients that keeps less for the gradient.

    Args:
        function: a block of a network or a step of a recurrence.
        remat: "none": keep everything; "products": what convolutions and linear layers result in,
            so that norms and activations are computed again; "blocks": the function's inputs
            alone, so that all of it is computed again, a third more work in a training step.
        transform: `jax.checkpoint`, or `flax.linen.remat` for a function of a module.
    """
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    keep = policies.nothing_saveable
    if remat == "products":
        keep = policies.save_only_these_names(PRODUCT)
    return transform(function, policy=keep)
