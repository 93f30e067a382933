"""Safetensors files: written with embeddings that begin at a multiple of 64 bytes, read as maps.

The library that the format comes from copies what it reads, and aligns data to 8 bytes. Devices
read a map without a copy where an array begins at a multiple of 64.
"""

import json
import os
import sys
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from etils import epath

from cmap_jax.files import is_remote

_NAMES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
_ALIGNMENT = 64
_LENGTH = 8  # bytes of the header's length, which a file begins with


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a safetensors file's content; arrays of wider numbers come first, which aligns all.

    The array of the most axes, or else the first one, begins at a multiple of 64 bytes.

    Args:
        arrays: of the dtypes float32, bfloat16, int8, uint8, uint32, int64 and uint64, by name.
    """
    if sys.byteorder != "little":
        raise OSError("an index is written on machines with little-endian numbers alone")
    names = {dtype: name for name, dtype in _NAMES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    largest = max(order, key=lambda name: arrays[name].ndim, default=None)
    offset = header[largest]["data_offsets"][0] if largest else 0
    text += b" " * (-(_LENGTH + len(text) + offset) % _ALIGNMENT)
    parts = [np.ascontiguousarray(arrays[name]).tobytes() for name in order]
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *parts])


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file: read-only maps, or copies of a file in a bucket.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged; names the file.
    """
    if is_remote(path):
        content = np.frombuffer(epath.Path(path).read_bytes(), np.uint8)
    elif os.path.getsize(path) == 0:  # which cannot be mapped
        raise ValueError(f"{os.fspath(path)} is damaged: it is empty")
    else:
        content = np.memmap(path, np.uint8, mode="r")
    try:
        start = _LENGTH + int.from_bytes(content[:_LENGTH].tobytes(), "little")
        header = json.loads(content[_LENGTH:start].tobytes())
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if start + max(ends, default=0) != len(content):
            raise ValueError(f"it has {len(content)} bytes, not {start + max(ends, default=0)}")
        return {name: _array(content[start:], entry) for name, entry in header.items()}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error


def _array(data: np.ndarray, entry: Mapping) -> np.ndarray:
    begin, end = entry["data_offsets"]
    return data[begin:end].view(_NAMES[entry["dtype"]]).reshape(entry["shape"])
