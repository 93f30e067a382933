"""Texts to token ids and back (SPEC 4).

    vocabulary = Vocabulary.build(captions)
    tokens, lengths = vocabulary.encode_batch([("is red", "has long sleeves")])

A text is a tuple of one or two captions; its ids are ``<start> tokens [<and> tokens] <end>``.
"""

import functools
import os
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np
from nltk.tokenize import NLTKWordTokenizer

from cmap_jax.processing.files import read_text, write_text

PAD, START, AND, END, UNKNOWN = SPECIAL_TOKENS = ("<pad>", "<start>", "<and>", "<end>", "<unk>")
MAX_CAPTIONS = 2

_SEPARATORS = str.maketrans({"/": " ", "-": " ", "\\": " "})
_DROPPED = re.compile(f"[^{string.ascii_letters} ()]")


def clean(caption: str) -> str:
    r"""Return the caption's ASCII letters, spaces and parentheses, in lower case (SPEC 4).

    ``/``, ``-`` and ``\\`` become spaces; every other character, tabs and newlines too, is dropped.
    """
    return _DROPPED.sub("", caption.translate(_SEPARATORS)).lower()


@functools.cache
def _word_tokenizer() -> NLTKWordTokenizer:
    return NLTKWordTokenizer()


@functools.lru_cache(maxsize=1 << 17)
def tokenize(caption: str) -> tuple[str, ...]:
    """Clean a caption and cut it into words as the Penn Treebank does ("cannot" is two).

    The words of recent captions are remembered: training meets each of them every epoch.
    """
    return tuple(_word_tokenizer().tokenize(clean(caption)))


class Vocabulary:
    """The words that a model knows, in id order; the special tokens come first.

    Attributes:
        words: the word of each id.
    """

    def __init__(self, words: Sequence[str]):
        """Take the words in id order.

        Raises:
            ValueError: a word occurs twice, or the first five are not the special tokens.
        """
        if tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(
                f"a vocabulary begins with {' '.join(SPECIAL_TOKENS)}, not "
                f"{' '.join(words[: len(SPECIAL_TOKENS)])!r}"
            )
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = [word for i, word in enumerate(self.words) if self._ids[word] != i]
            raise ValueError(f"words that occur twice in the vocabulary: {', '.join(twice[:10])}")

    @classmethod
    def build(cls, captions: Iterable[str], extra_special: Sequence[str] = ()) -> "Vocabulary":
        """Collect the words of captions in order of first appearance.

        Args:
            captions: raw captions.
            extra_special: words that follow the special tokens whether they occur or not
                (Fashion200k: "replace", "with").
        """
        words = dict.fromkeys([*SPECIAL_TOKENS, *extra_special])
        for caption in captions:
            words.update(dict.fromkeys(tokenize(caption)))
        return cls(list(words))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read a vocabulary file: one word a line in id order, ``<pad>`` first.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file; names it.
        """
        try:
            return cls(read_text(path).splitlines())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: not a vocabulary file: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary, one word a line in id order."""
        write_text(path, "".join(f"{word}\n" for word in self.words))

    def __len__(self) -> int:
        """Return the number of ids, special tokens included."""
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        """Tell whether a word has an id of its own."""
        return word in self._ids

    def encode(self, text: str | Sequence[str]) -> list[int]:
        """Return the ids of a text: one caption, or a sequence of one or two.

        An empty caption is legal and adds no token; unknown words become ``<unk>``.

        Raises:
            ValueError: no caption, or more than two.
        """
        captions = (text,) if isinstance(text, str) else tuple(text)
        if not 1 <= len(captions) <= MAX_CAPTIONS:
            raise ValueError(f"a text has one or two captions, not {len(captions)}: {captions}")
        tokens = [START]
        for i, caption in enumerate(captions):
            tokens += [*([AND] if i else []), *tokenize(caption)]
        unknown = self._ids[UNKNOWN]
        return [self._ids.get(token, unknown) for token in [*tokens, END]]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of ids, padding left out."""
        return " ".join(self.words[i] for i in ids if self.words[i] != PAD)

    def encode_batch(
        self, texts: Sequence[str | Sequence[str]], width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts to an array, padded on the right.

        Args:
            texts: N texts.
            width: positions T of the array; None for the longest text's.

        Returns:
            tokens [N, T] int32 and lengths [N] int32.

        Raises:
            ValueError: a text is longer than ``width``; names it.
        """
        encoded = [self.encode(text) for text in texts]
        lengths = np.array([len(ids) for ids in encoded], np.int32)
        longest = int(lengths.max(initial=1))
        if width is not None and longest > width:
            text = texts[int(lengths.argmax())]
            raise ValueError(f"a text has {longest} tokens, more than the {width} allowed: {text}")
        tokens = np.zeros((len(encoded), width or longest), np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths
