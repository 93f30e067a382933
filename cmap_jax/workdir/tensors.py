"""``model.safetensors``: all variables of an exported model, and the record that describes them.

The tensors are named by their paths, such as ``params/logit_scale``. The record of
`cmap_jax.workdir.about` is JSON under the key "about" of the file's metadata, in which every hub
lets a program keep texts of its own.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np
import safetensors
import safetensors.numpy

from cmap_jax.files import read_bytes, write_bytes
from cmap_jax.workdir import about as about_lib

_LENGTH = 8  # bytes of the header's length, with which the file begins
_METADATA, _ABOUT = "__metadata__", "about"
_FRAMEWORK = {"format": "flax"}  # the metadata by which libraries know whose tensors they are


def write(path: str | os.PathLike, variables: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a model's variables with their record; the file appears when it is complete.

    Args:
        path: a file, local or in a bucket.
        variables: all variables of a model, on the host or on devices of this process.
        about: the result of `about.make`.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in by_path(variables).items()}
    metadata = {**_FRAMEWORK, _ABOUT: json.dumps(about)}
    write_bytes(path, safetensors.numpy.save(arrays, metadata))


def by_path(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of nested variables by path, such as "params/logit_scale"."""
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables from the result of `by_path`."""
    return flax.traverse_util.unflatten_dict(dict(arrays), sep="/")


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the record and the arrays by path.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or without a record.
    """
    content = read_bytes(path)
    try:
        arrays = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is damaged: {error}") from error
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    metadata = json.loads(content[_LENGTH:end]).get(_METADATA, {})
    if _ABOUT not in metadata:
        raise ValueError(
            "it has no record of the model that it belongs to, as cmap export writes it: export "
            "the model again"
        )
    try:
        about = json.loads(metadata[_ABOUT])
    except (RecursionError, ValueError) as error:
        raise ValueError(f"its record is damaged: {error}") from error
    about_lib.check_form(about)
    if "step" not in about:
        raise ValueError("its record is damaged: it has no step")
    return about, arrays


def arranged_like(expected: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays as the nested variables of a model.

    Args:
        expected: the model's variables, or their shapes and dtypes.
        arrays: the arrays by path.

    Raises:
        ValueError: an array is missing, is one too many, or has another shape or dtype; names it.
    """
    wanted = by_path(expected)
    for name in dict.fromkeys([*wanted, *arrays]):
        there, needed = _form(arrays.get(name)), _form(wanted.get(name))
        if there != needed:
            raise ValueError(f"{name} is {there} there, and {needed} in the model")
    return nested({name: arrays[name] for name in wanted})


def _form(array: Any) -> str:
    """Return dtype and shape in words."""
    return "missing" if array is None else f"{array.dtype} {tuple(array.shape)}"
