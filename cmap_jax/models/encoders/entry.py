"""The form of an entry in the tables of encoders: everything that others must know of a family.

A family of encoders is one file in this package. It defines a module and an entry, and
`cmap_jax.models.encoders` has its line in `IMAGE_ENCODERS` or `TEXT_ENCODERS`. The entry's name is
both the value of ``config.model.image.name`` (or ``.text.name``) and the name of the sub-config,
``config.model.image.<name>``, that holds the settings of that family alone:

    ENTRY = ImageEntry(
        build=lambda settings, frozen, remat, dtype: Tiny(settings["width"], dtype),
        settings={"width": Setting(least=1)},
        levels=("high",),
        pictures=Pictures(multiple=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn

from cmap_jax.processing.padded_resize import FITS, RESAMPLINGS

LEVELS = ("high", "mid", "low")  # names of a pyramid's levels, from the deepest feature map on
# Name of a stack of equal layers: its parameters have a leading axis, one entry a layer.
STACK = "blocks"


def _nothing_to_check(model_config: Any) -> None:
    """Accept every config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The rules of one field of a sub-config.

    Attributes:
        least: smallest number allowed.
        most: largest number allowed.
        choices: the only values allowed; empty: not restricted to a list.
        lengths: for a tuple of numbers, how many there may be; empty: a single number.
    """

    least: float = -math.inf
    most: float = math.inf
    choices: tuple[Any, ...] = ()
    lengths: tuple[int, ...] = ()

    def check(self, value: Any, name: str) -> None:
        """Refuse an impossible value.

        Args:
            value: the field's value.
            name: begins the error's message, such as "config.model.image.resnet.depth".

        Raises:
            ValueError: says which values are possible.
        """
        if self.choices:
            if value not in self.choices:
                known = ", ".join(map(str, self.choices))
                raise ValueError(f"{name} must be one of {known}; got {value!r}")
        elif self.lengths:
            if not isinstance(value, tuple | list) or len(value) not in self.lengths:
                known = " or ".join(map(str, self.lengths))
                raise ValueError(f"{name} must be a tuple of {known} numbers; got {value!r}")
            for number in value:
                dataclasses.replace(self, lengths=()).check(number, f"each number in {name}")
        elif not self.least <= value <= self.most:
            no_most = self.most == math.inf
            limits = f"{self.least} or more" if no_most else f"{self.least} to {self.most}"
            raise ValueError(f"{name} must be {limits}, not {value}")


def check_settings(
    config: Any, name: str, fields: Mapping[str, Setting], prefix: str
) -> dict[str, Any]:
    """Return a sub-config with every value allowed.

    Args:
        config: holds the sub-config.
        name: the sub-config's name.
        fields: all its fields.
        prefix: the path of ``config``, such as "config.model.image", for messages.

    Raises:
        ValueError: a field that is missing, unknown or impossible; names it.
    """
    prefix = f"{prefix}.{name}"
    if name not in config:
        raise ValueError(f"{prefix} is missing: it holds the settings of {name}")
    settings = dict(config[name])
    for field in dict.fromkeys([*fields, *settings]):
        if field not in settings or field not in fields:
            problem = "is missing" if field not in settings else "does not exist"
            raise ValueError(f"{prefix}.{field} {problem}; fields: {', '.join(fields)}")
        fields[field].check(settings[field], f"{prefix}.{field}")
    return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures that an image encoder takes.

    Attributes:
        multiple: both sides, in pixels, are multiples of this number.
        side: the only side that is taken, pixels, a multiple or not; None: every multiple.
        other_sides: completes the error where another side than ``side`` is given: the remedy.
        mean: mean by channel (red, green, blue) that is subtracted from pixels in [0, 1].
        std: standard deviation by channel that the result is divided by.
        fits: possible values of ``config.data.fit``.
        resamplings: possible values of ``config.data.resampling``.
    """

    multiple: int
    side: int | None = None
    other_sides: str = ""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fits: tuple[str, ...] = FITS
    resamplings: tuple[str, ...] = RESAMPLINGS

    def accepts(self, side: int) -> bool:
        """Tell whether pictures may have this side, in pixels."""
        if self.side is not None:
            return side == self.side
        return side > 0 and side % self.multiple == 0

    def check(self, data: Any) -> None:
        """Refuse a ``config.data`` that gives other pictures.

        Raises:
            ValueError: names the field and what it may be.
        """
        if not self.accepts(data.crop):
            allowed = f"a positive multiple of {self.multiple}"
            if self.side is not None:
                allowed = f"{self.side} for this image encoder"
            remedy = f"; {self.other_sides}" if self.side is not None and self.other_sides else ""
            raise ValueError(f"config.data.crop must be {allowed}, got {data.crop}{remedy}")
        Setting(choices=self.fits).check(data.fit, "config.data.fit")
        Setting(choices=self.resamplings).check(data.resampling, "config.data.resampling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """How an encoder's pretrained weights are read, and the advice for those who have given none.

    Attributes:
        load: the reader, as "module:function", since files of foreign weights are read by
            `cmap_jax.convert`, which the models know nothing of. It returns a tree of arrays with
            the collections ("params", "batch_stats") that belong under ``image_encoder`` or
            ``text_encoder``: whole modules, by name, and only those that it has weights for. An
            image encoder's is called with (path, settings), before any data are read; a text
            encoder's with (path, settings, tokenizer, counts, rng), where counts says how often
            each word occurs in the training captions and rng is a NumPy generator for rows without
            weights.
        advice: from the settings to the text of a warning without any weights; what to give.
        headline: the first words of that warning, in capitals.
        expected: from the settings to whether published weights fit them, so that training
            without any is likely a mistake even where nothing is frozen.
        check: a function, as "module:function", that is called with (source, settings) before any
            data are read, and raises for weights that ``load`` will refuse; empty: there is none.
        is_name: from a value of ``init_from`` that is no file or folder to whether ``load`` knows
            it by name.
    """

    load: str
    advice: Callable[[Mapping[str, Any]], str]
    headline: str
    expected: Callable[[Mapping[str, Any]], bool]
    check: str = ""
    is_name: Callable[[str], bool] = lambda source: False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """A family of image encoders.

    Attributes:
        build: called with (settings, frozen, remat, dtype), where settings is the sub-config,
            frozen is ``config.model.image.frozen`` and remat is ``config.model.remat``; returns
            the module that `ImageEncoder` calls ``backbone``. Called as ``backbone(images,
            train=...)`` with normalised float images [B, H, W, 3], it returns a mapping from each
            of its levels to a feature map [B, h, w, C] or to a vector [B, C].
        settings: the fields of the sub-config.
        levels: the levels that it can give, a subset of LEVELS in their order; or a function from
            the settings to them.
        pictures: the pictures that it takes; or a function from the settings to them.
        pooling: how a feature map becomes a vector. "generalized_mean" replaces negative numbers by
            a small positive one, and is for maps after a ReLU; "mean" is for any others.
        signed: from the settings to the levels whose maps may be negative where ``pooling`` is
            "generalized_mean". Such a map is pooled by "mean", unless the cross-level interaction
            has made another of it.
        frozen: names of the modules in `ImageEncoder` that are pretrained: the group "image" of
            parameters, which ``config.model.image.frozen`` keeps from training.
        layers: the layers of that group, from the input on, for layer-wise decay of the learning
            rate: regular expressions, each of which is the whole name of a module or parameter;
            STACK stands for as many layers as it has. Parameters of no layer, such as a final norm,
            come after the last one. Empty: no layers are told apart.
        batch_parts: fields of the sub-config that count parts of the batch, so that the number of
            triplets encoded at once must be a multiple of them.
        pretrained: its pretrained weights, ``config.model.image.init_from``; None: there are none.
        feature_width: from the settings to the width of the feature that the encoder itself
            projects to, a vector at its high level, for methods that compose features without
            heads; None: it projects none.
        why_unsteady: from the settings to the reason why a frozen backbone's outputs for an image
            are not the same in training as in evaluation, and the remedy; empty: they are.
        patch_weights: called with (module, params, tokens), where tokens [B, T, D] enter the first
            block of a transformer; returns the weights of the patches in its feature, [B, P], by
            attention roll-out. None: the encoder is no transformer.
        check: called with ``config.model``; raises ValueError for what no single field shows.
    """

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]
    levels: tuple[str, ...] | Callable[[Mapping[str, Any]], tuple[str, ...]]
    pictures: Pictures | Callable[[Mapping[str, Any]], Pictures]
    pooling: Literal["generalized_mean", "mean"] = "generalized_mean"
    signed: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda settings: ()
    frozen: tuple[str, ...] = ("backbone",)
    layers: tuple[str, ...] = ()
    batch_parts: tuple[str, ...] = ()
    pretrained: Pretrained | None = None
    feature_width: Callable[[Mapping[str, Any]], int] | None = None
    why_unsteady: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    patch_weights: Callable[[nn.Module, Any, Any], Any] | None = None
    check: Callable[[Any], None] = _nothing_to_check

    def levels_of(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the levels that an encoder with these settings gives."""
        return self.levels(settings) if callable(self.levels) else self.levels

    def pictures_of(self, settings: Mapping[str, Any]) -> Pictures:
        """Return the pictures that an encoder with these settings takes."""
        return self.pictures(settings) if callable(self.pictures) else self.pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEntry:
    """A family of text encoders.

    Attributes:
        build: called with (settings, vocabulary_size, embed_dim, remat, dtype); returns the
            module ``text_encoder``. Called as ``text_encoder(tokens, lengths, train=...)`` with
            [B, T] int32 and [B] int32, it returns embeddings [B, embed_dim] of any norm.
        settings: the fields of the sub-config.
        tokenizers: names of the tokenizers whose ids it reads.
        frozen: names of the modules or parameters in ``text_encoder`` that are pretrained: the
            group "text" of parameters, which ``config.model.text.frozen`` keeps from training.
        layers: the layers of that group, as in `ImageEntry`.
        pretrained: its pretrained weights, ``config.model.text.init_from``; None: there are none.
        reads_padding: from the settings to whether an embedding depends on the padding of its
            batch, so that a text may not be padded further.
        alone: from the settings to those under which a text's embedding is the same whatever the
            padding: the one that it has without any.
        empty_text: from the settings and the vocabulary's size to the token ids of the empty text;
            None: a method that embeds the empty text cannot use this encoder.
        check: called with ``config.model``; raises ValueError for what no single field shows.
    """

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]
    tokenizers: tuple[str, ...] = ("words",)
    frozen: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    pretrained: Pretrained | None = None
    reads_padding: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    alone: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: settings
    empty_text: Callable[[Mapping[str, Any], int], tuple[int, ...]] | None = None
    check: Callable[[Any], None] = _nothing_to_check
