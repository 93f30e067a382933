"""GloVe and word2vec files: every published form, and what is refused with its line."""

import gzip
import logging
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from cmap_jax.convert import load_word_vectors, word_vectors
from cmap_jax.processing.tokenizer import Vocabulary

WORDS = ["red", "dress", "darker", "at", "sleeveless"]
WIDTH = 4


@pytest.fixture
def vocabulary():
    return Vocabulary.build([" ".join(WORDS)])


def lines(width=WIDTH, seed=0) -> tuple[str, dict]:
    """A file's text and the vectors of the wanted words in it; "sleeveless" is absent."""
    rng = np.random.default_rng(seed)
    vectors, text = {}, []
    # Words of two parts and more, as GloVe 840B has them, a mark, letters beyond ASCII.
    for word in (",", "red", "at name@domain.com", ". . .", "dress", "größer", "darker", "at"):
        vector = rng.normal(size=width).round(5)
        vectors[word] = vector
        text.append(" ".join([word, *map(str, vector)]))
    return "\n".join(text) + "\n", {w: vectors[w] for w in ("red", "dress", "darker", "at")}


def _write(path, text: str):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("glove.4d.txt", text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz", "glove.zip", "glove.vec"])
def test_forms(tmp_path, vocabulary, name, caplog):
    text, expected = lines()
    counts = {"red": 3, "sleeveless": 9, "dress": 2}
    with caplog.at_level(logging.INFO):
        found = load_word_vectors(_write(tmp_path / name, text), vocabulary, WIDTH, counts)
    assert found.keys() == expected.keys()
    for word, vector in expected.items():
        assert found[word].dtype == np.float32
        np.testing.assert_allclose(found[word], vector, rtol=1e-6)
    assert "vectors of 4 of 10 words" in caplog.text
    assert "without a vector: sleeveless (9)" in caplog.text


def test_word2vec_header_and_windows_lines(tmp_path, vocabulary):
    text, expected = lines()
    path = tmp_path / "w2v.txt"
    path.write_bytes(("8 4\n" + text).replace("\n", " \r\n").encode())
    assert load_word_vectors(path, vocabulary, WIDTH).keys() == expected.keys()
    with pytest.raises(
        ValueError, match=r"w2v\.txt, line 1: 4 numbers, where .*word_dim asks .* 5"
    ):
        load_word_vectors(path, vocabulary, 5)


def _binary(vectors: dict, width: int = WIDTH, ends: bytes = b"\n") -> bytes:
    """word2vec's binary form, as its own program (a line end a word) or gensim (none) writes it."""
    rows = [word.encode() + b" " + np.float32(v).tobytes() + ends for word, v in vectors.items()]
    return f"{len(vectors)} {width}\n".encode() + b"".join(rows)


@pytest.mark.parametrize("ends", [b"\n", b""])
@pytest.mark.parametrize("name", ["w2v.bin", "w2v.bin.gz", "w2v.zip"])
def test_the_binary_form(tmp_path, vocabulary, name, ends, monkeypatch):
    monkeypatch.setattr(word_vectors, "_START", 64)
    monkeypatch.setattr(word_vectors, "_BLOCK", 64)  # words lie across the borders of blocks
    rng = np.random.default_rng(0)
    words = ["</s>", *(f"word{i}" for i in range(50)), "red", "größer", "dress", "red"]
    vectors = {word: rng.normal(size=WIDTH) for word in words}
    # Bytes of a number that read as a line end and a space.
    vectors["dress"] = np.frombuffer(b"\n  \n" * WIDTH, "<f4")
    content = _binary(vectors, ends=ends)
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w2v.bin", content)
    else:
        path.write_bytes(content)
    found = load_word_vectors(path, vocabulary, WIDTH)
    assert set(found) == {"red", "dress"}
    for word, vector in found.items():
        np.testing.assert_array_equal(vector, np.float32(vectors[word]))


def test_damaged_binary_forms(tmp_path, vocabulary):
    path = tmp_path / "w2v.bin"
    content = _binary({f"w{i}": np.full(WIDTH, i) for i in range(9)} | {"red": [1, np.nan, 2, 3]})
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w2v\.bin, word 10: a number is not finite"):
        load_word_vectors(path, vocabulary, WIDTH)
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"damaged after word 9: it should have 10 words in word2"):
        load_word_vectors(path, vocabulary, WIDTH)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"line 1: 4 numbers, where .*word_dim asks for 300"):
        load_word_vectors(path, vocabulary, 300)
    # fastText's model, NumPy's array: no word vectors as text.
    for start in (b"\xba\x16\x4f\x2f\x0c\x00\x00\x00", b"\x93NUMPY\x01\x00v\x00{'descr'"):
        path.write_bytes(start * 100)
        with pytest.raises(ValueError, match=r"w2v\.bin: neither text nor word2vec's binary form"):
            load_word_vectors(path, vocabulary, WIDTH)


@pytest.mark.parametrize("others", [(), ("__MACOSX/._wiki.vec", "README", "notes/")])
def test_a_zip_of_one_vec(tmp_path, vocabulary, others):
    """As fastText publishes them: one `.vec` with a first line of counts."""
    text, expected = lines()
    path = tmp_path / "wiki.vec.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in others:
            archive.writestr(name, b"\x00\x05")
        archive.writestr("wiki-news-4d.vec", f"8 4\n{text}")
    assert load_word_vectors(path, vocabulary, WIDTH).keys() == expected.keys()


def test_a_zip_of_several_vec(tmp_path, vocabulary):
    path = tmp_path / "wiki.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for width in (4, 8):
            archive.writestr(f"wiki-{width}d.vec", f"8 {width}\n{lines(width)[0]}")
    assert "red" in load_word_vectors(path, vocabulary, WIDTH)
    with pytest.raises(ValueError, match="holds vectors of 4, 8 numbers"):
        load_word_vectors(path, vocabulary, 3)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other-4d.vec", f"8 4\n{lines(4)[0]}")
    with pytest.raises(ValueError, match=r"name one: wiki-4d\.vec, other-4d\.vec"):
        load_word_vectors(path, vocabulary, WIDTH)


def test_no_word_found_is_a_warning(tmp_path, vocabulary, caplog):
    path = tmp_path / "up.txt"
    path.write_text("<unk> 0 0 0 0\nRED 1 2 3 4\nDRESS 5 6 7 8\n")
    with caplog.at_level(logging.WARNING):
        found = load_word_vectors(path, vocabulary, WIDTH)
    assert set(found) == {"<unk>"}  # which is no word
    assert "none of the 3 words of" in caplog.text
    assert "such as <unk>, RED, DRESS, is a word of the vocabulary, such as red," in caplog.text
    assert "lower case" in caplog.text
    caplog.clear()
    path.write_text("RED 1 2 3 4\nat 5 6 7 8\n")
    with caplog.at_level(logging.WARNING):
        load_word_vectors(path, vocabulary, WIDTH)
    assert not caplog.text


def test_an_archive_of_several_widths(tmp_path, vocabulary):
    path = tmp_path / "glove.6B.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for width in (2, 4, 8):
            archive.writestr(f"glove.6B.{width}d.txt", lines(width, seed=width)[0])
    found = load_word_vectors(path, vocabulary, WIDTH)
    np.testing.assert_allclose(found["red"], lines(WIDTH, seed=4)[1]["red"], rtol=1e-6)
    with pytest.raises(ValueError, match="holds vectors of 2, 4, 8 numbers"):
        load_word_vectors(path, vocabulary, 3)


def test_the_first_of_two_counts(tmp_path, vocabulary):
    path = tmp_path / "two.txt"
    path.write_text("red 1 2 3 4\nred 5 6 7 8\n")
    assert load_word_vectors(path, vocabulary, WIDTH)["red"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("red 1 2 3", "line 3: 3 numbers, where the sub-config's word_dim asks for 4"),
        ("blue 1 2 3", "line 3: 3 numbers"),
        ("", "line 3: 0 numbers"),
        ("red 1 2 3 4 5", "line 3: 5 numbers"),
        ("blue 1 2 3 4 5", "line 3: 5 numbers"),
        ("red 1 2 x 4", "line 3: not 4 numbers after the word"),
        ("red 1 2 nan 4", "line 3: a number is not finite"),
    ],
)
def test_broken_lines_are_numbered(tmp_path, vocabulary, line, message):
    path = tmp_path / "bad.txt"
    path.write_text(f"the 1 2 3 4\nof 1 2 3 4\n{line}\nand 1 2 3 4\n")
    with pytest.raises(ValueError, match=message) as error:
        load_word_vectors(path, vocabulary, WIDTH)
    assert "bad.txt" in str(error.value)


@pytest.mark.parametrize("name", ["long.txt.gz", "long.vec.gz", "long.zip", "long.txt"])
def test_a_line_without_an_end_is_not_read_whole(tmp_path, vocabulary, name):
    first = "the 1 2 3 4\n" if "vec" not in name else "9 4\nthe 1 2 3 4\n"
    path = _write(tmp_path / name, first)
    block = b"red" + b" 0.000000" * 1_000_000  # 9 MB
    if path.suffix == ".gz":
        with gzip.open(path, "ab", compresslevel=1) as file:
            file.write(block)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", first.encode() + block)
    else:
        path.write_bytes(first.encode() + block)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{name}.*, line [23]: longer than 1,048,576 bytes"):
            load_word_vectors(path, vocabulary, WIDTH)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


def test_a_first_line_of_huge_numbers_is_no_header(tmp_path, vocabulary):
    path = tmp_path / "a.vec"
    path.write_text("9" * 5000 + " 4\nred 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"a\.vec, line 1: 1 numbers, where"):
        load_word_vectors(path, vocabulary, WIDTH)


def _mark(archive, at, value):
    """Change two bytes in the headers of an archive's files: at the file, and in the directory."""
    content = bytearray(archive)
    for magic, shift in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
        start = content.index(magic) + shift
        content[start : start + 2] = value.to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (6, 1, "is encrypted, password required"),
        (6, 0x41, "strong encryption"),
        (8, 9, "compression method"),
        (8, 77, "compression method"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_archives_that_python_cannot_unpack(tmp_path, vocabulary, at, value, reason, count):
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.txt", lines()[0])
    path.write_bytes(_mark(path.read_bytes(), at, value))
    with pytest.raises(ValueError, match=rf"glove\.zip/0\.txt cannot be .*{reason}.*: unpack the"):
        load_word_vectors(path, vocabulary, WIDTH)


def test_a_pipe_of_vectors_is_not_waited_for(tmp_path, vocabulary):
    os.mkfifo(tmp_path / "glove.txt")
    with pytest.raises(ValueError, match=r"glove\.txt: is a pipe, not a regular file"):
        load_word_vectors(tmp_path / "glove.txt", vocabulary, WIDTH)


def test_damaged_files(tmp_path, vocabulary):
    text = lines()[0] * 1000
    for name in ("cut.txt.gz", "cut.zip"):
        path = _write(tmp_path / name, text)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match=name):
            load_word_vectors(path, vocabulary, WIDTH)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt: empty"):
        load_word_vectors(tmp_path / "empty.txt", vocabulary, WIDTH)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        load_word_vectors(tmp_path / "none.txt", vocabulary, WIDTH)
