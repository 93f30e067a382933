"""The parts that the recurrent text encoders have in common.

See docs/method.md, section 1, text encoder.

The recurrences are PyTorch's. Both biases of a gate are kept (``bias_ih`` and ``bias_hh``). The
forward pass depends on their sum alone, but AdamW steps each of them, so that a cell with one bias
would train at another speed.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cmap_jax.models.encoders.entry import Pretrained, Setting
from cmap_jax.models.layers import uniform_fan_in
from cmap_jax.models.rematerialization import Remat

WORD_DIM = Setting(least=1)  # the setting word_dim, width of the word embedding
FROZEN = ("word_embedding",)


def _advice(settings: Mapping[str, Any]) -> str:
    return "Give GloVe's: --config.model.text.init_from=glove.840B.300d.zip"


WORD_VECTORS = Pretrained(
    load="cmap_jax.convert.word_vectors:load_word_embedding",
    headline="NO WORD VECTORS",
    advice=_advice,
    expected=lambda settings: False,  # a word embedding trains well from random values
)


class RecurrentWeights(nn.Module):
    """Weights of one direction of a recurrent layer: [in, G*H], [H, G*H] and two biases [G*H]."""

    hidden: int
    gates: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, ...]:
        """Return weight_ih, weight_hh, bias_ih and bias_hh for inputs of ``width`` numbers."""
        init, columns = uniform_fan_in(self.hidden), self.gates * self.hidden
        return (
            self.param("weight_ih", init, (width, columns)),
            self.param("weight_hh", init, (self.hidden, columns)),
            self.param("bias_ih", init, (columns,)),
            self.param("bias_hh", init, (columns,)),
        )


class WordEncoder(nn.Module):
    """Base of the encoders that embed each word and run over the words.

    Attributes:
        vocabulary_size: rows of the word embedding.
        embed_dim: width D of the result.
        word_dim: width E of the word embedding.
        remat: which results of a step are kept for the gradient; see `rematerialize`.
        dtype: dtype of the products.
    """

    vocabulary_size: int
    embed_dim: int
    word_dim: int
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def embed(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T E"], Bool[Array, "B T"]]:
        """Return the words' vectors, and a mask that is False at the padding."""
        table = self.param(
            "word_embedding",
            nn.initializers.xavier_uniform(),
            (self.vocabulary_size, self.word_dim),
        )
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return jnp.take(table, tokens, axis=0, mode="clip"), valid
