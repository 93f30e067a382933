"""CLIP's towers, the image encoder and the text encoder "clip".

See docs/method.md, section 9.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmap_jax.models.encoders.entry import ImageEntry, Setting, TextEntry
from cmap_jax.models.encoders.rollout import roll_out
from cmap_jax.models.encoders.text_tower import (
    FROZEN,
    TEXT_SETTINGS,
    check_text,
    check_text_width,
    text_builder,
)
from cmap_jax.models.encoders.transformer import (
    LAYERS,
    Tower,
    layer_norm,
    linear,
    published,
)
from cmap_jax.models.encoders.vision_tower import (
    VISION_SETTINGS,
    Patches,
    VisionTower,
    check_vision,
    resize_positions,
    vision_builder,
    vision_levels,
    vision_pictures,
)
from cmap_jax.numerics import at_least_float32
from cmap_jax.processing.tokenizer import END, SPECIAL_TOKENS, START

# The ``end_token`` that stands for the largest id of a text. OpenAI's files name this token, which
# is an ordinary one.
LARGEST_ID = 2
# The ids of the start and the end of a text for the tokenizer "words".
WORDS_START, WORDS_END = SPECIAL_TOKENS.index(START), SPECIAL_TOKENS.index(END)


class ClipVision(VisionTower):
    """CLIP's vision tower.

    Attributes:
        projection: channels P of the projected feature.
    """

    projection: int = 512

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B *shape"]]:
        """Encode normalised images.

        Returns:
            The projected feature [B, P] as "high", float32 or better, not normalised; and with
            ``map_blocks`` the patches' tokens after those blocks as "mid" and "low",
            [B, h, w, width], which may be negative.
        """
        x = Patches(self.patch, self.width, False, self.dtype, name="patch_embedding")(images)
        batch, rows, columns, _ = x.shape
        init = nn.initializers.normal(self.width**-0.5)
        class_token = self.param("class_embedding", init, (self.width,))
        shape = (1 + self.grid**2, self.width)
        positions = self.param("position_embedding", init, shape)
        patch_positions = resize_positions(positions[1:], rows, columns)
        positions = jnp.concatenate([positions[:1], patch_positions]).astype(self.dtype)
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, self.width))
        x = jnp.concatenate([class_token, x.reshape(batch, -1, self.width)], axis=1) + positions
        x = layer_norm(self.epsilon, self.dtype, "pre_norm")(x)
        x, tokens = self.run_blocks(x, after=self.map_blocks)
        pooled = layer_norm(self.epsilon, self.dtype, "post_norm")(x[:, 0])
        project = linear(
            self.projection, self.width**-0.5, self.dtype, "projection", use_bias=False
        )
        feature = at_least_float32(project(pooled))
        return {"high": feature, **self.feature_maps(tokens, rows, columns)}


def patch_weights(
    tower: ClipVision, params: Any, tokens: Float[Array, "B T D"]
) -> Float[Array, "B P"]:
    """Return the weights of the patches in the class token, whose feature is taken."""
    return roll_out(tower, params, tokens)[0][:, 0, 1:]


class ClipText(Tower):
    """CLIP's text tower.

    Attributes:
        vocabulary_size: rows of the token embedding.
        positions: the most tokens of a text.
        projection: channels P of the projected feature.
        end_token: id of the end of a text; 2 stands for the largest id in a text.
    """

    vocabulary_size: int = 49408
    positions: int = 77
    projection: int = 512
    end_token: int = LARGEST_ID

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B P"]:
        """Encode texts; what follows the first end token has no effect, ``lengths`` neither.

        Returns:
            The projected features, float32 or better, not normalised.

        Raises:
            ValueError: more tokens than positions.
        """
        check_text_width(tokens.shape[1], self.positions)
        table = self.param(
            "token_embedding", nn.initializers.normal(0.02), (self.vocabulary_size, self.width)
        )
        shape = (self.positions, self.width)
        positions = self.param("position_embedding", nn.initializers.normal(0.01), shape)
        x = jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)
        x = x + positions[: tokens.shape[1]].astype(self.dtype)
        x, _ = self.run_blocks(x, causal=True)
        # The norm acts on each token alone: the others need none.
        ends = self._ends(tokens)
        x = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
        x = layer_norm(self.epsilon, self.dtype, "final_norm")(x)
        project = linear(
            self.projection, self.width**-0.5, self.dtype, "projection", use_bias=False
        )
        return at_least_float32(project(x))

    def _ends(self, tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
        """Return the position of each text's first end token."""
        is_largest = self.end_token == LARGEST_ID
        return jnp.argmax(tokens if is_largest else tokens == self.end_token, axis=1)


def _check_text(model_config: Any) -> None:
    check_text("clip", model_config)
    text = model_config.text
    if text.tokenizer == "words" and text.clip.end_token != WORDS_END:
        raise ValueError(
            f"config.model.text.clip.end_token must be {WORDS_END} with "
            "config.model.text.tokenizer=words: the id of the end of a text"
        )


def _empty_text(settings: Mapping[str, Any], vocabulary_size: int) -> tuple[int, int]:
    """Return the ids of a text's start and end: the last two of CLIP's sub-words, or the words'."""
    end = settings["end_token"]
    if end == WORDS_END:
        return WORDS_START, WORDS_END
    return vocabulary_size - 2, vocabulary_size - 1 if end == LARGEST_ID else end


_PRETRAINED = functools.partial(published, "openai/clip-vit-base-patch32")

ENTRY = ImageEntry(
    build=vision_builder(ClipVision),
    settings={**VISION_SETTINGS, "projection": Setting(least=1)},
    levels=vision_levels,
    pictures=functools.partial(vision_pictures, "clip"),
    pooling="mean",  # tokens may be negative
    layers=LAYERS,
    pretrained=_PRETRAINED("image"),
    feature_width=lambda settings: settings["projection"],
    patch_weights=patch_weights,
    check=functools.partial(check_vision, "clip"),
)
TEXT_ENTRY = TextEntry(
    build=text_builder(ClipText),
    settings={**TEXT_SETTINGS, "end_token": Setting(least=0)},
    tokenizers=("clip", "words"),
    frozen=FROZEN,
    layers=LAYERS,
    pretrained=_PRETRAINED("text"),
    empty_text=_empty_text,
    check=_check_text,
)
