"""Patches, positions and feature maps: the parts that the vision towers have in common.

See docs/method.md, section 9.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.encoders.entry import LEVELS, Pictures, Setting
from cmap_jax.models.encoders.transformer import TOWER_SETTINGS, Tower, check_heads
from cmap_jax.models.layers import PRODUCT
from cmap_jax.models.rematerialization import Remat

# Settings that say which pictures a tower is given; its module does not know them.
_OF_PICTURES: Mapping[str, Setting] = {
    "interpolate_positions": Setting(choices=(False, True)),
    "mean": Setting(lengths=(3,)),
    "std": Setting(least=1e-6, lengths=(3,)),
}
# Settings that each vision tower of each family has.
VISION_SETTINGS: Mapping[str, Setting] = {
    **TOWER_SETTINGS,
    "patch": Setting(least=1),
    "image_size": Setting(least=1),
    "map_blocks": Setting(least=1, lengths=(0, 2)),
    **_OF_PICTURES,
}
_CUBIC = -0.75  # the parameter of the cubic filter by which published positions are resampled


class VisionTower(Tower):
    """Base of the vision towers.

    Attributes:
        patch: side of a patch, pixels.
        image_size: side of the pictures that the positions were trained for, pixels.
        map_blocks: numbers of the blocks, from 1, whose tokens are the maps of the levels mid and
            low; empty: the feature alone.
    """

    patch: int = 16
    image_size: int = 224
    map_blocks: tuple[int, ...] = ()

    @property
    def grid(self) -> int:
        """Patches along a side of the pictures that the positions were trained for."""
        return self.image_size // self.patch

    def feature_maps(
        self, tokens: Mapping[int, Float[Array, "B T D"]], rows: int, columns: int
    ) -> dict[str, Float[Array, "B h w D"]]:
        """Return the maps of the levels mid and low, of those that are wanted.

        Args:
            tokens: the tokens after each of ``map_blocks``; the patches come last.
            rows: rows of patches.
            columns: patches in a row.
        """
        maps = [tokens[number][:, -rows * columns :] for number in self.map_blocks]
        maps = [x.reshape(-1, rows, columns, self.width) for x in maps]
        return dict(zip(LEVELS[1:], maps, strict=False))


class Patches(nn.Module):
    """A linear map of square patches; pixels beyond the last whole patch are left out.

    Attributes:
        patch: side of a patch, pixels.
        features: channels D of a token.
        use_bias: whether to add a bias.
        dtype: dtype of the products.

    Parameters: ``kernel`` [patch, patch, 3, D] and ``bias`` [D].
    """

    patch: int
    features: int
    use_bias: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Return a token for each patch."""
        p, channels = self.patch, images.shape[-1]
        fan_in = p * p * channels
        init = nn.initializers.normal(fan_in**-0.5)
        kernel = self.param("kernel", init, (p, p, channels, self.features))
        rows, columns = images.shape[1] // p, images.shape[2] // p
        x = images[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(-1, rows, p, columns, p, channels).swapaxes(2, 3)
        x = x.reshape(-1, rows, columns, fan_in)
        x = checkpoint_name(x @ kernel.reshape(fan_in, -1).astype(self.dtype), PRODUCT)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype)
        return x


def resize_positions(
    positions: Float[Array, "N D"], rows: int, columns: int
) -> Float[Array, "M D"]:
    """Resample the positions of a square grid to another grid, bicubically, without antialiasing.

    See docs/method.md, section 9.

    Args:
        positions: N is a square number; row by row.
        rows: rows of the new grid.
        columns: columns of the new grid; M = rows * columns.
    """
    side = math.isqrt(positions.shape[0])
    if (rows, columns) == (side, side):
        return positions
    grid = positions.reshape(side, side, -1)
    down, across = (jnp.asarray(_cubic_weights(side, n), grid.dtype) for n in (rows, columns))
    return jnp.einsum("ri,cj,ijd->rcd", down, across, grid).reshape(rows * columns, -1)


def _cubic_weights(size: int, new_size: int) -> np.ndarray:
    """Return the matrix [new_size, size] that resamples a line; beyond its ends it is constant."""
    weights = np.zeros((new_size, size))
    for row in range(new_size):
        center = (row + 0.5) * size / new_size - 0.5
        first = math.floor(center) - 1
        for tap in range(first, first + 4):
            weights[row, min(max(tap, 0), size - 1)] += _cubic(abs(center - tap))
    return weights


def _cubic(x: float) -> float:
    if x < 1:
        return (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    return _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)


def vision_builder(tower: type[VisionTower]) -> Callable[..., VisionTower]:
    """Return the ``build`` of a vision tower's entry.

    Args:
        tower: takes each setting that is not about pictures as a keyword argument of the same name.
    """

    def build(
        settings: Mapping[str, Any], frozen: bool, remat: Remat, dtype: DTypeLike
    ) -> VisionTower:
        fields = {name: settings[name] for name in settings if name not in _OF_PICTURES}
        fields["map_blocks"] = tuple(fields["map_blocks"])
        return tower(**fields, remat=remat, dtype=dtype)

    return build


def vision_levels(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the levels that a vision tower gives."""
    return LEVELS if settings["map_blocks"] else LEVELS[:1]


def vision_pictures(family: str, settings: Mapping[str, Any]) -> Pictures:
    """Return the pictures that a vision tower takes.

    Args:
        family: name of the sub-config, for errors.
        settings: the sub-config.
    """
    field = f"config.model.image.{family}"
    return Pictures(
        multiple=settings["patch"],
        side=None if settings["interpolate_positions"] else settings["image_size"],
        other_sides=f"--{field}.interpolate_positions=true resamples the positions of "
        f"{field}.image_size for another",
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )


def check_vision(family: str, model_config: Any) -> None:
    """Refuse a vision tower that cannot be built.

    Args:
        family: name of the sub-config.
        model_config: ``config.model``.

    Raises:
        ValueError: names the field.
    """
    settings, field = model_config.image[family], f"config.model.image.{family}"
    check_heads(settings, field)
    if settings["image_size"] < settings["patch"]:
        raise ValueError(f"{field}.patch must not exceed {field}.image_size")
    deepest = max(settings["map_blocks"], default=0)
    if deepest > settings["layers"]:
        raise ValueError(
            f"{field}.map_blocks names block {deepest}, and there are {settings['layers']} "
            f"({field}.layers)"
        )
