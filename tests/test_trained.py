"""A loaded model in use: few programs, images that cannot be read, and unknown words."""

import dataclasses
import logging
import time

import compilations
import jax
import numpy as np
import pytest
from PIL import Image
from small import EMBED, init, small_config, write_workdir

import cmap_jax
from cmap_jax import scoring
from cmap_jax.encoding import BATCH, ONE_BY_ONE, BatchEncoder
from cmap_jax.models.encoders.clip import WORDS_END
from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, preprocess_image
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.trained import Trained
from cmap_jax.workdir.description import Description


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Its vocabulary is "is red longer has a no"."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return cmap_jax.load(write_workdir(folder, "folder", "folder/val"))


def _images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 30, 40, 3)).astype(np.uint8))


def _directly(trained, images) -> np.ndarray:
    pixels = np.stack([preprocess_image(image, trained.preprocessing) for image in images])
    return np.asarray(trained.model.apply(trained.variables, pixels, method="encode_images"))


def test_two_programs_serve_all_numbers_of_images(trained):
    images = _images(BATCH + 7)
    expected = _directly(trained, images)
    with compilations.counted() as seconds:
        for count in (1, 2, ONE_BY_ONE, ONE_BY_ONE + 1, BATCH - 1, BATCH, BATCH + 7):
            pyramid = trained.encode_images(images[:count])
            np.testing.assert_allclose(pyramid, expected[:, :count], atol=1e-5)
    assert len(seconds) <= 2


def test_one_program_serves_all_numbers_of_texts(trained):
    texts = ["is red", ("longer", "has a no"), "", "is " * 20] * 10
    tokens, lengths = trained.tokenizer.encode_batch(texts)
    expected = np.asarray(
        trained.model.apply(trained.variables, tokens, lengths, method="encode_text")
    )
    with compilations.counted() as seconds:
        for count in (1, 2, BATCH, BATCH + 3):
            encoded = trained.encode_text(texts[:count])
            np.testing.assert_allclose(encoded, expected[:count], atol=1e-5)
    assert len(seconds) <= 1
    assert trained.encode_text([]).shape == (0, EMBED)
    assert trained.encode_text(["is " * 50]).shape == (1, EMBED)


def test_texts_are_padded_to_few_shapes(trained):
    tokens, lengths = np.ones((BATCH + 3, 33), np.int32), np.full(BATCH + 3, 33, np.int32)
    for text_width, width in ((32, 64), (77, 77), (None, 33)):
        encoder = BatchEncoder(trained.model, text_width=text_width)
        padded, counts = encoder._pad_texts(tokens, lengths, slice(BATCH, 2 * BATCH))
        assert padded.shape == (BATCH, width)
        assert (padded[:3, :33] == 1).all()
        assert padded.sum() == 3 * 33
        assert counts.tolist() == [33] * 3 + [0] * (BATCH - 3)


def test_all_widths_of_texts_are_known_beforehand(trained):
    for text_width, limit, widths in (
        (32, None, [32, 64, 128]),
        (32, 77, [32, 64, 77]),
        (64, 64, [64]),
        (None, None, [*range(1, 129)]),
    ):
        encoder = BatchEncoder(trained.model, text_width=text_width, text_limit=limit)
        assert encoder.widths(128) == widths


def test_references_are_encoded_in_batches_of_a_given_size(trained):
    images = _images(5)
    expected = _directly(trained, images)
    for size in (None, 2, 8):
        pyramid = trained.encode_references(images, size)
        np.testing.assert_allclose(pyramid, expected, atol=1e-5)


def test_a_model_says_what_it_is(trained):
    count = sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
    assert repr(trained) == (
        "Trained(variant='cmap', step=0, protocol='folder/val', levels=3, "
        f"embed_dim={EMBED}, image_size=64, parameters={count})"
    )


def test_the_fingerprint_changes_with_whatever_changes_embeddings(trained):
    again = cmap_jax.load(trained.workdir)
    assert trained.fingerprint == again.fingerprint

    def changed(change) -> str:
        other = cmap_jax.load(trained.workdir)
        change(other)
        return other.fingerprint

    def scale(other):
        leaves, tree = jax.tree.flatten(other.variables)
        leaves[-1] = np.nextafter(np.asarray(leaves[-1]), np.float32(np.inf))
        other.variables = jax.tree.unflatten(tree, leaves)

    def read_upright(other):
        other.preprocessing = dataclasses.replace(other.preprocessing, read_as="upright")

    def set_field(name, value):
        return lambda other: other.config.model.update({name: value})

    others = [scale, read_upright, set_field("variant", "em_only")]
    others.append(lambda other: other.config.model.image.cells.update({"width": 7}))
    others.append(set_field("dtype", "bfloat16"))

    def exchange_two_words(other):
        *first, one, two = other.tokenizer.words
        other.tokenizer = Vocabulary([*first, two, one])

    others.append(exchange_two_words)
    assert len({trained.fingerprint, *map(changed, others)}) == 7
    # Where data lie and how the model was trained change nothing.
    assert changed(set_field("remat", "blocks")) == trained.fingerprint
    moved = lambda other: other.config.model.image.update({"init_from": "x.pth"})  # noqa: E731
    assert changed(moved) == trained.fingerprint


def test_one_text_is_not_a_sequence_of_texts(trained):
    with pytest.raises(TypeError, match="sequence of texts"):
        trained.encode_text("is red")
    with pytest.raises(TypeError, match="sequence of texts"):
        trained.compose(_images(2), "is")


def test_composed_queries_are_the_models(trained):
    images, texts = _images(BATCH + 2), ["is red", "longer"] * (BATCH // 2 + 1)
    expected = trained.model.apply(
        trained.variables, _directly(trained, images), trained.encode_text(texts), method="compose"
    )
    query = trained.compose(images, texts)
    gallery = trained.encode_images(images)
    np.testing.assert_allclose(
        scoring.score(query, gallery), scoring.score(expected, gallery), atol=1e-4
    )
    with compilations.counted() as seconds:
        trained.compose(images[:7], texts[:7])
    assert not seconds
    with pytest.raises(ValueError, match="7 images, but 6 texts"):
        trained.compose(images[:7], texts[:6])


def test_all_unreadable_images_are_listed_at_once(trained, tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(_images(1)[0]).save(good)
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"GIF")
    images = [good, broken, *_images(BATCH), gone, good]
    with pytest.raises(ImageReadError) as caught:
        trained.encode_images(images)
    lines = str(caught.value).splitlines()
    assert "2 of 36 images cannot be read" in lines[0]
    assert 'on_error="skip"' in lines[0]
    assert lines[1].strip().startswith(f"image 1: {broken}: not an image")
    assert lines[2].strip() == f"image {BATCH + 2}: {gone}: missing"
    assert len(lines) == 3

    found = trained.encode_images(images, on_error="skip")
    readable = [image for i, image in enumerate(images) if i not in (1, BATCH + 2)]
    assert found.kept.tolist() == [0, *range(2, BATCH + 2), BATCH + 3]
    assert list(found.skipped) == [1, BATCH + 2]
    assert found.skipped[BATCH + 2] == f"{gone}: missing"
    np.testing.assert_allclose(found.pyramid, trained.encode_images(readable), atol=1e-6)

    nothing_wrong = trained.encode_images([good], on_error="skip")
    assert nothing_wrong.skipped == {}
    assert nothing_wrong.kept.tolist() == [0]
    with pytest.raises(ImageReadError, match=r"gone\.jpg: missing"):
        trained.encode_images([gone], on_error="skip")
    with pytest.raises(ValueError, match="not 'ignore'"):
        trained.encode_images([good], on_error="ignore")


def test_a_long_list_of_unreadable_images_is_cut(trained, tmp_path):
    with pytest.raises(ImageReadError, match="and 5 more") as caught:
        trained.encode_images([tmp_path / f"{i}.jpg" for i in range(25)])
    assert len(str(caught.value).splitlines()) == 22


def _warnings(caplog, trained, texts) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained.encode_text(texts)
    return [record.getMessage() for record in caplog.records]


def test_unknown_words_are_named_once_a_call(trained, caplog):
    texts = ["is redd", ("has a zebra", "is redd and lnger"), "no redd"]
    (warning,) = _warnings(caplog, trained, texts)
    # The most frequent first, each with the nearest that is known.
    assert warning.endswith('if any: "redd": red, "zebra", "and", "lnger": longer')
    assert len(_warnings(caplog, trained, texts)) == 1  # the next call says it again
    assert _warnings(caplog, trained, ["is red", ("is longer", ""), ""]) == []


def test_many_unknown_words_are_counted(trained, caplog):
    (warning,) = _warnings(caplog, trained, [" ".join(f"qx{'z' * i}" for i in range(1, 14))])
    assert warning.count('"qxz') == 10
    assert warning.endswith(", and 3 more")


def test_texts_that_lose_all_words_are_named(trained, caplog):
    (warning,) = _warnings(caplog, trained, ["红色", ("is red", "!")])
    assert warning == (
        "no word is left of 2 texts, such as '红色': only the letters a to z are read"
    )


def test_the_nearest_of_many_words_is_found_quickly():
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = {"".join(rng.choice(letters, rng.integers(3, 12))) for _ in range(5000)}
    vocabulary = Vocabulary.build([*sorted(words), "sleeveless"])
    started = time.process_time()
    assert vocabulary.nearest("sleevless") == "sleeveless"
    assert vocabulary.nearest("qqqqqqqqqqqqqqq") is None
    assert time.process_time() - started < 1


@pytest.mark.slow
def test_texts_are_not_padded_beyond_the_positions_of_a_tower():
    """Texts of 65 to 77 tokens fit a CLIP; padded to a power of two they would not."""
    vocabulary = Vocabulary.build(["is red longer"])
    fields = {"text_tokenizer": "words", "text_end_token": WORDS_END}
    config = small_config(image_name="clip", text_vocabulary_size=len(vocabulary), **fields)
    description = Description(config, vocabulary, ImagePreprocessing(resize=72, crop=64), (), {})
    trained = Trained(description, *init(config), 0)
    ends = [("red " * 66 + end).strip() for end in ("", "longer")]
    one, both = trained.encode_text(ends[:1]), trained.encode_text(ends)
    np.testing.assert_allclose(both[0], one[0], atol=1e-6)
    assert np.abs(both[1] - both[0]).max() > 1e-4
