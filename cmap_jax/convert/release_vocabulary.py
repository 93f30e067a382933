"""The release's pickled vocabulary, read by an unpickler that knows this one class."""

import io
import os
import pickle
from typing import Any

from etils import epath

from cmap_jax.files import check_regular_file
from cmap_jax.processing.tokenizer import Vocabulary

_MODULES = ("vocab", "__main__")
_SHOWN = 200  # characters of the unpickler's reason


class _Release:
    """A stand-in for the release's class, of which only the attributes are read."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name == "Vocabulary":
            return _Release
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load_release_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Read the release's ``Vocabulary`` object (``word2idx``, ``idx2word``, ``idx``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or one that names anything else; nothing of it runs.
    """
    path = epath.Path(path)
    check_regular_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle leads the unpickler anywhere
        reason = str(error)[:_SHOWN]
        raise ValueError(f"{path}: not the release's vocabulary: {reason}") from None
    words = getattr(content, "word2idx", None)
    if not isinstance(content, _Release) or not isinstance(words, dict):
        raise ValueError(f"{path}: not the release's vocabulary: word2idx must number its words")
    try:
        return Vocabulary.from_ids(words)
    except ValueError as error:
        raise ValueError(f"{path}: not the release's vocabulary: {error}") from error
