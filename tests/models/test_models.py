"""Parameter counts, shapes, dtypes, gradients where they could break, and clear refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped
from small import EMBED, ON_FEATURES, WITH_HEADS, init, one_device, random_batch, small_config

from cmap_jax import scoring
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.image_encoder import normalize_images
from configs import default, garments

# Parameters of the paper's models (ResNet-50, D = 512, FashionIQ's 3,780 words). The PyTorch
# modules of tests/torch_reference.py have as many.
PARAMETERS = {
    ("cmap",): 43_069_937,
    ("em_only",): 42_544_625,
    ("is_only",): 42_281_969,
    ("artemis",): 27_861_489,
    ("late_fusion",): 41_756_657,
    ("text_only",): 41_756_657,
    ("image_only",): 39_765_569,
    ("tirg",): 28_651_507,
    ("cmap", "image.cross_level", "up"): 43_069_937,
    ("cmap", "image.cross_level", "none"): 28_648_945,
    ("cmap", "image.resnet.depth", 18): 15_843_057,
    ("cmap", "image.resnet.depth", 34): 25_951_217,
    ("cmap", "text.name", "lstm"): 48_168_945,
}


def _count(config) -> int:
    model = CMAP.from_config(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


# Every encoder and composer with layers of its own; shapes alone take seconds to trace.
_COUNTED = [("cmap",), ("tirg",), ("cmap", "image.resnet.depth", 18), ("cmap", "text.name", "lstm")]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        pytest.param(*item, marks=() if item[0] in _COUNTED else pytest.mark.slow)
        for item in PARAMETERS.items()
    ],
    ids=str,
)
def test_parameter_counts(settings, count):
    config = default.get_config()
    config.model.text.vocabulary_size = 3780
    config.model.variant, *other = settings
    if other:
        config.model.update_from_flattened_dict(dict([other]))
    assert _count(config) == count


def test_garments_model_is_small():
    config = garments.get_config()
    config.model.text.vocabulary_size = 80
    assert _count(config) == 1_299_793


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        *(
            ("cmap", "float32"),
            ("cmap", "bfloat16"),
            ("tirg", "float32"),
            ("image_only", "float32"),
        ),
        *(
            pytest.param(variant, dtype, marks=pytest.mark.slow)
            for variant, dtypes in {
                **dict.fromkeys(WITH_HEADS, ("float32",)),
                **dict.fromkeys(("artemis", "tirg", *ON_FEATURES), ("float32", "bfloat16")),
            }.items()
            for dtype in dtypes
            if variant != "cmap"
            if (variant, dtype) not in (("tirg", "float32"), ("image_only", "float32"))
        ),
    ],
)
def test_public_calls(variant, dtype, shallow):
    """The public calls, with shapes checked against their annotations."""
    encoder = "resnet" if dtype == "bfloat16" else "cells"
    encoder = "vectors" if variant in ON_FEATURES else encoder
    config = small_config(variant, dtype=dtype, image_name=encoder)
    model, variables = init(config)
    levels = len(model.levels)
    batch = random_batch()
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3)).astype(np.uint8)

    def call(method, *args):
        bound = getattr(CMAP, method)
        typed = jaxtyped(typechecker=beartype)(bound)
        return model.apply(variables, *args, method=typed)

    pyramid = call("encode_images", jnp.asarray(images))
    text = call(
        "encode_text", jnp.asarray(batch["text_tokens"]), jnp.asarray(batch["text_lengths"])
    )
    query = call("compose", pyramid, text)
    assert pyramid.shape == (levels, 4, EMBED)
    assert text.shape == (4, EMBED)
    assert pyramid.dtype == text.dtype == scoring.score(query, pyramid).dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    np.testing.assert_allclose(np.linalg.norm(pyramid, axis=-1), 1, rtol=1e-5)
    assert scoring.score_branches(query, pyramid).shape == (
        len(query.branch_names),
        levels,
        4,
        4,
    )
    assert (query.preservation is not None) == (variant in ("cmap", "is_only"))


def test_uint8_is_normalized_as_numpy_does_it():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    pictures = IMAGE_ENCODERS["resnet"].pictures
    normalized = normalize_images(jnp.asarray(images), pictures)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalized, expected, atol=1e-6)
    model, variables = init(small_config(image_name="cells"))
    encode = functools.partial(model.apply, variables, method="encode_images")
    own = normalize_images(jnp.asarray(images), IMAGE_ENCODERS["cells"].pictures)
    np.testing.assert_allclose(encode(images), encode(own), atol=1e-5)
    with pytest.raises(TypeError, match="not int32"):
        normalize_images(jnp.zeros((1, 32, 32, 3), jnp.int32), pictures)


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_a_text_does_not_depend_on_its_padding(encoder):
    model, variables = init(small_config(image_name="cells", text_name=encoder))
    tokens = np.array([[1, 5, 3, 0, 0, 0], [1, 6, 7, 8, 9, 3]], np.int32)
    lengths = np.array([3, 6], np.int32)
    wide = model.apply(variables, tokens, lengths, method="encode_text")
    narrow = model.apply(variables, tokens[:1, :3], lengths[:1], method="encode_text")
    np.testing.assert_allclose(wide[:1], narrow, atol=1e-6)
    tokens[0, 3:] = 9  # tokens in the padding have no effect
    np.testing.assert_allclose(
        wide, model.apply(variables, tokens, lengths, method="encode_text"), atol=1e-6
    )


def test_released_lstm_depends_on_the_padding():
    model, variables = init(
        small_config(image_name="cells", text_name="lstm", text_pool_padding=True)
    )
    lengths = np.array([3], np.int32)
    wide = np.zeros((1, 12), np.int32)
    wide[0, :3] = (1, 5, 3)
    # A padding word that raises the states shows whether the maximum is taken over the padding.
    table = variables["params"]["text_encoder"]["word_embedding"]
    variables["params"]["text_encoder"]["word_embedding"] = table.at[0].set(5.0)
    a, b = (model.apply(variables, t, lengths, method="encode_text") for t in (wide, wide[:, :3]))
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(
    ("variant", "encoder"),
    [
        ("cmap", "gru"),
        *(
            pytest.param(variant, encoder, marks=pytest.mark.slow)
            for variant in ("cmap", "late_fusion", "tirg")
            for encoder in ("gru", "lstm")
            if (variant, encoder) != ("cmap", "gru")
        ),
    ],
)
def test_a_text_without_tokens_has_finite_gradients(variant, encoder):
    from cmap_jax.training.objective import objective

    config = small_config(variant, image_name="cells", text_name=encoder)
    model, variables = init(config)
    batch = random_batch()
    batch.pop("mask")
    batch["text_lengths"][:2] = 0

    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            **batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return objective(outputs, config.loss, one_device())[0]

    text = model.apply(variables, batch["text_tokens"], batch["text_lengths"], method="encode_text")
    np.testing.assert_array_equal(text[:2], 0)
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "cmapp"}, r"config\.model\.variant must be one of cmap, em_only"),
        ({"image_depth": 101}, r"image\.resnet\.depth must be one of 18, 34, 50; got 101"),
        ({"image_cross_level": "sideways"}, '"down", "up" or "none"'),
        ({"text_name": "bigru"}, r"text\.name must be one of gru, lstm, .*; got"),
        ({"dtype": "float16"}, '"float32", "bfloat16"'),
        ({"embed_dim": 7}, "must be even"),
        ({"text_vocabulary_size": None}, "vocabulary_size is not set"),
    ],
)
def test_impossible_configs_are_refused(settings, message):
    variant = settings.pop("variant", "cmap")
    with pytest.raises(ValueError, match=message):
        CMAP.from_config(small_config(variant, **settings))


def test_wrong_inputs_are_refused(shallow):
    model, variables = init(small_config())
    with pytest.raises(ValueError, match="multiples of 32"):
        model.apply(variables, np.zeros((1, 60, 64, 3), np.uint8), method="encode_images")
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
        model.apply(variables, np.zeros(3, np.int32), np.zeros(3, np.int32), method="encode_text")
