"""The CLIP and SigLIP towers: sizes, shapes, precision, and the model around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from foreign_towers import require
from jaxtyping import jaxtyped
from ml_collections import ConfigDict

from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.encoders.clip import WORDS_END
from cmap_jax.models.encoders.transformer import Attention, Block
from cmap_jax.models.encoders.vision_tower import resize_positions
from cmap_jax.models.image_encoder import CrossLevel
from cmap_jax.processing.tokenizer import Vocabulary
from configs import default

TINY = {"width": 16, "layers": 3, "heads": 2, "mlp_width": 24}


def tiny_config(family: str, variant: str = "cmap", **image) -> ConfigDict:
    """A whole config with tiny towers of a family; keyword arguments set the vision tower's."""
    config = default.get_config()
    config.model.variant = variant
    config.model.image.name = config.model.text.name = config.model.text.tokenizer = family
    config.model.text.vocabulary_size = 40
    config.model.embed_dim = 12 if family == "clip" else 16
    config.data.resize = config.data.crop = 24
    vision, text = config.model.image[family], config.model.text[family]
    vision.update({**TINY, "patch": 8, "image_size": 24, "map_blocks": (2, 1), **image})
    text.update({**TINY, "positions": 10, "projection": config.model.embed_dim})
    if family == "clip":
        vision.projection = 12
    return config


def towers(config: ConfigDict, remat: str = "none", dtype=jnp.float32, **settings) -> tuple:
    """The vision and the text tower of a config; keyword arguments change settings of both."""
    image, text = config.model.image, config.model.text
    vision = {**image[image.name], **settings}
    words = {**text[text.name], **settings}
    size, dim = text.vocabulary_size, config.model.embed_dim
    return (
        IMAGE_ENCODERS[image.name].build(vision, False, remat, dtype),
        TEXT_ENCODERS[text.name].build(words, size, dim, remat, dtype),
    )


def images_and_texts(batch: int = 2, side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised images, tokens and lengths."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    tokens = rng.integers(3, 39, (batch, 10)).astype(np.int32)
    lengths = np.linspace(4, 10, batch).astype(np.int32)
    tokens[np.arange(batch), lengths - 1] = 39
    return images, np.where(np.arange(10) < lengths[:, None], tokens, 0), lengths


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


# Changes to ViT-B/32's settings.
LARGE = {"layers": 24, "width": 1024, "heads": 16, "mlp_width": 4096, "projection": 768}
LARGE_TEXT = {"width": 768, "heads": 12, "mlp_width": 3072, "projection": 768}


@pytest.mark.parametrize(
    ("side", "vision", "text", "expected"),
    [
        (224, {}, {}, 151_277_313),
        (224, {"patch": 16}, {}, 149_620_737),
        (224, {**LARGE, "patch": 14}, LARGE_TEXT, 427_616_513),
        (336, {**LARGE, "patch": 14, "image_size": 336}, LARGE_TEXT, 427_944_193),
    ],
)
def test_parameters_of_the_published_clips(side, vision, text, expected):
    """The counts have one temperature besides the towers; 336 pixels add 320 positions of 1,024."""
    config = default.get_config()
    config.model.image.name = config.model.text.name = "clip"
    config.model.text.vocabulary_size = 49408
    config.model.image.clip.update(vision)
    config.model.text.clip.update(text)
    total, features = _shapes(config, side)
    assert total + 1 == expected
    width, grid = config.model.image.clip.width, side // config.model.image.clip.patch
    assert features["high"].shape == (2, config.model.image.clip.projection)
    assert features["mid"].shape == features["low"].shape == (2, grid, grid, width)


def test_parameters_of_the_published_siglips():
    """The base model's count is known; the others are counted by transformers, without weights."""
    transformers, torch = require("transformers"), require("torch")
    config = default.get_config()
    config.model.image.name = config.model.text.name = "siglip"
    config.model.embed_dim = 768
    for side, words, large in ((224, 32000, False), (384, 256000, False), (384, 32000, True)):
        config.model.text.vocabulary_size = words
        config.model.image.siglip.image_size = side
        sizes = {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
        if large:  # The so400m: its sides are no multiples of its patches
            sizes = {"width": 1152, "layers": 27, "heads": 16, "mlp_width": 4304}
            config.model.image.siglip.patch = 14
        for part in (config.model.image.siglip, config.model.text.siglip):
            part.update(sizes)
        config.model.text.siglip.projection = sizes["width"]
        total, features = _shapes(config, side)
        tower = {
            "hidden_size": sizes["width"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "intermediate_size": sizes["mlp_width"],
        }
        patch = config.model.image.siglip.patch
        with torch.device("meta"):
            theirs = transformers.SiglipModel(
                transformers.SiglipConfig(
                    vision_config={**tower, "image_size": side, "patch_size": patch},
                    text_config={**tower, "vocab_size": words},
                )
            )
        # Their count has the temperature and the bias of the score.
        assert total + 2 == sum(p.numel() for p in theirs.parameters())
        assert total + 2 == 203_155_970 or side == 384
        assert features["low"].shape == (2, side // patch, side // patch, sizes["width"])


def _shapes(config, side) -> tuple[int, dict]:
    """The number of parameters of both towers, and the shapes of the vision tower's results."""
    vision, text = towers(config)
    key = jax.random.key(0)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    tokens, lengths = jnp.zeros((2, 8), jnp.int32), jnp.ones(2, jnp.int32)

    def run(images):
        features, weights = vision.init_with_output(key, images, train=False)
        return features, weights, text.init(key, tokens, lengths, train=False)

    features, *weights = jax.eval_shape(run, images)
    return count(weights), features


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_shapes_are_those_of_the_annotations(family):
    config = tiny_config(family)
    for tower, inputs in zip(
        towers(config), (images_and_texts()[:1], images_and_texts()[1:]), strict=True
    ):
        kind = type(tower)
        checked = jaxtyped(typechecker=beartype)(kind.__call__)
        jax.eval_shape(
            lambda *x, tower=tower, checked=checked: tower.init_with_output(
                jax.random.key(0), *x, train=False, method=checked
            ),
            *inputs,
        )
    tokens = jnp.zeros((2, 5, 8))
    for layer, inputs in (
        (Attention(heads=2), (tokens[:, :3], tokens)),
        (
            Block(
                heads=2,
                mlp_width=4,
                activation="gelu",
                epsilon=1e-5,
                causal=True,
                out_std=0.1,
                dtype=jnp.float32,
            ),
            (tokens,),
        ),
    ):
        checked = jaxtyped(typechecker=beartype)(type(layer).__call__)
        result = jax.eval_shape(
            lambda *x, layer=layer, checked=checked: layer.init_with_output(
                jax.random.key(0), *x, method=checked
            )[0],
            *inputs,
        )
        assert result.shape == inputs[0].shape
    resize = jaxtyped(typechecker=beartype)(resize_positions)
    assert resize(jnp.zeros((9, 4)), 2, 5).shape == (10, 4)


LOOPS = [
    pytest.param("clip", False, "none", marks=pytest.mark.slow),
    pytest.param("clip", True, "blocks"),
    pytest.param("clip", True, "products", marks=pytest.mark.slow),
    pytest.param("siglip", False, "blocks", marks=pytest.mark.slow),
    pytest.param("siglip", True, "products", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "scan", "remat"), LOOPS)
def test_a_loop_and_single_blocks_are_the_same(family, scan, remat):
    """Values and gradients, with the same weights, and with activations recomputed."""
    config = tiny_config(family, layers=2)
    images, tokens, lengths = images_and_texts()
    results = []
    for is_loop, keep in ((True, "none"), (scan, remat)):
        vision, text = towers(config, keep, scan_layers=is_loop)

        @jax.jit
        def run(key, vision=vision, text=text):
            image = vision.init(key, images, train=False)
            words = text.init(key, tokens, lengths, train=False)

            def loss(weights):
                features = vision.apply(weights[0], images, train=True)
                embedded = text.apply(weights[1], tokens, lengths, train=True)
                return sum(jnp.sum(jnp.sin(x)) for x in [*features.values(), embedded])

            return jax.value_and_grad(loss)((image, words))

        results.append(run(jax.random.key(0)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), results[0], results[1]
    )


def test_rematerialization_keeps_less():
    config = tiny_config("clip", layers=8)
    images = images_and_texts(8)[0]
    kept = {}
    for remat in ("none", "products", "blocks"):
        vision, _ = towers(config, remat)
        weights = jax.eval_shape(lambda v=vision: v.init(jax.random.key(0), images, train=False))

        def residuals(weights, vision=vision):
            return jax.vjp(lambda w: vision.apply(w, images, train=True)["high"], weights)[1]

        kept[remat] = count(jax.eval_shape(residuals, weights))
    assert kept["blocks"] < kept["products"] < kept["none"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_bfloat16_has_norms_and_softmax_in_float32(family):
    config = tiny_config(family)
    images, tokens, lengths = images_and_texts()
    vision, text = towers(config)
    weights = jax.jit(lambda: vision.init(jax.random.key(0), images, train=False))()
    words = jax.jit(lambda: text.init(jax.random.key(1), tokens, lengths, train=False))()
    exact = vision.apply(weights, images, train=False)["high"]
    exact_text = text.apply(words, tokens, lengths, train=False)
    vision, text = towers(config, dtype=jnp.bfloat16)
    features = vision.apply(weights, images, train=False)
    assert features["high"].dtype == jnp.float32
    assert features["mid"].dtype == jnp.bfloat16
    rounded = text.apply(words, tokens, lengths, train=False)
    for half, full in ((features["high"], exact), (rounded, exact_text)):
        error = np.linalg.norm(half - full) / np.linalg.norm(full)
        assert 1e-5 < error < 0.03
    program = str(jax.make_jaxpr(lambda x: vision.apply(weights, x, train=False))(images))
    operations = [line for line in program.splitlines() if " = exp " in line or " = rsqrt" in line]
    assert len(operations) >= 5
    assert all(":f32[" in line for line in operations), operations


def test_the_padding_of_texts_has_no_effect():
    _, tokens, lengths = images_and_texts(4)
    for family in ("clip", "siglip"):
        for end in (2, 39) if family == "clip" else (1,):
            config = tiny_config(family)
            if family == "clip":
                config.model.text.clip.end_token = end
            _, text = towers(config)
            run = jax.jit(
                lambda *x, text=text: text.init_with_output(jax.random.key(0), *x, train=False)[0]
            )
            plain = run(tokens, lengths)
            other = np.where(np.arange(10) < lengths[:, None], tokens, 7)
            np.testing.assert_allclose(run(other, lengths), plain, atol=1e-6)
            np.testing.assert_allclose(run(tokens[:1, :4], lengths[:1]), plain[:1], atol=1e-6)
            changed = tokens.copy()
            changed[:, 0] = 8
            assert np.abs(run(changed, lengths) - plain).min(1).max() > 1e-5
            with pytest.raises(ValueError, match=r"texts have 11 tokens, and the .* 10 positions"):
                run(np.zeros((1, 11), np.int32), np.ones(1, np.int32))


def test_positions_are_resampled_as_torch_does():
    functional = require("torch.nn.functional")
    torch = require("torch")
    table = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    for rows, columns in ((5, 5), (7, 4), (2, 11)):
        grid = torch.from_numpy(table.reshape(1, 5, 5, 3)).permute(0, 3, 1, 2)
        theirs = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        expected = theirs[0].permute(1, 2, 0).reshape(-1, 3).numpy()
        np.testing.assert_allclose(resize_positions(table, rows, columns), expected, atol=1e-5)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_vector_as_the_highest_level_is_a_map_of_equal_positions(direction):
    """The interaction with a vector is that with the same vector at each position."""
    rng = np.random.default_rng(0)
    c5, c4, c3 = (
        rng.normal(size=s).astype(np.float32) for s in ((2, 6), (2, 3, 3, 4), (2, 3, 3, 4))
    )
    module = CrossLevel(direction)
    (high, mid, low), weights = module.init_with_output(jax.random.key(0), c5, c4, c3)
    np.testing.assert_array_equal(high, c5)
    everywhere = np.broadcast_to(c5[:, None, None], (2, 3, 3, 6))
    _, same_mid, same_low = module.apply(weights, everywhere, c4, c3)
    np.testing.assert_allclose(mid, same_mid, atol=1e-6)
    np.testing.assert_allclose(low, same_low, atol=1e-6)
    assert mid.shape == low.shape == (2, 3, 3, 4)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("clip", "cmap"),
        pytest.param("siglip", "cmap", marks=pytest.mark.slow),
        ("siglip", "artemis"),
        pytest.param("clip", "artemis", marks=pytest.mark.slow),
    ],
)
def test_a_model_with_the_towers(family, variant):
    """Embeddings of all levels; negative tokens count in the mean."""
    config = tiny_config(family, variant)
    model = CMAP.from_config(config)
    images, tokens, lengths = images_and_texts()
    inputs = CMAP.example_inputs(24)

    @jax.jit
    def run(images, tokens, lengths):
        variables = model.init(jax.random.key(0), **inputs)
        pyramid = model.apply(variables, images, method="encode_images")
        text = model.apply(variables, tokens, lengths, method="encode_text")
        return variables, pyramid, text

    variables, pyramid, text = run(images, tokens, lengths)
    levels = 3 if variant == "cmap" else 1
    assert pyramid.shape == (levels, 2, config.model.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(pyramid, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, atol=1e-5)
    params = variables["params"]["image_encoder"]
    assert ("interaction" in params) == (levels == 3)
    if levels == 3:
        config.model.image.cross_level = "none"
        plain = CMAP.from_config(config)
        vision, _ = towers(config)
        maps = vision.apply({"params": params["backbone"]}, images, train=False)
        expected = np.asarray(maps["mid"]).mean((1, 2)) @ params["head_mid"]["kernel"]
        expected = expected + params["head_mid"]["bias"]
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
        params = {**params}
        del params["interaction"]
        variables = {"params": {**variables["params"], "image_encoder": params}}
        ours = plain.apply(variables, images, method="encode_images")
        np.testing.assert_allclose(ours[1], expected, atol=1e-5)


def test_pixels_are_normalized_as_the_settings_say():
    config = tiny_config("clip", "artemis", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = CMAP.from_config(config)
    variables = jax.jit(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(24)))()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    normalized = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(
        model.apply(variables, pixels, method="encode_images"),
        model.apply(variables, normalized.astype(np.float32), method="encode_images"),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\] with H and W 24, not"):
        model.apply(variables, pixels[:, :16], method="encode_images")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.crop": 32}, r"crop must be 24 for this image encoder, got 32; --config\.model\.im"),
        (
            {"data.crop": 20, "model.image.clip.interpolate_positions": True},
            "crop must be a positive multiple of 8, got 20",
        ),
        ({"model.image.clip.heads": 3}, r"image\.clip\.heads must divide .*width=16, not be 3"),
        ({"model.text.clip.heads": 3}, r"text\.clip\.heads must divide"),
        ({"model.image.clip.map_blocks": (4, 1)}, r"names block 4, and there are 3 "),
        ({"model.image.clip.map_blocks": (1,)}, r"map_blocks must be a tuple of 0 or 2 numbers"),
        ({"model.image.clip.map_blocks": (0, 1)}, r"each number in .*map_blocks must be 1 or more"),
        ({"model.image.clip.map_blocks": ()}, r"scores the level mid, but .*=clip gives high alon"),
        ({"model.image.clip.patch": 32}, r"clip\.patch must not exceed .*clip\.image_size"),
        ({"model.image.clip.activation": "relu"}, r"activation must be one of quick_gelu, gelu"),
        ({"model.embed_dim": 20}, r"embed_dim must be 12, the value of .*projection, not 20"),
        ({"model.text.tokenizer": "siglip"}, r"tokenizer must be one of clip, words; got 'siglip'"),
    ],
)
def test_impossible_configs(fields, message):
    config = tiny_config("clip")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        CMAP.from_config(config)


def test_the_empty_text_is_that_of_the_tokenizer():
    """The last two ids of published sub-words, whatever the end's name; and of words."""
    empty = TEXT_ENCODERS["clip"].empty_text
    assert empty({"end_token": 2}, 49408) == empty({"end_token": 49407}, 49408) == (49406, 49407)
    words = Vocabulary.build(["is red", "has long sleeves"])
    assert list(empty({"end_token": WORDS_END}, len(words))) == words.encode("")


def test_positions_for_another_size_of_picture():
    config = tiny_config("clip", "artemis", interpolate_positions=True, map_blocks=())
    config.data.crop = config.data.resize = 32
    model = CMAP.from_config(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(32)))
    table = shapes["params"]["image_encoder"]["backbone"]["position_embedding"]
    assert table.shape == (10, 16)  # as published, whatever the pictures are
