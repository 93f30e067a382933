"""The describe mode: parameters, shapes, memory and FLOP of a config, without any weights."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.cli.flop import count_flop
from cmap_jax.cli.tables import table
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import text_settings
from cmap_jax.training.check import check_config
from cmap_jax.training.moving_average import start_average
from cmap_jax.training.optimizer import (
    TRAINED,
    label_parameters,
    make_optimizer,
    make_schedule,
    select_trained,
)
from cmap_jax.training.parameter_groups import (
    GROUPS,
    groups_of,
    is_frozen,
    learning_rates,
    weight_decays,
)
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step

# The vocabulary's size is not known without data: FashionIQ's, special words included.
_ASSUMED_VOCABULARY = 3780
_TEXT_WIDTH = 32  # tokens of a text in the step that is measured, if the model takes as many
_STEPS_PER_EPOCH = 100  # any number: only the learning rate depends on it


def describe(config: ConfigDict) -> str:
    """Return a table of a model's parameters and one of the cost of its training step.

    Args:
        config: a whole config; the vocabulary's size may be unset.

    Raises:
        ValueError: an impossible value; names the field.
    """
    check_config(config)
    config = config.copy_and_resolve_references()
    assumed = config.model.text.vocabulary_size is None
    if assumed:
        config.model.text.vocabulary_size = _ASSUMED_VOCABULARY
    model = CMAP.from_config(config)
    schedule = make_schedule(config, _STEPS_PER_EPOCH)
    tx = make_optimizer(config, schedule)
    average = functools.partial(start_average, config=config)
    state = jax.eval_shape(
        lambda: create_train_state(model, tx, config.seed, config.data.crop, average)
    )
    parts = [
        f"{config.model.variant}: levels {', '.join(model.levels)}; images "
        f"{config.data.crop}x{config.data.crop}; dtype {config.model.dtype}",
        _parameters(state.params, config),
    ]
    if assumed:
        parts.append(
            f"The data determine the vocabulary; {_ASSUMED_VOCABULARY:,} words are assumed here "
            "(--config.model.text.vocabulary_size=...)."
        )
    parts.append(_step(model, tx, schedule, config, state))
    return "\n\n".join(parts)


def step_flop_from_features(config: ConfigDict, levels: Mapping[str, tuple[int, ...]]) -> int:
    """Return the FLOP of a training step whose batches hold features in place of pixels.

    See `count_flop`.

    Args:
        config: a whole config; the vocabulary's size may be unset.
        levels: shapes of an image's features by level.
    """
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = config.model.text.vocabulary_size or _ASSUMED_VOCABULARY
    model = CMAP.from_config(config)
    schedule = make_schedule(config, _STEPS_PER_EPOCH)
    tx = make_optimizer(config, schedule)
    state = jax.eval_shape(lambda: create_train_state(model, tx, config.seed, config.data.crop))
    size = config.train.batch_size
    width = _text_width(config)
    batch = jax.eval_shape(lambda: CMAP.example_inputs(config.data.crop, size, width))
    features = {
        level: jax.ShapeDtypeStruct((size, *shape), np.float32) for level, shape in levels.items()
    }
    batch |= {"reference_image": features, "target_image": features}
    step = make_train_step(model, tx, schedule, config, sharding.make_mesh(jax.devices()[:1]))
    return count_flop(jax.jit(step).trace(state, batch))


def _parameters(params: Any, config: ConfigDict) -> str:
    """Return a table of all parameters, one of their groups, and how many there are."""
    labels = label_parameters(params, config)
    rows = [["parameter", "shape", "number", "dtype", "group", ""]]
    for (path, leaf), group, label in zip(
        jax.tree_util.tree_leaves_with_path(params),
        *map(jax.tree.leaves, (groups_of(params, config), labels)),
        strict=True,
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append([name, shape, f"{leaf.size:,}", str(leaf.dtype), group, label])
    total = sum(x.size for x in jax.tree.leaves(params))
    trained = sum(x.size for x in select_trained(params, labels))
    return (
        f"{table(rows)}\n\n{_groups(params, config)}\n\n{total:,} parameters, {trained:,} of them "
        f"{TRAINED}"
    )


def _groups(params: Any, config: ConfigDict) -> str:
    """Return a table of the groups: their sizes, and how their parameters are trained."""
    trees = (params, *(f(params, config) for f in (groups_of, learning_rates, weight_decays)))
    leaves = list(zip(*map(jax.tree.leaves, trees), strict=True))
    rows = [["group", "parameters", "trained", "not decayed", "learning rate", "weight decay"]]
    for name in GROUPS:
        inside = [leaf for leaf in leaves if leaf[1] == name]
        count = sum(x.size for x, *_ in inside)
        if is_frozen(name, config) or not inside:
            rows.append([name, f"{count:,}", "0", "", "", ""])
            continue
        undecayed = sum(x.size for x, _, _, decay in inside if not decay)
        rates = [
            config.optimizer.learning_rate * f for *_, factor, _ in inside for f in _ends(factor)
        ]
        decays = {decay for *_, decay in inside if decay} or {0}
        row = [f"{count:,}", f"{count:,}", f"{undecayed:,}", _range(rates), _range(decays)]
        rows.append([name, *row])
    return table(rows)


def _ends(factor: Any) -> tuple[float, float]:
    return float(np.min(factor)), float(np.max(factor))


def _range(numbers: Collection[float]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{most:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def _step(model: CMAP, tx: Any, schedule: Any, config: ConfigDict, state: Any) -> str:
    """Return a table of the memory and the FLOP of a training step on one device."""
    batch_size, width = config.train.batch_size, _text_width(config)
    inputs = jax.eval_shape(lambda: CMAP.example_inputs(config.data.crop, batch_size, width))
    one = sharding.make_mesh(jax.devices()[:1])
    step = jax.jit(make_train_step(model, tx, schedule, config, one), donate_argnums=0)
    traced = step.trace(state, inputs)
    memory = traced.lower().compile().memory_analysis()
    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode_images"))
    image = jax.ShapeDtypeStruct((1, *inputs["target_image"].shape[1:]), np.uint8)
    rows = [
        [f"a training step of {batch_size} triplets", ""],
        ["  parameters and statistics", _bytes(_size(state.variables))],
        ["  moving average", _bytes(_size(state.average))],
        ["  optimiser state", _bytes(_size(state.opt_state))],
        ["  batch", _bytes(_size(inputs))],
        ["  scratch (activations, gradients)", _bytes(memory.temp_size_in_bytes)],
        ["  FLOP", f"{count_flop(traced) / 1e9:,.1f} G"],
        [
            "encoding an image, FLOP",
            f"{count_flop(encode.trace(state.variables, image)) / 1e9:,.2f} G",
        ],
    ]
    return (
        f"{table(rows)}\n(FLOP of products and convolutions; scratch as compiled for "
        f"{jax.default_backend()}, one device)"
    )


def _text_width(config: ConfigDict) -> int:
    """Return the tokens of a text in the step that is measured."""
    return min(_TEXT_WIDTH, text_settings(config.model).get("positions", _TEXT_WIDTH))


def _size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _bytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
