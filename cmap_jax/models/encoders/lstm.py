"""The text encoder "lstm": the maximum over an LSTM's outputs.

See docs/method.md, section 1, text encoder.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cmap_jax.models.encoders import recurrent
from cmap_jax.models.encoders.entry import Setting, TextEntry
from cmap_jax.models.encoders.recurrent import RecurrentWeights, WordEncoder
from cmap_jax.models.layers import Dense
from cmap_jax.models.rematerialization import Remat, rematerialize
from cmap_jax.numerics import at_least_float32


class LSTM(nn.Module):
    """A forward LSTM; returns its output at every position.

    Attributes:
        hidden: units H.
        remat: which results of a step are kept for the gradient; see `rematerialize`.
        dtype: dtype of the products; state and cell are float32 or better.
    """

    hidden: int
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, embedded: Float[Array, "B T E"]) -> Float[Array, "B T H"]:
        """Run over all positions. Gates in torch's order: input, forget, cell, output."""
        weights = RecurrentWeights(self.hidden, 4, name="forward")(embedded.shape[-1])
        w_ih, w_hh, b_ih, b_hh = (w.astype(self.dtype) for w in weights)
        inputs = jnp.einsum("bte,eg->tbg", embedded.astype(self.dtype), w_ih) + b_ih

        def step(
            carry: tuple[jax.Array, jax.Array], x: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            h, c = carry
            gates = at_least_float32(x + h.astype(self.dtype) @ w_hh + b_hh)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((embedded.shape[0], self.hidden), at_least_float32(inputs).dtype)
        _, outputs = jax.lax.scan(rematerialize(step, self.remat), (zero, zero), inputs)
        return outputs.swapaxes(0, 1)


class LSTMEncoder(WordEncoder):
    """The maximum over time of an LSTM's outputs, projected to D.

    Attributes:
        hidden: units of the LSTM.
        dropout: dropout rate after the maximum, in training.
        pool_padding: whether the maximum includes the padding, as released. An embedding then
            depends on the width of its batch.
    """

    hidden: int = 1024
    dropout: float = 0.1
    pool_padding: bool = False

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B D"]:
        """Encode texts of ``lengths`` tokens; a text without tokens gives the zero vector."""
        embedded, valid = self.embed(tokens, lengths)
        outputs = LSTM(self.hidden, self.remat, self.dtype, name="lstm")(embedded)
        if self.pool_padding:
            valid = jnp.ones_like(valid)
        lowest = jnp.asarray(-2, outputs.dtype)  # below every output, which lies in (-1, 1)
        pooled = jnp.max(jnp.where(valid[..., None], outputs, lowest), axis=1)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        projected = Dense(self.embed_dim, self.dtype, name="head")(pooled)
        has_tokens = (lengths > 0)[:, None]
        return jnp.where(has_tokens, at_least_float32(projected), 0)


def _build(
    settings: Mapping[str, Any],
    vocabulary_size: int,
    embed_dim: int,
    remat: Remat,
    dtype: DTypeLike,
) -> LSTMEncoder:
    return LSTMEncoder(
        vocabulary_size=vocabulary_size, embed_dim=embed_dim, remat=remat, dtype=dtype, **settings
    )


ENTRY = TextEntry(
    build=_build,
    settings={
        "word_dim": recurrent.WORD_DIM,
        "hidden": Setting(least=1),
        "dropout": Setting(least=0, most=0.99),
        "pool_padding": Setting(choices=(False, True)),
    },
    frozen=recurrent.FROZEN,
    pretrained=recurrent.WORD_VECTORS,
    reads_padding=lambda settings: settings["pool_padding"],
    alone=lambda settings: {**settings, "pool_padding": False},
)
