"""Sub-word tokenizers: ids equal to the published implementation's, and their contract."""

import json
import shutil

import numpy as np
import pytest
from optional import require
from subword_files import (
    CAPTIONS,
    END,
    odd_texts,
    pairs,
    published_clip_pairs,
    write_clip_folder,
    write_clip_pairs,
    write_siglip2_folder,
    write_siglip_folder,
)

from cmap_jax.processing.subwords import JSON, SENTENCEPIECE, SETTINGS
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizers import TOKENIZERS, read_tokenizer

TWO = ("is red", "has Long sleeves")
CLIP, SIGLIP = TOKENIZERS["clip"], TOKENIZERS["siglip"]


def _clip(source):
    return CLIP.from_data(str(source), (), ())


def _siglip(source):
    return SIGLIP.from_data(str(source), (), ())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return _clip(write_clip_pairs(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip_folder(tmp_path_factory.mktemp("siglip"))


def _content(tokenizer, folder) -> bytes:
    tokenizer.save(folder)
    return (folder / JSON).read_bytes()


def _assert_equal_ids(ours, theirs, **padding):
    """Compare the ids of 200 texts, and of two captions joined as one."""
    texts = odd_texts()
    assert len(set(texts)) == 200
    expected = [
        theirs(t, truncation=True, max_length=ours.limit, **padding).input_ids for t in texts
    ]
    assert [ours.encode(text) for text in texts] == expected
    joined = theirs(" and ".join(TWO), truncation=True, max_length=ours.limit, **padding)
    assert ours.encode(TWO) == joined.input_ids


@pytest.mark.parametrize("published", [False, True])
def test_clip_equals_transformers(tmp_path, published):
    """For small pieces, and for CLIP's own file; the folder is written by `transformers`."""
    transformers = require("transformers")
    path = published_clip_pairs() if published else write_clip_pairs(tmp_path)
    ours = _clip(path)
    folder = write_clip_folder(tmp_path / "hf", _content(ours, tmp_path / "kept"))
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert len(ours) == len(theirs) == (49408 if published else 512 + len(pairs()) + 2)
    _assert_equal_ids(ours, theirs)
    assert _clip(folder) == ours
    assert read_tokenizer(folder) == read_tokenizer(path) == ours
    if published:
        assert ours.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_clip_reads_a_vocabulary_and_merges(clip, tmp_path):
    model = json.loads(_content(clip, tmp_path / "kept"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *map(" ".join, model["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    assert _clip(tmp_path) == clip
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]))  # without a heading
    assert _clip(tmp_path) == clip
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"max_position_embeddings": 9}})
    )
    shorter = _clip(tmp_path)
    assert (shorter.limit, len(shorter.encode(CAPTIONS[3]))) == (9, 9)
    assert shorter != clip


def test_siglip_equals_transformers(siglip, tmp_path):
    transformers = require("transformers")
    theirs = transformers.SiglipTokenizer.from_pretrained(siglip)
    ours = _siglip(siglip)
    assert (ours.limit, ours.width, len(ours)) == (64, 64, len(theirs))
    _assert_equal_ids(ours, theirs, padding="max_length")
    tokens, lengths = ours.encode_batch(["is red", TWO])
    assert tokens.shape == (2, 64)
    assert (tokens[0, 8:] == 1).all()  # padded with the end token, which the encoder reads
    np.testing.assert_array_equal(lengths, [64, 64])
    assert read_tokenizer(siglip) == ours


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"},
        {"add_bos_token": True, "add_eos_token": True, "model_max_length": 16},
    ],
)
def test_siglip_2_equals_transformers(tmp_path, rules):
    transformers = require("transformers")
    folder = write_siglip2_folder(tmp_path / "hf", **rules)
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)
    ours = _siglip(folder)
    assert (ours.width, len(ours)) == (rules.get("model_max_length", 64), len(theirs))
    _assert_equal_ids(ours, theirs, padding="max_length")
    ours.save(tmp_path / "kept")
    assert SIGLIP.load(tmp_path / "kept") == ours


def test_siglip_2_is_lower_case_whatever_its_file_says(tmp_path):
    """Its published files name a class that keeps capitals, which the model never saw."""
    rules = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    lower = _siglip(write_siglip2_folder(tmp_path / "a", **rules))
    folder = write_siglip2_folder(tmp_path / "b", kind="GemmaTokenizer", **rules)
    theirs = require("transformers").GemmaTokenizer.from_pretrained(folder)
    assert theirs("RED").input_ids != theirs("red").input_ids
    for text in odd_texts():
        assert _siglip(folder).encode(text) == lower.encode(text)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_workdir_needs_nothing_else(kind, siglip, tmp_path):
    source = tmp_path / "source"
    if kind == "clip":
        source.mkdir()
        tokenizer = _clip(write_clip_pairs(source))
    else:
        shutil.copytree(siglip, source)
        tokenizer = _siglip(source)
    tokenizer.save(tmp_path / "run")
    shutil.rmtree(source)
    loaded = TOKENIZERS[kind].load(tmp_path / "run")
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.encode(TWO) == tokenizer.encode(TWO)
    assert TOKENIZERS[kind].from_data(str(tmp_path / "run"), (), ()) == tokenizer
    with pytest.raises(FileNotFoundError, match=SETTINGS):
        TOKENIZERS[kind].load(tmp_path)
    pieces = tmp_path / "run" / (JSON if kind == "clip" else SENTENCEPIECE)
    pieces.write_bytes(pieces.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{pieces.name}: damaged: ") as error:
        TOKENIZERS[kind].load(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_long_texts_are_cut_and_keep_their_end(clip, siglip):
    start, end = clip.encode("")
    assert clip.width is None
    for tokenizer, limit, ends in ((clip, 77, end), (_siglip(siglip), 64, 1)):
        assert tokenizer.limit == limit
        long = "is red " * 100
        ids = tokenizer.encode(long)
        assert (len(ids), ids[-1]) == (limit, ends)
        assert tokenizer.cuts(long)
        assert tokenizer.cuts(("is red " * 30, "is longer " * 30))
        assert not tokenizer.cuts(TWO)
        assert tokenizer.batch_width([long, "red"]) == limit
    # The longest text that fits has 75 pieces.
    assert not clip.cuts("red " * 75)
    assert clip.cuts("red " * 76)
    assert clip.encode("red " * 76) == clip.encode("red " * 75)
    assert clip.encode("red")[0] == start
    tokens, lengths = clip.encode_batch(["red", TWO])
    assert tokens.shape == (2, lengths[1])
    assert not tokens[0, lengths[0] :].any()


def test_captions_are_joined_by_and(clip, siglip):
    """Word models have a token of their own for it; empty captions are left out."""
    for tokenizer in (clip, _siglip(siglip)):
        assert tokenizer.encode(("is red", "longer")) == tokenizer.encode("is red and longer")
        assert tokenizer.encode(("", "longer")) == tokenizer.encode("longer")
        assert tokenizer.encode(("longer", " ")) == tokenizer.encode("longer")
        with pytest.raises(ValueError, match="one or two captions, not 3"):
            tokenizer.encode(("a", "b", "c"))
    words = Vocabulary.build(["is red and longer"])
    assert words.encode(("is red", "longer")) != words.encode("is red and longer")


def test_characters_that_are_not_read(clip, siglip):
    assert clip.unknown("\u7ea2\u8272 \U0001f457 qx") == []  # bytes stand for all of them
    assert not clip.loses_all_words("?!")
    assert clip.as_read("Is RED, v-neck") == "is red , v - neck"
    pieces = _siglip(siglip)
    assert pieces.unknown(("is red \u7ea2\u8272", "\U0001f457red")) == [
        "\u7ea2\u8272",
        "\U0001f457red",
    ]
    assert pieces.nearest("\u7ea2\u8272") is None
    assert [pieces.loses_all_words(t) for t in ("", "red", "?!", "\u7ea2\u8272")] == [
        False,
        False,
        True,
        True,
    ]
    assert pieces.as_read("Is RED!") == "is red"
    assert list(pieces.split("is  red")) == ["is", "red"]


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _pieces_of_others(path):
    content = json.loads(path.read_text())
    content["model"]["type"] = "WordPiece"
    path.write_text(json.dumps(content))


def _without_end(path):
    path.write_text(path.read_text().replace(END, "<eos>"))


def _without_an_id(path):
    content = json.loads(path.read_text())
    content["model"]["vocab"]["red</w>"] = 10_000
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, r"not JSON at line .*fetch it again"),
        (_pointer, r"a pointer of Git LFS .* git lfs pull"),
        (lambda path: path.write_bytes(b""), "zero bytes; fetch it again"),
        (lambda path: path.write_text("[1]"), r"not a JSON object, but \[1\]"),
        (_pieces_of_others, "its type is WordPiece, not CLIP's; give a CLIP folder"),
        (_without_end, r"has no <\|endoftext\|>\. Give"),
        (_without_an_id, "must number the pieces"),
    ],
)
def test_damaged_clip_folders(clip, tmp_path, damage, message):
    _content(clip, tmp_path)
    (tmp_path / SETTINGS).unlink()
    damage(tmp_path / JSON)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{message}") as error:
        _clip(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_clip_pairs(clip, tmp_path):
    path = write_clip_pairs(tmp_path)
    _truncated(path)
    with pytest.raises(ValueError, match=r"txt\.gz: not a complete \.gz file.*fetch it again"):
        _clip(path)
    model = json.loads(_content(clip, tmp_path / "kept"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        _clip(tmp_path)
    lines = [" ".join(pair) for pair in model["merges"]]
    for content, message in (
        ("\n".join(lines)[:-2], "is not made of pieces of its vocabulary"),  # in a piece
        ("\n".join(lines[:-1]) + "\n" + lines[-1].split()[0], "not two pieces with a space"),
        ("\n".join(lines[:20]), r"no pair makes \d+ of its pieces"),  # after a line
    ):
        (tmp_path / "merges.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            _clip(tmp_path)


def test_damaged_siglip_folders(siglip, clip, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(siglip, folder)
    for damage, message in (
        (_truncated, "not SigLIP's tokenizer: no sentencepiece model"),
        (_pointer, "a pointer of Git LFS"),
        (lambda path: path.write_bytes(b"\0" * 100), "not SigLIP's tokenizer"),
    ):
        damage(folder / SENTENCEPIECE)
        with pytest.raises(ValueError, match=rf"spiece\.model: .*{message}") as error:
            _siglip(folder)
        assert "\n" not in str(error.value)
    (folder / SENTENCEPIECE).unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer there; give a SigLIP folder"):
        _siglip(folder)
    _content(clip, folder)
    (folder / SETTINGS).unlink()
    with pytest.raises(ValueError, match="type BPE, without SigLIP's pieces"):
        _siglip(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_sources_that_are_missing(kind, tmp_path):
    make = TOKENIZERS[kind].from_data
    with pytest.raises(ValueError, match=r"give a .* with --config\.model\.text\.tokenizer_files"):
        make(None, (), ())
    with pytest.raises(FileNotFoundError, match="nowhere: no such"):
        make(str(tmp_path / "nowhere"), (), ())
    with pytest.raises(FileNotFoundError, match="no tokenizer there; give a"):
        make(str(tmp_path), (), ())


def test_tokenizers_of_existing_models_are_recognized(clip, tmp_path):
    Vocabulary.build(["is red"]).save(tmp_path)
    assert read_tokenizer(tmp_path / "vocabulary.txt") == Vocabulary.build(["is red"])
    (tmp_path / "config.json").write_text(json.dumps({"model": {"text": {}}}))  # an old workdir
    assert read_tokenizer(tmp_path) == Vocabulary.build(["is red"])
    clip.save(tmp_path)
    stored = {"model": {"text": {"tokenizer": "clip"}}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_tokenizer(tmp_path) == clip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="neither a workdir nor a CLIP or SigLIP folder"):
        read_tokenizer(tmp_path)
