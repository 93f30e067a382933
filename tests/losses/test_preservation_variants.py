"""The library's variants of the preservation loss, values and gradients, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small import one_device, small_config

from cmap_jax.losses import entropy_shortfall, preservation_loss, ramp
from cmap_jax.models.cmap import TrainingOutputs
from cmap_jax.scoring import Branch, ComposedQuery, PreservationInputs
from cmap_jax.training.objective import objective

B, D, LEVELS = 5, 12, 3
MARGINS, WEIGHTS = (0.6, 0.4, 0.3), (1.0, 1.0, 0.5)


def _inputs(seed=0):
    """Text, T, the attention's logits and targets, float64."""
    rng = np.random.default_rng(seed)
    text, modification, logits = rng.normal(size=(3, B, D))
    targets = rng.normal(size=(LEVELS, B, D))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (text, modification, targets)]
    return unit[0], unit[1], 2 * logits, unit[2]


def _torch_loss(text, modification, logits, targets, *, reversal, moves_text, alpha):
    attention = torch.softmax(logits, -1)
    if reversal == "maximum":
        reverse = attention.amax(-1, keepdim=True) - attention
        reverse = reverse / reverse.sum(-1, keepdim=True)  # it must not matter
    else:
        reverse = 2 * attention.mean(-1, keepdim=True) - attention
        reverse = reverse.clamp(min=0) if reversal == "clipped" else reverse
    guide = alpha * text + (1 - alpha) * modification
    guide = guide if moves_text else guide.detach()
    total = 0
    for target, margin, weight in zip(targets, MARGINS, WEIGHTS, strict=True):
        kept, other = (
            torch.nn.functional.normalize(x * target, dim=-1) for x in (attention, reverse)
        )
        hinge = margin + (guide * kept).sum(-1) - (guide * other).sum(-1)
        total = total + weight * torch.relu(hinge).sum()
    return total


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("moves_text", [True, False])
@pytest.mark.parametrize("reversal", ["released", "clipped", "maximum"])
def test_variants_and_their_gradients(reversal, moves_text, alpha, x64):
    arrays = _inputs()
    settings = {"reversal": reversal, "moves_text": moves_text, "alpha": alpha}

    def ours(text, modification, logits, targets):
        inputs = PreservationInputs(text, modification, jax.nn.softmax(logits))
        return preservation_loss(
            inputs, targets, margins=MARGINS, level_weights=WEIGHTS, **settings
        )

    loss, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(*map(jnp.asarray, arrays))
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    theirs = _torch_loss(*tensors, **settings)
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-12)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
    assert bool(np.any(gradients[0])) == moves_text
    assert np.any(gradients[2])  # the attention always learns
    assert np.any(gradients[3])


def test_an_unknown_reversal_is_refused():
    text, modification, logits, targets = map(jnp.asarray, _inputs())
    inputs = PreservationInputs(text, modification, jax.nn.softmax(logits))
    with pytest.raises(ValueError, match="preservation_reversal must be one of 'released', "):
        preservation_loss(
            inputs, targets, margins=MARGINS, level_weights=WEIGHTS, reversal="mirrored"
        )


def test_entropy_shortfall(x64):
    logits = _inputs()[2] * np.array([[0], [1], [2], [4], [400]])  # the last one is a single weight

    def ours(logits):
        return entropy_shortfall(jax.nn.softmax(logits), 0.9)

    tensor = torch.tensor(logits, requires_grad=True)
    entropy = torch.distributions.Categorical(logits=tensor).entropy()
    theirs = torch.relu(0.9 * np.log(D) - entropy).mean()
    theirs.backward()
    loss, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-9)
    np.testing.assert_allclose(gradient[:4], tensor.grad[:4], rtol=1e-7, atol=1e-12)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[0])  # an even attention lacks nothing


def test_ramp():
    steps = range(8)
    late = [float(ramp(step, start=3, length=0)) for step in steps]
    rising = [float(ramp(jnp.asarray(step), start=2, length=4)) for step in steps]
    assert late == [0, 0, 0, 1, 1, 1, 1, 1]
    assert rising == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [float(ramp(step, start=0, length=0)) for step in steps] == [1] * 8


def _outputs():
    text, modification, logits, targets = (jnp.asarray(x, jnp.float32) for x in _inputs())
    query = ComposedQuery(
        (Branch(targets[::-1]),),
        PreservationInputs(text, modification, jax.nn.softmax(logits)),
        ("composed",),
        ("high", "mid", "low"),
    )
    return TrainingOutputs(query, targets, jnp.asarray(2.0))


def _terms(step=None, **fields):
    config = small_config()
    config.loss.update(fields)
    return objective(_outputs(), config.loss, one_device(), step=step)[1]


@pytest.mark.parametrize("reversal", ["released", "clipped", "maximum"])
def test_the_objective_follows_the_config(reversal):
    outputs = _outputs()
    settings = {"margins": MARGINS, "level_weights": WEIGHTS}
    expected = preservation_loss(
        outputs.query.preservation, outputs.targets, reversal=reversal, **settings
    )
    terms = _terms(preservation_reversal=reversal)
    np.testing.assert_allclose(terms["loss/preservation"], expected, rtol=1e-6)


@pytest.mark.slow
def test_the_objective_starts_late():
    plain = _terms()
    late = {"preservation_start_steps": 4, "preservation_ramp_steps": 2}
    parts = [_terms(step, **late)["loss/preservation"] for step in (3, 4, 5)]
    whole = plain["loss/preservation"]
    np.testing.assert_allclose(parts, [0, whole / 2, whole], rtol=1e-6)


@pytest.mark.slow
def test_the_floor_is_a_term_of_its_own():
    plain, attention = _terms(), _outputs().query.preservation.attention
    floored = _terms(entropy_floor=0.9, entropy_weight=3.0)
    expected = 3 * entropy_shortfall(attention, 0.9)
    np.testing.assert_allclose(floored["loss/entropy"], expected, rtol=1e-6)
    np.testing.assert_allclose(floored["loss/total"], plain["loss/total"] + expected, rtol=1e-6)
    assert "loss/entropy" not in plain
    off = _terms(entropy_floor=0.9, entropy_weight=0.0, preservation_weights=(0.0, 0.0, 0.0))
    assert set(off) == {"loss/total", "loss/matching"}
