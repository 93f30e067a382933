"""The files of published tokenizers in a Hugging Face folder, read with errors of one line."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cmap_jax.files import decode_text, parse_json, read_bytes
from cmap_jax.processing.hub import CONFIG, TOKENIZER, fetch, is_hub_id

_POINTER = b"version https://git-lfs"  # begins what Git leaves in place of a large file
_UNLIMITED = 1_000_000  # `model_max_length` has a number above it where there is no limit


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
        content = parse_json(self.read_text(name), self.folder / name)
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
        return token if isinstance(token, str) else token["content"]

    def positions(self, default: int) -> int:
        """Return the tokens of a text at most: those of the model, or else of the tokenizer."""
        model = self.optional_json("config.json")
        known = model.get("text_config", model).get("max_position_embeddings")
        known = known or self.rules.get("model_max_length")
        return int(known) if known and float(known) <= _UNLIMITED else default


def read_published(path: epath.Path) -> bytes:
    """Return the content of a file that was fetched from elsewhere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no regular file, or a pointer that Git LFS leaves in its place.
    """
    content = read_bytes(path)
    if not content:
        raise ValueError(f"{path}: zero bytes")
    if content.startswith(_POINTER):
        raise ValueError(f"{path}: a pointer of Git LFS in place of the file: run git lfs pull")
    return content


@contextlib.contextmanager
def errors_of(path: epath.Path, names: Sequence[str], kind: str, wanted: str) -> Iterator[None]:
    """Give every error to which damaged files lead one line: the file, the reason, the remedy.

    Args:
        path: a file, or a folder.
        names: files of a folder; an error names the first that is there, or one of its own.
        kind: the tokenizer's owner, such as "CLIP".
        wanted: the files that may be given, in words.

    Raises:
        FileNotFoundError: as it is raised in the block.
        ValueError: instead of the errors that JSON of an unexpected form leads to.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            reason = f"JSON of an unexpected form ({type(error).__name__}: {reason})"
        if not reason.startswith(os.fspath(path)):
            file = next((path / name for name in names if (path / name).exists()), path)
            reason = f"{os.fspath(file)}: {reason}"
        raise ValueError(
            f"{reason}. It is not {kind}'s tokenizer, or half downloaded: fetch it again, or give "
            f"{wanted}"
        ) from error


def find_source(source: str | None, kind: str, wanted: str) -> epath.Path:
    """Return the path of a tokenizer's files; those of an id of the hub are fetched.

    Args:
        source: ``config.model.text.tokenizer_path`` or ``.init_from``, a path or an id of Hugging
            Face's hub; None: neither is set.
        kind: the tokenizer's name, for the error.
        wanted: the files that may be given, in words.

    Raises:
        ValueError: none is given.
        FileNotFoundError: there is nothing at the path, and no such id.
    """
    if not source:
        raise ValueError(
            f"config.model.text.tokenizer={kind} is read from files: give {wanted} with "
            "--config.model.text.tokenizer_path=..."
        )
    path = epath.Path(source)
    if path.exists():
        return path
    if is_hub_id(source):
        return fetch(source, CONFIG, TOKENIZER)
    raise FileNotFoundError(f"{source}: no such folder or file; give {wanted}")
