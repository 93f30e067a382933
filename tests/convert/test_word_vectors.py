"""GloVe and word2vec files: every published form, and what is refused with its line."""

import gzip
import logging
import zipfile

import numpy as np
import pytest

from cmap_jax.convert import load_word_vectors
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
        ("red 1 2 3", "line 3: 3 numbers, where config.model.text.word_dim asks for 4"),
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
