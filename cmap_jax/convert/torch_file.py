"""State dicts that `torch.save` wrote, read without PyTorch and without running anything in them.

Both forms are read: the zip archive, and PyTorch's form before 1.6, a series of pickles with the
numbers behind them. In both, a pickle describes the tensors by their storages, sizes and strides.
It may name nothing but the functions and storages that tensors are made of, and each of those names
stands for something inert here.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of the form before 1.6
_VERSION = 1001  # the second number
_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
    "QInt8Storage": "<i1",
    "QUInt8Storage": "<u1",
    "QInt32Storage": "<i4",
    "UntypedStorage": "<u1",
}
# NumPy's types of the tensors that PyTorch describes by their type and bytes that have none.
_UNTYPED = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}

# Tensors that no weight can be, each with its remedy.
SPARSE = "a sparse tensor: save tensor.to_dense() in its place"
META = "a tensor of the device meta, which has no numbers: save the model with its weights"
QUANTIZED = "a quantized tensor: save tensor.dequantize() in its place"
NESTED = "a nested tensor, which no weight is: take another file"
COMPLEX = "a tensor of complex numbers, and weights are real: take another file"
VIEW = "a view that negates or conjugates: save tensor.resolve_neg().resolve_conj() in its place"
_OTHERS = {
    "torch._utils._rebuild_sparse_tensor": SPARSE,
    "torch._utils._rebuild_meta_tensor_no_storage": META,
    "torch._utils._rebuild_qtensor": QUANTIZED,
    "torch._utils._rebuild_nested_tensor": NESTED,
}
# Names that descriptions of these tensors use, and that mean nothing here.
_UNUSED = {"torch.Size", "torch.serialization._get_layout"}
_UNUSED_VALUES = {
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex32", "complex64", "complex128", "per_tensor_affine", "per_channel_affine"),
}


class RefusedError(Exception):
    """A file that holds or names more than tensors; says what it is."""


class UnusableError(Exception):
    """A tensor that no weight can be; gives its name, its kind and the remedy."""


class _Other(NamedTuple):
    """A tensor that no weight can be; its kind and the remedy."""

    kind: str


class _Storage(NamedTuple):
    """A run of numbers in the file: its key, the numbers' dtype, and their count."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A tensor's part of a storage, counted in numbers."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Names(dict):
    """A dict whose attributes, as an `OrderedDict` of PyTorch's has them, are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes."""


class _Function:
    """A function that a pickle may call, and whose attributes it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuse the attributes."""
        raise RefusedError("it changes a function that it may only call")


def read_tensors(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Return a state dict's tensors by name, in the file's dtypes.

    Args:
        file: either form, open for reading and seeking.

    Raises:
        RefusedError: the file names something else than tensors are made of, or holds
            something else than a dict of them; says which.
        UnusableError: a tensor is sparse, quantized, nested or without numbers; names it.
        Exception: a damaged file, or another kind of file.
    """
    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    return _read_zip(file) if is_zip else _read_series(file)


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        records = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in records:
            raise ValueError("a zip archive without data.pkl")
        if "byteorder" in records and _record(archive, records["byteorder"]) != b"little":
            raise ValueError("written on a machine of another byte order")
        with archive.open(records["data.pkl"]) as description:
            tensors = _describe(description)
        storages = {
            storage: _numbers(_record(archive, records[f"data/{storage.key}"]), storage)
            for storage in _storages(tensors)
        }
    return _arrays(tensors, storages)


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a record, which PyTorch never compresses: its length is that of the file's part."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _read_series(file: IO[bytes]) -> dict[str, np.ndarray]:
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (_MAGIC, _VERSION):
        raise ValueError("neither of PyTorch's two forms")
    system = _Unpickler(file).load()
    if not system["little_endian"]:
        raise ValueError("written on a machine of another byte order")
    tensors = _describe(file)
    named = {storage.key: storage for storage in _storages(tensors)}
    storages = {}
    for key in _Unpickler(file).load():
        storage = named[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise ValueError(f"storage {key} has {count:,} numbers, not {storage.count:,}")
        storages[storage] = _numbers(file.read(count * storage.dtype.itemsize), storage)
    return _arrays(tensors, storages)


def _describe(file: IO[bytes]) -> Mapping[str, _Tensor]:
    """Unpickle the description of a state dict."""
    tensors = _Unpickler(file).load()
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor | _Other)
        for name, tensor in tensors.items()
    ):
        raise RefusedError("not a state dict: names with tensors are expected")
    for name, tensor in tensors.items():
        if isinstance(tensor, _Other):
            raise UnusableError(f"{name} is {tensor.kind}")
    return tensors


def _storages(tensors: Mapping[str, _Tensor]) -> list[_Storage]:
    return list(dict.fromkeys(tensor.storage for tensor in tensors.values()))


def _numbers(content: bytes, storage: _Storage) -> np.ndarray:
    if len(content) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} ends early")
    return np.frombuffer(content, storage.dtype)


def _arrays(
    tensors: Mapping[str, _Tensor], storages: Mapping[_Storage, np.ndarray]
) -> dict[str, np.ndarray]:
    return {name: _array(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Return a tensor as an array of its own, in the order of its axes."""
    steps = [stride * numbers.itemsize for stride in tensor.stride]
    offset = tensor.offset * numbers.itemsize
    view = np.ndarray(tensor.size, numbers.dtype, buffer=numbers, offset=offset, strides=steps)
    return np.array(view, order="C")


class _Unpickler(pickle.Unpickler):
    """Unpickles plain values, and descriptions of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert stand-in of a name, or refuse it."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return _Names
        if full == "torch._utils._rebuild_tensor_v2":
            return _Function(_make_tensor)
        if full == "torch._utils._rebuild_parameter":
            return _Function(lambda tensor, *_: tensor)
        if full == "torch._utils._rebuild_tensor_v3":
            return _Function(_make_untyped_tensor)
        if full in _OTHERS:
            return _Function(lambda *_: _Other(_OTHERS[full]))
        if module in ("torch", "torch.storage") and name in _TYPES:
            return _TYPES[name]
        if module == "torch" and name in _UNTYPED:
            return np.dtype(_UNTYPED[name])
        if full in _UNUSED:
            return _Function(lambda *_: None)
        if module == "torch" and name in _UNUSED_VALUES:
            return None
        raise RefusedError(f"it names {full}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a tensor refers to."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in _TYPES.values() or not isinstance(key, str):
            raise RefusedError(f"it refers to {str(pid)[:100]}")
        if any(part is not None for part in view):
            raise RefusedError("it has views of storages, as before PyTorch 0.4")
        return _Storage(key, np.dtype(dtype), _natural(count))


def _make_untyped_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *marks
) -> _Tensor | _Other:
    """Describe a tensor whose storage has bytes, and whose type is told beside it."""
    if dtype is None:  # complex numbers of 32 bits
        return _Other(COMPLEX)
    if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
        raise RefusedError("it describes a tensor without its storage or type")
    typed = _Storage(storage.key, dtype, storage.count // dtype.itemsize)
    return _make_tensor(typed, offset, size, stride, gradient, hooks, *marks)


def _make_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, hooks: Any = (), *marks: Any
) -> _Tensor | _Other:
    """Describe a tensor, whose numbers must lie inside its storage."""
    if any(marks):  # they say that its numbers are negated or conjugated when they are read
        return _Other(VIEW)
    size, stride = (tuple(_natural(number) for number in numbers) for numbers in (size, stride))
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise RefusedError("it describes a tensor without its storage or axes")
    last = _natural(offset) + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 would make a large array of few numbers.
    if 0 not in size and (last >= storage.count or math.prod(size) > storage.count):
        raise RefusedError("it describes a tensor that exceeds its storage")
    return _Tensor(storage, offset, size, stride)


def _natural(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise RefusedError(f"a size or position is {str(number)[:100]}")
    return number
