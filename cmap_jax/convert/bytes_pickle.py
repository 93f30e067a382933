"""A pickle that holds one bytes object, read without executing anything.

Python's own unpickler runs what a file says. Here the file's operations are listed, never carried
out, and all but those that spell bytes are refused.
"""

import os
import pickletools
from typing import BinaryIO

from etils import epath

from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.files import check_regular_file

_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
# Operations beside these that a pickle of bytes may have: headings, and notes of where objects are.
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
_SHOWN = 80  # characters of an operation's argument in an error


class _Bounded:
    """A file of which no more is asked for than there is, whatever length a pickle claims."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))

    def readline(self) -> bytes:
        return self._file.readline(self._size)

    def tell(self) -> int:
        return self._file.tell()


def read_bytes_pickle(path: str | os.PathLike) -> bytes:
    """Return the bytes object that is the only content of a pickle.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: another content, or a file that is damaged or truncated; names it.
    """
    path = epath.Path(path)
    check_regular_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content, stopped = None, False
    with path.open("rb") as file:
        bounded = _Bounded(file, path.stat().length)
        try:
            for operation, argument, _ in pickletools.genops(bounded):
                if operation.name in _BYTES and content is None:
                    content = argument
                elif operation.name not in _HARMLESS:
                    raise WeightsError(_refusal(path, operation.name, argument))
                stopped = operation.name == "STOP"
        except WeightsError:
            raise
        except Exception as error:  # a damaged pickle leads the reader anywhere
            raise WeightsError(
                f"{path}: not a pickle, or truncated: {str(error)[:_SHOWN]}. Fetch it again"
            ) from error
        if not stopped or content is None or bounded.read(1):
            raise WeightsError(
                f"{path}: a pickle of one bytes object is expected, and it holds "
                f"{'none' if content is None else 'more than that'}. Fetch it again"
            )
    return content


def _refusal(path: epath.Path, operation: str, argument: object) -> str:
    said = "" if argument is None else f" {str(argument)[:_SHOWN]!r}"
    return (
        f"{path}: a pickle of one bytes object is expected, and this one says {operation}{said}; "
        "nothing in it was executed. Take the file from those who published it"
    )
