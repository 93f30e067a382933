"""Shapes by annotation, refusals, and cases in which the preservation loss is zero.

The values are compared with NumPy and PyTorch in tests/test_parity.py.
"""

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from cmap_jax import losses
from cmap_jax.numerics import l2_normalize
from cmap_jax.scoring import PreservationInputs

matching_loss = jaxtyped(typechecker=beartype)(losses.matching_loss)
preservation_loss = jaxtyped(typechecker=beartype)(losses.preservation_loss)
LEVELS = {"margins": (0.6, 0.4, 0.3), "level_weights": (1.0, 1.0, 0.5)}


def _inputs(batch=4, width=8, with_transform=True):
    keys = jax.random.split(jax.random.key(0), 4)
    text, transform = (l2_normalize(jax.random.normal(k, (batch, width))) for k in keys[:2])
    attention = jax.nn.softmax(jax.random.normal(keys[2], (batch, width)))
    targets = l2_normalize(jax.random.normal(keys[3], (3, batch, width)))
    return PreservationInputs(text, transform if with_transform else None, attention), targets


def test_matching_loss_of_an_even_score_is_the_log_of_the_batch():
    loss = matching_loss(jnp.zeros((3, 8, 8)), jnp.asarray(2.0), (1.0, 1.0, 0.5))
    assert jnp.allclose(loss, 2.5 * jnp.log(8))
    assert loss.shape == ()


def test_matching_loss_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="square batch"):
        losses.matching_loss(jnp.zeros((3, 8, 7)), jnp.asarray(2.0), (1, 1, 1))
    with pytest.raises(ValueError, match="3 levels, but the weights are"):
        losses.matching_loss(jnp.zeros((3, 8, 8)), jnp.asarray(2.0), (1,))


def test_preservation_loss_reductions_and_refusals():
    inputs, targets = _inputs()
    total, mean = (
        preservation_loss(inputs, targets, reduction=r, **LEVELS) for r in ("sum", "mean")
    )
    assert jnp.allclose(total, 4 * mean)
    easy = preservation_loss(inputs, targets, margins=(-2.0,) * 3, level_weights=(1.0,) * 3)
    assert easy == 0
    with pytest.raises(ValueError, match="3 levels, but 1 margins"):
        preservation_loss(inputs, targets, margins=(0.6,), level_weights=(1.0,) * 3)
    with pytest.raises(ValueError, match='"sum" or "mean"'):
        losses.preservation_loss(inputs, targets, reduction="max", **LEVELS)
    without, _ = _inputs(with_transform=False)
    with pytest.raises(ValueError, match="mixes in T"):
        preservation_loss(without, targets, alpha=0.5, **LEVELS)


def test_a_uniform_attention_reversed_is_itself():
    inputs, targets = _inputs()
    inputs = inputs.replace(attention=jnp.full((4, 8), 1 / 8))
    loss = preservation_loss(inputs, targets, **LEVELS)
    assert jnp.allclose(loss, 4 * (0.6 + 0.4 + 0.5 * 0.3))
