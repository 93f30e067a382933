"""Features in place of pixels: the same numbers, whose they are, and what cannot be precomputed."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from small import init, one_device, random_batch, small_config

from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import IMAGE_ENCODERS, image_settings
from cmap_jax.models.image_encoder import ImageEncoder
from cmap_jax.training.frozen_encoder import (
    FrozenEncoder,
    check_cacheable,
    start_from_features,
)
from cmap_jax.training.gradients import make_gradient_function
from cmap_jax.training.initial_weights import InitialWeights, apply_initial_weights
from cmap_jax.workdir.fingerprint import digest


def _config(variant="cmap", image_name="cells", **model):
    return small_config(variant, image_name=image_name, image_frozen=True, **model)


def _features(model, variables, images):
    module = ImageEncoder(**model.image, dtype=model.dtype)
    parts = {c: tree["image_encoder"] for c, tree in variables.items() if "image_encoder" in tree}
    return module.apply(parts, images, train=False, method="features")


@pytest.mark.parametrize(
    ("variant", "cross_level", "shapes"),
    [
        ("cmap", "down", {"high": (2, 2, 6), "mid": (4, 4, 6), "low": (8, 8, 6)}),
        ("cmap", "none", {"high": (6,), "mid": (6,), "low": (6,)}),
        pytest.param("tirg", "down", {"high": (6,)}, marks=pytest.mark.slow),
    ],
)
def test_a_model_takes_features_or_pixels(variant, cross_level, shapes):
    """Maps where the levels interact, else pooled vectors."""
    config = _config(variant, image_cross_level=cross_level)
    model, variables = init(config)
    images = random_batch()["target_image"]
    features = _features(model, variables, images)
    found = {level: x.shape[1:] for level, x in features.items()}
    assert found == FrozenEncoder.from_variables(config, variables).levels == shapes
    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode_images"))
    expected = encode(variables, images)
    np.testing.assert_allclose(encode(variables, features), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_and_statistics_are_those_of_pixels(x64):
    """The composer has batch statistics, which training updates; the backbone's stay."""
    config = _config("tirg", dtype="float64")
    model, variables = init(config)
    variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
    batch = random_batch(dtype=np.float64)
    precomputed = {
        name: _features(model, variables, batch[name])
        for name in ("reference_image", "target_image")
    }
    gradients_of = jax.jit(make_gradient_function(model, config, one_device()))
    state = variables["params"], variables["batch_stats"]
    expected = gradients_of(*state, batch, jax.random.key(0))
    ours = gradients_of(*state, batch | precomputed, jax.random.key(0))
    assert not any(np.any(x) for x in jax.tree.leaves(ours[0]["image_encoder"].pop("backbone")))
    expected[0]["image_encoder"].pop("backbone")  # the optimiser ignores it
    assert jax.tree.structure(expected) == jax.tree.structure(ours)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state[1], ours[2])
    assert jax.tree.all(changed["composer"])
    assert not jax.tree.reduce(lambda a, b: a or b, changed["image_encoder"])


@pytest.mark.slow
def test_micro_batches_of_features(x64):
    config = _config(image_cross_level="none", dtype="float64")
    model, variables = init(config)
    variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
    batch = random_batch(8, dtype=np.float64)
    for name in ("reference_image", "target_image"):
        batch[name] = _features(model, variables, batch[name])
    results = []
    for size in (None, 4):
        config.train.micro_batch_size = size
        gradients_of = jax.jit(make_gradient_function(model, config, one_device()))
        arguments = variables["params"], variables["batch_stats"], batch, jax.random.key(0)
        results.append(gradients_of(*arguments))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_stored_dtypes_are_computed_with_in_the_models(dtype):
    config = _config()
    model, variables = init(config)
    features = _features(model, variables, random_batch()["target_image"])
    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode_images"))
    expected = encode(variables, features)
    stored = jax.tree.map(lambda x: x.astype(dtype), features)
    ours = encode(variables, stored)
    assert ours.dtype == np.float32
    error = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 0}[dtype]
    np.testing.assert_allclose(ours, expected, atol=error)
    # The stored numbers are rounded, and nothing else is.
    widened = jax.tree.map(lambda x: x.astype(np.float32), stored)
    np.testing.assert_array_equal(ours, encode(variables, widened))


def test_random_weights_are_those_of_the_whole_model():
    """A run without features and one with them start from the same backbone."""
    config = _config()
    _, variables = init(config, seed=config.seed)
    encoder = FrozenEncoder.from_initial(config, InitialWeights())
    expected = {c: tree["image_encoder"]["backbone"] for c, tree in variables.items()}
    assert encoder.about["weights"] == digest(expected)
    config.seed = 1
    other = FrozenEncoder.from_initial(config, InitialWeights())
    assert other.about["weights"] != encoder.about["weights"]


def test_weights_are_those_that_a_run_would_start_from():
    config = _config()
    _, variables = init(config, seed=3)
    backbone = {c: tree["image_encoder"]["backbone"] for c, tree in variables.items()}
    whole = FrozenEncoder.from_initial(config, InitialWeights(variables=variables))
    image = {c: {"backbone": jax.tree.map(np.asarray, tree)} for c, tree in backbone.items()}
    pretrained = FrozenEncoder.from_initial(config, InitialWeights(image=image))
    assert whole.about == pretrained.about == FrozenEncoder.from_variables(config, variables).about
    assert whole.about == {
        "name": "cells",
        "settings": {"width": 6},
        "dtype": "float32",
        "weights": digest(backbone),
    }


def _files(encoder):
    description = types.SimpleNamespace(encoder=encoder.about, levels=encoder.levels)
    return types.SimpleNamespace(description=description, directory="features")


def test_what_is_known_of_an_encoder_is_the_same_from_a_file():
    """A tower's settings have tuples, which JSON does not keep."""
    config = small_config(image_frozen=True)
    config.model.image.name = "clip"
    sizes = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 8, "patch": 32, "image_size": 64}
    config.model.image.clip.update(sizes, map_blocks=(2, 1), projection=4)
    inputs = CMAP.example_inputs(config.data.crop)
    shapes = jax.eval_shape(lambda: CMAP.from_config(config).init(jax.random.key(0), **inputs))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    encoder = FrozenEncoder.from_variables(config, variables)
    stored = json.loads(json.dumps({"about": encoder.about, "levels": encoder.levels}))
    encoder.check_same(stored["about"], stored["levels"], "features")


@pytest.mark.slow
def test_a_run_takes_the_backbone_of_its_features():
    config = _config()
    encoder = FrozenEncoder.from_initial(config, InitialWeights())
    initial = start_from_features(config, InitialWeights(), _files(encoder))
    again = start_from_features(config, initial, _files(encoder))
    _, variables = init(config, seed=5)
    applied = apply_initial_weights(again, variables)
    assert FrozenEncoder.from_variables(config, applied).about == encoder.about
    head = applied["params"]["image_encoder"]["head_high"]["kernel"]
    np.testing.assert_array_equal(head, variables["params"]["image_encoder"]["head_high"]["kernel"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, r"another image encoder; its weights is \w+, and this model's is \w+; start"),
        ({"image_width": 7}, "its width is 6, and this model's is 7"),
        (
            {"variant": "artemis", "image_name": "vectors"},
            "its name is cells, and this model's is vectors",
        ),
        ({"dtype": "bfloat16"}, "its dtype is float32, and this model's is bfloat16"),
    ],
)
def test_features_of_another_encoder_are_refused(fields, message):
    encoder = FrozenEncoder.from_initial(_config(), InitialWeights())
    seed = fields.pop("seed", 0)
    other = _config(**fields, image_frozen_batch_norm="running")
    other.seed = seed
    with pytest.raises(ValueError, match=f"^config.data.features: features .*{message}"):
        start_from_features(other, InitialWeights(), _files(encoder))


def test_vectors_are_refused_where_maps_are_read():
    encoder = FrozenEncoder.from_initial(_config(image_cross_level="none"), InitialWeights())
    message = "features holds high 6, mid 6, low 6, and this model reads high 2x2x6, mid 4x4x6, low"
    with pytest.raises(ValueError, match=message):
        start_from_features(_config(), InitialWeights(), _files(encoder))


@pytest.mark.parametrize("cross_level", ["down", "none"])
def test_fewer_levels_than_are_stored_may_be_read(cross_level):
    """A map in place of a vector, too: the model pools it."""
    encoder = FrozenEncoder.from_initial(_config(image_cross_level=cross_level), InitialWeights())
    config = _config("artemis")
    start_from_features(config, InitialWeights(), _files(encoder))
    own = FrozenEncoder.from_initial(config, InitialWeights())
    images = jax.random.randint(jax.random.key(0), (2, 64, 64, 3), 0, 256).astype(np.uint8)
    stored, expected = (e.features(e.weights, images) for e in (encoder, own))
    model, variables = init(config)
    pyramids = [
        model.apply(variables, features, method="encode_images") for features in (stored, expected)
    ]
    np.testing.assert_allclose(*pyramids, atol=1e-6)


def test_what_changes_in_training_cannot_be_precomputed(monkeypatch):
    config = small_config(image_frozen=True)
    with pytest.raises(
        ValueError, match=r"cannot be precomputed: in training .*resnet\.frozen_batch_norm=running"
    ):
        check_cacheable(config)
    config.model.image.resnet.frozen_batch_norm = "running"
    check_cacheable(config)
    config.model.image.frozen = False
    with pytest.raises(ValueError, match=r"frozen=False trains the backbone.*image\.frozen=true"):
        check_cacheable(config)
    config = _config()
    partly = dataclasses.replace(IMAGE_ENCODERS["cells"], frozen=("backbone_stem",))
    monkeypatch.setitem(IMAGE_ENCODERS, "cells", partly)
    with pytest.raises(ValueError, match=r"image\.name=cells freezes backbone_stem alone"):
        check_cacheable(config)


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_encoder_that_says_it_is_steady_computes_the_same_in_training(name):
    """The traced programs are equal: no batch statistics, no dropout, nothing updated."""
    config = small_config("tirg", image_name=name, image_frozen=True)
    settings = image_settings(config.model)
    if IMAGE_ENCODERS[name].why_unsteady(settings):
        config.model.image[name].frozen_batch_norm = "running"
    if "image_size" in settings:
        config.model.image[name].image_size = config.data.crop
    model = CMAP.from_config(config)
    module = ImageEncoder(**model.image, dtype=model.dtype)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False, method="features"), image
    )

    def program(train):
        run = lambda v, x: module.apply(  # noqa: E731
            v,
            x,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
            method="features",
        )
        return str(jax.make_jaxpr(run)(variables, image))

    assert program(True) == program(False)
    if name == "resnet":  # the comparison would see it
        config.model.image.resnet.frozen_batch_norm = "batch"
        model = CMAP.from_config(config)
        module = ImageEncoder(**model.image, dtype=model.dtype)
        assert program(True) != program(False)
