"""Heat maps against finite differences, on planted evidence, and attention roll-out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import init, random_batch, small_config, small_trained

from cmap_jax import scoring
from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.encoders.rollout import attention_weights, roll_out
from cmap_jax.models.encoders.transformer import ENTERING, Attention
from cmap_jax.visualization.heatmaps import HeatPrograms, contributions, explain

LEVELS = ("high", "mid", "low")


def _numeric_cam(score, maps: dict, level: str) -> np.ndarray:
    """Grad-CAM of scores [B] by central differences in float64, with NumPy from there on."""
    flat = np.asarray(maps[level], np.float64)
    step = 1e-5
    moves = np.eye(flat[0].size).reshape(-1, *flat.shape[1:]) * step

    @jax.jit
    @jax.vmap
    def slope(move):
        up, down = ({**maps, level: maps[level] + sign * move} for sign in (1, -1))
        return (score(up) - score(down)) / (2 * step)

    slopes = np.asarray(slope(moves))  # a row a number of the map: [h * w * C, B]
    gradient = slopes.T.reshape(flat.shape)
    weights = gradient.mean((1, 2))
    return np.maximum((weights[:, None, None] * flat).sum(-1), 0)


def test_gradients_are_those_of_finite_differences():
    model, variables = init(small_config(image_name="cells"))
    batch = random_batch(2, dtype=np.float64)
    with jax.enable_x64(True):
        model = model.clone(dtype=jnp.float64)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        text = batch["text_tokens"], batch["text_lengths"]
        pictures = batch["reference_image"], batch["target_image"]
        heat, _ = HeatPrograms(model, strongest=2)(variables, *pictures, *text)

        def apply(*arrays, method):
            return model.apply(variables, *arrays, method=method)

        maps = [apply(images, method="image_maps") for images in pictures]
        words = apply(*text, method="encode_text")

        def parts(reference, target):  # [K, L, B]
            query = apply(apply(reference, method="embed_maps"), words, method="compose")
            scores = scoring.score_branches(query, apply(target, method="embed_maps"))
            return jnp.diagonal(scores, axis1=2, axis2=3)

        np.testing.assert_allclose(heat.target.scores, parts(*maps), atol=1e-9)
        np.testing.assert_allclose(heat.reference.scores[1], parts(*maps)[1], atol=1e-9)
        np.testing.assert_allclose(heat.reference.scores[0], parts(maps[0], maps[0])[0], atol=1e-9)
        for level, k in (("mid", 0), ("low", 1)):
            cam = _numeric_cam(lambda x, k=k: parts(maps[0], x)[k].sum(0), maps[1], level)
            np.testing.assert_allclose(heat.target.heat[level][k, 0], cam, atol=1e-8)
        cam = _numeric_cam(lambda x: parts(x, maps[1])[1].sum(0), maps[0], "low")
        np.testing.assert_allclose(heat.reference.heat["low"][1, 0], cam, atol=1e-8)
        assert heat.target.heat["low"][:, 0].max() > 0
        # The modified part does not read the reference, which is scored like a target.
        cam = _numeric_cam(lambda x: parts(maps[0], x)[0].sum(0), maps[0], "high")
        np.testing.assert_allclose(heat.reference.heat["high"][0, 0], cam, atol=1e-8)

        def strongest(target):  # the second strongest dimension of the preserved part, low level
            query = apply(apply(maps[0], method="embed_maps"), words, method="compose")
            t = apply(target, method="embed_maps")[2]
            branch = query.branches[1]
            norms = jnp.linalg.norm(branch.weight[0] * t, axis=-1, keepdims=True)
            terms = branch.numerator[2] * t / norms
            return terms[jnp.arange(2), heat.target.dimensions[1, 2, 1]]

        expected = strongest(maps[1])
        np.testing.assert_allclose(heat.target.contributions[1, 2, 1], expected, atol=1e-9)
        cam = _numeric_cam(strongest, maps[1], "low")
        np.testing.assert_allclose(heat.target.heat["low"][1, 2], cam, atol=1e-8)


def test_planted_evidence_lights_up():
    """The text asks for red, and the reference has blue; each has a region of its own."""
    model, variables = init(small_config(image_name="cells", image_cross_level="none"))
    batch = random_batch(1)
    text = batch["text_tokens"], batch["text_lengths"]
    words = model.apply(variables, *text, method="encode_text")
    rng = np.random.default_rng(0)
    blue = rng.normal(size=8)
    anything = model.apply(variables, np.ones((3, 1, 8), np.float32), words, method="compose")
    wanted = np.asarray(anything.branches[0].numerator[0, 0])
    variables = jax.tree.map(np.array, variables)
    encoder = variables["params"]["image_encoder"]
    for level in LEVELS:
        colors = encoder["backbone"][level]["kernel"]
        colors[:] = 0
        colors[0, 0] = colors[2, 1] = 1
        head = encoder[f"head_{level}"]
        head["kernel"][:2] = [wanted / np.linalg.norm(wanted), blue / np.linalg.norm(blue)]
        head["bias"][:] = rng.normal(size=8) / 100
    target, reference = np.zeros((2, 1, 64, 64, 3), np.float32)
    target[:, :8, :8, 0] = target[:, 32:40, 40:48, 2] = reference[:, 32:40, 40:48, 2] = 3
    heat, _ = HeatPrograms(model, strongest=0)(variables, reference, target, *text)
    places = {"high": ((0, 0), (1, 1)), "mid": ((0, 0), (2, 2)), "low": ((0, 0), (4, 5))}
    for level, regions in places.items():
        modified, preserved = np.asarray(heat.target.heat[level][:, 0, 0])
        assert [tuple(x) for x in np.argwhere(modified)] == [regions[0]], level
        assert [tuple(x) for x in np.argwhere(preserved)] == [regions[1]], level


def test_contributions_add_up_to_the_score():
    rng = np.random.default_rng(0)
    n, w, t = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    branches = scoring.Branch(n, w), scoring.Branch(n[:1])
    query = scoring.ComposedQuery(branches, None, ("a", "b"), LEVELS)
    terms = contributions(query, t)
    scores = np.diagonal(scoring.score_branches(query, t), axis1=2, axis2=3)
    np.testing.assert_allclose(terms.sum(-1), scores, atol=1e-5)
    assert terms.shape == (2, 3, 2, 5)


def test_without_a_target_the_reference_is_its_own():
    trained = small_trained(image_name="cells")
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (2, 70, 80, 3)).astype(np.uint8))
    heat = explain(trained, images, ["is red", "longer"], strongest=1)
    assert heat.target is None
    np.testing.assert_allclose(heat.reference.scores[1], 1, atol=1e-5)
    # The gradient of a cosine with itself would be zero.
    assert (heat.reference.heat["high"][1, 0].max((1, 2)) > 0).any()
    with pytest.raises(ValueError, match="as many texts and targets"):
        explain(trained, images, ["is red"])
    with pytest.raises(ValueError, match="strongest must not be negative"):
        explain(trained, images[:1], ["is red"], strongest=-1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_roll_out_is_a_product_of_attentions(family):
    config = small_config(image_name=family)
    _, variables = init(config)
    images = random_batch(2)["reference_image"]
    params = variables["params"]["image_encoder"]["backbone"]
    settings = config.model.image[family].to_dict()
    tower = IMAGE_ENCODERS[family].build(settings, False, "none", jnp.float32)
    _, kept = tower.apply({"params": params}, images, train=False, mutable=["intermediates"])
    (tokens,) = kept["intermediates"][ENTERING]
    rolled, last = roll_out(tower, params, tokens)
    expected, x = np.eye(tokens.shape[1]), tokens
    for layer in range(3):
        weights = jax.tree.map(lambda w, layer=layer: w[layer], params["blocks"])
        y = np.asarray(x, np.float64)
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + tower.epsilon)
        y = (y * weights["norm1"]["scale"] + weights["norm1"]["bias"]).astype(np.float32)
        seen = np.asarray(attention_weights(weights["attention"], y, y))
        if not layer:  # mixing the values by these weights gives what the tower's attention gives
            parts = weights["attention"]
            value = np.einsum("btd,dhk->bthk", y, parts["value"]["kernel"]) + parts["value"]["bias"]
            mixed = np.einsum("bhqt,bthk->bqhk", seen, value)
            out = np.einsum("bqhk,hkd->bqd", mixed, parts["out"]["kernel"]) + parts["out"]["bias"]
            own = Attention(2).apply({"params": parts}, y, y)
            np.testing.assert_allclose(out, own, atol=1e-5)
        expected = (seen.mean(1) + np.eye(tokens.shape[1])) / 2 @ expected
        x = tower.block().apply({"params": weights}, x)
    np.testing.assert_allclose(rolled, expected, atol=1e-6)
    np.testing.assert_allclose(last, x, atol=1e-5)
    patches = np.asarray(IMAGE_ENCODERS[family].patch_weights(tower, params, tokens))
    if family == "clip":
        np.testing.assert_allclose(patches, expected[:, 0, 1:], atol=1e-6)
    else:
        np.testing.assert_allclose(patches.sum(1), 1, atol=1e-5)


def test_a_tower_has_maps_and_a_roll_out():
    model, variables = init(small_config(image_name="clip"))
    batch = random_batch(2)
    inputs = batch["reference_image"], None, batch["text_tokens"], batch["text_lengths"]
    heat = HeatPrograms(model, strongest=0)(variables, *inputs)[0].reference
    assert {level: x.shape for level, x in heat.heat.items()} == {
        "mid": (2, 1, 2, 4, 4),
        "low": (2, 1, 2, 4, 4),
    }  # the high level is a vector
    assert heat.scores.shape == (2, 3, 2)
    assert heat.rollout.shape == (2, 4, 4)
    assert (heat.rollout.sum((1, 2)) < 1).all()  # the rest is the class token's
