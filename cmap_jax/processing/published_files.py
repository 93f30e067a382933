"""The files of published tokenizers in a Hugging Face folder, read with errors of one line."""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmap_jax.files import decode_text, parse_json

_POINTER = b"version https://git-lfs"  # begins what Git leaves in place of a large file
_UNLIMITED = 1_000_000  # `model_max_length` has a number above it where there is no limit
AGAIN = "fetch it again"


class PublishedFiles:
    """A folder with a tokenizer's files, as Hugging Face stores them.

    Attributes:
        folder: must exist.
    """

    def __init__(self, folder: str | os.PathLike):
        """Read nothing yet."""
        self.folder = epath.Path(folder)

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return (self.folder / name).exists()

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is empty, or a pointer of Git LFS.
        """
        return read_published(self.folder / name)

    def read_text(self, name: str) -> str:
        """Return a text file's content; raises as `read` does, and ValueError where not UTF-8."""
        return decode_text(self.read(name), self.folder / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file's object; raises as `read` does, and ValueError for anything else."""
        try:
            content = parse_json(self.read_text(name), self.folder / name)
        except ValueError as error:
            raise ValueError(f"{error}. If it is half downloaded, {AGAIN}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.folder / name}: not a JSON object, but {str(content)[:40]}")
        return content

    def optional_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file's object, or an empty one where there is no such file."""
        return self.read_json(name) if self.has(name) else {}

    @property
    def rules(self) -> dict[str, Any]:
        """The content of ``tokenizer_config.json``; empty without one."""
        return self.optional_json("tokenizer_config.json")

    def token(self, kind: str, default: str) -> str:
        """Return the text of a special token, such as "eos_token"."""
        token = self.rules.get(kind) or default
        return token["content"] if isinstance(token, Mapping) else token

    def positions(self, default: int) -> int:
        """Return the tokens of a text at most: those of the model, or else of the tokenizer."""
        model = self.optional_json("config.json")
        known = model.get("text_config", model).get("max_position_embeddings")
        known = known or self.rules.get("model_max_length")
        return int(known) if known and known <= _UNLIMITED else default


def read_published(path: epath.Path) -> bytes:
    """Return the content of a file that was fetched from elsewhere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a pointer that Git LFS leaves in place of the file.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path}: zero bytes; {AGAIN}")
    if content.startswith(_POINTER):
        raise ValueError(
            f"{path}: a pointer of Git LFS in place of the file; fetch it with git lfs pull"
        )
    return content


def find_source(source: str | None, kind: str, wanted: str) -> epath.Path:
    """Return the path of a tokenizer's files.

    Args:
        source: ``config.model.text.tokenizer_files`` or ``.init_from``; None: neither is set.
        kind: the tokenizer's name, for the error.
        wanted: the files that may be given, in words.

    Raises:
        ValueError: none is given.
        FileNotFoundError: there is nothing at the path.
    """
    if not source:
        raise ValueError(
            f"config.model.text.tokenizer={kind} is read from files: give {wanted} with "
            "--config.model.text.tokenizer_files=..."
        )
    path = epath.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such folder or file; give {wanted}")
    return path
