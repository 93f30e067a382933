"""Texts to embeddings: a bidirectional GRU, or the LSTM variant (SPEC 1, text encoder).

The recurrences are PyTorch's. Both biases of a gate are kept (``bias_ih`` and ``bias_hh``): their
sum is all that the forward pass sees, but AdamW steps each of them, so that a cell with one bias
would train at another speed.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cmap_jax.models.layers import Dense, uniform_fan_in
from cmap_jax.models.rematerialization import Remat, rematerialize
from cmap_jax.numerics import at_least_float32, l2_normalize


class _RecurrentWeights(nn.Module):
    """Weights of one direction of a recurrent layer: [in, G*H], [H, G*H] and two biases [G*H]."""

    hidden: int
    gates: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, ...]:
        init, columns = uniform_fan_in(self.hidden), self.gates * self.hidden
        return (
            self.param("weight_ih", init, (width, columns)),
            self.param("weight_hh", init, (self.hidden, columns)),
            self.param("bias_ih", init, (columns,)),
            self.param("bias_hh", init, (columns,)),
        )


class BiGRU(nn.Module):
    """A bidirectional GRU over the valid tokens; returns both final states side by side.

    Attributes:
        hidden: units a direction.
        remat: what of a step is kept for the gradient; see `rematerialize`.
        dtype: of the products; the state is float32 or better.
    """

    hidden: int
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, embedded: Float[Array, "B T E"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B 2*H"]:
        """Run forwards and backwards over each text; ``valid`` marks its tokens.

        The backward direction starts at each text's last token: before it, the state stays zero.
        The update, torch's: ``r, z = sigmoid(W_i x + b_i + W_h h + b_h)``,
        ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))``, ``h = (1 - z) * n + z * h``.
        """
        directions = [
            _RecurrentWeights(self.hidden, 3, name=name)(embedded.shape[-1])
            for name in ("forward", "backward")
        ]
        w_ih, w_hh, b_ih, b_hh = (
            jnp.stack(parts).astype(self.dtype) for parts in zip(*directions, strict=True)
        )
        # Both directions advance in one scan: half the sequential steps.
        inputs = jnp.einsum("bte,deg->tdbg", embedded.astype(self.dtype), w_ih)
        inputs = inputs + b_ih[:, None]
        inputs = jnp.stack([inputs[:, 0], inputs[::-1, 1]], axis=1)  # [T, 2, B, 3H]
        steps = jnp.stack([valid.T, valid.T[::-1]], axis=1)[..., None]  # [T, 2, B, 1]

        def step(state: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            x, keep = xs
            x = at_least_float32(x)
            h = jnp.einsum("dbh,dhg->dbg", state.astype(self.dtype), w_hh) + b_hh[:, None]
            h = at_least_float32(h)
            x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
            h_r, h_z, h_n = jnp.split(h, 3, axis=-1)
            z = nn.sigmoid(x_z + h_z)
            candidate = jnp.tanh(x_n + nn.sigmoid(x_r + h_r) * h_n)
            return jnp.where(keep, (1 - z) * candidate + z * state, state), None

        start = jnp.zeros((2, embedded.shape[0], self.hidden), at_least_float32(inputs).dtype)
        state, _ = jax.lax.scan(rematerialize(step, self.remat), start, (inputs, steps))
        return jnp.concatenate([state[0], state[1]], axis=-1)


class LSTM(nn.Module):
    """A forward LSTM; returns its output at every position.

    Attributes:
        hidden: units.
        remat: what of a step is kept for the gradient; see `rematerialize`.
        dtype: of the products; state and cell are float32 or better.
    """

    hidden: int
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, embedded: Float[Array, "B T E"]) -> Float[Array, "B T H"]:
        """Run over all positions. Gates in torch's order: input, forget, cell, output."""
        weights = _RecurrentWeights(self.hidden, 4, name="forward")(embedded.shape[-1])
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


class TextEncoder(nn.Module):
    """Token ids to an l2-normalised embedding, m in SPEC (E_s in the paper).

    Attributes:
        vocabulary_size: rows of the word embedding.
        embed_dim: width D of the result.
        encoder: "bigru" (D/2 units a direction) or "lstm".
        word_dim: width of the word embedding.
        lstm_hidden: units of the LSTM.
        dropout: rate after the LSTM's maximum.
        pool_padding: take the LSTM's maximum over the padding too, as released: an embedding then
            depends on the width of its batch. For old checkpoints only.
        remat: what of the recurrence is kept for the gradient; see `rematerialize`.
        dtype: of the products.
    """

    vocabulary_size: int
    embed_dim: int
    encoder: Literal["bigru", "lstm"] = "bigru"
    word_dim: int = 300
    lstm_hidden: int = 1024
    dropout: float = 0.1
    pool_padding: bool = False
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B D"]:
        """Encode texts of ``lengths`` tokens; a text without tokens gives the zero vector.

        Raises:
            ValueError: an array of another rank, or batch axes that differ.
        """
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be [B, T] and lengths [B], not {tokens.shape} and {lengths.shape}"
            )
        table = self.param(
            "word_embedding",
            nn.initializers.xavier_uniform(),
            (self.vocabulary_size, self.word_dim),
        )
        embedded = jnp.take(table, tokens, axis=0, mode="clip")
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]  # [B, T]
        if self.encoder == "bigru":
            gru = BiGRU(self.embed_dim // 2, self.remat, self.dtype, name="gru")
            return l2_normalize(gru(embedded, valid))
        outputs = LSTM(self.lstm_hidden, self.remat, self.dtype, name="lstm")(embedded)
        if self.pool_padding:
            valid = jnp.ones_like(valid)
        lowest = jnp.asarray(-2, outputs.dtype)  # below any output: they lie in (-1, 1)
        pooled = jnp.max(jnp.where(valid[..., None], outputs, lowest), axis=1)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        projected = Dense(self.embed_dim, self.dtype, name="head")(pooled)
        has_tokens = (lengths > 0)[:, None]
        return l2_normalize(jnp.where(has_tokens, at_least_float32(projected), 0))
