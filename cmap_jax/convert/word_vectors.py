"""Word vectors of GloVe, fastText and word2vec as the rows of a word embedding."""

import contextlib
import gzip
import io
import itertools
import logging
import lzma
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from typing import IO, Any

import numpy as np
from etils import epath

from cmap_jax.files import check_regular_file
from cmap_jax.processing.tokenizer import SPECIAL_TOKENS, Vocabulary

_logger = logging.getLogger(__name__)

_REPORT_EVERY = 5.0  # seconds
_LOOK_EVERY = 10_000  # lines between two readings of the clock
_FREQUENT = 20  # words without a vector that are named
_SHOWN = 5  # words in the warning that none was found
_LONGEST_LINE = 1 << 20  # bytes
_LONGEST_HEADER = 64  # bytes
_START = 4096  # bytes from which the form, text or binary, is recognised
_BLOCK = 1 << 20  # bytes of the binary form read at once
_SUFFIXES = (".txt", ".vec", ".bin")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
# All that the modules that unpack raise for damaged files.
_DAMAGES = (EOFError, OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
# Members of an archive without vectors: hidden files, and the folder that macOS adds.
_IN_NO_DATA = re.compile(r"__MACOSX/|(.*/)?\.")


def load_word_vectors(
    path: str | os.PathLike,
    vocabulary: Vocabulary,
    width: int,
    counts: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Read the vectors of a vocabulary's words, one at a time.

    In a text file a line is a word and its numbers, separated by single spaces; a word may contain
    spaces (some in GloVe 840B do), so the last ``width`` fields are the vector. A first line of two
    whole numbers, as word2vec and fastText write it, says how many words and numbers follow; after
    it word2vec's binary form is read too. If a word comes twice, its first vector is taken.

    Args:
        path: text or word2vec's binary form, plain or ``.gz``, or a published ``.zip`` (of several
            files in it, the one whose vectors have ``width`` numbers).
        vocabulary: the words whose vectors are returned.
        width: numbers in a vector.
        counts: how often each word occurs, to name the frequent ones that have no vector.

    Returns:
        float32 [width] of each word found. How many were found is logged, and which frequent ones
        were not; a warning says it where there was none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a vector of another width, or a line that is broken or too long, with the
            line's number; a damaged, encrypted or otherwise unreadable archive; another kind of
            file.
    """
    path = epath.Path(path)
    wanted = {word.encode() for word in vocabulary.words}
    vectors: dict[str, np.ndarray] = {}
    first: list[str] = []  # words of the file, to show
    with _open(path, width) as (file, name, position, size):
        started = reported = time.monotonic()
        number = 0
        try:
            for number, (word, vector) in enumerate(_entries(file, name, width, wanted), 1):
                if vector is not None:
                    vectors.setdefault(word.decode(), vector)
                if number <= _SHOWN:
                    first.append(word.decode("utf-8", "replace"))
                if number % _LOOK_EVERY == 0 and time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    _report(name, number, position(), size, reported - started)
        except _DAMAGES as error:
            raise ValueError(f"{name}: damaged after word {number}: {error}") from error
    if number == 0:
        raise ValueError(f"{name}: empty")
    _report_missing(name, vocabulary, vectors, counts or {})
    words = vocabulary.words[len(SPECIAL_TOKENS) :]
    if not any(word in vectors for word in words):
        _logger.warning(
            "NO WORD VECTOR FOUND: none of the %d words of %s, such as %s, is a word of the "
            "vocabulary, such as %s, so that all keep RANDOM values. A vocabulary's words are in "
            "lower case, of the letters a to z",
            *(number, name, ", ".join(first), ", ".join(words[:_SHOWN])),
        )
    return vectors


def load_word_embedding(
    path: str | os.PathLike,
    settings: Mapping[str, Any],
    tokenizer: Vocabulary,
    counts: Mapping[str, int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return a word embedding with the rows that `load_word_vectors` finds.

    Args:
        path: see `load_word_vectors`.
        settings: ``config.model.text.gru`` or ``.lstm``.
        tokenizer: the words, in the order of the rows.
        counts: see `load_word_vectors`.
        rng: draws the rows of words without a vector, from N(0, 1) (docs/method.md, section 1).

    Returns:
        ``params`` that belong under ``text_encoder``.

    Raises:
        FileNotFoundError, ValueError: as `load_word_vectors`.
    """
    width = settings["word_dim"]
    vectors = load_word_vectors(path, tokenizer, width, counts)
    rows = rng.normal(size=(len(tokenizer), width))
    for i, word in enumerate(tokenizer.words):
        if word in vectors:
            rows[i] = vectors[word]
    return {"params": {"word_embedding": rows}}


def _entries(
    file: IO[bytes], name: str, width: int, wanted: Set[bytes]
) -> Iterator[tuple[bytes, np.ndarray | None]]:
    """Yield the words of a file, in either form, each with its vector where it is wanted."""
    line = file.readline(_LONGEST_LINE)
    header = _header(line)
    if header is None:
        if _is_binary(line):
            raise ValueError(
                f"{name}: neither text nor word2vec's binary form; give these vectors as text, "
                "a .txt or .vec file"
            )
        lines = itertools.chain([line] if line else [], _lines(file))
        yield from (_parse(line, i, name, width, wanted) for i, line in enumerate(lines, 1))
        return
    count, numbers = header
    if numbers != width:
        raise ValueError(_wrong_width(name, 1, numbers, width))
    start = file.read(_START)
    if _is_binary(start):
        yield from _parse_binary(start, file, name, width, count, wanted)
        return
    rest = start + file.readline(_LONGEST_LINE)
    lines = itertools.chain(io.BytesIO(rest), _lines(file))
    yield from (_parse(line, i, name, width, wanted) for i, line in enumerate(lines, 2))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file; one that has no end in sight is cut, and refused by `_parse`."""
    return iter(lambda: file.readline(_LONGEST_LINE), b"")


def _header(line: bytes) -> tuple[int, int] | None:
    """Return the numbers of words and of numbers in a vector, where a first line says them."""
    fields = line.split() if len(line) <= _LONGEST_HEADER else ()
    return tuple(map(int, fields)) if len(fields) == 2 and all(map(bytes.isdigit, fields)) else None


def _is_binary(content: bytes) -> bool:
    """Tell whether bytes are no text: it holds no control characters but tabs and line ends."""
    return bool(_CONTROL.search(content))


def _parse_binary(
    block: bytes, file: IO[bytes], name: str, width: int, count: int, wanted: Set[bytes]
) -> Iterator[tuple[bytes, np.ndarray | None]]:
    """Yield the words of word2vec's binary form: a word, a space, the numbers as float32.

    Args:
        block: the bytes after the first line that are already read.
        file: the rest.
        name: begins the messages of errors.
        width: numbers in a vector.
        count: words in the file.
        wanted: the words whose vectors are returned.
    """
    at, size = 0, 4 * width
    for number in range(1, count + 1):
        while (space := block.find(b" ", at)) < 0 or len(block) < space + 1 + size:
            more = file.read(_BLOCK)
            if not more or len(block) - at > _BLOCK + size:
                raise EOFError(f"it should have {count:,} words in word2vec's binary form")
            block, at = block[at:] + more, 0
        word = block[at:space].lstrip(b"\n")
        at = space + 1 + size
        vector = None
        if word in wanted:
            vector = np.frombuffer(block, "<f4", width, space + 1).astype(np.float32)
            if not np.isfinite(vector).all():
                raise ValueError(f"{name}, word {number}: a number is not finite")
        yield word, vector


def _parse(
    line: bytes, number: int, name: str, width: int, wanted: Set[bytes]
) -> tuple[bytes, np.ndarray | None]:
    """Return a line's word and its vector; an unwanted word's numbers are only counted."""
    if len(line) >= _LONGEST_LINE:
        raise ValueError(f"{name}, line {number}: longer than {_LONGEST_LINE:,} bytes")
    line = line.rstrip(b"\r\n ")
    spaces = line.count(b" ")
    # A word with a space in it is not the first of any published file.
    if spaces < width or (number == 1 and spaces > width):
        raise ValueError(_wrong_width(name, number, spaces, width))
    first = line[: line.index(b" ")]
    if spaces > width:
        # A word with spaces in it; a vocabulary's words have none. Or a vector that is too long.
        surplus = line.split(b" ")[1:-width]
        if all(map(_is_number, surplus)):
            raise ValueError(_wrong_width(name, number, spaces, width))
        return first, None
    if first not in wanted:
        return first, None
    try:
        vector = np.array(line.split(b" ")[1:], np.float32)
    except ValueError:
        raise ValueError(f"{name}, line {number}: not {width} numbers after the word") from None
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}, line {number}: a number is not finite")
    return first, vector


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _wrong_width(name: str, number: int, numbers: int, width: int) -> str:
    return (
        f"{name}, line {number}: {numbers} numbers, where the sub-config's word_dim asks for "
        f"{width}"
    )


@contextlib.contextmanager
def _open(path: epath.Path, width: int) -> Iterator[tuple[IO[bytes], str, Callable[[], int], int]]:
    """Yield the lines' file, its name for people, its position (in the archive) and their size."""
    check_regular_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().length
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as file:
                yield file, str(path), raw.tell, size
        elif path.suffix == ".zip":
            try:
                archive = zipfile.ZipFile(raw)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path}: not a zip file, or truncated: {error}") from error
            with archive:
                member = _member(archive, path, width)
                with _open_member(archive, member, path) as file:
                    yield file, f"{path}/{member.filename}", file.tell, member.file_size
        else:
            yield raw, str(path), raw.tell, size


def _member(archive: zipfile.ZipFile, path: epath.Path, width: int) -> zipfile.ZipInfo:
    """Return the file of an archive whose vectors have the width; the only one if one."""
    files = [m for m in archive.infolist() if not m.is_dir() and not _IN_NO_DATA.match(m.filename)]
    members = [m for m in files if m.filename.endswith(_SUFFIXES)] or files
    if len(members) > 1:
        widths = {}
        for member in members:
            with _open_member(archive, member, path) as file:
                line = _first_line(file, path, member)
            widths[member] = (_header(line) or (0, line.rstrip().count(b" ")))[1]
        members = [m for m in members if widths[m] == width]
        if not members:
            raise ValueError(
                f"{path}: holds vectors of {', '.join(map(str, sorted(widths.values())))} numbers; "
                f"the sub-config's word_dim asks for {width}"
            )
    if len(members) != 1:
        named = ", ".join(m.filename for m in members) or "it holds none"
        raise ValueError(f"{path}: which file of it? Unpack it and name one: {named}")
    return members[0]


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: epath.Path) -> IO[bytes]:
    """Open a file of an archive, or say why Python cannot."""
    try:
        return archive.open(member)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}/{member.filename} cannot be unpacked here ({error}): unpack the archive with "
            "another program, and name the file"
        ) from error


def _first_line(file: IO[bytes], path: epath.Path, member: zipfile.ZipInfo) -> bytes:
    try:
        return file.readline(_LONGEST_LINE)
    except _DAMAGES as error:
        raise ValueError(f"{path}/{member.filename}: damaged: {error}") from error


def _report(name: str, lines: int, position: int, size: int, seconds: float) -> None:
    left = seconds * (size - position) / max(position, 1)
    _logger.info(
        "%s: %s lines read (%.0f/s, %.0f s left)", name, f"{lines:,}", lines / seconds, left
    )


def _report_missing(
    name: str, vocabulary: Vocabulary, vectors: Mapping[str, np.ndarray], counts: Mapping[str, int]
) -> None:
    missing = [word for word in vocabulary.words if word not in vectors and counts.get(word)]
    missing.sort(key=lambda word: -counts[word])
    _logger.info("%s: vectors of %d of %d words", name, len(vectors), len(vocabulary))
    if missing:
        named = ", ".join(f"{word} ({counts[word]})" for word in missing[:_FREQUENT])
        _logger.info("most frequent words without a vector: %s", named)
