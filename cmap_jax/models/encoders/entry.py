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
from typing import Any

import flax.linen as nn

from cmap_jax.processing.padded_resize import FITS, RESAMPLINGS

LEVELS = ("high", "mid", "low")  # names of a pyramid's levels, from the deepest feature map on


def _nothing_to_check(model_config: Any) -> None:
    """Accept every config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The rules of one field of a sub-config.

    Attributes:
        least: smallest number allowed.
        most: largest number allowed.
        choices: the only values allowed; empty: not restricted to a list.
    """

    least: float = -math.inf
    most: float = math.inf
    choices: tuple[Any, ...] = ()

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
        elif not self.least <= value <= self.most:
            no_most = self.most == math.inf
            limits = f"{self.least} or more" if no_most else f"{self.least} to {self.most}"
            raise ValueError(f"{name} must be {limits}, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures that an image encoder takes.

    Attributes:
        multiple: both sides, in pixels, are multiples of this number.
        mean: mean by channel (red, green, blue) that is subtracted from pixels in [0, 1].
        std: standard deviation by channel that the result is divided by.
        fits: possible values of ``config.data.fit``.
        resamplings: possible values of ``config.data.resampling``.
    """

    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fits: tuple[str, ...] = FITS
    resamplings: tuple[str, ...] = RESAMPLINGS

    def check(self, data: Any) -> None:
        """Refuse a ``config.data`` that gives other pictures.

        Raises:
            ValueError: names the field and what it may be.
        """
        if data.crop < 1 or data.crop % self.multiple:
            raise ValueError(
                f"config.data.crop must be a positive multiple of {self.multiple}, got {data.crop}"
            )
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
    """

    load: str
    advice: Callable[[Mapping[str, Any]], str]
    headline: str
    expected: Callable[[Mapping[str, Any]], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """A family of image encoders.

    Attributes:
        build: called with (settings, frozen, remat, dtype), where settings is the sub-config,
            frozen is ``config.model.image.frozen`` and remat is ``config.model.remat``; returns
            the module that `ImageEncoder` calls ``backbone``. Called as ``backbone(images,
            train=...)`` with normalised float images [B, H, W, 3], it returns a mapping from each
            of its levels to a feature map [B, h, w, C], not negative, or to a vector [B, C].
        settings: the fields of the sub-config.
        levels: the levels that it can give, a subset of LEVELS in their order.
        pictures: the pictures that it takes.
        frozen: names of the modules in `ImageEncoder` that ``config.model.image.frozen`` keeps
            from training.
        batch_parts: fields of the sub-config that count parts of the batch, so that the number of
            triplets encoded at once must be a multiple of them.
        pretrained: its pretrained weights, ``config.model.image.init_from``; None: there are none.
        why_unsteady: from the settings to the reason why a frozen backbone's outputs for an image
            are not the same in training as in evaluation, and the remedy; empty: they are.
        check: called with ``config.model``; raises ValueError for what no single field shows.
    """

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]
    levels: tuple[str, ...]
    pictures: Pictures
    frozen: tuple[str, ...] = ("backbone",)
    batch_parts: tuple[str, ...] = ()
    pretrained: Pretrained | None = None
    why_unsteady: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    check: Callable[[Any], None] = _nothing_to_check


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEntry:
    """A family of text encoders.

    Attributes:
        build: called with (settings, vocabulary_size, embed_dim, remat, dtype); returns the
            module ``text_encoder``. Called as ``text_encoder(tokens, lengths, train=...)`` with
            [B, T] int32 and [B] int32, it returns embeddings [B, embed_dim] of any norm.
        settings: the fields of the sub-config.
        tokenizers: names of the tokenizers whose ids it reads.
        frozen: names of the modules or parameters in ``text_encoder`` that
            ``config.model.text.frozen`` keeps from training.
        pretrained: its pretrained weights, ``config.model.text.init_from``; None: there are none.
        reads_padding: from the settings to whether an embedding depends on the padding of its
            batch, so that a text may not be padded further.
        check: called with ``config.model``; raises ValueError for what no single field shows.
    """

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]
    tokenizers: tuple[str, ...] = ("words",)
    frozen: tuple[str, ...] = ()
    pretrained: Pretrained | None = None
    reads_padding: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    check: Callable[[Any], None] = _nothing_to_check
