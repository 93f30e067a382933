"""The factorised score: shapes, averages, gradients where they could break, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from cmap_jax import scoring
from cmap_jax.numerics import l2_normalize


def _query(queries=6, levels=3, width=16, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    attention = jax.nn.softmax(jax.random.normal(keys[0], (2, 1, queries, width)) * 2)
    modified = l2_normalize(jax.random.normal(keys[1], (1, queries, width)))
    preserved = l2_normalize(jax.random.normal(keys[2], (levels, queries, width)))
    return scoring.ComposedQuery(
        (
            scoring.Branch(modified * attention[0], attention[0]),
            scoring.Branch(preserved * attention[1], attention[1]),
        ),
        branch_names=("modified", "preserved"),
        levels=("high", "mid", "low")[:levels],
    )


def _gallery(images=10, levels=3, width=16, seed=1):
    return l2_normalize(jax.random.normal(jax.random.key(seed), (levels, images, width)))


def test_sums_shapes_and_dtypes():
    query, gallery = _query(), _gallery()
    checked = [
        jaxtyped(typechecker=beartype)(f)
        for f in (scoring.score_branches, scoring.score_levels, scoring.score)
    ]
    branches, levels, total = (f(query, gallery) for f in checked)
    assert branches.shape == (2, 3, 6, 10)
    np.testing.assert_allclose(branches.sum(0), levels, atol=1e-6)
    np.testing.assert_allclose(levels.sum(0), total, atol=1e-6)
    assert total.dtype == jnp.float32
    assert scoring.score(query, gallery.astype(jnp.bfloat16)).dtype == jnp.float32
    assert len(query) == 6


def test_wrong_levels_are_refused():
    with pytest.raises(ValueError, match=r"must be\s+\[3, N, D\]; it is \(1, 10, 16\)"):
        scoring.score(_query(), _gallery(levels=1))


def test_averaged_queries_score_the_mean():
    query, gallery = _query(8), _gallery(10)
    query = query.replace(preservation=scoring.PreservationInputs(*3 * [jnp.ones((8, 16))]))
    first, second = (scoring.take(query, slice(start, None, 2)) for start in (0, 1))
    averaged = scoring.average(first, second)
    assert len(averaged) == 4
    assert averaged.branch_names == ("modified", "preserved") * 2
    scores = scoring.score(query, gallery)
    np.testing.assert_array_equal(scoring.score(second, gallery), scores[1::2])
    means = np.asarray(scores).reshape(4, 2, 10).mean(axis=1)
    np.testing.assert_allclose(scoring.score(averaged, gallery), means, atol=1e-6)


def test_gradients_at_zero_are_zero_and_finite():
    def total(attention, image):
        query = scoring.ComposedQuery(
            (scoring.Branch(jnp.ones((1, 1, 4)) * attention, attention),),
            branch_names=("modified",),
            levels=("high",),
        )
        return scoring.score(query, image).sum()

    some, none = jnp.full((1, 1, 4), 0.5), jnp.zeros((1, 1, 4))
    for attention, image in ((some, none), (none, some), (none, none)):
        value, gradients = jax.value_and_grad(total, argnums=(0, 1))(attention, image)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    one_zero = some.at[0, 0, 1].set(0)
    for gradient in jax.grad(total, argnums=(0, 1))(one_zero, some):
        assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(jax.grad(lambda x: l2_normalize(x).sum())(none), 0)


@pytest.mark.parametrize("size", [1e-17, 1e-13, 1e-6, 1.0, 1e10])
def test_l2_floor(size):
    x = jnp.asarray([3.0, 4.0]) * size
    expected = np.asarray(x, np.float64) / max(np.linalg.norm(np.asarray(x, np.float64)), 1e-12)
    np.testing.assert_allclose(l2_normalize(x), expected, rtol=1e-5)


def test_no_tensor_of_all_weighted_targets():
    """The compiled loss holds nothing as large as B x N x D."""
    queries, width = 128, 256
    query, gallery = _query(queries, 3, width), _gallery(queries, 3, width)

    def loss(query, gallery):
        return jnp.square(scoring.score_levels(query, gallery)).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(query, gallery).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * queries * queries * width
