"""The tokenizer "words": a closed list of the words of the training captions.

See docs/method.md, section 4.

    vocabulary = Vocabulary.build(captions)
    tokens, lengths = vocabulary.encode_batch([("is red", "has long sleeves")])

A text is one caption or two; its ids are ``<start> tokens [<and> tokens] <end>``.
"""

import difflib
import functools
import os
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from nltk.tokenize import NLTKWordTokenizer

from cmap_jax.files import parse_json, read_text, write_text
from cmap_jax.processing.tokenizing import Text, Tokenizer, captions_of, check_captions

PAD, START, AND, END, UNKNOWN = SPECIAL_TOKENS = ("<pad>", "<start>", "<and>", "<end>", "<unk>")
FILE = "vocabulary.txt"  # the name of the file that `save` writes

_NEAR = 0.7  # the least similarity of two spellings, 0 to 1, as `difflib` measures it
_SHOWN = 80  # characters of words from a file in an error
_SEPARATORS = str.maketrans({"/": " ", "-": " ", "\\": " "})
_DROPPED = re.compile(f"[^{string.ascii_letters} ()]")


def clean(caption: str) -> str:
    r"""Return the caption's ASCII letters, spaces and parentheses, in lower case.

    See docs/method.md, section 4.

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


def loses_all_words(caption: str) -> bool:
    """Tell whether cleaning leaves no word of a caption that is not blank.

    A parenthesis is a token and no word.
    """
    return bool(caption.strip()) and not any(map(str.isalpha, tokenize(caption)))


def _in_short(text: str) -> str:
    """Return the beginning of a text that may be a whole file, escaped where not printable."""
    shown = text[:_SHOWN] if text[:_SHOWN].isprintable() else ascii(text[:_SHOWN])[1:-1][:_SHOWN]
    return shown + "..." * (len(text) > _SHOWN)


class Vocabulary(Tokenizer):
    """The words that a model knows, in id order; the special tokens come first.

    Attributes:
        words: the word of each id.
    """

    counts_words = True
    readable = "the letters a to z"

    def __init__(self, words: Sequence[str]):
        """Take the words in id order.

        Raises:
            ValueError: a word occurs twice or could not stand on a line of its own, or the first
                five are not the special tokens.
        """
        if tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(
                f"a vocabulary begins with {' '.join(SPECIAL_TOKENS)}, not "
                f"'{_in_short(' '.join(words[: len(SPECIAL_TOKENS)]))}'"
            )
        self.words = tuple(words)
        for i, word in enumerate(self.words):
            if word.splitlines() != [word]:
                raise ValueError(f"word {i} is empty or of several lines: {_in_short(word)}")
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = [word for i, word in enumerate(self.words) if self._ids[word] != i]
            raise ValueError(
                f"words that occur twice in the vocabulary: {_in_short(', '.join(twice))}"
            )

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
    def from_data(
        cls, source: str | None, captions: Iterable[str], extra_special: Sequence[str]
    ) -> "Vocabulary":
        """Return `build`'s vocabulary: pretrained word vectors bring no list of words."""
        return cls.build(captions, extra_special)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Vocabulary":
        """Read a folder's ``vocabulary.txt``; see `read_file`."""
        return cls.read_file(epath.Path(folder) / FILE)

    @classmethod
    def read_file(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read a vocabulary file: one word a line in id order, ``<pad>`` first.

        The words may also be given as JSON: a list in id order, or an object from word to id.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file; names it.
        """
        text = read_text(path)
        try:
            if text.lstrip()[:1] in ("[", "{"):
                return cls.from_ids(parse_json(text, path))
            return cls(text.splitlines())
        except ValueError as error:
            reason = str(error).removeprefix(f"{os.fspath(path)}: ")
            raise ValueError(f"{os.fspath(path)}: not a vocabulary file: {reason}") from error

    @classmethod
    def from_ids(cls, words: Any) -> "Vocabulary":
        """Take words as files of other programs hold them.

        Args:
            words: a list of words in id order, or a dict from each word to its id.

        Raises:
            ValueError: something else, or ids that do not number the words from 0.
        """
        if isinstance(words, dict):
            if not all(type(i) is int for i in words.values()) or sorted(words.values()) != list(
                range(len(words))
            ):
                raise ValueError("an object must number its words: 0, 1, 2, ..., each once")
            words = sorted(words, key=words.__getitem__)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("a list must hold words in id order, and texts alone")
        return cls(words)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder's ``vocabulary.txt``; see `write_file`."""
        self.write_file(epath.Path(folder) / FILE)

    def write_file(self, path: str | os.PathLike) -> None:
        """Write the vocabulary, one word a line in id order."""
        write_text(path, "".join(f"{word}\n" for word in self.words))

    def __len__(self) -> int:
        """Return the number of ids, special tokens included."""
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        """Tell whether another vocabulary has the same words in the same order."""
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        """Return the words' hash."""
        return hash(self.words)

    def __contains__(self, word: str) -> bool:
        """Tell whether a word has an id of its own."""
        return word in self._ids

    def encode(self, text: Text) -> list[int]:
        """Return the ids of a text.

        An empty caption is legal and adds no token; unknown words become ``<unk>``.

        Raises:
            ValueError: no caption, or more than two.
        """
        tokens = [START]
        for i, caption in enumerate(check_captions(text)):
            tokens += [*([AND] if i else []), *tokenize(caption)]
        unknown = self._ids[UNKNOWN]
        return [self._ids.get(token, unknown) for token in [*tokens, END]]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of ids, padding left out."""
        return " ".join(self.words[i] for i in ids if self.words[i] != PAD)

    def split(self, caption: str) -> tuple[str, ...]:
        """Return the words of a caption after cleaning; see `tokenize`."""
        return tokenize(caption)

    def unknown(self, text: Text) -> list[str]:
        """Return the words of a text that have no id of their own, in order."""
        words = (word for caption in captions_of(text) for word in tokenize(caption))
        return [word for word in words if word not in self._ids]

    def nearest(self, word: str) -> str | None:
        """Return the word that is spelt most like one that has no id; None if none is near."""
        known = (w for w in self.words[len(SPECIAL_TOKENS) :] if abs(len(w) - len(word)) <= 3)
        return next(iter(difflib.get_close_matches(word, known, 1, _NEAR)), None)

    def as_read(self, caption: str) -> str:
        """Return the words of a cleaned caption, with ``<unk>`` for each word without an id."""
        return " ".join(word if word in self._ids else UNKNOWN for word in tokenize(caption))

    def loses_all_words(self, caption: str) -> bool:
        """Tell whether cleaning leaves no word of a caption that is not blank."""
        return loses_all_words(caption)
