"""SigLIP's towers, the image encoder and the text encoder "siglip"; SigLIP 2's are the same.

See docs/method.md, section 9.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cmap_jax.models.encoders.entry import ImageEntry, Setting, TextEntry
from cmap_jax.models.encoders.rollout import attention_weights, roll_out
from cmap_jax.models.encoders.text_tower import (
    FROZEN,
    TEXT_SETTINGS,
    check_text,
    check_text_width,
    text_builder,
)
from cmap_jax.models.encoders.transformer import (
    LAYERS,
    Attention,
    Mlp,
    Tower,
    layer_norm,
    linear,
    published,
)
from cmap_jax.models.encoders.vision_tower import (
    VISION_SETTINGS,
    Patches,
    VisionTower,
    check_vision,
    resize_positions,
    vision_builder,
    vision_levels,
    vision_pictures,
)
from cmap_jax.numerics import at_least_float32


class AttentionPooling(nn.Module):
    """One learned probe attends to all tokens; two linear layers are added to the result.

    Attributes:
        heads: heads of the attention.
        mlp_width: hidden channels of the two linear layers.
        activation: a key of `transformer.ACTIVATIONS`.
        epsilon: constant that the LayerNorm adds to the variance.
        dtype: dtype of the products.

    Parameters: ``probe`` [D], ``attention``, ``norm`` and ``mlp``.
    """

    heads: int
    mlp_width: int
    activation: str
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Pool tokens."""
        batch, _, width = tokens.shape
        std = width**-0.5
        probe = self.param("probe", nn.initializers.normal(std), (width,)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (batch, 1, width))
        attention = Attention(self.heads, out_std=std, dtype=self.dtype, name="attention")
        x = attention(probe, tokens)[:, 0]
        mlp = Mlp(self.mlp_width, self.activation, std, self.dtype, name="mlp")
        return x + mlp(layer_norm(self.epsilon, self.dtype, "norm")(x))


class SiglipVision(VisionTower):
    """SigLIP's vision tower."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B *shape"]]:
        """Encode normalised images.

        Returns:
            The pooled feature [B, width] as "high", float32 or better, not normalised; and with
            ``map_blocks`` the tokens after those blocks as "mid" and "low", [B, h, w, width], which
            may be negative.
        """
        x = Patches(self.patch, self.width, True, self.dtype, name="patch_embedding")(images)
        batch, rows, columns, _ = x.shape
        init = nn.initializers.normal(self.width**-0.5)
        positions = self.param("position_embedding", init, (self.grid**2, self.width))
        positions = resize_positions(positions, rows, columns).astype(self.dtype)
        x, tokens = self.run_blocks(
            x.reshape(batch, -1, self.width) + positions, after=self.map_blocks
        )
        x = layer_norm(self.epsilon, self.dtype, "post_norm")(x)
        pooling = AttentionPooling(
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="pooling",
        )
        feature = at_least_float32(pooling(x))
        return {"high": feature, **self.feature_maps(tokens, rows, columns)}


def patch_weights(
    tower: SiglipVision, params: Any, tokens: Float[Array, "B T D"]
) -> Float[Array, "B P"]:
    """Return the weights of the patches in what the probe of the pooling attends to."""
    rolled, tokens = roll_out(tower, params, tokens)
    norm = layer_norm(tower.epsilon, tower.dtype, "post_norm")
    tokens = norm.apply({"params": params["post_norm"]}, tokens)
    pooling = params["pooling"]
    probe = jnp.broadcast_to(pooling["probe"], (tokens.shape[0], 1, tokens.shape[-1]))
    seen = jnp.mean(attention_weights(pooling["attention"], probe, tokens), axis=1)
    return jnp.einsum("bqt,btp->bp", seen, rolled)


class SiglipText(Tower):
    """SigLIP's text tower.

    Attributes:
        vocabulary_size: rows of the token embedding.
        positions: tokens of every text, padding included.
        projection: channels P of the projected feature.
        pad_token: id of the padding, which all tokens attend to.
    """

    vocabulary_size: int = 32000
    positions: int = 64
    projection: int = 768
    pad_token: int = 1

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B P"]:
        """Encode texts of ``lengths`` tokens, padded with ``pad_token`` to all positions.

        Whatever ``tokens`` holds as padding, and however wide it is, has no effect.

        Returns:
            The projected features, float32 or better, not normalised.

        Raises:
            ValueError: more tokens than positions.
        """
        width = tokens.shape[1]
        check_text_width(width, self.positions)
        tokens = jnp.pad(tokens, ((0, 0), (0, self.positions - width)))
        valid = jnp.arange(self.positions) < lengths[:, None]
        tokens = jnp.where(valid, tokens, self.pad_token)
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("token_embedding", init, (self.vocabulary_size, self.width))
        positions = self.param("position_embedding", init, (self.positions, self.width))
        x = jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)
        x, _ = self.run_blocks(x + positions.astype(self.dtype))
        x = layer_norm(self.epsilon, self.dtype, "final_norm")(x[:, -1])
        project = linear(self.projection, self.width**-0.5, self.dtype, "projection")
        return at_least_float32(project(x))


_PRETRAINED = functools.partial(published, "google/siglip-base-patch16-224")

ENTRY = ImageEntry(
    build=vision_builder(SiglipVision),
    settings=VISION_SETTINGS,
    levels=vision_levels,
    pictures=functools.partial(vision_pictures, "siglip"),
    pooling="mean",  # tokens may be negative
    layers=LAYERS,
    pretrained=_PRETRAINED("image"),
    feature_width=lambda settings: settings["width"],
    patch_weights=patch_weights,
    check=functools.partial(check_vision, "siglip"),
)
TEXT_ENTRY = TextEntry(
    build=text_builder(SiglipText),
    settings={**TEXT_SETTINGS, "pad_token": Setting(least=0)},
    tokenizers=("siglip", "words"),
    frozen=FROZEN,
    layers=LAYERS,
    pretrained=_PRETRAINED("text"),
    check=functools.partial(check_text, "siglip"),
)
