"""The interface of a tokenizer: texts to padded token ids, and a description of itself on disk.

A text is one caption, or a sequence of one or two. A tokenizer of another kind derives from
`Tokenizer` in a file of its own and has a line in `cmap_jax.processing.tokenizers.TOKENIZERS`.
"""

import abc
import os
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

Text = str | Sequence[str]

MAX_CAPTIONS = 2
_CONJUNCTION = " and "  # between two captions, for a tokenizer without a token of its own for it


class Tokenizer(abc.ABC):
    """Texts to token ids; positions after a text's last id are filled up with 0.

    The methods with a body describe a tokenizer that reads every text. One that drops characters,
    has a closed list of words, or cuts long texts overrides them, so that users learn of the loss.

    Attributes:
        width: tokens T of every batch, for an encoder that reads the padding too; None: as many as
            the longest text of the batch has.
        limit: tokens that a text has at most, since the rest is cut off; None: texts of any length
            are read to the end.
        counts_words: whether a new model's is made from the training captions; else from files.
        readable: the characters that it reads, in words.
    """

    width: int | None = None
    limit: int | None = None
    counts_words: ClassVar[bool] = False
    readable: ClassVar[str] = "all characters"

    @classmethod
    @abc.abstractmethod
    def from_data(
        cls, source: str | None, captions: Iterable[str], extra_special: Sequence[str]
    ) -> "Tokenizer":
        """Return the tokenizer of a new model.

        Args:
            source: ``config.model.text.tokenizer_files`` or else ``.init_from``, for a tokenizer
                that is published as files; None where neither is set.
            captions: raw training captions, for one that is built from them.
            extra_special: words of the data set that must have an id even if no caption has them.

        Raises:
            FileNotFoundError: there are no such files.
            ValueError: files that are damaged or another tokenizer's, or none where some are
                needed; names the file or the field, and the remedy.
        """

    @classmethod
    @abc.abstractmethod
    def load(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged; names it.
        """

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike) -> None:
        """Write the tokenizer to a folder that holds other files too."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of ids, those of padding and other special tokens included."""

    @abc.abstractmethod
    def __eq__(self, other: object) -> bool:
        """Tell whether two tokenizers give every text the same ids."""

    @abc.abstractmethod
    def __hash__(self) -> int:
        """Return a hash that agrees with ``==``."""

    @abc.abstractmethod
    def encode(self, text: Text) -> list[int]:
        """Return the ids of a text, without padding."""

    def encode_batch(
        self, texts: Sequence[Text], width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts to an array, padded on the right.

        Args:
            texts: N texts.
            width: positions T of the array; None for `batch_width` of these texts.

        Returns:
            tokens [N, T] int32 and lengths [N] int32.

        Raises:
            ValueError: a text is longer than ``width``; names it.
        """
        encoded = [self.encode(text) for text in texts]
        lengths = np.array([len(ids) for ids in encoded], np.int32)
        longest = int(lengths.max(initial=1))
        width = width or self.width or longest
        if longest > width:
            text = texts[int(lengths.argmax())]
            raise ValueError(f"a text has {longest} tokens, more than the {width} allowed: {text}")
        tokens = np.zeros((len(encoded), width), np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths

    def batch_width(self, texts: Iterable[Text]) -> int:
        """Return the positions that batches of any of these texts need, at least 1."""
        return self.width or max((len(self.encode(text)) for text in texts), default=1)

    def split(self, caption: str) -> Sequence[str]:
        """Return the words of a caption, as they are counted for `unknown`."""
        return caption.split()

    def unknown(self, text: Text) -> list[str]:
        """Return the words of a text that cannot be told from other unknown words, in order."""
        return []

    def nearest(self, word: str) -> str | None:
        """Return the known word that is spelt most like an unknown one; None if none is near."""
        return None

    def as_read(self, caption: str) -> str:
        """Return a caption as the model sees it, for people."""
        return caption

    def loses_all_words(self, caption: str) -> bool:
        """Tell whether no word is left of a caption that is not blank."""
        return False

    def cuts(self, text: Text) -> bool:
        """Tell whether a text is longer than ``limit``, so that its end is not read."""
        return False


def captions_of(text: Text) -> tuple[str, ...]:
    """Return the captions of a text."""
    return (text,) if isinstance(text, str) else tuple(text)


def check_captions(text: Text) -> tuple[str, ...]:
    """Return the captions of a text.

    Raises:
        ValueError: no caption, or more than two.
    """
    captions = captions_of(text)
    if not 1 <= len(captions) <= MAX_CAPTIONS:
        raise ValueError(f"a text has one or two captions, not {len(captions)}: {captions}")
    return captions


def join_captions(text: Text) -> str:
    """Return a text as one sentence: of two captions those that are not blank, joined by " and ".

    See docs/method.md, section 4, sub-word tokenizers.

    Raises:
        ValueError: no caption, or more than two.
    """
    captions = check_captions(text)
    if len(captions) == 1:
        return captions[0]
    return _CONJUNCTION.join(caption for caption in captions if caption.strip())
