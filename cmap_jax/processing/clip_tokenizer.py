"""The tokenizer "clip": CLIP's byte-pair encoding, lower-cased, with white space collapsed.

See docs/method.md, section 4, sub-word tokenizers.
"""

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from etils import epath

from cmap_jax.processing.published_files import AGAIN, PublishedFiles, find_source, read_published
from cmap_jax.processing.subwords import JSON, SETTINGS, Settings, SubwordTokenizer

_WANTED = (
    "a CLIP folder (tokenizer.json, or vocab.json and merges.txt) or bpe_simple_vocab_16e6.txt.gz"
)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_POSITIONS = 77
_WORD_END = "</w>"
# The pairs of `bpe_simple_vocab_16e6.txt.gz` that CLIP's vocabulary of 49,408 ids has; the file
# holds more.
_PAIRS = 49_408 - 2 * 256 - 2
# A word, a digit, or a run of other characters; the ends of English contractions are words.
_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

Pair = tuple[str, str]


class ClipTokenizer(SubwordTokenizer):
    """CLIP's tokenizer: a start, at most 75 pieces, and an end."""

    @classmethod
    def from_data(
        cls, source: str | None, captions: Iterable[str], extra_special: Sequence[str]
    ) -> Self:
        """Read published files; captions add nothing to them.

        Args:
            source: a folder with ``tokenizer.json``, or with ``vocab.json`` and ``merges.txt``; or
                the path of ``bpe_simple_vocab_16e6.txt.gz``.
            captions: not used.
            extra_special: not used.

        Raises:
            FileNotFoundError: there are no such files.
            ValueError: a file is damaged or another tokenizer's; names it and the remedy.
        """
        path = find_source(source, "clip", _WANTED)
        if not path.is_dir():
            vocabulary, pairs = _read_pairs(path)
            return cls._make(path, vocabulary, pairs, (_START, _END), _POSITIONS)
        if (path / SETTINGS).exists():
            return cls.load(path)
        files = PublishedFiles(path)
        special = files.token("bos_token", _START), files.token("eos_token", _END)
        if files.has(JSON):
            path = path / JSON
            vocabulary, pairs = _read_json(path, files.read_json(JSON))
        elif files.has("vocab.json"):
            vocabulary, pairs = files.read_json("vocab.json"), _read_merges(files)
        else:
            raise FileNotFoundError(f"{source}: no tokenizer there; give {_WANTED}")
        return cls._make(path, vocabulary, pairs, special, files.positions(_POSITIONS))

    @classmethod
    def _make(
        cls,
        path: epath.Path,
        vocabulary: Mapping[str, int],
        pairs: Sequence[Pair],
        special: Pair,
        positions: int,
    ) -> Self:
        """Return the tokenizer of a vocabulary; errors name the path."""
        try:
            _check(vocabulary, pairs, special)
            start, end = (vocabulary[token] for token in special)
            settings = Settings(
                file=JSON, positions=positions, before=(start,), after=(end,), unknown=end
            )
            return cls(_serialize(vocabulary, pairs, special), settings)
        except ValueError as error:
            raise ValueError(
                f"{os.fspath(path)}: not CLIP's tokenizer: {error}. Give {_WANTED}; a file that is "
                "half downloaded must be fetched again"
            ) from error


def _check(vocabulary: Mapping[str, Any], pairs: Sequence[Pair], special: Pair) -> None:
    """Refuse a vocabulary whose parts do not fit one another."""
    ids = vocabulary.values()
    if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise ValueError("its vocabulary must number the pieces: 0, 1, 2, ..., each once")
    if lacking := [token for token in special if token not in vocabulary]:
        raise ValueError(f"its vocabulary has no {lacking[0]}")
    pieces = {*vocabulary}
    for number, (first, second) in enumerate(pairs):
        if not {first, second, first + second} <= pieces:
            raise ValueError(
                f"pair {number}, {first!r} and {second!r}, is not made of pieces of its vocabulary"
            )
    # Where each byte has a piece, pairs make all longer ones; else the pairs are cut short.
    symbols = set(_byte_symbols())
    if symbols <= pieces:
        made = {a + b for a, b in pairs} | {s + _WORD_END for s in symbols}
        lost = [piece for piece in vocabulary if piece.endswith(_WORD_END) and piece not in made]
        if lost:
            raise ValueError(f"no pair makes {len(lost)} of its pieces, such as {lost[0]!r}")


def _serialize(vocabulary: Mapping[str, int], pairs: Sequence[Pair], special: Pair) -> bytes:
    """Return the content of a ``tokenizer.json``, the same for the same vocabulary."""
    # Only here: the word models do without the library.
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    in_order = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    backend = Tokenizer(
        models.BPE(in_order, list(pairs), unk_token=special[1], end_of_word_suffix=_WORD_END)
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return backend.to_str().encode()


def _read_json(path: epath.Path, content: Mapping[str, Any]) -> tuple[dict[str, int], list[Pair]]:
    """Return the vocabulary and the pairs of a ``tokenizer.json``."""
    model = content.get("model") or {}
    # Files of early versions name no type.
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(
            f"{os.fspath(path)}: its type is {model.get('type')}, not CLIP's; give {_WANTED}"
        )
    vocabulary = dict(model["vocab"])
    vocabulary |= {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    lines = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    return vocabulary, list(_split(lines, path))


def _read_merges(files: PublishedFiles) -> list[Pair]:
    lines = files.read_text("merges.txt").splitlines()
    if lines[:1] and lines[0].startswith("#version"):
        lines = lines[1:]
    return list(_split(lines, files.folder / "merges.txt"))


def _read_pairs(path: epath.Path) -> tuple[dict[str, int], list[Pair]]:
    """Return the vocabulary and the pairs of `bpe_simple_vocab_16e6.txt.gz`."""
    try:
        lines = gzip.decompress(read_published(path)).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{os.fspath(path)}: not a complete .gz file of UTF-8 text ({error}); {AGAIN}, or give "
            f"{_WANTED}"
        ) from error
    pairs = list(_split(lines[1 : _PAIRS + 1], path))  # the first line is a heading
    symbols = _byte_symbols()
    pieces = [*symbols, *(s + _WORD_END for s in symbols), *(a + b for a, b in pairs), _START, _END]
    return {piece: i for i, piece in enumerate(pieces)}, pairs


def _split(lines: Iterable[str], path: epath.Path) -> Iterator[Pair]:
    """Yield the two pieces of each line."""
    for number, line in enumerate(lines, 1):
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(
                f"{os.fspath(path)}: pair {number} is {line[:40]!r}, not two pieces with a space "
                f"between them; if it is half downloaded, {AGAIN}"
            )
        yield pair[0], pair[1]


def _byte_symbols() -> list[str]:
    """Return the characters that stand for the 256 bytes, in the order of CLIP's ids.

    Bytes that print stand for themselves and come first; the others follow from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printing)
    return [*map(chr, printing), *(chr(0x100 + i) for i in range(others))]
