"""A method without texts: a picture's embedding at the high level alone is its query.

It is for encoders whose feature is used as it is (docs/method.md, section 12), and no method of the
field. A config names it as a plug-in, "cmap_jax.models.picture:Picture".
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.scoring import Branch, ComposedQuery


class Picture(nn.Module):
    """A composer without parameters: one branch, ``<r, t>``, on the high level.

    Attributes:
        levels: names of the pyramid's levels.
        dtype: unused; every composer takes it.
    """

    levels: tuple[str, ...] = ("high",)
    dtype: DTypeLike = jnp.float32
    reads_text = False
    optional = ("text",)

    def __call__(
        self, pyramid: Float[Array, "1 B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        return ComposedQuery((Branch(pyramid),), None, ("image",), self.levels)
