"""The describe mode: counted FLOP, and the table of groups."""

import jax
import jax.numpy as jnp
import numpy as np
from small import small_config

from cmap_jax.cli import describe
from cmap_jax.cli.flop import count_flop


def _count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return count_flop(jax.jit(function).trace(*arguments))


def test_products():
    assert _count(jnp.matmul, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert _count(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (4, 5, 7), (4, 7, 3)) == 840
    assert _count(jnp.add, (5, 7), (5, 7)) == 0


def test_loops_count_each_step_and_branches_the_longest():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=6)[0]

    one = 2 * 5 * 7 * 7
    assert _count(loop, (5, 7), (7, 7)) == 6 * one
    # The backward pass has two products a step.
    assert _count(jax.grad(lambda x, w: loop(x, w).sum(), (0, 1)), (5, 7), (7, 7)) == 18 * one

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert _count(branch, (5, 7), (7, 7)) == 2 * one


def test_unused_and_recomputed_results():
    def layer(x, w):
        return jnp.tanh(x @ w)

    one = 2 * 5 * 7 * 7
    assert _count(lambda x, w: (layer(x, w), x)[1], (5, 7), (7, 7)) == 0
    for function, products in ((layer, 5), (jax.checkpoint(layer), 6)):

        def loss(w, x, function=function):
            return function(function(x, w), w).sum()

        assert _count(jax.grad(loss), (7, 7), (5, 7)) == products * one


def test_convolutions():
    def convolve(x, kernel, stride=2):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
        )

    forward = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 5)
    assert _count(convolve, (2, 8, 8, 5), (3, 3, 5, 6)) == forward
    gradient = jax.grad(lambda x, k: convolve(x, k).sum(), (0, 1))
    # The forward result is not used; each gradient takes as much as the forward pass.
    assert _count(gradient, (2, 8, 8, 5), (3, 3, 5, 6)) == 2 * forward


def test_groups(monkeypatch):
    monkeypatch.setattr(describe, "_step", lambda *_: "")  # compiled for half a minute
    config = small_config(text_frozen=True)
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-3, 0.1
    config.optimizer.undecayed = ("norms", "biases")
    config.optimizer.groups.image.update(learning_rate=0.1, layer_decay=0.5)
    config.optimizer.groups.heads.weight_decay = 0.5
    lines = describe.describe(config).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("group"))
    header, image, text, heads = (line.split() for line in lines[start : start + 4])
    assert header[:3] == ["group", "parameters", "trained"]
    # The stem is five layers below the end; ResNet-18 of width 4 has this many batch-norms.
    assert image[0] == "image"
    assert image[1] == image[2]
    assert image[4:] == ["3.13e-06", "to", "5e-05", "0.1"]
    assert text == ["text", "66", "0"]
    assert heads[0] == "heads"
    assert heads[4:] == ["0.001", "0.05"]
    total = sum(int(row[1].replace(",", "")) for row in (image, text, heads))
    assert any(line.startswith(f"{total:,} parameters, {total - 66:,} of them") for line in lines)
