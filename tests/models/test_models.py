"""Parameter counts, shapes, dtypes, gradients where they could break, and clear refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped
from small import EMBED, init, one_device, random_batch, small_config

from cmap_jax import scoring
from cmap_jax.models import layers
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS
from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.image_encoder import normalize_images
from configs import default, garments

# Of the paper's sizes (ResNet-50, D = 512, FashionIQ's 3,780 words), counted by the PyTorch modules
# of tests/torch_reference.py too.
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


@pytest.mark.parametrize(("settings", "count"), PARAMETERS.items(), ids=str)
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


@pytest.mark.parametrize("variant", COMPOSERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_public_calls(variant, dtype):
    """DESIGN's calls, with shapes checked against their annotations."""
    config = small_config(variant, dtype=dtype)
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


def test_uint8_is_normalised_as_numpy_does_it():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    pictures = IMAGE_ENCODERS["resnet"].pictures
    normalised = normalize_images(jnp.asarray(images), pictures)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalised, expected, atol=1e-6)
    model, variables = init(small_config())
    np.testing.assert_allclose(
        model.apply(variables, images, method="encode_images"),
        model.apply(variables, normalised, method="encode_images"),
        atol=1e-5,
    )
    with pytest.raises(TypeError, match="not int32"):
        normalize_images(jnp.zeros((1, 32, 32, 3), jnp.int32), pictures)


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_a_text_does_not_depend_on_its_padding(encoder):
    model, variables = init(small_config(text_name=encoder))
    tokens = np.array([[1, 5, 3, 0, 0, 0], [1, 6, 7, 8, 9, 3]], np.int32)
    lengths = np.array([3, 6], np.int32)
    wide = model.apply(variables, tokens, lengths, method="encode_text")
    narrow = model.apply(variables, tokens[:1, :3], lengths[:1], method="encode_text")
    np.testing.assert_allclose(wide[:1], narrow, atol=1e-6)
    tokens[0, 3:] = 9  # what stands in the padding does not matter
    np.testing.assert_allclose(
        wide, model.apply(variables, tokens, lengths, method="encode_text"), atol=1e-6
    )


def test_released_lstm_depends_on_the_padding():
    model, variables = init(small_config(text_name="lstm", text_pool_padding=True))
    lengths = np.array([3], np.int32)
    wide = np.zeros((1, 12), np.int32)
    wide[0, :3] = (1, 5, 3)
    # A pad word that drives the states up shows what the maximum is taken over.
    table = variables["params"]["text_encoder"]["word_embedding"]
    variables["params"]["text_encoder"]["word_embedding"] = table.at[0].set(5.0)
    a, b = (model.apply(variables, t, lengths, method="encode_text") for t in (wide, wide[:, :3]))
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
@pytest.mark.parametrize("variant", ["cmap", "late_fusion", "tirg"])
def test_a_text_without_tokens_has_finite_gradients(variant, encoder):
    from cmap_jax.training.objective import objective

    config = small_config(variant, text_name=encoder)
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


def test_max_pool_gives_its_gradient_to_the_first_maximum():
    x = jnp.ones((1, 4, 4, 1))
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(x)[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4])
    assert jnp.isnan(layers.max_pool(x.at[0, 1, 1, 0].set(jnp.nan))).any()


def test_batch_norm_gradient_in_float64(x64):
    """The gradient that is written out is the one that automatic differentiation finds."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(2, 3, (4, 3, 2, 5))) for _ in range(2))
    scale, bias = jnp.asarray(rng.normal(size=(2, 5)))

    def plain(x, scale, bias):
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    y, pull_back = jax.vjp(plain, x, scale, bias)
    (ours, mean, var), ours_back = jax.vjp(
        lambda *a: layers._normalize_by_batch(*a, 1e-5), x, scale, bias
    )
    np.testing.assert_allclose(ours, y, rtol=1e-12)
    zero = jnp.zeros_like(mean)
    for a, b in zip(ours_back((dy, zero, zero)), pull_back(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose((mean, var), (x.mean((0, 1, 2)), x.var((0, 1, 2))), rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "cmapp"}, r"config\.model\.variant must be one of cmap, em_only"),
        ({"image_depth": 101}, r"image\.resnet\.depth must be one of 18, 34, 50; got 101"),
        ({"image_cross_level": "sideways"}, "down, up, none"),
        ({"text_name": "bigru"}, r"text\.name must be one of gru, lstm; got"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"embed_dim": 7}, "must be even"),
        ({"text_vocabulary_size": 0}, "vocabulary_size is not set"),
    ],
)
def test_impossible_configs_are_refused(settings, message):
    variant = settings.pop("variant", "cmap")
    with pytest.raises(ValueError, match=message):
        CMAP.from_config(small_config(variant, **settings))


def test_wrong_inputs_are_refused():
    model, variables = init(small_config())
    with pytest.raises(ValueError, match="multiples of 32"):
        model.apply(variables, np.zeros((1, 60, 64, 3), np.uint8), method="encode_images")
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
        model.apply(variables, np.zeros(3, np.int32), np.zeros(3, np.int32), method="encode_text")
