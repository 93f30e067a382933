"""Initial weights other than random ones: another model's or pretrained encoders'.

See docs/method.md, section 3.

Two functions read them before a run writes anything: `read_initial_weights` everything that does
not depend on the data, and `fit_initial_weights` the rest, once the tokenizer is known.
`apply_initial_weights` writes them into the variables of a new state.
"""

import dataclasses
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.config_fields import Kind, differences
from cmap_jax.convert import load_reference_checkpoint
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS, find_variant
from cmap_jax.models.encoders import image_entry, image_settings, text_entry, text_settings
from cmap_jax.models.encoders.entry import ImageEntry, TextEntry
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.trained import load

_logger = logging.getLogger(__name__)

_FREQUENT = 10  # unknown words that a warning names
_TEXT_STREAM = 3  # part of the key of rows without weights, which other draws of the seed lack


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Values for a whole model or for parts of its encoders, as NumPy arrays.

    Attributes:
        variables: all variables of a model; or None.
        tokenizer: the tokenizer that ``variables`` were trained with, where it is known.
        image: variables that belong under ``image_encoder``, by collection; or None.
        text: variables that belong under ``text_encoder``, by collection; None until the data's
            tokenizer is known.
    """

    variables: Mapping[str, Any] | None = None
    tokenizer: Tokenizer | None = None
    image: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None


def read_initial_weights(config: ConfigDict, *, for_texts: bool = True) -> InitialWeights:
    """Read the weights of ``config.init_from`` or ``config.model.image.init_from``; check the rest.

    Args:
        config: a whole config.
        for_texts: whether the text encoder's weights are checked too.

    Raises:
        FileNotFoundError: a file or folder is missing; names it.
        ModuleNotFoundError: a package with weights is not installed; says how to install it.
        ValueError: one that is damaged, or made for another model; says what differs.
    """
    model, image, text = config.model, config.model.image, config.model.text
    if config.init_from is not None:
        if image.init_from or text.init_from:
            raise ValueError(
                "config.init_from brings a whole model: leave config.model.image.init_from and "
                "config.model.text.init_from unset"
            )
        return _read_model(config)
    settings = image_settings(model)
    _check_pretrained(model, "image", image_entry(model), settings)
    if for_texts and find_variant(model.variant).reads_text:
        _check_pretrained(model, "text", text_entry(model), text_settings(model))
    if not image.init_from:
        return InitialWeights()
    load_pretrained = pkgutil.resolve_name(image_entry(model).pretrained.load)
    return InitialWeights(image=load_pretrained(image.init_from, settings))


def fit_initial_weights(
    config: ConfigDict, initial: InitialWeights | None, model: CMAP, datasets: Any
) -> InitialWeights:
    """Return the initial weights with the text encoder's, once the tokenizer is known.

    Args:
        config: a whole config.
        initial: the result of `read_initial_weights`; None: it is called here.
        model: the model that gets the weights.
        datasets: the result of `input_pipeline.create_datasets`, of which ``tokenizer`` and
            ``word_counts`` are read.

    Raises:
        ValueError: the weights were trained with another tokenizer, or have another shape; or
            pretrained weights that cannot be read; says why.
    """
    initial = initial or read_initial_weights(config)
    tokenizer, counts = datasets.tokenizer, datasets.word_counts
    if initial.tokenizer is not None and initial.tokenizer != tokenizer:
        raise ValueError(
            f"{config.init_from} was trained with other words than the data sets' tokenizer has; "
            "pass its tokenizer to create_datasets"
        )
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    source = config.model.text.init_from
    if initial.variables is not None:
        _check_shapes(shapes, initial.variables, config.init_from)
        _report_unknown_words(config.init_from, tokenizer, counts)
    elif source and "text_encoder" in shapes["params"]:
        weights = pkgutil.resolve_name(text_entry(config.model).pretrained.load)(
            source,
            text_settings(config.model),
            tokenizer,
            counts,
            np.random.default_rng([config.seed, _TEXT_STREAM]),
        )
        return dataclasses.replace(initial, text=weights)
    return initial


def apply_initial_weights(initial: InitialWeights, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new model's variables with the initial weights in place of random ones.

    Args:
        initial: the result of `fit_initial_weights`.
        variables: the model's random variables.
    """
    variables = dict(variables)
    if initial.variables is not None:
        return _placed_like(initial.variables, variables)
    for encoder, weights in (("image_encoder", initial.image), ("text_encoder", initial.text)):
        for collection, parts in (weights or {}).items():
            for part, values in parts.items():
                variables[collection] = _replaced(variables[collection], (encoder, part), values)
    return variables


def _check_pretrained(
    model: ConfigDict, part: str, entry: ImageEntry | TextEntry, settings: Mapping[str, Any]
) -> None:
    """Check that an encoder's pretrained weights exist, and warn where they are likely forgotten.

    Args:
        model: ``config.model``.
        part: "image" or "text".
        entry: the encoder's.
        settings: the encoder's sub-config.

    Raises:
        FileNotFoundError: no such file; names the field.
        ValueError: nothing is known of such weights.
    """
    field, source = f"config.model.{part}.init_from", model[part].init_from
    if entry.pretrained is None:
        if source:
            raise ValueError(f"{field}: {model[part].name} has no pretrained weights; leave it out")
        return
    if source:
        if not epath.Path(source).exists() and not entry.pretrained.is_name(source):
            raise FileNotFoundError(f"{field}: {source}: no such file")
        if entry.pretrained.check:
            pkgutil.resolve_name(entry.pretrained.check)(source, settings)
    elif model[part].frozen:
        _logger.warning(
            "%s: config.model.%s.frozen is set and neither %s nor config.init_from, so that the %s "
            "stays at its RANDOM initial values. %s",
            entry.pretrained.headline,
            part,
            field,
            " and the ".join(entry.frozen).replace("_", " "),
            entry.pretrained.advice(settings),
        )
    elif entry.pretrained.expected(settings):
        _logger.warning(
            "%s: this %s trains from scratch, far below published results. %s",
            entry.pretrained.headline,
            model[part].name,
            entry.pretrained.advice(settings),
        )


def _report_unknown_words(source: str, tokenizer: Tokenizer, counts: Mapping[str, int]) -> None:
    """Warn of words of the training captions that the tokenizer of an earlier stage lacks."""
    unknown = {word: n for word, n in counts.items() if tokenizer.unknown(word)}
    if unknown:
        frequent = sorted(unknown, key=lambda word: -unknown[word])[:_FREQUENT]
        _logger.warning(
            "%s does not know %.2g%% of the words of the training captions, and reads each as "
            "<unk>; most often %s",
            source,
            100 * sum(unknown.values()) / sum(counts.values()),
            ", ".join(f"{word} ({unknown[word]:,})" for word in frequent),
        )


def _read_model(config: ConfigDict) -> InitialWeights:
    """Read a whole model from a workdir or from one of the authors' checkpoints."""
    source = config.init_from
    if not source:
        raise ValueError(
            "config.init_from is empty: this stage starts from an earlier one; give its workdir or "
            "one of the authors' checkpoints, --config.init_from=runs/fashioniq"
        )
    if not epath.Path(source).exists():
        raise FileNotFoundError(f"config.init_from: {source}: no such workdir or file")
    if epath.Path(source).is_dir():
        trained = load(source)
        loaded, variables, tokenizer = trained.config.model, trained.variables, trained.tokenizer
    else:
        loaded, variables, tokenizer = load_reference_checkpoint(source)
    old, new = (_fields_in_use(c) for c in (loaded, config.model))
    different = differences(old, new, Kind.MODEL, part="model")
    if different:
        raise ValueError(
            f"config.init_from: {source} holds another model:\n  "
            + "\n  ".join(different)
            + "\nSet these fields to what they are there, or start without it"
        )
    return InitialWeights(variables=variables, tokenizer=tokenizer)


def _fields_in_use(model: ConfigDict) -> dict[str, Any]:
    """Return a ``config.model`` without the sub-configs of families and methods it does not use."""
    fields = model.to_dict()
    for name, variant in COMPOSERS.items():
        if variant.settings and name != model.variant:
            del fields[name]
    for part in ("image", "text"):
        fields[part] = {
            key: value
            for key, value in fields[part].items()
            if not isinstance(value, dict) or key == model[part].name
        }
    return fields


def _check_shapes(expected: Any, variables: Any, source: str) -> None:
    """Refuse a model that differs in a size the configs do not show, such as the vocabulary's."""
    new, old = (
        {jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (dict(expected), dict(variables)))
    )
    if new != old:
        lines = [
            f"{name}: {old.get(name)} there, {new.get(name)} now"
            for name in dict.fromkeys([*new, *old])
            if new.get(name) != old.get(name)
        ]
        raise ValueError(f"config.init_from: {source} does not fit:\n  " + "\n  ".join(lines[:8]))


def _placed_like(values: Any, like: Any) -> Any:
    """Return ``values`` with the dtypes and shardings of ``like``."""
    return jax.tree.map(
        lambda value, old: jax.device_put(np.asarray(value, old.dtype), old.sharding), values, like
    )


def _replaced(tree: Any, path: tuple[str, ...], values: Any) -> Any:
    """Return a nested dict with the part at ``path`` replaced by values of the same shapes."""
    if not path:
        return _placed_like(values, tree)
    head, *rest = path
    return {**tree, head: _replaced(tree[head], tuple(rest), values)}
