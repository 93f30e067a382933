"""The blocks that all transformer towers have in common.

See docs/method.md, section 9.

All blocks of a tower are one tree of parameters, ``blocks``, whose leaves have a leading layer
axis. One loop or a copy of each block can run them, so that ``scan_layers`` changes how a program
is compiled and not which weights it takes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.encoders.entry import STACK, Pretrained, Setting
from cmap_jax.models.layers import PRODUCT
from cmap_jax.models.rematerialization import Remat, rematerialize
from cmap_jax.processing.hub import is_hub_id

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}
# Settings that each tower of each family has.
TOWER_SETTINGS: Mapping[str, Setting] = {
    "width": Setting(least=1),
    "layers": Setting(least=1),
    "heads": Setting(least=1),
    "mlp_width": Setting(least=1),
    "activation": Setting(choices=tuple(ACTIVATIONS)),
    "epsilon": Setting(least=0, most=1),
    "scan_layers": Setting(choices=(False, True)),
}
# The layers of every tower, for layer-wise decay: the embeddings, and then the blocks.
LAYERS = ("(patch|class|token|position)_embedding|pre_norm", STACK)
# The name under "intermediates" of the tokens that enter a tower's first block.
ENTERING = "entering_tokens"
_SMALLEST_PUBLISHED = 384  # width of the smallest published towers


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Return a LayerNorm with its statistics in float32 or better; the result has ``dtype``."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def linear(
    features: int | tuple[int, ...],
    std: float,
    dtype: DTypeLike,
    name: str,
    *,
    axis: int | tuple[int, ...] = -1,
    use_bias: bool = True,
) -> Callable[[jax.Array], jax.Array]:
    """Return a linear layer over ``axis``; its result may be kept by a rematerialisation.

    Args:
        features: axes of the result that replace ``axis``.
        std: standard deviation of the initial kernel; biases are 0.
        dtype: dtype of the products and of the result.
        name: name of the module; its kernel has the axes [*axis, *features].
        axis: last axes of the input, all of which are contracted.
        use_bias: whether to add a bias.
    """
    layer = nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.normal(std),
        name=name,
    )
    return lambda x: checkpoint_name(layer(x), PRODUCT)


class Attention(nn.Module):
    """Multi-head attention with biases, scaled by the inverse root of a head's width.

    Attributes:
        heads: number of heads; divides the width.
        causal: whether a position sees itself and earlier ones alone.
        out_std: standard deviation of the initial kernel ``out``.
        dtype: dtype of the products; the softmax is float32.

    Parameters: ``query``, ``key`` and ``value`` with kernels [D, heads, d], ``out`` [heads, d, D].
    """

    heads: int
    causal: bool = False
    out_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B Q D"], tokens: Float[Array, "B T D"]
    ) -> Float[Array, "B Q D"]:
        """Let ``queries`` attend to ``tokens``."""
        width = queries.shape[-1]
        parts = (("query", queries), ("key", tokens), ("value", tokens))
        query, key, value = (
            linear((self.heads, width // self.heads), width**-0.5, self.dtype, name)(x)
            for name, x in parts
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return linear(width, self.out_std, self.dtype, "out", axis=(-2, -1))(mixed)


class Mlp(nn.Module):
    """Two linear layers, ``fc1`` and ``fc2``, with an activation between them.

    Attributes:
        width: features of the first layer.
        activation: a key of `ACTIVATIONS`.
        out_std: standard deviation of the initial kernel of ``fc2``.
        dtype: dtype of the products.
    """

    width: int
    activation: str
    out_std: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Apply both layers to the last axis."""
        hidden = linear(self.width, (2 * x.shape[-1]) ** -0.5, self.dtype, "fc1")(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        return linear(x.shape[-1], self.out_std, self.dtype, "fc2")(hidden)


class Block(nn.Module):
    """A pre-norm block: attention, then the two linear layers, each added to its input."""

    heads: int
    mlp_width: int
    activation: str
    epsilon: float
    causal: bool
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Run tokens through the block."""
        y = layer_norm(self.epsilon, self.dtype, "norm1")(x)
        attention = Attention(self.heads, self.causal, self.out_std, self.dtype, name="attention")
        x = x + attention(y, y)
        y = layer_norm(self.epsilon, self.dtype, "norm2")(x)
        mlp = Mlp(self.mlp_width, self.activation, self.out_std, self.dtype, name="mlp")
        return x + mlp(y)


class Tower(nn.Module):
    """Base of the towers: a stack of equal blocks.

    Attributes:
        width: channels D of the tokens.
        layers: number of blocks.
        heads: heads of each attention.
        mlp_width: hidden channels of each block's two linear layers.
        activation: a key of `ACTIVATIONS`.
        epsilon: constant that every LayerNorm adds to the variance.
        scan_layers: whether one loop runs all blocks; False: each is compiled by itself.
        remat: which results of a block are kept for the gradient; see `rematerialize`.
        dtype: dtype of products and tokens; norms are float32 or better, softmaxes float32.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    epsilon: float
    scan_layers: bool = True
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def block(self, *, causal: bool = False) -> Block:
        """Return the module that every block of the stack is."""
        return Block(
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            epsilon=self.epsilon,
            causal=causal,
            # The residual stream's variance then does not grow with the depth.
            out_std=(2 * self.layers * self.width) ** -0.5,
            dtype=self.dtype,
            parent=None,
        )

    def run_blocks(
        self, x: Float[Array, "B T D"], *, causal: bool = False, after: Sequence[int] = ()
    ) -> tuple[Float[Array, "B T D"], dict[int, Float[Array, "B T D"]]]:
        """Run tokens through all blocks.

        Args:
            x: tokens, in the tower's dtype.
            causal: whether a token sees itself and earlier ones alone.
            after: numbers of blocks, from 1, whose tokens are wanted too.

        Returns:
            The tokens after the last block, and after each block in ``after`` by its number.
        """
        block = self.block(causal=causal)
        self.sow("intermediates", ENTERING, x)  # kept where a caller asks for intermediates alone
        example = jnp.zeros((1, 1, self.width), self.dtype)

        def init(key: jax.Array) -> Any:
            keys = jax.random.split(key, self.layers)
            return jax.vmap(lambda key: block.init(key, example)["params"])(keys)

        weights = self.param(STACK, init)
        step = rematerialize(lambda x, weights: block.apply({"params": weights}, x), self.remat)
        first, tokens = 0, {}
        for last in sorted({*after, self.layers}):
            part = jax.tree.map(lambda w, a=first, b=last: w[a:b], weights)
            x = tokens[last] = self._run(step, x, part, last - first)
            first = last
        return x, {number: tokens[number] for number in after}

    def _run(self, step: Callable, x: jax.Array, weights: Any, count: int) -> jax.Array:
        if self.scan_layers:
            return jax.lax.scan(lambda x, w: (step(x, w), None), x, weights)[0]
        for layer in range(count):
            x = step(x, jax.tree.map(lambda w, layer=layer: w[layer], weights))
        return x


def check_heads(settings: Mapping[str, Any], prefix: str) -> None:
    """Refuse heads that do not divide the width.

    Args:
        settings: a tower's sub-config.
        prefix: its name in errors, such as "config.model.image.clip".

    Raises:
        ValueError: names the field.
    """
    if settings["width"] % settings["heads"]:
        raise ValueError(
            f"{prefix}.heads must divide {prefix}.width={settings['width']}, not be "
            f"{settings['heads']}"
        )


def published(example: str, part: Literal["image", "text"]) -> Pretrained:
    """Return how a tower's weights are read from a folder as Hugging Face stores it.

    Args:
        example: an id that the advice names.
        part: which of the two towers.
    """
    return Pretrained(
        load=f"cmap_jax.convert.hugging_face:load_{part}_tower",
        check=f"cmap_jax.convert.hugging_face:check_{part}_tower",
        headline="NO PRETRAINED WEIGHTS",
        advice=lambda settings: f"Give a folder or an id: --config.model.pretrained={example}",
        # Small towers are for tests and for rendered data.
        expected=lambda settings: settings["width"] >= _SMALLEST_PUBLISHED,
        is_name=is_hub_id,
    )
