"""The text encoder "gru": a bidirectional GRU over the words.

See docs/method.md, section 1, text encoder.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cmap_jax.models.encoders import recurrent
from cmap_jax.models.encoders.entry import TextEntry
from cmap_jax.models.encoders.recurrent import RecurrentWeights, WordEncoder
from cmap_jax.models.rematerialization import Remat, rematerialize
from cmap_jax.numerics import at_least_float32


class BiGRU(nn.Module):
    """A bidirectional GRU over the valid tokens; returns both final states side by side.

    Attributes:
        hidden: units H a direction.
        remat: which results of a step are kept for the gradient; see `rematerialize`.
        dtype: dtype of the products; the state is float32 or better.
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
            RecurrentWeights(self.hidden, 3, name=name)(embedded.shape[-1])
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


class GRUEncoder(WordEncoder):
    """The final states of both directions, D/2 units each, side by side."""

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B D"]:
        """Encode texts of ``lengths`` tokens; a text without tokens gives the zero vector."""
        embedded, valid = self.embed(tokens, lengths)
        return BiGRU(self.embed_dim // 2, self.remat, self.dtype, name="gru")(embedded, valid)


def _build(
    settings: Mapping[str, Any],
    vocabulary_size: int,
    embed_dim: int,
    remat: Remat,
    dtype: DTypeLike,
) -> GRUEncoder:
    return GRUEncoder(
        vocabulary_size=vocabulary_size,
        embed_dim=embed_dim,
        word_dim=settings["word_dim"],
        remat=remat,
        dtype=dtype,
    )


def _check(model_config: Any) -> None:
    if model_config.embed_dim % 2:
        raise ValueError(
            "config.model.embed_dim must be even: half for each direction of the GRU; got "
            f"{model_config.embed_dim}"
        )


ENTRY = TextEntry(
    build=_build,
    settings={"word_dim": recurrent.WORD_DIM},
    frozen=recurrent.FROZEN,
    pretrained=recurrent.WORD_VECTORS,
    check=_check,
)
