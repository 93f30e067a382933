"""Files of named tensors, and the errors for names and shapes that do not fit."""

import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from cmap_jax.convert import torch_file
from cmap_jax.files import check_regular_file

_SHOWN = 8  # names of each kind in an error
_ADVICE = re.compile(r" Please use | Check the documentation ")
_POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of Git LFS's stand-in
_POINTER_SIZE = 1024  # bytes; the stand-in has fewer
# NumPy's types of the types in a safetensors file.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
_SMALL = (np.float16, ml_dtypes.bfloat16, *(_DTYPES[n] for n in _DTYPES if n.startswith("F8")))
_PARALLEL = "module."  # the prefix of every name under torch's DataParallel


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit; the message names it and says why."""


class _EqualToDict(type):
    """A class equal to `dict`, since torch's safe reader sets items of dict and no subclass."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class Foreign(dict, metaclass=_EqualToDict):
    """An inert stand-in for an object whose class is not loaded: its items and attributes alone."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes, where the pickled state is a dict of them."""
        if isinstance(state, dict):
            self.update(state)


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a plain state dict from a ``.safetensors`` file or a torch file (any other suffix).

    PyTorch is not needed, and nothing that the file says is run.

    Returns:
        The tensors by name, floating point at least float32.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file, or one with other things than tensors.
    """
    path = epath.Path(path)
    check_regular_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        _check_no_pointer(file.read(_POINTER_SIZE), path)
        tensors = _read_tensors(file, path)
    return _without_parallel({name: _widened(array) for name, array in tensors.items()})


def _read_tensors(file: IO[bytes], path: epath.Path) -> dict[str, np.ndarray]:
    try:
        return torch_file.read_tensors(file)
    except torch_file.UnusableError as error:
        raise WeightsError(f"{path}: {error}") from None
    except torch_file.RefusedError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # a damaged pickle leads the reader anywhere
        raise _damaged(path, error) from error


def _widened(array: np.ndarray) -> np.ndarray:
    """Return floating-point numbers of 8 or 16 bits as float32, and others as they are."""
    return array.astype(np.float32) if array.dtype in _SMALL else array


def read_torch_file(
    path: str | os.PathLike, allowed: Iterable[Any] = (), foreign: Iterable[str] = ()
) -> Any:
    """Read what `torch.save` wrote, without running anything that the file says.

    Args:
        path: the file.
        allowed: classes and functions that it may name besides tensors and plain containers, as
            `torch.serialization.safe_globals` takes them.
        foreign: full names of others; a `Foreign` stands where the file uses one.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file, truncated, or one that names something else.
        ModuleNotFoundError: PyTorch is not installed.
    """
    path = epath.Path(path)
    torch = _import_torch(path)
    with path.open("rb") as file:
        _check_no_pointer(file.read(_POINTER_SIZE), path)
    stand_ins = [(Foreign, name) for name in foreign]
    try:
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals([*allowed, *stand_ins]),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        # Torch's text goes on with advice to switch the protection off.
        reason = _ADVICE.split(" ".join(reason.split()))[0][:300].rstrip(". ")
        raise _refused(path, reason) from None
    except Exception as error:  # a damaged pickle leads the reader anywhere
        raise _damaged(path, error) from error


def _refused(path: epath.Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path}: not a file of weights, or one that would run code: {reason}. Where you trust "
        "it, save its tensors alone: torch.save"
    )


def _damaged(path: epath.Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path}: not a torch file, or truncated: {error}")


def foreign_names(path: str | os.PathLike, allowed: Iterable[Any] = ()) -> tuple[str, ...]:
    """Return the classes and functions that a torch file names and that are not loaded, sorted.

    Nothing is built from the file. One whose list cannot be made, as in PyTorch's form before 1.6,
    has none here, and `read_torch_file` refuses it if it names any.

    Args:
        path: the file.
        allowed: see `read_torch_file`.
    """
    path = epath.Path(path)
    torch = _import_torch(path)
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(list(allowed)):
            return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)))
    except Exception:  # `read_torch_file` says what is wrong with it
        return ()


def _import_torch(path: epath.Path) -> Any:
    """Return PyTorch, to read a file that is there."""
    check_regular_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: reading a checkpoint with more than tensors in it needs PyTorch: pip install "
            "'cmap_jax[torch]'"
        ) from error
    return torch


def to_numpy(state: Any, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return a torch state dict as arrays, the names without DataParallel's ``module.``.

    Raises:
        WeightsError: not a state dict, or a tensor of it is no dense one; names it.
    """
    import torch

    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise WeightsError(f"{os.fspath(path)}: not a state dict: names with tensors are expected")

    for name, tensor in state.items():
        if kind := _unusable_kind(tensor):
            raise WeightsError(f"{os.fspath(path)}: {name} is {kind}")

    def array(tensor: torch.Tensor) -> np.ndarray:
        low = tensor.is_floating_point() and tensor.element_size() < 4
        return (tensor.float() if low else tensor).detach().resolve_neg().numpy()

    return _without_parallel({name: array(tensor) for name, tensor in state.items()})


def _unusable_kind(tensor: Any) -> str | None:
    """Return what a torch tensor is that no weight can be, with the remedy; None for a weight."""
    import torch

    if tensor.is_nested:
        return torch_file.NESTED
    if tensor.layout != torch.strided:
        return torch_file.SPARSE
    if tensor.is_meta:
        return torch_file.META
    if tensor.is_quantized:
        return torch_file.QUANTIZED
    if tensor.is_complex():
        return torch_file.COMPLEX
    return None


def _without_parallel(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict, the names without DataParallel's ``module.`` where all have it."""
    if not state or not all(name.startswith(_PARALLEL) for name in state):
        return state
    return {name.removeprefix(_PARALLEL): array for name, array in state.items()}


def check_names(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> None:
    """Refuse tensors whose names or shapes are not exactly the expected ones.

    Args:
        expected: the shape of every name.
        tensors: the tensors of the file, without those to ignore.
        path: the file that they are from, for the message.

    Raises:
        WeightsError: lists missing, unexpected and misshapen names.
    """
    misshapen = [
        f"{name} {tuple(tensors[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    lists = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": misshapen,
    }
    problems = [f"{kind}: {_shorten(names)}" for kind, names in lists.items() if names]
    if problems:
        raise WeightsError(f"{os.fspath(path)} does not fit the model.\n  " + "\n  ".join(problems))


def check_numbers(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Refuse weights that are not real numbers of floating point, or not finite as float32.

    Whole numbers are the codes of quantized weights, whose scales would be lost. Every score of a
    model with a weight that is NaN or infinite would be NaN.

    Raises:
        WeightsError: names them, and how many of their numbers it is.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise WeightsError(f"{os.fspath(path)}: {name} is {torch_file.COMPLEX}")
        if array.dtype.kind != "f":
            raise WeightsError(
                f"{os.fspath(path)}: {name} has whole numbers ({array.dtype}), and weights are of "
                "floating point: take the model that is not quantized"
            )
    broken = [
        f"{name} ({count:,} of {array.size:,})"
        for name, array in arrays.items()
        if (count := _not_finite(array))
    ]
    if broken:
        raise WeightsError(
            f"{os.fspath(path)}: weights that are NaN or infinite: {_shorten(broken)}. Take a "
            "checkpoint from before training diverged"
        )


def _not_finite(array: np.ndarray) -> int:
    """Return how many numbers are NaN or infinite as float32, whose range float64 exceeds."""
    with np.errstate(over="ignore"):
        return array.size - int(np.isfinite(array.astype(np.float32, copy=False)).sum())


def _shorten(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    import safetensors

    content = path.read_bytes()
    _check_no_pointer(content, path)
    try:
        return {n: _to_array(tensor, n, path) for n, tensor in safetensors.deserialize(content)}
    except WeightsError:
        raise
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or truncated: {error}. Fetch it again"
        ) from error


def _to_array(tensor: Mapping[str, Any], name: str, path: epath.Path) -> np.ndarray:
    """Return a tensor of a safetensors file, floating point at least float32.

    Raises:
        WeightsError: of a type that no weight has, such as the scales and codes of 4 bits.
    """
    if tensor["dtype"] not in _DTYPES:
        raise WeightsError(
            f"{path}: {name} is of the type {tensor['dtype']}, which is read with scales that lie "
            "elsewhere: take the model that is not quantized"
        )
    numbers = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
    return _widened(numbers.reshape(tensor["shape"]))


def _check_no_pointer(content: bytes, path: epath.Path) -> None:
    """Refuse the text that Git leaves in place of a large file that it did not fetch."""
    if content.startswith(_POINTER):
        raise WeightsError(
            f"{path}: {len(content)} bytes of text that stand for the file, which Git LFS has not "
            f"fetched yet: run git lfs pull in {path.parent}"
        )
