"""Methods that compose the encoders' own features: `sum` and `magiclens`."""

import sys
import types

import jax
import jax.numpy as jnp
import magiclens_reference
import numpy as np
import pytest
from small import EMBED, init, one_device, random_batch, small_config

from cmap_jax import scoring
from cmap_jax.encoding import EncodePrograms
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS
from cmap_jax.models.feature_sum import FeatureSum
from cmap_jax.training.gradients import make_gradient_function


def _model(variant: str, **fields):
    config = small_config(variant, image_name="vectors", **fields)
    return config, *init(config)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _features(model, variables, batch) -> tuple[np.ndarray, np.ndarray]:
    """The encoders' features of references and texts, [B, D] each."""
    pictures = model.apply(variables, batch["reference_image"], method="encode_references")
    text = model.apply(variables, batch["text_tokens"], batch["text_lengths"], method="encode_text")
    return np.asarray(pictures[0], np.float64), np.asarray(text, np.float64)


def _tower(params: dict, images: np.ndarray) -> np.ndarray:
    """The stand-in's projection in NumPy, [B, D]."""
    batch, height, width, _ = images.shape
    cells = images.reshape(batch, 4, height // 4, 4, width // 4, 3).mean((2, 4))
    projection = params["image_encoder"]["backbone"]["projection"]
    return cells.reshape(batch, -1) @ projection["kernel"] + projection["bias"]


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("normalize", [True, False])
def test_sum_is_numpys(normalize, weight, x64):
    config = small_config("sum", image_name="vectors", dtype="float64")
    config.model.sum.update(text_weight=weight, normalize=normalize)
    model, variables = init(config)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    batch = random_batch(dtype=np.float64)
    pictures, text = _features(model, variables, batch)
    np.testing.assert_allclose(
        pictures, _tower(variables["params"], batch["reference_image"]), rtol=1e-9
    )
    assert set(variables["params"]) == {"image_encoder", "text_encoder", "logit_scale"}
    assert np.abs(np.linalg.norm(text, axis=-1) - 1).max() > 0.1  # not normalised
    parts = (_unit(pictures), _unit(text)) if normalize else (pictures, text)
    query = model.apply(variables, pictures[None], text, method="compose")
    np.testing.assert_allclose(
        query.branches[0].numerator[0], _unit(parts[0] + weight * parts[1]), rtol=1e-9
    )
    gallery = model.apply(variables, batch["target_image"], method="encode_images")
    expected = _unit(_tower(variables["params"], batch["target_image"]))
    np.testing.assert_allclose(gallery[0], expected, rtol=1e-9)
    for half, (image, words) in {"picture": (pictures, None), "text": (None, text)}.items():
        image = None if image is None else image[None]
        alone = model.apply(variables, image, words, method="compose").branches[0].numerator[0]
        if half == "picture":
            np.testing.assert_allclose(alone, _unit(pictures), rtol=1e-9)
        elif weight:
            np.testing.assert_allclose(alone, _unit(text), rtol=1e-9)


def test_magiclens_is_numpys(x64):
    """The composer and the gallery's embedding against a second assembly, in float64."""
    _, model, variables = _model("magiclens", dtype="float64")
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape), variables)
    batch = random_batch(dtype=np.float64)
    pictures, text = _features(model, variables, batch)
    params = magiclens_reference.to_released(variables["params"]["composer"])
    query = model.apply(variables, pictures[None], text, method="compose")
    expected = magiclens_reference.embed(params, pictures, text)
    np.testing.assert_allclose(query.branches[0].numerator[0], expected, atol=1e-9)

    gallery = model.apply(variables, batch["reference_image"], method="encode_images")
    words = variables["params"]["text_encoder"]["words"]["embedding"]
    empty = np.broadcast_to(words[1] + words[3], text.shape)  # <start> <end>
    expected = magiclens_reference.embed(params, pictures, empty)
    np.testing.assert_allclose(gallery[0], expected, atol=1e-9)
    alone = model.apply(variables, pictures[None], None, method="compose")
    np.testing.assert_allclose(alone.branches[0].numerator, gallery, atol=1e-12)


def test_logits_are_capped(x64):
    """Features of large norm reach the cap, where attention no longer follows their scale."""
    _, _, variables = _model("magiclens", dtype="float64")
    rng = np.random.default_rng(1)
    composer = jax.tree.map(lambda x: rng.normal(0, 3, x.shape), variables["params"]["composer"])
    module = COMPOSERS["magiclens"].build(
        settings={"layers": 2, "heads": 2}, dtype=jnp.dtype("float64")
    )
    pictures, text = rng.normal(0, 9, (2, 3, EMBED))
    query = module.apply({"params": composer}, pictures[None], text, train=False)
    expected = magiclens_reference.embed(magiclens_reference.to_released(composer), pictures, text)
    np.testing.assert_allclose(query.branches[0].numerator[0], expected, atol=1e-9)


@pytest.mark.slow
def test_in_float32_and_bfloat16():
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 0.05)):
        _, model, variables = _model("magiclens", dtype=dtype)
        batch = random_batch()
        pictures, text = _features(model, variables, batch)
        params = magiclens_reference.to_released(variables["params"]["composer"])
        query = model.apply(
            variables,
            jnp.asarray(pictures[None], jnp.float32),
            jnp.asarray(text, jnp.float32),
            method="compose",
        )
        expected = magiclens_reference.embed(params, pictures, text)
        assert query.branches[0].numerator.dtype == jnp.float32
        np.testing.assert_allclose(query.branches[0].numerator[0], expected, atol=tolerance)


def test_references_and_galleries_in_one_program():
    """Images are encoded once; methods with heads keep one array for both."""
    _, model, variables = _model("magiclens")
    images = random_batch()["reference_image"]
    both, rows = EncodePrograms(model).encode_both(variables, images, {"mask": np.ones(4, bool)})
    assert both.for_composer is both.references
    for name, method in (("gallery", "encode_images"), ("references", "encode_references")):
        expected = model.apply(variables, images, method=method)
        np.testing.assert_allclose(getattr(both, name), expected, atol=1e-6)
    assert rows["mask"].all()
    assert np.abs(both.gallery - both.references).max() > 0.01

    model, variables = init(small_config(image_name="cells"))
    programs = EncodePrograms(model)
    both, _ = programs.encode_both(variables, images, {})
    assert both.references is None
    assert both.for_composer is both.gallery
    np.testing.assert_array_equal(programs.encode_references(variables, images), both.gallery)


@pytest.mark.parametrize("variant", ["sum", pytest.param("magiclens", marks=pytest.mark.slow)])
def test_micro_batches_have_the_gradient_of_the_whole_batch(variant):
    """The gallery's embedding of a target moves the composer's parameters too."""
    config, model, variables = _model(variant)
    batch = {name: jnp.asarray(x) for name, x in random_batch(8).items()}
    key = jax.random.key(0)
    gradients = {}
    for micro in (8, 4):
        config.train.micro_batch_size = micro
        step = jax.jit(make_gradient_function(model, config, one_device()))
        gradients[micro], terms, _ = step(variables["params"], {}, batch, key)
        assert np.isfinite(terms["loss/total"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[8], gradients[4]
    )
    for part in ("composer", "image_encoder", "text_encoder"):
        if part in variables["params"]:
            assert all(np.any(x) for x in jax.tree.leaves(gradients[8][part])), part


@pytest.mark.slow
def test_targets_alone_train_the_composer():
    _, model, variables = _model("magiclens")
    batch = random_batch()

    def gallery(params):
        embedded = model.apply({"params": params}, batch["target_image"], method="encode_images")
        return embedded[0, 0, 0]

    gradients = jax.grad(gallery)(variables["params"])
    assert np.any(gradients["composer"]["pooling_query"])
    assert np.any(gradients["text_encoder"]["words"]["embedding"])


@pytest.mark.parametrize(
    ("variant", "has_image", "has_text"),
    [
        ("cmap", True, False),
        ("cmap", False, True),
        ("magiclens", False, True),
        ("image_only", False, True),
        ("text_only", True, False),
        ("sum", False, False),
    ],
)
def test_halves_that_a_method_needs(variant, has_image, has_text):
    image = "vectors" if COMPOSERS[variant].on_features else "cells"
    model, variables = init(small_config(variant, image_name=image))
    pyramid = np.ones((len(model.levels), 2, EMBED), np.float32) if has_image else None
    text = np.ones((2, EMBED), np.float32) if has_text else None
    with pytest.raises(ValueError, match=r"a query (without|needs)"):
        model.apply(variables, pyramid, text, method="compose")


def test_a_plug_in_may_compose_features(monkeypatch):
    class Own(FeatureSum):
        on_features = True
        optional = ("text",)

    module = types.ModuleType("own_package")
    module.Own = Own
    monkeypatch.setitem(sys.modules, "own_package", module)
    model, variables = init(small_config("own_package:Own", image_name="vectors"))
    assert model.references_differ
    images = random_batch()["reference_image"]
    pictures = model.apply(variables, images, method="encode_references")
    gallery = model.apply(variables, images, method="encode_images")
    np.testing.assert_allclose(gallery, _unit(np.asarray(pictures)), atol=1e-6)
    with pytest.raises(ValueError, match="a query without images"):
        model.apply(variables, None, gallery[0], method="compose")


@pytest.mark.parametrize("variant", ["image_only", "text_only"])
def test_baselines_need_their_own_half_alone(variant):
    model, variables = init(small_config(variant, image_name="cells"))
    pyramid = np.full((3, 2, EMBED), 0.5, np.float32)
    text = np.full((2, EMBED), 0.25, np.float32)
    whole = model.apply(variables, pyramid, text, method="compose")
    halves = (pyramid, None) if variant == "image_only" else (None, text)
    half = model.apply(variables, *halves, method="compose")
    gallery = np.random.default_rng(0).normal(size=(3, 5, EMBED)).astype(np.float32)
    np.testing.assert_array_equal(scoring.score(half, gallery), scoring.score(whole, gallery))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_name": "resnet"}, "name=resnet has none; choose .*vectors"),
        ({"embed_dim": 6}, "embed_dim must be 8, the width that .*vectors projects to, not 6"),
        ({"text_name": "gru"}, "embeds the empty text, .*gru has none of; choose .*bag"),
        (
            {"magiclens": {"layers": 4, "heads": 3}},
            r"heads=3 must divide config\.model\.embed_dim=8",
        ),
        ({"magiclens": {"layers": 4, "heads": 0}}, r"model\.magiclens\.heads must be 1 or more"),
    ],
)
def test_encoders_without_features_are_refused(fields, message):
    config = small_config("magiclens", image_name="vectors")
    for name, value in fields.items():
        part, _, field = name.partition("_")
        if part == "magiclens":
            config.model.magiclens.update(value)
        elif part in ("image", "text"):
            config.model[part][field] = value
        else:
            config.model[name] = value
    with pytest.raises(ValueError, match=message):
        CMAP.from_config(config)
