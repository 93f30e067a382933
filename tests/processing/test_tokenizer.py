"""The tokenizer and the vocabulary of docs/method.md, section 4."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmap_jax.processing.tokenizer import SPECIAL_TOKENS, Vocabulary, clean, tokenize


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Is V-neck/sleeveless\\red", "is v neck sleeveless red"),
        ("tab\tand\nnewline go", "tabandnewline go"),
        ("it's 100% café (nice)", "its  caf (nice)"),
        ("", ""),
    ],
)
def test_clean(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("cannot see", ("can", "not", "see")),
        ("red (dark)", ("red", "(", "dark", ")")),
        ("V-neck", ("v", "neck")),
        ("?!", ()),
    ],
)
def test_tokenize(raw, words):
    assert tokenize(raw) == words


def test_vocabulary_order_and_encoding():
    vocabulary = Vocabulary.build(["is red", "is longer"], extra_special=("replace", "with"))
    assert vocabulary.words == (*SPECIAL_TOKENS, "replace", "with", "is", "red", "longer")
    assert vocabulary.encode("is red") == [1, 7, 8, 3]
    assert vocabulary.encode(("is red", "longer")) == [1, 7, 8, 2, 9, 3]
    assert vocabulary.encode(("", "blue")) == [1, 2, 4, 3]  # an empty caption; an unknown word
    assert vocabulary.encode("") == [1, 3]
    assert vocabulary.decode([1, 7, 8, 3, 0]) == "<start> is red <end>"
    with pytest.raises(ValueError, match="one or two captions, not 3"):
        vocabulary.encode(("a", "b", "c"))
    with pytest.raises(ValueError, match="not 0"):
        vocabulary.encode(())


def test_batches_are_padded_and_refuse_what_does_not_fit():
    vocabulary = Vocabulary.build(["is red and long"])
    tokens, lengths = vocabulary.encode_batch(["is red", ("is red", "long")])
    assert tokens.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [4, 6])
    np.testing.assert_array_equal(tokens[0], [1, 5, 6, 3, 0, 0])
    with pytest.raises(ValueError, match="6 tokens, more than the 4"):
        vocabulary.encode_batch([("is red", "long")], width=4)


def test_files(tmp_path):
    vocabulary = Vocabulary.build(["is red"])
    path = tmp_path / "deep" / "vocabulary.txt"
    vocabulary.save(path.parent)
    assert path.read_text().splitlines()[0] == "<pad>"
    assert Vocabulary.load(path.parent) == Vocabulary.read_file(path) == vocabulary
    assert Vocabulary.load(path.parent) != Vocabulary.build(["is blue"])
    assert [p.name for p in path.parent.iterdir()] == ["vocabulary.txt"]  # no scratch file
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocabulary\.txt: not a vocabulary file"):
        Vocabulary.read_file(path)
    path.write_text("\n".join([*SPECIAL_TOKENS, "a", "a"]))
    with pytest.raises(ValueError, match="twice in the vocabulary: a"):
        Vocabulary.read_file(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        Vocabulary.read_file(tmp_path / "none.txt")


def test_words_as_json(tmp_path):
    path = tmp_path / "words.json"
    words = [*SPECIAL_TOKENS, "is", "größer"]
    for content in (words, {word: i for i, word in reversed(list(enumerate(words)))}):
        path.write_text("\n " + json.dumps(content))
        assert Vocabulary.read_file(path).words == tuple(words)
    for content, message in (
        ({word: i + 1 for i, word in enumerate(words)}, "must number its words"),
        ({**dict.fromkeys(words, 1)}, "must number its words"),
        ({word: float(i) for i, word in enumerate(words)}, "must number its words"),
        ([*words, 7], "a list must hold words in id order"),
        ([*words, "red\ndress"], r"word 7 is empty or of several lines: red\\ndress"),
        ([*words, ""], "word 7 is empty"),
        ({}, "a vocabulary begins with <pad>"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"words\.json: not a vocabulary file: .*{message}"):
            Vocabulary.read_file(path)
    path.write_text("[1,")
    with pytest.raises(ValueError, match="not a vocabulary file: not JSON at line 1"):
        Vocabulary.read_file(path)


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_caption_can_be_encoded(captions):
    vocabulary = Vocabulary.build(captions)
    for caption in captions:
        ids = vocabulary.encode(caption)
        assert (ids[0], ids[-1]) == (1, 3)
        assert all(4 < i < len(vocabulary) for i in ids[1:-1])  # every word is known
        assert all(set(w) <= set("abcdefghijklmnopqrstuvwxyz()") for w in tokenize(caption))


@pytest.mark.real_data
def test_word_counts_of_the_real_captions(real_data):
    captions = []
    for category in ("dress", "shirt", "toptee"):
        path = real_data / "fashioniq" / "captions" / f"cap.{category}.train.json"
        annotations = json.loads(path.read_text())
        captions += [a["captions"][0] for a in annotations]
        captions += [a["captions"][1] for a in annotations]
    assert len(Vocabulary.build(captions)) - len(SPECIAL_TOKENS) == 3775

    shoes = real_data / "shoes"
    names = set((shoes / "train_im_names.txt").read_text().split())
    pairs = json.loads((shoes / "relative_captions_shoes.json").read_text())
    captions = [
        p["RelativeCaption"]
        for p in pairs
        if p["ImageName"] in names and p["ReferenceImageName"] in names
    ]
    assert len(captions) == 8990
    assert len(Vocabulary.build(captions)) - len(SPECIAL_TOKENS) == 1330
