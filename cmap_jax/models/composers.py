"""Composers turn a reference's pyramid and a text into a `ComposedQuery` (SPEC 1, variants).

A composer is a module with ``__call__(pyramid, text, *, train) -> ComposedQuery``; what differs
between the methods of the field is written here and nowhere else. A new method is a new composer
and a line in COMPOSERS.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.image_encoder import LEVELS
from cmap_jax.models.layers import BatchNorm, Dense
from cmap_jax.scoring import (
    Branch,
    ComposedQuery,
    PreservationInputs,
    at_least_float32,
    l2_normalize,
)


class Attention(nn.Module):
    """Attention over the embedding's dimensions, ``softmax_D(W2 relu(W1 m + b1) + b2)``."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Return weights that sum to one over D, float32."""
        hidden = nn.relu(Dense(text.shape[-1], self.dtype, name="hidden")(text))
        logits = Dense(text.shape[-1], self.dtype, name="out")(hidden)
        return nn.softmax(at_least_float32(logits), axis=-1)


def modified_branch(transform: Float[Array, "B D"], attention: Float[Array, "B D"]) -> Branch:
    """Return the branch of ``<T, l2(A_m * t)>``, alike at every level (SPEC 1, scores)."""
    return Branch((transform * attention)[None], attention[None])


def preserved_branch(pyramid: Float[Array, "L B D"], attention: Float[Array, "B D"]) -> Branch:
    """Return the branch of ``<l2(A_p * r), l2(A_p * t)>`` (SPEC 1, scores)."""
    # Level by level: the attention's gradient is then a sum of arrays. As a reduction over a
    # leading axis of three it takes XLA's CPU back end a third of the time of score and loss.
    numerators = [l2_normalize(attention * level) * attention for level in pyramid]
    return Branch(jnp.stack(numerators), attention[None])


class AttentionComposer(nn.Module):
    """CMAP's composition: a modified and a preserved part (SPEC 1, attention and scores).

    ``mod_i = <T, l2(A_m * t_i)>`` and ``pres_i = <l2(A_p * r_i), l2(A_p * t_i)>``, where A_m and
    A_p are the modification and the preservation attention and ``T = l2(W_t m + b_t)``. With the
    high level alone it is ARTEMIS.

    Attributes:
        parts: which of "modified" and "preserved" take part.
        levels: levels of the pyramid.
        self_contrastive: whether the preservation loss applies.
        dtype: of the linear layers.
    """

    parts: tuple[str, ...] = ("modified", "preserved")
    levels: tuple[str, ...] = LEVELS
    self_contrastive: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Float[Array, "L B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        branches, transform, preservation = [], None, None
        if "modified" in self.parts:
            transform = l2_normalize(Dense(text.shape[-1], self.dtype, name="transform")(text))
            attention = Attention(self.dtype, name="modification_attention")(text)
            branches.append(modified_branch(transform, attention))
        if "preserved" in self.parts:
            attention = Attention(self.dtype, name="preservation_attention")(text)
            branches.append(preserved_branch(pyramid, attention))
            if self.self_contrastive:
                preservation = PreservationInputs(text, transform, attention)
        return ComposedQuery(tuple(branches), preservation, self.parts, self.levels)


class PlainComposer(nn.Module):
    """The compositions without parameters: one branch, ``<n_i, t_i>``.

    Attributes:
        compose: maps (pyramid [L, B, D], text [B, D]) to n, [L, B, D] or [1, B, D].
        branch_name: what the branch stands for.
        levels: levels of the pyramid.
        dtype: unused; every composer takes it.
    """

    compose: Callable[[jax.Array, jax.Array], jax.Array]
    branch_name: str
    levels: tuple[str, ...] = LEVELS
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, pyramid: Float[Array, "L B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        branches = (Branch(self.compose(pyramid, text)),)
        return ComposedQuery(branches, None, (self.branch_name,), self.levels)


class TIRG(nn.Module):
    """Text-image residual gating (Vo et al., CVPR 2019), on the high level (SPEC 1, variants).

    ``l2(a1 * sigmoid(gate(x)) * r + a2 * res(x))`` with ``x = [r, m]``.
    """

    levels: tuple[str, ...] = ("high",)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Float[Array, "1 B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        reference, width = pyramid[0], text.shape[-1]
        joined = jnp.concatenate([reference, text], axis=-1)

        def norm_relu(name: str) -> jax.Array:
            norm = BatchNorm(dtype=self.dtype, name=name)
            return nn.relu(norm(joined, use_batch_statistics=train))

        gate = Dense(width, self.dtype, name="gate")(norm_relu("gate_norm"))
        hidden = nn.relu(Dense(2 * width, self.dtype, name="res_hidden")(norm_relu("res_norm")))
        residual = Dense(width, self.dtype, name="res_out")(hidden)
        mix = self.param("mix", lambda _, shape: jnp.asarray([1.0, 10.0]).reshape(shape), (2,))
        composed = mix[0] * nn.sigmoid(at_least_float32(gate)) * reference + mix[1] * residual
        return ComposedQuery(
            (Branch(l2_normalize(composed)[None]),), None, ("composed",), self.levels
        )


def _late_fusion(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return l2_normalize(pyramid + text)


def _text_only(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return text[None]


def _image_only(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return pyramid


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named method: how to build its composer, and what the composer reads.

    Attributes:
        build: makes the composer; called with ``dtype=``.
        levels: levels of the pyramid that it scores.
        reads_text: False where the text plays no part: no text encoder is made.
    """

    build: Callable[..., nn.Module]
    levels: tuple[str, ...] = LEVELS
    reads_text: bool = True


def _attention(**settings) -> Callable[..., nn.Module]:
    return lambda dtype: AttentionComposer(dtype=dtype, **settings)


def _plain(compose: Callable, branch_name: str) -> Callable[..., nn.Module]:
    return lambda dtype: PlainComposer(compose, branch_name, dtype=dtype)


_HIGH = LEVELS[:1]

COMPOSERS = {
    "cmap": Variant(_attention()),
    "em_only": Variant(_attention(parts=("modified",), self_contrastive=False)),
    "is_only": Variant(_attention(parts=("preserved",))),
    "artemis": Variant(_attention(levels=_HIGH, self_contrastive=False), levels=_HIGH),
    "late_fusion": Variant(_plain(_late_fusion, "fused")),
    "text_only": Variant(_plain(_text_only, "text")),
    "image_only": Variant(_plain(_image_only, "image"), reads_text=False),
    "tirg": Variant(lambda dtype: TIRG(dtype=dtype), levels=_HIGH),
}
