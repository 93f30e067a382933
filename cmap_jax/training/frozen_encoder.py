"""Whether a frozen image encoder's features can take the place of pixels, and whose they are.

    check_cacheable(config)                         # refuses what would change during training
    encoder = FrozenEncoder.from_initial(config, read_initial_weights(config))
    features = jax.jit(encoder.features)(encoder.weights, images)
    encoder.check_same(about, levels, directory)    # refuses features of another encoder

An image's features are the outputs of the part of `ImageEncoder` that has no trained parameter. Any
family of encoders will do: its entry says what is frozen, and whether the outputs are steady.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS, Kind, flatten
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import image_entry, image_settings
from cmap_jax.models.image_encoder import ImageEncoder
from cmap_jax.training.initial_weights import InitialWeights
from cmap_jax.workdir.fingerprint import digest

_ENCODER, _BACKBONE = "image_encoder", "backbone"  # modules in CMAP and in ImageEncoder


def check_cacheable(config: ConfigDict) -> None:
    """Refuse to train on precomputed features where the backbone's outputs change during training.

    Args:
        config: a whole config.

    Raises:
        ValueError: gives the reason and the remedy.
    """
    entry, model = image_entry(config.model), config.model
    if not model.image.frozen:
        _refuse(
            "config.model.image.frozen=False trains the backbone, and the first step would make "
            "them stale; set --config.model.image.frozen=true"
        )
    if _BACKBONE not in entry.frozen:
        _refuse(
            f"config.model.image.name={model.image.name} freezes {', '.join(entry.frozen)} alone, "
            "and trains parameters of the backbone"
        )
    if reason := entry.why_unsteady(image_settings(model)):
        _refuse(reason)


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """The part of a model that makes features of images.

    Attributes:
        module: its `ImageEncoder.features` makes them.
        weights: the backbone's arrays, by collection.
        about: facts that two encoders with the same features share, JSON values.
        levels: shape of an image's features, by level.
    """

    module: ImageEncoder
    weights: Mapping[str, Any]
    about: Mapping[str, Any]
    levels: Mapping[str, tuple[int, ...]]

    @classmethod
    def from_variables(cls, config: ConfigDict, variables: Mapping[str, Any]) -> "FrozenEncoder":
        """Return the encoder of a whole model's variables.

        Args:
            config: a whole config.
            variables: all variables of the model that the config describes, on any devices.
        """
        model = _model_of(config)
        module = ImageEncoder(**model.image, dtype=model.dtype)
        weights = _backbone_of(variables)
        image = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, 3), np.uint8)
        features = jax.eval_shape(functools.partial(_features, module), weights, image)
        about = {
            "name": config.model.image.name,
            # As the features' folder stores them, where a tuple is a list.
            "settings": json.loads(json.dumps(_settings_that_matter(config))),
            "dtype": config.model.dtype,
            "weights": digest(weights),
        }
        levels = {level: tuple(features[level].shape[1:]) for level in module.levels}
        return cls(module, weights, about, levels)

    @classmethod
    def from_initial(cls, config: ConfigDict, initial: InitialWeights) -> "FrozenEncoder":
        """Return the encoder that a new run starts from.

        Without pretrained weights its values are random, drawn from ``config.seed``.

        Args:
            config: a whole config.
            initial: the result of `initial_weights.read_initial_weights`.
        """
        if initial.variables is not None:
            weights = _backbone_of(initial.variables)
        else:
            parts = initial.image or {}
            weights = {c: part[_BACKBONE] for c, part in parts.items() if _BACKBONE in part}
        expected = _backbone_of(jax.eval_shape(lambda: _init(config)))
        weights = jax.tree.map(
            lambda like, x: np.asarray(x, like.dtype), expected, weights or _random_weights(config)
        )
        variables = {c: {_ENCODER: {_BACKBONE: tree}} for c, tree in weights.items()}
        return cls.from_variables(config, variables)

    def features(self, weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Return the features of images, a function to be compiled.

        Args:
            weights: the attribute, on the devices.
            images: [B, H, W, 3] uint8.

        Returns:
            By level, [B, h, w, C] or [B, C].
        """
        return _features(self.module, weights, images)

    def check_same(self, about: Mapping[str, Any], levels: Mapping[str, Any], source: str) -> None:
        """Refuse features of another encoder.

        Args:
            about: the `about` of the encoder that made them.
            levels: the shapes of their levels.
            source: folder of the features, for the message.

        Raises:
            ValueError: names what differs.
        """
        theirs, ours = flatten(about), flatten(self.about)
        for field in dict.fromkeys([*ours, *theirs]):
            if theirs.get(field) != ours.get(field):
                raise ValueError(
                    f"config.data.features: {source} was made by another image encoder; its "
                    f"{field.removeprefix('settings.')} is {theirs.get(field)}, and this model's "
                    f"is {ours.get(field)}; start from the same weights, or extract into another "
                    "folder"
                )
        for level, shape in self.levels.items():
            stored = tuple(levels.get(level, ()))
            # A map serves where its vector is read: `ImageEncoder.embed` pools it.
            if shape not in (stored, stored[-1:]):
                raise ValueError(
                    f"config.data.features: {source} holds {_describe(levels)}, and this model "
                    f"reads {_describe(self.levels)}, since config.model.image.cross_level lets "
                    "its levels interact; extract into another folder"
                )


def start_from_features(
    config: ConfigDict, initial: InitialWeights, features: Any
) -> InitialWeights:
    """Return initial weights whose backbone is the one that made some features.

    Args:
        config: a whole config.
        initial: the weights that the run would start from.
        features: an `input_pipeline.features.reading.FeatureFiles`.

    Raises:
        ValueError: that backbone is another one, or its features cannot be precomputed.
    """
    check_cacheable(config)
    encoder = FrozenEncoder.from_initial(config, initial)
    about = features.description
    encoder.check_same(about.encoder, about.levels, features.directory)
    if initial.variables is not None:
        return initial
    # Random values are taken over, since another compiled program may round them differently.
    image = {c: dict(parts) for c, parts in (initial.image or {}).items()}
    for collection, weights in encoder.weights.items():
        image.setdefault(collection, {})[_BACKBONE] = weights
    return dataclasses.replace(initial, image=image)


def _refuse(reason: str) -> None:
    raise ValueError(f"features of images cannot be precomputed: {reason}")


def _features(module: ImageEncoder, weights: Any, images: jax.Array) -> dict[str, jax.Array]:
    variables = {collection: {_BACKBONE: tree} for collection, tree in weights.items()}
    return module.apply(variables, images, train=False, method="features")


def _settings_that_matter(config: ConfigDict) -> dict[str, Any]:
    """Return the encoder's settings without those that only say how it is trained."""
    prefix = f"model.image.{config.model.image.name}."
    return {
        name: value
        for name, value in image_settings(config.model).items()
        if prefix + name not in FIELDS or FIELDS[prefix + name].kind == Kind.MODEL
    }


def _model_of(config: ConfigDict) -> CMAP:
    """Return the model; texts play no part here, and their vocabulary need not be known."""
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = config.model.text.vocabulary_size or 1
    return CMAP.from_config(config)


def _init(config: ConfigDict) -> Any:
    image = CMAP.example_inputs(config.data.crop, batch=1)["target_image"]
    return _model_of(config).init(jax.random.key(config.seed), image, method="encode_images")


def _random_weights(config: ConfigDict) -> dict[str, Any]:
    """Return the backbone's random values; they are those of the whole model's initial values."""
    # On CPU it takes longer to optimise a program that is called once than to run it as it is.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return _backbone_of(jax.jit(lambda: _init(config), compiler_options=quick)())


def _backbone_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backbone's part of a model's variables, by collection."""
    parts = {collection: tree.get(_ENCODER, {}) for collection, tree in variables.items()}
    return {c: part[_BACKBONE] for c, part in parts.items() if _BACKBONE in part}


def _describe(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{level} {'x'.join(map(str, shape))}" for level, shape in levels.items())
