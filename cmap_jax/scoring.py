"""A composed query and its score against a gallery, in the form that loss, ranks and search share.

A query is a sum of branches. Branch k at level l holds a numerator vector ``n`` and, optionally,
a weight vector ``w``; its score against an embedding ``t`` of that level is

    n . t / sqrt(w^2 . t^2)        with a weight (squares are elementwise), or
    n . t                          without.

The first is ``<g, l2(w * t)>`` with ``n = g * w``: the weighted, renormalised target of CMAP's
attention (docs/method.md, section 1), without the B x N x D tensor of all weighted targets. A
level costs one matrix product without a weight, and two with one.

    query = model.apply(variables, pyramid, text, method="compose")
    scores = score(query, gallery_pyramid)                       # [B, N]

`retrieval.exact` scores any number of images in this way, a chunk at a time.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmap_jax.numerics import at_least_float32, inverse_norm


@flax.struct.dataclass
class Branch:
    """One term of a query's score.

    Attributes:
        numerator: ``n``, [L, B, D], or [1, B, D] where it is the same at every level.
        weight: ``w``, [L, B, D] or [1, B, D]; None for a plain dot product.
    """

    numerator: jax.Array
    weight: jax.Array | None = None


@flax.struct.dataclass
class PreservationInputs:
    """Inputs of the self-contrastive preservation loss besides the score.

    See docs/method.md, section 2.

    Attributes:
        text: text embeddings m, [B, D].
        modification: their linear transform T, [B, D]; None where the variant has none.
        attention: preservation attentions A_p, [B, D].
    """

    text: jax.Array
    modification: jax.Array | None
    attention: jax.Array


@flax.struct.dataclass
class ComposedQuery:
    """A batch of queries, ready to be scored against any gallery.

    Attributes:
        branches: terms of the score, one or more.
        preservation: inputs of the preservation loss, or None for a variant without it.
        branch_names: a name for each branch, such as ("modified", "preserved"); static.
        levels: names of the pyramid's levels that the query scores, such as ("high",); static.
    """

    branches: tuple[Branch, ...]
    preservation: PreservationInputs | None = None
    branch_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    levels: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    def __len__(self) -> int:
        """Return the number of queries, B."""
        return self.branches[0].numerator.shape[1]


def take(query: ComposedQuery, rows: slice) -> ComposedQuery:
    """Return some of the queries, without the inputs of the preservation loss."""
    return jax.tree.map(lambda x: x[:, rows], query.replace(preservation=None))


def average(first: ComposedQuery, second: ComposedQuery) -> ComposedQuery:
    """Return queries that score the mean of two batches' scores, query by query."""

    def halve(branch: Branch) -> Branch:
        return branch.replace(numerator=branch.numerator / 2)

    return first.replace(
        branches=tuple(map(halve, first.branches + second.branches)),
        branch_names=first.branch_names + second.branch_names,
        preservation=None,
    )


def _products(rows: Sequence[jax.Array], targets: jax.Array) -> jax.Array:
    """Return all dot products of K sets of rows, [B, D] each, with [N, D]: [K, B, N].

    One large product is faster than several. The sets are stacked and not concatenated, so that
    sharded rows stay on their devices.
    """
    # Without the highest precision, accelerators multiply float32 as bfloat16.
    return jnp.einsum("kbd,nd->kbn", jnp.stack(rows), targets, precision=jax.lax.Precision.HIGHEST)


def _score_level(query: ComposedQuery, level: int, targets: jax.Array) -> list[jax.Array]:
    """Score one level, [N, D] -> [B, N] for each branch."""
    targets = at_least_float32(targets)

    def at_level(vectors: Sequence[jax.Array]) -> list[jax.Array]:
        return [at_least_float32(v[level if v.shape[0] > 1 else 0]) for v in vectors]

    dots = _products(at_level([branch.numerator for branch in query.branches]), targets)
    weights = at_level([b.weight for b in query.branches if b.weight is not None])
    if not weights:
        return list(dots)
    squared = _products([jnp.square(w) for w in weights], jnp.square(targets))
    inverse_norms = iter(inverse_norm(squared))
    return [
        dot if branch.weight is None else dot * next(inverse_norms)
        for branch, dot in zip(query.branches, dots, strict=True)
    ]


def check_levels(query: ComposedQuery, shape: Sequence[int]) -> None:
    """Check that a gallery of a shape has the levels that a query scores.

    Raises:
        ValueError: it is not [L, N, D] with the query's L.
    """
    if len(shape) != 3 or shape[0] != len(query.levels):
        raise ValueError(
            f"the query scores the levels {query.levels}, so the gallery must be "
            f"[{len(query.levels)}, N, D]; it is {tuple(shape)}"
        )


def score_branches(query: ComposedQuery, targets: Float[Array, "L N D"]) -> Float[Array, "K L B N"]:
    """Score every query against every target, branch by branch and level by level.

    See docs/method.md, section 1.

    Args:
        query: B queries that score L levels.
        targets: pyramid of N images, levels high to low, each embedding l2-normalised.

    Returns:
        One matrix a branch and level, float32, or float64 where the inputs are.

    Raises:
        ValueError: the pyramid does not have the query's levels.
    """
    check_levels(query, targets.shape)
    levels = [_score_level(query, i, t) for i, t in enumerate(targets)]
    return jnp.stack([jnp.stack(branch) for branch in zip(*levels, strict=True)])


def score_levels(query: ComposedQuery, targets: Float[Array, "L N D"]) -> Float[Array, "L B N"]:
    """Score every query against every target, one matrix a level, summed over branches."""
    check_levels(query, targets.shape)
    return jnp.stack([sum(_score_level(query, i, t)) for i, t in enumerate(targets)])


def score(query: ComposedQuery, targets: Float[Array, "L N D"]) -> Float[Array, "B N"]:
    """Score every query against every target, summed over branches and levels, for retrieval."""
    check_levels(query, targets.shape)
    return sum(sum(_score_level(query, i, t)) for i, t in enumerate(targets))
