"""From images to a pyramid of embeddings: backbone, cross-level interaction, pooling, heads.

The encoder has two halves. `ImageEncoder.features` runs the backbone, and `ImageEncoder.embed` does
the rest. Where the backbone is frozen, an image's features can be computed once and stored.
`ImageEncoder.maps` and `ImageEncoder.embed_maps` split it at the pooling instead, to ask where in a
picture an embedding comes from.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.encoders.entry import LEVELS, Pictures
from cmap_jax.models.layers import Conv, Dense, generalized_mean, resize_bilinear
from cmap_jax.models.rematerialization import Remat
from cmap_jax.numerics import at_least_float32, l2_normalize

Features = Mapping[str, jax.Array]  # by level, [B, h, w, C] or [B, C]


def normalize_images(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], pictures: Pictures
) -> Float[Array, "B H W 3"]:
    """Scale uint8 images to [0, 1] and normalise them by channel (docs/method.md, section 4).

    Args:
        images: pixels 0..255 as uint8; floating-point images are returned unchanged.
        pictures: has the mean and the standard deviation.

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
    return (scaled - jnp.asarray(pictures.mean)) / jnp.asarray(pictures.std)


class CrossLevel(nn.Module):
    """Add the semantics of a deeper level to the shallower one.

    See docs/method.md, section 1, cross-level interaction.

    Attributes:
        direction: "down" (as released: the shallower map is resized to the deeper one's size), "up"
            (the usual top-down pyramid) or "none" (the ablation).
        dtype: dtype of the convolutions.
    """

    direction: Literal["down", "up", "none"] = "down"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, c5: jax.Array, c4: jax.Array, c3: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the maps P5, P4 and P3 of the levels high, mid and low.

        A vector [B, C] as ``c5`` is the same at every position of ``c4``, and is returned as it is.
        """
        if self.direction == "none":
            return c5, c4, c3

        def conv(name: str, features: int, size: int) -> Conv:
            return Conv(features, size, dtype=self.dtype, name=name)

        lateral_mid = conv("lateral_mid", c4.shape[-1], 1)
        lateral_low = conv("lateral_low", c3.shape[-1], 1)
        deepest = c5[:, None, None] if c5.ndim == 2 else c5
        added = lateral_mid(deepest)
        if self.direction == "down":
            size = c4.shape[1:3] if c5.ndim == 2 else c5.shape[1:3]
            m4 = resize_bilinear(c4, *size) + added
            # The release takes the raw C4 here, not P4.
            m3 = resize_bilinear(c3, *c4.shape[1:3]) + lateral_low(c4)
        else:
            m4 = c4 + (added if c5.ndim == 2 else resize_bilinear(added, *c4.shape[1:3]))
            m3 = c3 + resize_bilinear(lateral_low(m4), *c3.shape[1:3])
        p4 = conv("smooth_mid", c4.shape[-1], 3)(m4)
        p3 = conv("smooth_low", c3.shape[-1], 3)(m3)
        return c5, p4, p3


class ImageEncoder(nn.Module):
    """Images to one embedding a level.

    Attributes:
        family: a key of `IMAGE_ENCODERS`, which makes the backbone.
        settings: the family's sub-config.
        embed_dim: width D of the embeddings.
        levels: the levels wanted, ("high",) or all of LEVELS; others have no parameters.
        has_heads: False for the feature that the backbone itself projects to, as it is, in place of
            pooled maps under heads.
        cross_level: direction of the cross-level interaction.
        frozen: whether the backbone is not trained.
        remat: which results of the backbone are kept for the gradient; see `rematerialize`.
        dtype: dtype of convolutions and linear layers; pooling and norms are float32.
    """

    family: str
    settings: Mapping[str, Any]
    embed_dim: int
    levels: tuple[str, ...] = LEVELS
    has_heads: bool = True
    cross_level: Literal["down", "up", "none"] = "down"
    frozen: bool = False
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @property
    def interacts(self) -> bool:
        """Whether the levels' maps act on one another before they are pooled."""
        return len(self.levels) > 1 and self.cross_level != "none"

    def setup(self):  # noqa: D102
        self.backbone = IMAGE_ENCODERS[self.family].build(
            self.settings, self.frozen, self.remat, self.dtype
        )
        if self.interacts:
            self.interaction = CrossLevel(self.cross_level, self.dtype)
        if self.has_heads:
            self.heads = [Dense(self.embed_dim, self.dtype, name=f"head_{n}") for n in self.levels]

    def __call__(
        self,
        images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"] | Features,
        *,
        train: bool,
    ) -> Float[Array, "L B D"]:
        """Encode uint8 or normalised images, or the `features` of images.

        See docs/method.md, section 1, image encoder, pooling and heads.

        Returns:
            The pyramid, levels high to low, float32; l2-normalised where there are heads.

        Raises:
            ValueError: not [B, H, W, 3], or sides that the backbone does not take.
        """
        is_encoded = isinstance(images, Mapping)
        return self.embed(images if is_encoded else self.features(images, train=train))

    def features(
        self, images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B *shape"]]:
        """Return the backbone's outputs in the smallest form that `embed` can use.

        Returns:
            For each level a map [B, h, w, C] where the levels interact; else a vector [B, C], the
            map's mean or the backbone's own vector.

        Raises:
            ValueError: not [B, H, W, 3], or sides that the backbone does not take.
        """
        kept = self._outputs(images, train)
        if self.interacts:
            return kept
        return {level: self._pool(level, x) for level, x in kept.items()}

    def maps(
        self, images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"] | Features
    ) -> dict[str, Float[Array, "B *shape"]]:
        """Return each level's map as its pooling sees it.

        See docs/method.md, section 13. Numbers that the generalised mean replaces by its floor are
        0 here, since they have no effect.

        Args:
            images: images, or their `features`.

        Returns:
            For each level [B, h, w, C], float32 or better; or a vector [B, C] where the backbone
            gives one, or where ``images`` are features that are pooled already.

        Raises:
            ValueError: as `features`.
        """
        is_encoded = isinstance(images, Mapping)
        outputs = images if is_encoded else self._outputs(images, train=False)
        return {
            level: at_least_float32(jnp.maximum(x, 0) if self._takes_positive_part(level, x) else x)
            for level, x in self._interact(outputs).items()
        }

    def embed_maps(self, maps: Features) -> Float[Array, "L B D"]:
        """Return the pyramid of the images that have these `maps`."""
        if not self.has_heads:
            return at_least_float32(jnp.stack([maps[level] for level in self.levels]))
        vectors = [self._pool(level, maps[level]) for level in self.levels]
        embeddings = [head(x) for head, x in zip(self.heads, vectors, strict=True)]
        return l2_normalize(at_least_float32(jnp.stack(embeddings)))

    def _outputs(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return the backbone's outputs at the wanted levels; raises as `features`."""
        pictures = IMAGE_ENCODERS[self.family].pictures_of(self.settings)
        sides = images.shape[1:3]
        if images.ndim != 4 or images.shape[-1] != 3 or not all(map(pictures.accepts, sides)):
            allowed = pictures.side or f"multiples of {pictures.multiple}"
            raise ValueError(
                f"images must be [B, H, W, 3] with H and W {allowed}, not {images.shape}"
            )
        outputs = self.backbone(normalize_images(images, pictures), train=train)
        return {level: outputs[level] for level in self.levels}

    def embed(self, features: Features) -> Float[Array, "L B D"]:
        """Return the pyramid of the images that have these `features`.

        Args:
            features: all levels of the encoder, in any floating dtype.
        """
        return self.embed_maps(self._interact(features))

    def _interact(self, features: Features) -> dict[str, jax.Array]:
        """Return what is pooled: the features themselves, or after the interaction."""
        maps = [self._in_own_dtype(features[level]) for level in self.levels]
        if self.has_heads and self.interacts:
            maps = self.interaction(*maps)
        return dict(zip(self.levels, maps, strict=True))

    def _in_own_dtype(self, x: jax.Array) -> jax.Array:
        """Return a map in the dtype of the products, and a vector in float32 or better."""
        return x.astype(self.dtype) if x.ndim == 4 else at_least_float32(x)

    def _pool(self, level: str, features: jax.Array) -> jax.Array:
        """Return a level's map as a vector, [B, C]; a vector is unchanged."""
        if features.ndim == 2:
            return features
        if self._takes_positive_part(level, features):
            return generalized_mean(features)
        return jnp.mean(at_least_float32(features), axis=(1, 2))

    def _takes_positive_part(self, level: str, features: jax.Array) -> bool:
        """Whether a level's map is pooled by the generalised mean, and not by the mean."""
        entry = IMAGE_ENCODERS[self.family]
        # The interaction leaves the deepest map as it is.
        is_own_map = not self.interacts or level == LEVELS[0]
        is_signed = is_own_map and level in entry.signed(self.settings)
        return features.ndim == 4 and entry.pooling != "mean" and not is_signed
