"""MagicLens: a small transformer over a picture's and a text's feature (Zhang et al., ICML 2024).

See docs/method.md, section 10, MagicLens.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.numerics import at_least_float32
from cmap_jax.scoring import Branch, ComposedQuery

_LOGIT_CAP = 50.0
_POOLER_WIDTH = 4  # width of the pooler's attention over all heads, as a multiple of D
_MLP_WIDTH = 4  # width of a layer's hidden units, as a multiple of D
_NORM_EPS = 1e-6
_EMBEDDING_EPS = 1e-12


class CenteredNorm(nn.Module):
    """Layer normalisation that multiplies by 1 + ``scale``, in float32 or better."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Normalise the last axis."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = at_least_float32(x)
        x = x - jnp.mean(x, -1, keepdims=True)
        variance = jnp.mean(jnp.square(x), -1, keepdims=True)
        return x * jax.lax.rsqrt(variance + _NORM_EPS) * (1 + scale) + bias


class ToHeads(nn.Module):
    """A linear layer to several heads, [..., D] -> [..., heads, width].

    Parameters: ``kernel`` [D, heads, width] and ``bias`` [heads, width].
    """

    heads: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape N H"]:
        """Apply the layer to the last axis."""
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (x.shape[-1], self.heads, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.heads, self.width))
        x = jnp.einsum("...d,dnh->...nh", x.astype(self.dtype), kernel.astype(self.dtype))
        return x + bias.astype(self.dtype)


class CappedAttention(nn.Module):
    """Multi-head attention whose logits are capped, ``50 tanh(logits / 50)``, without a mask.

    The kernel of ``out`` is [D, heads, width].

    Attributes:
        heads: number of heads.
        width: width of a head.
        scale_dimensions: whether queries are scaled by a learned factor for each dimension of a
            head, in place of ``width ** -0.5``.
        dtype: dtype of the products; logits and softmax are float32 or better.
    """

    heads: int
    width: int
    scale_dimensions: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B T D"], tokens: Float[Array, "B S D"]
    ) -> Float[Array, "B T D"]:
        """Let T queries attend to S tokens."""
        features = queries.shape[-1]
        query = ToHeads(self.heads, self.width, self.dtype, name="query")(queries)
        key = ToHeads(self.heads, self.width, self.dtype, name="key")(tokens)
        value = ToHeads(self.heads, self.width, self.dtype, name="value")(tokens)
        query = at_least_float32(query) / math.sqrt(self.width)
        if self.scale_dimensions:
            factor = self.param("dimension_scale", nn.initializers.zeros, (self.width,))
            # The constant is 1 / softplus(0) to ten digits: zeros scale by 1.
            query = query * (1.442695041 * nn.softplus(factor))
        logits = jnp.einsum("btnh,bsnh->bnts", query, at_least_float32(key))
        attention = nn.softmax(_LOGIT_CAP * jnp.tanh(logits / _LOGIT_CAP), axis=-1)
        mixed = jnp.einsum("bnts,bsnh->btnh", attention.astype(self.dtype), value)
        init = nn.initializers.lecun_normal(in_axis=(1, 2), out_axis=0)
        kernel = self.param("out_kernel", init, (features, self.heads, self.width))
        bias = self.param("out_bias", nn.initializers.zeros, (features,))
        out = jnp.einsum("btnh,dnh->btd", mixed, kernel.astype(self.dtype))
        return at_least_float32(out + bias.astype(self.dtype))


class MagicLensLayer(nn.Module):
    """A layer of the encoder: attention among the tokens, then two linear layers; residuals."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return the tokens, changed."""
        features = tokens.shape[-1]
        normed = CenteredNorm(name="norm1")(tokens)
        attention = CappedAttention(
            self.heads, features // self.heads, dtype=self.dtype, name="attention"
        )
        tokens = tokens + attention(normed, normed)
        hidden = CenteredNorm(name="norm2")(tokens)
        hidden = nn.relu(nn.Dense(_MLP_WIDTH * features, dtype=self.dtype, name="fc1")(hidden))
        return tokens + at_least_float32(nn.Dense(features, dtype=self.dtype, name="fc2")(hidden))


class MagicLens(nn.Module):
    """The composer: a picture's and a text's feature, two tokens, become one embedding.

    The gallery's embedding of a picture is its query with the empty text.

    Attributes:
        layers: layers of the transformer over the two tokens.
        heads: heads of its attentions; a divisor of D.
        levels: names of the pyramid's levels; projected features have one.
        dtype: dtype of the products; norms and softmaxes are float32 or better.
    """

    layers: int = 4
    heads: int = 8
    levels: tuple[str, ...] = ("high",)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Float[Array, "1 B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries of features of any norm."""
        features = text.shape[-1]
        tokens = at_least_float32(jnp.stack([pyramid[0], text], axis=1))  # [B, 2, D]
        for i in range(self.layers):
            tokens = MagicLensLayer(self.heads, self.dtype, name=f"layer{i + 1}")(tokens)
        query = self.param(
            "pooling_query", nn.initializers.lecun_normal(in_axis=0, out_axis=1), (1, features)
        )
        pooler = CappedAttention(
            self.heads,
            _POOLER_WIDTH * features // self.heads,
            scale_dimensions=True,
            dtype=self.dtype,
            name="pooler",
        )
        queries = jnp.broadcast_to(query, (tokens.shape[0], 1, features))
        pooled = CenteredNorm(name="pooler_norm")(pooler(queries, tokens)[:, 0])  # [B, D]
        squared = jnp.sum(jnp.square(pooled), axis=-1, keepdims=True)
        embedding = pooled * jax.lax.rsqrt(squared + _EMBEDDING_EPS)
        return ComposedQuery((Branch(embedding[None]),), None, ("composed",), self.levels)
