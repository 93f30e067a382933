"""GloVe and word2vec text files -> the rows of a vocabulary."""

import contextlib
import gzip
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import numpy as np
from etils import epath

from cmap_jax.processing.tokenizer import Vocabulary

_REPORT_EVERY = 5.0  # seconds
_LOOK_EVERY = 10_000  # lines between two looks at the clock
_FREQUENT = 20  # words without a vector that are named


def load_word_vectors(
    path: str | os.PathLike,
    vocabulary: Vocabulary,
    width: int,
    counts: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Read the vectors of a vocabulary's words, a line at a time.

    A line is a word and its numbers, separated by single spaces; a word may contain spaces (some
    in GloVe 840B do), so the last ``width`` fields are the vector. A first line of two whole
    numbers, as word2vec writes it, is passed over. Of a word that comes twice the first counts.

    Args:
        path: a text file, plain or ``.gz``, or a published ``.zip`` (of several files in it, the
            one whose vectors have ``width`` numbers).
        vocabulary: the words wanted.
        width: numbers in a vector.
        counts: how often each word occurs, to name the frequent ones that have no vector.

    Returns:
        float32 [width] of each word found. How many were found is logged, and which frequent ones
        were not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a vector of another width or a broken line, with the line's number; a damaged
            archive.
    """
    path = epath.Path(path)
    wanted = {word.encode() for word in vocabulary.words}
    vectors: dict[str, np.ndarray] = {}
    with _open(path, width) as (file, name, position, size):
        started = reported = time.monotonic()
        number = 0
        try:
            for number, line in enumerate(file, 1):
                found = _parse(line, number, name, width, wanted)
                if found is not None:
                    word, vector = found
                    vectors.setdefault(word, vector)
                if number % _LOOK_EVERY == 0 and time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    _report(name, number, position(), size, reported - started)
        except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{name}: damaged after line {number}: {error}") from error
    if number == 0:
        raise ValueError(f"{name}: empty")
    _log_found(name, vocabulary, vectors, counts or {})
    return vectors


def _parse(
    line: bytes, number: int, name: str, width: int, wanted: set[bytes]
) -> tuple[str, np.ndarray] | None:
    """Return a wanted word and its vector, or None; an unwanted word's numbers are only counted."""
    line = line.rstrip(b"\r\n ")
    spaces = line.count(b" ")
    if number == 1:
        if spaces == 1 and all(field.isdigit() for field in line.split()):
            if int(line.split()[1]) != width:
                raise ValueError(_wrong_width(name, 1, int(line.split()[1]), width))
            return None
        # A word with a space in it is not the first of any published file.
        if spaces != width:
            raise ValueError(_wrong_width(name, 1, spaces, width))
    if spaces < width:
        raise ValueError(_wrong_width(name, number, spaces, width))
    first = line[: line.index(b" ")]
    if spaces > width:
        # A word with spaces in it; a vocabulary's words have none. Or a vector that is too long.
        surplus = line.split(b" ")[1:-width]
        if all(map(_is_number, surplus)):
            raise ValueError(_wrong_width(name, number, spaces, width))
        return None
    if first not in wanted:
        return None
    try:
        vector = np.array(line.split(b" ")[1:], np.float32)
    except ValueError:
        raise ValueError(f"{name}, line {number}: not {width} numbers after the word") from None
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}, line {number}: a number is not finite")
    return first.decode(), vector


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _wrong_width(name: str, number: int, found: int, width: int) -> str:
    return (
        f"{name}, line {number}: {found} numbers, where config.model.text.word_dim asks for {width}"
    )


@contextlib.contextmanager
def _open(path: epath.Path, width: int) -> Iterator[tuple[IO[bytes], str, Callable[[], int], int]]:
    """Yield the lines' file, its name for people, its position (in the archive) and their size."""
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
                with archive.open(member) as file:
                    yield file, f"{path}/{member.filename}", file.tell, member.file_size
        else:
            yield raw, str(path), raw.tell, size


def _member(archive: zipfile.ZipFile, path: epath.Path, width: int) -> zipfile.ZipInfo:
    """Return the text file of an archive whose vectors have the width; the only one if one."""
    members = [m for m in archive.infolist() if m.filename.endswith(".txt")]
    if len(members) > 1:
        widths = {}
        for member in members:
            with archive.open(member) as file:
                widths[member] = file.readline().rstrip().count(b" ")
        members = [m for m in members if widths[m] == width]
        if not members:
            raise ValueError(
                f"{path}: holds vectors of {', '.join(map(str, sorted(widths.values())))} numbers; "
                f"config.model.text.word_dim asks for {width}"
            )
    if len(members) != 1:
        raise ValueError(f"{path}: which file of it? Unpack it and name one")
    return members[0]


def _report(name: str, lines: int, position: int, size: int, seconds: float) -> None:
    left = seconds * (size - position) / max(position, 1)
    logging.info(
        "%s: %s lines read (%.0f/s, %.0f s left)", name, f"{lines:,}", lines / seconds, left
    )


def _log_found(
    name: str, vocabulary: Vocabulary, vectors: Mapping[str, np.ndarray], counts: Mapping[str, int]
) -> None:
    missing = [word for word in vocabulary.words if word not in vectors and counts.get(word)]
    missing.sort(key=lambda word: -counts[word])
    logging.info("%s: vectors of %d of %d words", name, len(vectors), len(vocabulary))
    if missing:
        named = ", ".join(f"{word} ({counts[word]})" for word in missing[:_FREQUENT])
        logging.info("most frequent words without a vector: %s", named)
