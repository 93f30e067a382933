"""The groups of parameters, and the learning rate and weight decay of each parameter.

See docs/method.md, section 3, parameter groups.

The groups are "image" and "text", the pretrained parts of the encoders as their entries name them
(see `cmap_jax.models.encoders.entry`), and "heads", all other parameters. The table
``config.optimizer.groups`` has their settings:

    groups_of(params, config)            # a tree with "image", "text" or "heads" in it
    learning_rates(params, config)       # factors of the schedule's rate
    weight_decays(params, config)        # weight decays, before the rate
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cmap_jax.models.encoders import image_entry, text_entry
from cmap_jax.models.encoders.entry import STACK, ImageEntry, TextEntry

IMAGE, TEXT, HEADS = "image", "text", "heads"
GROUPS = (IMAGE, TEXT, HEADS)
# Kinds of parameters that ``config.optimizer.undecayed`` may name.
KINDS = ("biases", "norms", "positions", "scalars")

_TOKENS = ("position_embedding", "class_embedding", "probe")


def groups_of(params: Any, config: Any) -> Any:
    """Return the group of every parameter, in their tree.

    Args:
        params: the parameters of a `CMAP`, or a part of their tree.
        config: a whole config.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _group(_names(path), config.model), params
    )


def is_frozen(group: str, config: Any) -> bool:
    """Return whether the config keeps a group from training.

    Args:
        group: one of GROUPS.
        config: a whole config.
    """
    if group == HEADS:
        return config.optimizer.groups.heads.frozen
    return config.model[group].frozen


def kind_of(names: Sequence[str], rank: int) -> str:
    """Return one of KINDS, or "weights", for a parameter.

    Args:
        names: its path, such as ("composer", "gate_norm", "scale").
        rank: number of its axes, without the leading one of a stack of layers.
    """
    if rank == 0:
        return "scalars"
    if any("norm" in name for name in names):
        return "norms"
    if "bias" in names[-1]:
        return "biases"
    if names[-1] in _TOKENS:
        return "positions"
    return "scalars" if rank == 1 else "weights"


def weight_decays(params: Any, config: Any) -> Any:
    """Return the weight decay of every parameter, in their tree (docs/method.md, section 3).

    Args:
        params: as for `groups_of`.
        config: a whole config.
    """
    settings = config.optimizer

    def decay(path: tuple, leaf: Any) -> float:
        names = _names(path)
        if kind_of(names, leaf.ndim - (STACK in names)) in settings.undecayed:
            return 0.0
        return settings.weight_decay * settings.groups[_group(names, config.model)].weight_decay

    return jax.tree_util.tree_map_with_path(decay, params)


def learning_rates(params: Any, config: Any) -> Any:
    """Return the factor of every parameter's learning rate, in their tree.

    See docs/method.md, section 3. A factor is a number or, for a stack of layers under layer-wise
    decay, an array that broadcasts against the parameter.

    Args:
        params: as for `groups_of`.
        config: a whole config.
    """
    named = [(_names(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]
    depths = {}
    for group, entry in _encoders(config.model):
        inside = [(names, x) for names, x in named if _group(names, config.model) == group]
        depths |= dict(_distances(inside, entry.layers))

    def factor(path: tuple, leaf: Any) -> Any:
        names = _names(path)
        settings = config.optimizer.groups[_group(names, config.model)]
        distance = depths.get(names, 0)
        if np.all(distance == 0) or settings.layer_decay == 1:
            return settings.learning_rate
        rates = settings.learning_rate * settings.layer_decay**distance
        return rates.reshape(-1, *(1,) * (leaf.ndim - 1)) if STACK in names else float(rates)

    return jax.tree_util.tree_map_with_path(factor, params)


def check_groups(config: Any) -> None:
    """Refuse groups that nothing can be done with.

    Args:
        config: a whole config.

    Raises:
        ValueError: an unknown kind of parameters, a layer-wise decay of an encoder that has no
            layers, or nothing that trains; names the field.
    """
    undecayed = config.optimizer.undecayed
    if unknown := [kind for kind in undecayed if kind not in KINDS]:
        raise ValueError(
            f"config.optimizer.undecayed names {unknown[0]!r}; the kinds are {', '.join(KINDS)}"
        )
    for group, entry in _encoders(config.model):
        if config.optimizer.groups[group].layer_decay != 1 and not entry.layers:
            raise ValueError(
                f"config.optimizer.groups.{group}.layer_decay must be 1: "
                f"{config.model[group].name} has no layers that are told apart"
            )
    if all(is_frozen(group, config) for group in GROUPS):
        raise ValueError(
            "nothing trains: config.model.image.frozen, config.model.text.frozen and "
            "config.optimizer.groups.heads.frozen are all set"
        )


def _encoders(model: Any) -> tuple[tuple[str, ImageEntry | TextEntry], ...]:
    return (IMAGE, image_entry(model)), (TEXT, text_entry(model))


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _group(names: Sequence[str], model: Any) -> str:
    for group, entry in _encoders(model):
        if names[0] == f"{group}_encoder" and names[1] in entry.frozen:
            return group
    return HEADS


def _distances(
    named: Sequence[tuple[tuple[str, ...], Any]], layers: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield for the parameters in layers how many layers they are below the end of an encoder.

    Args:
        named: names and arrays of the encoder's parameters.
        layers: `ImageEntry.layers` or `TextEntry.layers`.

    Yields:
        The names, and the distance from the end: 1 in the last layer. In a stack there is one
        distance for each of its layers, else a scalar.
    """
    stacks = [leaf.shape[0] for names, leaf in named if STACK in names]
    lengths = [max(stacks, default=1) if pattern == STACK else 1 for pattern in layers]
    # The distance of the first layer that a pattern stands for.
    ends = np.cumsum(lengths[::-1])[::-1]
    for names, _ in named:
        for pattern, length, end in zip(layers, lengths, ends, strict=True):
            if any(re.fullmatch(pattern, name) for name in names[1:]):
                yield names, end - np.arange(length) if pattern == STACK else end
                break
