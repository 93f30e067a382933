"""The whole model: encoders, a composer and the temperature.

model = CMAP.from_config(config)
variables = model.init(jax.random.key(0), **CMAP.example_inputs(image_size=224))
gallery = model.apply(variables, images, method="encode_images")      # [L, N, D]
pyramid = model.apply(variables, images, method="encode_references")  # [L, B, D]
text = model.apply(variables, tokens, lengths, method="encode_text")  # [B, D]
query = model.apply(variables, pyramid, text, method="compose")       # ComposedQuery
scores = cmap_jax.scoring.score(query, gallery)                       # [B, N]

A method may embed a picture in one way as a reference and in another in a gallery; for most both
are the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cmap_jax.config_fields import check_values
from cmap_jax.models.composers import Halves, check_query, find_variant, variant_settings
from cmap_jax.models.encoders import (
    TEXT_ENCODERS,
    image_entry,
    image_settings,
    text_entry,
    text_settings,
)
from cmap_jax.models.image_encoder import Features, ImageEncoder
from cmap_jax.models.variant_checks import check_features, check_halves
from cmap_jax.numerics import at_least_float32, l2_normalize
from cmap_jax.scoring import ComposedQuery


class Encoded(NamedTuple):
    """The embeddings of a batch of triplets; rows are independent of one another.

    Attributes:
        reference: the references' pyramid, [L, B, D], for the composer.
        targets: the targets' pyramid, [L, B, D], as a gallery has it.
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
        composer_settings: ``config.model.<variant>``, the settings of a method that has some.
        initial_logit_scale: initial log of the inverse temperature.
        dtype: dtype of the encoders' products, float32 or bfloat16; norms, softmaxes, pooling and
            scores are float32. (float64, under ``jax_enable_x64``, is for numerical comparisons.)
    """

    variant: str
    image: Mapping[str, Any]
    text: Mapping[str, Any]
    composer_settings: Mapping[str, Any] = FrozenDict()
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
        composer_settings = variant_settings(config)
        variant.check(config)
        encoder = image_entry(config)
        encoder.check(config)
        if data is not None:
            encoder.pictures_of(settings[0]).check(data)
        levels = encoder.levels_of(settings[0])
        if missing := [level for level in variant.levels if level not in levels]:
            raise ValueError(
                f"config.model.variant={config.variant} scores the level {missing[0]}, but "
                f"config.model.image.name={image.name} gives {', '.join(levels)} alone"
            )
        if variant.on_features:
            check_features(config)
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
                "has_heads": not variant.on_features,
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
            composer_settings=composer_settings,
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

    @property
    def references_differ(self) -> bool:
        """Whether `encode_references` and `encode_images` give different embeddings."""
        return find_variant(self.variant).on_features

    @property
    def takes(self) -> Halves:
        """The halves that make a query: an image alone, a text alone, both."""
        return find_variant(self.variant).takes

    def with_texts_alone(self) -> "CMAP":
        """Return this model with texts that are embedded as if each were a batch of its own.

        It has the same variables. Only a text encoder that reads the padding is changed.
        """
        alone = TEXT_ENCODERS[self.text["family"]].alone(self.text["settings"])
        return self.clone(text={**self.text, "settings": alone})

    def setup(self):  # noqa: D102
        variant = find_variant(self.variant)
        self.image_encoder = ImageEncoder(**self.image, dtype=self.dtype)
        if variant.reads_text:
            text = dict(self.text)
            build = TEXT_ENCODERS[text.pop("family")].build
            self.text_encoder = build(**text, dtype=self.dtype)
        settings = {"settings": self.composer_settings} if variant.settings else {}
        self.composer = variant.build(dtype=self.dtype, **settings)
        scale = self.initial_logit_scale
        self.logit_scale = self.param("logit_scale", lambda _: jnp.asarray(scale, jnp.float32))

    def encode_images(
        self, images: Array | Features, *, train: bool = False
    ) -> Float[Array, "L B D"]:
        """Encode images as a gallery has them.

        Args:
            images: [B, H, W, 3], with sides that the image encoder takes; uint8 0..255, normalised
                inside, or floating point, already normalised; or, by level, what
                `ImageEncoder.features` makes of such images.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            One l2-normalised embedding a level (high, mid, low; or high alone), float32.
        """
        return self.embed_gallery(self.encode_references(images, train=train), train=train)

    def encode_references(
        self, images: Array | Features, *, train: bool = False
    ) -> Float[Array, "L B D"]:
        """Encode images as the composer takes them; arguments as `encode_images`.

        Returns:
            The same as `encode_images`; or, for a method that composes the encoders' features,
            these features, [1, B, D] float32 of any norm.
        """
        return self.image_encoder(images, train=train)

    def image_maps(self, images: Array | Features) -> dict[str, Float[Array, "B *shape"]]:
        """Return each level's map as it is pooled, or a vector; see `ImageEncoder.maps`."""
        return self.image_encoder.maps(images)

    def embed_maps(self, maps: Features) -> Float[Array, "L B D"]:
        """Return the embeddings as `encode_references` has them of images with `image_maps`."""
        return self.image_encoder.embed_maps(maps)

    def embed_gallery(
        self, references: Float[Array, "L B D"], *, train: bool = False
    ) -> Float[Array, "L B D"]:
        """Return the gallery's embeddings of images, given those as references.

        For a method that composes features, an image's embedding is that of its query without a
        text (docs/method.md, section 10); for all others both are the same.
        """
        if not self.references_differ:
            return references
        return self.compose(references, None, train=train).branches[0].numerator

    def encode_text(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Encode token ids; position ``lengths[b]`` and after are padding.

        Returns:
            l2-normalised embeddings (m in docs/method.md, section 1), float32; zeros for a variant
            that does not read the text; features of any norm for one that composes features.

        Raises:
            ValueError: an array of another rank, or batch axes that differ.
        """
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be [B, T] and lengths [B], not {tokens.shape} and {lengths.shape}"
            )
        variant = find_variant(self.variant)
        if not variant.reads_text:
            return jnp.zeros((tokens.shape[0], self.image["embed_dim"]), jnp.float32)
        text = self.text_encoder(tokens, lengths, train=train)
        return at_least_float32(text) if variant.on_features else l2_normalize(text)

    def compose(
        self,
        pyramid: Float[Array, "L B D"] | None,
        text: Float[Array, "B D"] | None,
        *,
        train: bool = False,
    ) -> ComposedQuery:
        """Compose the references' pyramid and the texts into queries (docs/method.md, section 1).

        Args:
            pyramid: result of `encode_references`; None where the method composes texts alone.
            text: result of `encode_text`; None where the method composes images alone.
            train: whether the composer is in training mode.

        Raises:
            ValueError: a half is missing that the method needs; or the composer returned what
                cannot be scored, see `composers.check_query`.
        """
        check_halves(self.variant, pyramid is not None, text is not None)
        if text is None:
            text = self._missing_text(pyramid.shape[1], train)
        if pyramid is None:
            pyramid = jnp.zeros((len(self.levels), *text.shape), text.dtype)
        query = self.composer(pyramid, text, train=train)
        check_query(query, pyramid, self.levels, self.composer)
        return query

    def _missing_text(self, count: int, train: bool) -> Float[Array, "B D"]:
        """Return the embeddings that stand for missing texts."""
        if find_variant(self.variant).without_text == "zero":
            return jnp.zeros((count, self.image["embed_dim"]), jnp.float32)
        text = TEXT_ENCODERS[self.text["family"]]
        ids = text.empty_text(self.text["settings"], self.text["vocabulary_size"])
        tokens, lengths = jnp.asarray([ids], jnp.int32), jnp.asarray([len(ids)], jnp.int32)
        encoded = self.encode_text(tokens, lengths, train=train)
        return jnp.broadcast_to(encoded, (count, encoded.shape[1]))

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
        reference = self.encode_references(reference_image, train=train)
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
