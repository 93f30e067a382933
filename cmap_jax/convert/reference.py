"""The authors' training checkpoints as a model of ours with the same values."""

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from cmap_jax.convert.state_dict import (
    Foreign,
    WeightsError,
    foreign_names,
    read_torch_file,
    to_numpy,
)
from cmap_jax.convert.torchvision import LEAVES, is_counter, resnet_name, translate
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.tokenizer import Vocabulary
from configs import default

_BACKBONE = ("image_encoder", "backbone")
_LAYERS = {
    "image_encoder/head_high": "img_enc.fc",
    "image_encoder/head_mid": "img_enc.fc_1024",
    "image_encoder/head_low": "img_enc.fc_512",
    "image_encoder/interaction/smooth_mid": "img_enc.smooth_14",
    "image_encoder/interaction/smooth_low": "img_enc.smooth_28",
    "image_encoder/interaction/lateral_mid": "img_enc.latlayer_7214",
    "image_encoder/interaction/lateral_low": "img_enc.latlayer_14228",
    "text_encoder/head": "txt_enc.sent_enc.2",
    "composer/transform": "Transform_m.0",
    "composer/modification_attention/hidden": "Attention_EM.attention.0",
    "composer/modification_attention/out": "Attention_EM.attention.2",
    "composer/preservation_attention/hidden": "Attention_IS.attention.0",
    "composer/preservation_attention/out": "Attention_IS.attention.2",
}
_RECURRENT = {"gru": "txt_enc.sent_enc", "lstm": "txt_enc.sent_enc.0"}
_DIRECTION = {"forward": "_l0", "backward": "_l0_reverse"}
_SHOWN = 8  # keys of a file in an error
_UNUSED = "Transform_attention."  # a layer that the release makes and never calls


@dataclasses.dataclass(frozen=True)
class ReferenceCheckpoint:
    """The contents of one of the authors' files.

    Attributes:
        model_config: a ``config.model``.
        variables: ``params`` and ``batch_stats``, float32.
        arguments: the command line it was trained with, such as ``data_name``.
        epoch: the epoch it was saved in, or None.
        best_score: the score it was saved for, by split where the file says so; or None.
        left_out: full names of the classes and functions in it that were not loaded.
    """

    model_config: ConfigDict
    variables: dict[str, Any]
    arguments: Mapping[str, Any]
    epoch: int | None
    best_score: dict[str, float] | float | None
    left_out: tuple[str, ...]


def load_reference_checkpoint(
    path: str | os.PathLike,
) -> tuple[ConfigDict, dict[str, Any], Vocabulary | None]:
    """Read one of the authors' checkpoints: a torch file with ``args``, ``epoch``, ``model``, ...

    Sizes and the text encoder are inferred from the shapes. The file is read without running
    anything that it says. All but ``model`` may be missing or of any form.

    Returns:
        ``config.model``, the variables (float32), and the vocabulary: None, such a file holds none.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file; lists missing, unexpected and misshapen names, and those of
            weights that are not finite.
        ModuleNotFoundError: PyTorch is not installed.
    """
    checkpoint = read_reference_checkpoint(path)
    return checkpoint.model_config, checkpoint.variables, None


def read_reference_checkpoint(path: str | os.PathLike) -> ReferenceCheckpoint:
    """Read one of the authors' checkpoints; raises as `load_reference_checkpoint`."""
    allowed = _allowed_globals()
    left_out = foreign_names(path, allowed)
    content = read_torch_file(path, allowed, left_out)
    state = to_numpy(_model_of(content, left_out, path), path)
    state = {k: v for k, v in state.items() if not k.startswith(_UNUSED) and not is_counter(k)}
    if state.get("temperature", np.empty(0)).size == 1:
        state["temperature"] = state["temperature"].reshape(())
    config = infer_model_config(state, path)
    variables = to_variables(CMAP.from_config(config), state, path)
    epoch = _number(content.get("epoch"))
    return ReferenceCheckpoint(
        model_config=config,
        variables=jax.tree.map(lambda x: x.astype(np.float32), variables),
        arguments=_arguments(content.get("args")),
        epoch=None if epoch is None else int(epoch),
        best_score=_score(content.get("best_score")),
        left_out=left_out,
    )


def _model_of(content: Any, left_out: tuple[str, ...], path: str | os.PathLike) -> Mapping:
    """Return a file's ``model``, or refuse a file without one that can be used."""
    if not isinstance(content, Mapping) or "model" not in content:
        held = "no keys"
        if isinstance(content, Mapping):
            first = ", ".join(str(key) for key in list(content)[:_SHOWN])
            held = f"the keys {first}{', ...' if len(content) > _SHOWN else ''}"
        raise WeightsError(
            f"{os.fspath(path)}: not one of the authors' checkpoints: 'model' is missing among "
            f"{held}. (A ResNet alone goes to --config.model.image.init_from.)"
        )
    model = content["model"]
    parts = [model, *model.values()] if isinstance(model, Mapping) else [model]
    if any(isinstance(part, Foreign) for part in parts):
        raise WeightsError(
            f"{os.fspath(path)}: not a file of weights, or one that would run code: its 'model' "
            f"holds other things than named tensors; the file names {', '.join(left_out)}. Save "
            "the state dict: {'model': model.state_dict()}"
        )
    return model


def _number(value: Any) -> float | None:
    """Return a finite number of Python's or NumPy's or a tensor's; None for anything else."""
    try:
        value = value.item() if hasattr(value, "item") else value
        is_number = isinstance(value, int | float) and math.isfinite(value)
    except (ValueError, RuntimeError, TypeError, OverflowError):  # several numbers, or a huge one
        return None
    return float(value) if is_number else None


def _score(value: Any) -> dict[str, float] | float | None:
    """Return what can be read of a best score: as released, a number for each split."""
    if not isinstance(value, Mapping):
        return _number(value)
    numbers = {str(split): _number(score) for split, score in value.items()}
    return {split: score for split, score in numbers.items() if score is not None} or None


def _arguments(value: Any) -> Mapping[str, Any]:
    """Return the command line's arguments by name; none where they are of no known form."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def infer_model_config(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> ConfigDict:
    """Return the ``config.model`` of a state dict, from its names and shapes.

    Settings that no shape shows are as released: the interaction goes down, and the LSTM's maximum
    includes the padding. A size whose tensor is missing keeps its default.

    Raises:
        WeightsError: a tensor that shows a size has no numbers; names it and the file.
    """
    config = default.get_config().model

    def size(name: str, axis: int, otherwise: int) -> int:
        shape = state[name].shape if name in state else ()
        if 0 in shape:
            raise WeightsError(
                f"{os.fspath(path)}: {name} is of the shape {shape}, without any number: take "
                "another checkpoint"
            )
        return int(shape[axis]) if axis < len(shape) else otherwise

    config.embed_dim = size("Transform_m.0.weight", 0, config.embed_dim)
    resnet = config.image.resnet
    resnet.width = size("img_enc.cnn.conv1.weight", 0, resnet.width)
    if "img_enc.cnn.layer1.0.conv3.weight" not in state:
        resnet.depth = 34 if "img_enc.cnn.layer1.2.conv1.weight" in state else 18
    config.text.vocabulary_size = size("txt_enc.embed.weight", 0, 1)
    if any(name.startswith("txt_enc.sent_enc.0.") for name in state):
        config.text.name = "lstm"
        lstm = config.text.lstm
        lstm.pool_padding = True
        lstm.hidden = size("txt_enc.sent_enc.0.weight_hh_l0", 1, lstm.hidden)
    words = config.text[config.text.name]
    words.word_dim = size("txt_enc.embed.weight", 1, words.word_dim)
    return config


def to_variables(
    model: CMAP, state: Mapping[str, np.ndarray], path: str | os.PathLike
) -> dict[str, Any]:
    """Return a state dict with the release's names as the variables of ``model``, dtypes kept.

    Raises:
        WeightsError: lists missing, unexpected and misshapen names, and values that are not finite.
    """
    shapes = flax.traverse_util.flatten_dict(
        jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(64)))
    )
    return translate({p: reference_name(p[1:]) for p in shapes}, shapes, state, path)


def reference_name(path: tuple[str, ...]) -> str:
    """Return the release's name of a parameter or statistic of ours, given its path."""
    if path[:2] == _BACKBONE:
        return f"img_enc.cnn.{resnet_name(path[2:])}"
    if path == ("logit_scale",):
        return "temperature"
    if path == ("text_encoder", "word_embedding"):
        return "txt_enc.embed.weight"
    if path[0] == "text_encoder" and path[1] in _RECURRENT:
        _, cell, direction, leaf = path
        return f"{_RECURRENT[cell]}.{leaf}{_DIRECTION[direction]}"
    return f"{_LAYERS['/'.join(path[:-1])]}.{LEAVES[path[-1]]}"


def _allowed_globals() -> list[Any]:
    """Return the classes in these files besides tensors: a Namespace, and NumPy's numbers."""
    scalar = np._core.multiarray.scalar
    kinds = ("Bool", "Int32", "Int64", "Float32", "Float64")
    return [
        argparse.Namespace,
        np.dtype,
        # The same function under its names before and since NumPy 2.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *(getattr(np.dtypes, f"{kind}DType") for kind in kinds),
    ]
