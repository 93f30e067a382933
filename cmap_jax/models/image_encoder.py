"""From images to a pyramid of embeddings: backbone, cross-level interaction, pooling, heads."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from cmap_jax.models.encoders.resnet import ResNet
from cmap_jax.models.layers import Conv, Dense, generalized_mean, resize_bilinear
from cmap_jax.models.rematerialization import Remat
from cmap_jax.numerics import at_least_float32, l2_normalize
from cmap_jax.processing.images import IMAGENET_MEAN, IMAGENET_STD

LEVELS = ("high", "mid", "low")


def normalize_images(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
) -> Float[Array, "B H W 3"]:
    """Scale uint8 images to ImageNet's mean and variance; floating point passes unchanged (SPEC 4).

    Raises:
        TypeError: another dtype.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8 (0..255) or floating point (already normalised), not "
            f"{images.dtype}"
        )
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


class CrossLevel(nn.Module):
    """Lend the semantics of a deeper level to the shallower one (SPEC 1, cross-level interaction).

    Attributes:
        direction: "down" (as released: the shallower map is shrunk to the deeper one's size), "up"
            (the usual top-down pyramid) or "none" (the ablation).
        dtype: of the convolutions.
    """

    direction: Literal["down", "up", "none"] = "down"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, c3: jax.Array, c4: jax.Array, c5: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the maps (P5, P4, P3) of the levels high, mid and low from C3, C4, C5."""
        if self.direction == "none":
            return c5, c4, c3

        def conv(name: str, features: int, size: int) -> Conv:
            return Conv(features, size, dtype=self.dtype, name=name)

        lateral_mid = conv("lateral_mid", c4.shape[-1], 1)
        lateral_low = conv("lateral_low", c3.shape[-1], 1)
        if self.direction == "down":
            m4 = resize_bilinear(c4, *c5.shape[1:3]) + lateral_mid(c5)
            # The raw C4, not P4: so it was released.
            m3 = resize_bilinear(c3, *c4.shape[1:3]) + lateral_low(c4)
        else:
            m4 = c4 + resize_bilinear(lateral_mid(c5), *c4.shape[1:3])
            m3 = c3 + resize_bilinear(lateral_low(m4), *c3.shape[1:3])
        p4 = conv("smooth_mid", c4.shape[-1], 3)(m4)
        p3 = conv("smooth_low", c3.shape[-1], 3)(m3)
        return c5, p4, p3


class ImageEncoder(nn.Module):
    """Images to one l2-normalised embedding a level.

    Attributes:
        embed_dim: width D of the embeddings.
        levels: the levels wanted, ("high",) or all of LEVELS; others have no parameters.
        depth: layers of the ResNet.
        width: channels of its stem.
        cross_level: direction of the cross-level interaction.
        normalize_backbone_by_batch: whether training uses (and updates) batch statistics in the
            backbone's batch-norm; False freezes the running ones.
        batch_norm_groups: parts of the batch that the backbone normalises by themselves.
        remat: what of the backbone's blocks is kept for the gradient; see `rematerialize`.
        dtype: of convolutions and linear layers; pooling and norms are float32.
    """

    embed_dim: int
    levels: tuple[str, ...] = LEVELS
    depth: int = 50
    width: int = 64
    cross_level: Literal["down", "up", "none"] = "down"
    normalize_backbone_by_batch: bool = True
    batch_norm_groups: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102
        self.backbone = ResNet(
            self.depth, self.width, self.batch_norm_groups, self.remat, self.dtype
        )
        if len(self.levels) > 1:
            self.interaction = CrossLevel(self.cross_level, self.dtype)
        self.heads = [Dense(self.embed_dim, self.dtype, name=f"head_{n}") for n in self.levels]

    def __call__(
        self, images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], *, train: bool
    ) -> Float[Array, "L B D"]:
        """Encode uint8 or normalised images (SPEC 1, image encoder, pooling and heads).

        Returns:
            The pyramid, levels high to low, float32.

        Raises:
            ValueError: not [B, H, W, 3], or a side that is no multiple of 32.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or any(s % 32 for s in images.shape[1:3]):
            raise ValueError(
                f"images must be [B, H, W, 3] with H and W multiples of 32, not {images.shape}"
            )
        images = normalize_images(images)
        maps = self.backbone(
            images, use_batch_statistics=train and self.normalize_backbone_by_batch
        )
        maps = self.interaction(*maps) if len(self.levels) > 1 else maps[-1:]
        embeddings = [head(generalized_mean(m)) for head, m in zip(self.heads, maps, strict=True)]
        return l2_normalize(at_least_float32(jnp.stack(embeddings)))
