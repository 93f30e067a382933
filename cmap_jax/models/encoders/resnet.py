"""ResNet-18, 34 and 50 with torchvision's numerics, without the classifier.

See docs/method.md, section 1.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.encoders.convolutional import (
    BATCH_NORM_SETTINGS,
    IMAGENET,
    batch_norm_fields,
    why_unsteady,
)
from cmap_jax.models.encoders.entry import LEVELS, ImageEntry, Pretrained, Setting
from cmap_jax.models.layers import BatchNorm, Conv, max_pool
from cmap_jax.models.rematerialization import Remat, rematerialize

# The number of blocks in each of the four stages, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

    A bottleneck's last convolution has four times ``planes`` channels. The stride is that of the
    first 3x3 convolution.
    """

    planes: int
    stride: int
    bottleneck: bool
    batch_norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        def conv(name: str, y: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
            y = Conv(
                features,
                size,
                stride=stride,
                use_bias=False,
                kernel_init=_kernel_init,
                dtype=self.dtype,
                name=f"conv{name}",
            )(y)
            norm = BatchNorm(groups=self.batch_norm_groups, dtype=self.dtype, name=f"norm{name}")
            return norm(y, use_batch_statistics=use_batch_statistics)

        if self.bottleneck:
            out = 4 * self.planes
            y = nn.relu(conv("1", x, self.planes, 1))
            y = nn.relu(conv("2", y, self.planes, 3, self.stride))
            y = conv("3", y, out, 1)
        else:
            out = self.planes
            y = nn.relu(conv("1", x, self.planes, 3, self.stride))
            y = conv("2", y, self.planes, 3)
        if self.stride != 1 or x.shape[-1] != out:
            x = conv("_shortcut", x, out, 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network that returns its three deepest feature maps.

    Attributes:
        depth: 18, 34 or 50 layers.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many (times 4 for 50).
        normalize_by_batch: whether training normalises by the batch's statistics and updates the
            running ones; False: by the running ones, which stay as they are.
        batch_norm_groups: number of equal parts of the batch, each normalised by its own
            statistics; see `BatchNorm`.
        remat: which results of a block are kept for the gradient; see `rematerialize`.
        dtype: dtype of the convolutions and the maps; batch-norm's statistics are float32.
    """

    depth: int = 50
    width: int = 64
    normalize_by_batch: bool = True
    batch_norm_groups: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102
        blocks, bottleneck = DEPTHS[self.depth]
        self.stem_conv = Conv(
            self.width, 7, stride=2, use_bias=False, kernel_init=_kernel_init, dtype=self.dtype
        )
        self.stem_norm = BatchNorm(groups=self.batch_norm_groups, dtype=self.dtype)
        self.stages = [
            [
                _Block(
                    planes=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=bottleneck,
                    batch_norm_groups=self.batch_norm_groups,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )
                for block in range(count)
            ]
            for stage, count in enumerate(blocks)
        ]

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Encode normalised images whose sides are multiples of 32.

        Returns:
            The maps after the last ReLU of the stages 4 ("high", C5), 3 ("mid", C4) and 2 ("low",
            C3), at 1/32, 1/16 and 1/8 of the image's sides. ResNet-50 at 224 pixels: 7x7x2048,
            14x14x1024 and 28x28x512.
        """
        use_batch_statistics = train and self.normalize_by_batch
        x = self.stem_conv(images)
        x = max_pool(nn.relu(self.stem_norm(x, use_batch_statistics=use_batch_statistics)))
        through = rematerialize(
            lambda block, x: block(x, use_batch_statistics=use_batch_statistics),
            self.remat,
            transform=nn.remat,
        )
        maps = []
        for stage in self.stages:
            for block in stage:
                x = through(block, x)
            maps.append(x)
        return dict(zip(LEVELS, maps[:0:-1], strict=True))


def _build(settings: Mapping[str, Any], frozen: bool, remat: Remat, dtype: DTypeLike) -> ResNet:
    return ResNet(
        depth=settings["depth"],
        width=settings["width"],
        **batch_norm_fields(settings, frozen),
        remat=remat,
        dtype=dtype,
    )


def _advice(settings: Mapping[str, Any]) -> str:
    depth = settings["depth"]
    return f"Give a torchvision ResNet-{depth}: --config.model.image.init_from=resnet{depth}.pth"


ENTRY = ImageEntry(
    build=_build,
    settings={
        "depth": Setting(choices=tuple(DEPTHS)),
        "width": Setting(least=1),
        **BATCH_NORM_SETTINGS,
    },
    levels=LEVELS,
    pictures=IMAGENET,
    layers=("stem_.*", *(f"stage{stage}_.*" for stage in (1, 2, 3, 4))),
    batch_parts=("batch_norm_groups",),
    why_unsteady=functools.partial(why_unsteady, "resnet"),
    pretrained=Pretrained(
        load="cmap_jax.convert.torchvision:load_backbone",
        headline="NO PRETRAINED WEIGHTS",
        advice=_advice,
        expected=lambda settings: settings["width"] == 64,
    ),
)
