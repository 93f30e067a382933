"""The composition without training: the picture's feature plus a multiple of the text's.

See docs/method.md, section 10, composition without training.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.numerics import at_least_float32, l2_normalize
from cmap_jax.scoring import Branch, ComposedQuery


class FeatureSum(nn.Module):
    """A composer without parameters: one branch, ``l2(p + w m)``, or ``l2(l2(p) + w l2(m))``.

    Here p is the picture's and m the text's feature, as the encoders project them. Without a text
    it is ``l2(p)``, the gallery's embedding.

    Attributes:
        text_weight: w, 0 or more.
        normalize: whether both features are l2-normalised before the sum.
        levels: names of the pyramid's levels; projected features have one.
        dtype: unused; every composer takes it.
    """

    text_weight: float = 1.0
    normalize: bool = True
    levels: tuple[str, ...] = ("high",)
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, pyramid: Float[Array, "1 B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries of features of any norm."""
        if self.normalize:
            pyramid, text = l2_normalize(pyramid), l2_normalize(text)
        composed = l2_normalize(at_least_float32(pyramid) + self.text_weight * text)
        return ComposedQuery((Branch(composed),), None, ("sum",), self.levels)
