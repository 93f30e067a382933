"""The two formats of sub-word vocabularies, read by the libraries that define them.

See docs/method.md, section 4, sub-word tokenizers.
"""

import re
import string
from collections.abc import Sequence
from typing import Any, Protocol

_WORD_START = "\u2581"  # sentencepiece's mark of a space
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Pieces(Protocol):
    """A vocabulary of sub-words, made from a file's content.

    Making one raises ValueError for a content that is damaged or in another format.
    """

    def __len__(self) -> int:
        """Return the number of ids."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a start or an end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return ids as text, for people."""


class JsonPieces:
    """A ``tokenizer.json``, which says how a text is normalised, split and merged to pieces."""

    def __init__(self, content: bytes):
        """Read the file's content."""
        import tokenizers  # only here: the word models do without it

        try:
            self._backend = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises this class itself
            raise ValueError(_one_line(error)) from error

    def __len__(self) -> int:
        """Return the number of ids."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a start or an end."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return ids as text, for people."""
        text = self._backend.decode(list(ids), skip_special_tokens=False)
        return text.replace("</w>", " ").strip()

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that the file puts before and after a text."""
        inside, whole = self.encode("a"), self._backend.encode("a").ids
        starts = range(len(whole) - len(inside) + 1)
        start = next(i for i in starts if whole[i : i + len(inside)] == inside)
        return tuple(whole[:start]), tuple(whole[start + len(inside) :])


class SentencePieces:
    """SigLIP's ``spiece.model``; texts lose their punctuation and are lower-cased first."""

    def __init__(self, content: bytes):
        """Read the file's content."""
        import sentencepiece  # only here: the word models do without it

        self._backend: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._backend.LoadFromSerializedProto(content)
            size = self._backend.get_piece_size()
        except Exception as error:
            raise ValueError(f"no sentencepiece model: {_one_line(error)}") from error
        if not size:
            raise ValueError("no sentencepiece model: it holds no pieces")
        self.unknown = self._backend.unk_id()
        self.end = self._backend.eos_id()
        # The pieces of this text are taken off again, since a leading space would be lost.
        self._shield = self._backend.id_to_piece(self.unknown)
        self._shielded = len(self._backend.encode(self._shield))

    def __len__(self) -> int:
        """Return the number of ids."""
        return self._backend.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a start or an end."""
        text = (_WORD_START + text.replace(_WORD_START, " ")).lower().translate(_NO_PUNCTUATION)
        text = re.sub(r"\s+", " ", text).strip()
        return self._backend.encode(self._shield + text)[self._shielded :]

    def decode(self, ids: Sequence[int]) -> str:
        """Return ids as text, for people."""
        return self._backend.decode(list(ids)).strip()


def _one_line(error: Exception) -> str:
    """Return the beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:200]
