"""The whole model: encoders, a composer and the temperature.

model = CMAP.from_config(config)
variables = model.init(jax.random.key(0), **CMAP.example_inputs(image_size=224))
pyramid = model.apply(variables, images, method="encode_images")      # [L, B, D]
text = model.apply(variables, tokens, lengths, method="encode_text")  # [B, D]
query = model.apply(variables, pyramid, text, method="compose")       # ComposedQuery
scores = cmap_jax.scoring.score(query, gallery_pyramid)               # [B, N]
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cmap_jax.config_fields import check_values
from cmap_jax.models.composers import check_query, find_variant
from cmap_jax.models.encoders import (
    TEXT_ENCODERS,
    image_entry,
    image_settings,
    text_entry,
    text_settings,
)
from cmap_jax.models.image_encoder import Features, ImageEncoder
from cmap_jax.numerics import l2_normalize
from cmap_jax.scoring import ComposedQuery


class Encoded(NamedTuple):
    """The embeddings of a batch of triplets; rows are independent of one another.

    Attributes:
        reference: the references' pyramid, [L, B, D].
        targets: the targets' pyramid, [L, B, D].
        text: the texts' embeddings, [B, D].
    """

    reference: jax.Array
    targets: jax.Array
    text: jax.Array


class TrainingOutputs(NamedTuple):
    """The inputs of the objective, for a batch of triplets.

    Attributes:
        query: the B composed queries.
        targets: the targets' pyramid, [L, B, D].
        logit_scale: log of the inverse temperature, a scalar.
    """

    query: ComposedQuery
    targets: jax.Array
    logit_scale: jax.Array


def _choice(field: str, value: Any, choices: Any) -> Any:
    if value not in choices:
        raise ValueError(
            f"config.model.{field} must be one of {', '.join(map(str, choices))}; got {value!r}"
        )
    return value


class CMAP(nn.Module):
    """Composed image retrieval by cross-modal attention preservation, and its variants.

    Make it with `CMAP.from_config`. The variables are ``params`` and ``batch_stats``.

    Attributes:
        variant: name of the method, as `composers.find_variant` takes it.
        image: keyword arguments of `ImageEncoder`.
        text: "family", a key of `TEXT_ENCODERS`, and the keyword arguments of its ``build``.
        initial_logit_scale: initial log of the inverse temperature.
        dtype: dtype of the encoders' products, float32 or bfloat16; norms, softmaxes, pooling and
            scores are float32. (float64, under ``jax_enable_x64``, is for numerical comparisons.)
    """

    variant: str
    image: Mapping[str, Any]
    text: Mapping[str, Any]
    initial_logit_scale: float = 2.65926
    dtype: DTypeLike = jnp.float32

    @classmethod
    def from_config(cls, config: Any) -> "CMAP":
        """Return the model that a config describes.

        Args:
            config: a whole config, or its ``model`` part (a ConfigDict or anything with the same
                attributes).

        Raises:
            ValueError: a field with an impossible value, named with what is possible.
        """
        data = config.data if hasattr(config, "model") else None
        config = config if data is None else config.model
        check_values(config, "model")
        image, text = config.image, config.text
        variant = find_variant(config.variant)
        settings = image_settings(config), text_settings(config)
        encoder = image_entry(config)
        encoder.check(config)
        if data is not None:
            encoder.pictures.check(data)
        if missing := [level for level in variant.levels if level not in encoder.levels]:
            raise ValueError(
                f"config.model.variant={config.variant} scores the level {missing[0]}, but "
                f"config.model.image.name={image.name} gives {', '.join(encoder.levels)} alone"
            )
        if variant.reads_text:
            text_entry(config).check(config)
            _choice("text.tokenizer", text.tokenizer, text_entry(config).tokenizers)
            if not text.vocabulary_size:
                raise ValueError(
                    "config.model.text.vocabulary_size is not set: take it from the data's "
                    "tokenizer"
                )
        return cls(
            variant=config.variant,
            image={
                "family": image.name,
                "settings": settings[0],
                "embed_dim": config.embed_dim,
                "levels": variant.levels,
                "cross_level": image.cross_level,
                "frozen": image.frozen,
                "remat": config.remat,
            },
            text={
                "family": text.name,
                "settings": settings[1],
                "vocabulary_size": text.vocabulary_size,
                "embed_dim": config.embed_dim,
                "remat": config.remat,
            },
            initial_logit_scale=config.logit_scale,
            dtype=jnp.dtype(config.dtype),
        )

    @staticmethod
    def example_inputs(image_size: int = 224, batch: int = 2, text_width: int = 8) -> dict:
        """Return zero inputs of ``__call__``, to initialise with or to take shapes from."""
        images = jnp.zeros((batch, image_size, image_size, 3), jnp.uint8)
        return {
            "reference_image": images,
            "target_image": images,
            "text_tokens": jnp.zeros((batch, text_width), jnp.int32),
            "text_lengths": jnp.ones((batch,), jnp.int32),
        }

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the pyramid's levels, high to low."""
        return find_variant(self.variant).levels

    def setup(self):  # noqa: D102
        variant = find_variant(self.variant)
        self.image_encoder = ImageEncoder(**self.image, dtype=self.dtype)
        if variant.reads_text:
            text = dict(self.text)
            build = TEXT_ENCODERS[text.pop("family")].build
            self.text_encoder = build(**text, dtype=self.dtype)
        self.composer = variant.build(dtype=self.dtype)
        scale = self.initial_logit_scale
        self.logit_scale = self.param("logit_scale", lambda _: jnp.asarray(scale, jnp.float32))

    def encode_images(
        self, images: Array | Features, *, train: bool = False
    ) -> Float[Array, "L B D"]:
        """Encode images: uint8 0..255, normalised inside, or floating point, already normalised.

        Args:
            images: [B, H, W, 3], with sides that the image encoder takes; or, by level, what
                `ImageEncoder.features` makes of such images.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            One l2-normalised embedding a level (high, mid, low; or high alone), float32.
        """
        return self.image_encoder(images, train=train)

    def encode_text(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Encode token ids; position ``lengths[b]`` and after are padding.

        Returns:
            l2-normalised embeddings (m in docs/method.md, section 1), float32; zeros for a variant
            that does not read the text.

        Raises:
            ValueError: an array of another rank, or batch axes that differ.
        """
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be [B, T] and lengths [B], not {tokens.shape} and {lengths.shape}"
            )
        if not find_variant(self.variant).reads_text:
            return jnp.zeros((tokens.shape[0], self.image["embed_dim"]), jnp.float32)
        return l2_normalize(self.text_encoder(tokens, lengths, train=train))

    def compose(
        self, pyramid: Float[Array, "L B D"], text: Float[Array, "B D"], *, train: bool = False
    ) -> ComposedQuery:
        """Compose the references' pyramid and the texts into queries (docs/method.md, section 1).

        Raises:
            ValueError: the composer returned what cannot be scored; see `composers.check_query`.
        """
        query = self.composer(pyramid, text, train=train)
        check_query(query, pyramid, self.levels, self.composer)
        return query

    def encode_triplets(
        self,
        reference_image: Array | Features,
        target_image: Array | Features,
        text_tokens: Int[Array, "B T"],
        text_lengths: Int[Array, " B"],
        *,
        train: bool = False,
    ) -> Encoded:
        """Encode a batch of triplets, which is nearly all of the model's work.

        The references and the targets are encoded in two passes. Each is normalised by its own
        statistics, and each updates the running ones, the references first (docs/method.md,
        section 3).
        """
        reference = self.encode_images(reference_image, train=train)
        targets = self.encode_images(target_image, train=train)
        return Encoded(reference, targets, self.encode_text(text_tokens, text_lengths, train=train))

    def compose_triplets(self, encoded: Encoded, *, train: bool = False) -> TrainingOutputs:
        """Compose the queries of an encoded batch, for the objective."""
        query = self.compose(encoded.reference, encoded.text, train=train)
        return TrainingOutputs(query, encoded.targets, self.logit_scale)

    def __call__(
        self,
        reference_image: Array | Features,
        target_image: Array | Features,
        text_tokens: Int[Array, "B T"],
        text_lengths: Int[Array, " B"],
        *,
        train: bool = False,
    ) -> TrainingOutputs:
        """Run a batch of triplets through the model."""
        encoded = self.encode_triplets(
            reference_image, target_image, text_tokens, text_lengths, train=train
        )
        return self.compose_triplets(encoded, train=train)
