"""The base of sub-word tokenizers, and their form in a workdir: a file of pieces and settings.

See docs/method.md, section 4, sub-word tokenizers.

    WORKDIR/tokenizer.json              the pieces; or spiece.model
            tokenizer_settings.json     what surrounds a text's pieces, and how many there may be
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from cmap_jax.files import read_bytes, read_json, write_bytes, write_json
from cmap_jax.processing.pieces import JsonPieces, Pieces, SentencePieces
from cmap_jax.processing.tokenizing import Text, Tokenizer, captions_of, join_captions

SETTINGS = "tokenizer_settings.json"
JSON, SENTENCEPIECE = "tokenizer.json", "spiece.model"
_FORMATS: Mapping[str, type[Pieces]] = {JSON: JsonPieces, SENTENCEPIECE: SentencePieces}
_REMEMBERED = 1 << 16  # texts and words whose ids are kept: training meets each in every epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The rules of a tokenizer beside its pieces.

    Attributes:
        file: the file of pieces, `JSON` or `SENTENCEPIECE`.
        positions: ids of a text at most; the pieces that do not fit are cut off.
        before: ids that begin each text.
        after: ids that end each text, cut or not.
        unknown: the id of characters that no piece has; None: there are none.
        padding: the id that fills every text up to ``positions``, for an encoder that reads the
            padding; None: texts keep their length.
        pad_left: whether the padding comes before the text.
    """

    file: str
    positions: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    unknown: int | None = None
    padding: int | None = None
    pad_left: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that no tokenizer has.

        Raises:
            ValueError: says which one.
        """
        around = len(self.before) + len(self.after)
        if self.file not in _FORMATS:
            raise ValueError(f"file must be {' or '.join(_FORMATS)}, not {self.file!r}")
        if type(self.positions) is not int or self.positions <= around:
            raise ValueError(f"positions must be more than {around}, not {self.positions!r}")

    @classmethod
    def from_dict(cls, fields: Any) -> "Settings":
        """Build settings from JSON.

        Raises:
            ValueError: a field is missing, unknown or impossible.
        """
        try:
            lists = {name: tuple(map(int, fields[name])) for name in ("before", "after")}
            return cls(**{**fields, **lists})
        except (TypeError, KeyError) as error:
            raise ValueError(f"no settings of a tokenizer: {error}") from error


class SubwordTokenizer(Tokenizer):
    """Texts to the ids of sub-words; two captions are one sentence, joined by " and ".

    A text longer than ``limit`` loses its last pieces and keeps its end.
    """

    readable = "the characters of its vocabulary"

    def __init__(self, content: bytes, settings: Settings):
        """Take a file of pieces.

        Args:
            content: the file's content, as ``settings.file`` names its format.
            settings: everything else.

        Raises:
            ValueError: the content is damaged, or ids of the settings are not in it.
        """
        self.limit = settings.positions
        self.width = None if settings.padding is None else settings.positions
        self._content, self._settings = content, settings
        self._pieces = _FORMATS[settings.file](content)
        used = (*settings.before, *settings.after, settings.padding or 0, settings.unknown or 0)
        if not all(0 <= i < len(self._pieces) for i in used):
            raise ValueError(f"it has {len(self._pieces)} ids, and not all of {used}")
        self._encode = functools.lru_cache(_REMEMBERED)(self._pieces.encode)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged; names it.
        """
        path = epath.Path(folder) / SETTINGS
        fields = read_json(path)
        try:
            settings = Settings.from_dict(fields)
            path = epath.Path(folder) / settings.file
            return cls(read_bytes(path), settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}: damaged: {error}") from error

    def save(self, folder: str | os.PathLike) -> None:
        """Write the file of pieces and the settings to a folder that holds other files too."""
        write_bytes(epath.Path(folder) / self._settings.file, self._content)
        write_json(epath.Path(folder) / SETTINGS, dataclasses.asdict(self._settings))

    def __len__(self) -> int:
        """Return the number of ids, those of padding and other special tokens included."""
        return len(self._pieces)

    def __eq__(self, other: object) -> bool:
        """Tell whether two tokenizers have the same pieces and settings."""
        return (
            type(other) is type(self)
            and other._settings == self._settings
            and other._content == self._content
        )

    def __hash__(self) -> int:
        """Return a hash that agrees with ``==``."""
        return hash((self._content, self._settings))

    @property
    def _room(self) -> int:
        """The number of pieces for which a text has positions."""
        around = len(self._settings.before) + len(self._settings.after)
        return self._settings.positions - around

    def encode(self, text: Text) -> list[int]:
        """Return the ids of a text; with the padding, where the encoder reads it.

        Raises:
            ValueError: no caption, or more than two.
        """
        settings = self._settings
        pieces = self._encode(join_captions(text))[: self._room]
        ids = [*settings.before, *pieces, *settings.after]
        if settings.padding is None:
            return ids
        padding = [settings.padding] * (settings.positions - len(ids))
        return [*padding, *ids] if settings.pad_left else [*ids, *padding]

    def cuts(self, text: Text) -> bool:
        """Tell whether a text is longer than ``limit``, so that its end is not read."""
        return len(self._encode(join_captions(text))) > self._room

    def unknown(self, text: Text) -> list[str]:
        """Return the words of a text with a character that no piece has, in order."""
        words = (word for caption in captions_of(text) for word in caption.split())
        return [word for word in words if self._settings.unknown in self._encode(word)]

    def as_read(self, caption: str) -> str:
        """Return the pieces of a caption that are read, as text."""
        return self._pieces.decode(self._encode(caption)[: self._room])

    def loses_all_words(self, caption: str) -> bool:
        """Tell whether no piece is left of a caption that is not blank, apart from unknown ones."""
        known = [i for i in self._encode(caption) if i != self._settings.unknown]
        return bool(caption.strip()) and not self._pieces.decode(known)
