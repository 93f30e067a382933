"""ResNet-18, 34 and 50 with torchvision's numerics, without the classifier (SPEC 1)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.layers import BatchNorm, Conv, max_pool
from cmap_jax.models.rematerialization import Remat, rematerialize

# Blocks in each of the four stages, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width out.

    The stride sits in the (first) 3x3 convolution.
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
                features, size, stride, False, _kernel_init, dtype=self.dtype, name=f"conv{name}"
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
        batch_norm_groups: parts of the batch that are normalised by themselves; see `BatchNorm`.
        remat: what of a block is kept for the gradient; see `rematerialize`.
        dtype: of convolutions and maps; batch-norm's statistics are float32.
    """

    depth: int = 50
    width: int = 64
    batch_norm_groups: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102
        blocks, bottleneck = DEPTHS[self.depth]
        self.stem_conv = Conv(self.width, 7, 2, False, _kernel_init, dtype=self.dtype)
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
        self, images: Float[Array, "B H W 3"], *, use_batch_statistics: bool
    ) -> Sequence[Float[Array, "B h w C"]]:
        """Encode normalised images whose sides are multiples of 32.

        Returns:
            C3, C4, C5: the maps after the last ReLU of the stages 2, 3 and 4, at 1/8, 1/16 and 1/32
            of the image's sides. ResNet-50 at 224: 28x28x512, 14x14x1024, 7x7x2048.
        """
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
        return maps[1:]
