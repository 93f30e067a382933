"""Attention roll-out: which tokens of a transformer a later token is made of.

See docs/method.md, section 13.

    rolled, last = roll_out(tower, params, tokens)   # [B, T, T]; row t: the weights of all tokens
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmap_jax.models.encoders.entry import STACK
from cmap_jax.models.encoders.transformer import Tower, layer_norm
from cmap_jax.numerics import at_least_float32


def attention_weights(
    params: Mapping[str, Any], queries: Float[Array, "B Q D"], tokens: Float[Array, "B T D"]
) -> Float[Array, "B h Q T"]:
    """Return the weights with which each head of an attention takes the tokens' values.

    Args:
        params: parameters of a `transformer.Attention` that is not causal.
        queries: the tokens that attend.
        tokens: the tokens that they attend to.
    """

    def project(name: str, x: jax.Array) -> jax.Array:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return jnp.einsum("btd,dhk->bhtk", at_least_float32(x), kernel) + bias[:, None]

    query, key = project("query", queries), project("key", tokens)
    logits = jnp.einsum("bhqk,bhtk->bhqt", query, key) * query.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1)


def roll_out(
    tower: Tower, params: Mapping[str, Any], tokens: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T T"], Float[Array, "B T D"]]:
    """Multiply the attentions of all blocks of a tower, each half identity for the residual path.

    See docs/method.md, section 13.

    Args:
        tower: an image tower, whose attention is not causal.
        params: the tower's parameters.
        tokens: the tokens that enter the first block.

    Returns:
        Row t holds the weights of the entering tokens in token t after the last block, which sum to
        1, float32; and the tokens after the last block.
    """
    block = tower.block()
    norm = layer_norm(tower.epsilon, tower.dtype, "norm1")
    identity = jnp.eye(tokens.shape[1])

    def step(carry: tuple[jax.Array, jax.Array], weights: Any) -> tuple[Any, None]:
        x, rolled = carry
        y = norm.apply({"params": weights["norm1"]}, x)
        seen = jnp.mean(attention_weights(weights["attention"], y, y), axis=1)
        x = block.apply({"params": weights}, x)
        return (x, (seen + identity) / 2 @ rolled), None

    start = tokens, jnp.broadcast_to(identity, (tokens.shape[0], *identity.shape))
    (tokens, rolled), _ = jax.lax.scan(step, start, params[STACK])
    return rolled, tokens
