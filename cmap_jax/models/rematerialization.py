"""Rematerialisation: a forward pass keeps less for its gradient and computes the rest again."""

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
        remat: "none": keep everything; "products": keep the results of convolutions and linear
            layers, and compute norms and activations again; "blocks": keep the function's inputs
            alone and compute all of it again, a third more work in a training step.
        transform: `jax.checkpoint`, or `flax.linen.remat` for a function of a module.
    """
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    keep = policies.nothing_saveable
    if remat == "products":
        keep = policies.save_only_these_names(PRODUCT)
    return transform(function, policy=keep)
