"""Gradients of a batch that is encoded in parts, and of encoders that keep less."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import EMBED, VOCABULARY, one_device, random_batch, small_config

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP, TrainingOutputs
from cmap_jax.models.composers import modified_branch, preserved_branch
from cmap_jax.models.encoders import TEXT_ENCODERS
from cmap_jax.models.rematerialization import Remat
from cmap_jax.scoring import ComposedQuery, PreservationInputs
from cmap_jax.training.gradients import _join, _split, make_gradient_function
from cmap_jax.training.objective import objective

pytestmark = pytest.mark.usefixtures("shallow_module")


def _setup(config, dtype=np.float64, rows=8):
    """A model's variables and a batch, in one precision."""
    model = CMAP.from_config(config)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )()
    variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
    batch = random_batch(rows, seed=1, dtype=dtype)
    if "batch_stats" not in variables:
        return model, variables["params"], {}, batch
    # Running statistics that normalise: with fresh ones all embeddings are alike.
    _, updates = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=True, method="encode_images")
    )(variables, batch["reference_image"])
    stats = jax.tree.map(
        lambda new, old: (new - 0.9 * old) / 0.1, updates["batch_stats"], variables["batch_stats"]
    )
    return model, variables["params"], stats, batch


def _gradients(config, mesh=None, rows=8, dtype=np.float64):
    mesh = mesh or one_device()
    model, params, stats, batch = _setup(config, dtype, rows)
    batch = sharding.place_batch(batch, mesh)
    function = jax.jit(make_gradient_function(model, config, mesh))
    return function(params, stats, batch, jax.random.key(1))


def _assert_equal(found, expected, tolerance=1e-6, floor=1e-12):
    """Compare by the norm of each tensor, or by ``floor`` where the norm is smaller."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)  # they may lie on other devices
        difference = np.linalg.norm(a - b) / max(np.linalg.norm(a), floor)
        assert difference < tolerance, (jax.tree_util.keystr(path), difference)


def _with_running_norm(from_config):
    def build(cls, config):
        model = from_config(cls, config)
        return model.clone(image={**model.image, "frozen": True})

    return build


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_parts_give_the_whole_batch_s_gradient(devices, x64, monkeypatch):
    """To 1e-6 in float64, through a trained backbone; its batch-norm made to use running ones."""
    config = small_config(image_name="cells", dtype="float64")
    build = classmethod(_with_running_norm(CMAP.from_config.__func__))
    monkeypatch.setattr(CMAP, "from_config", build)
    whole = _gradients(config)
    assert np.abs(whole[0]["image_encoder"]["backbone"]["low"]["kernel"]).max() > 0
    config.train.micro_batch_size = 4
    mesh = sharding.make_mesh(jax.devices()[:devices])
    for found, expected in zip(_gradients(config, mesh), whole, strict=True):
        _assert_equal(found, expected)


@pytest.mark.slow
def test_parts_of_a_clip_give_the_whole_batch_s_gradient(x64):
    """With nothing changed, since towers have no batch statistics; their softmax is float32."""
    config = small_config(image_name="clip", dtype="float64")
    whole = _gradients(config)
    config.train.micro_batch_size = 4
    mesh = sharding.make_mesh(jax.devices()[:2])
    for found, expected in zip(_gradients(config, mesh), whole, strict=True):
        _assert_equal(found, expected, floor=0.1)


@pytest.mark.slow
def test_gradients_of_a_clip_in_bfloat16():
    """They are float32, as the parameters are, and near those of a model in float32."""
    half, full = (
        _gradients(small_config(image_name="clip", dtype=dtype), dtype=np.float32)[0]
        for dtype in ("bfloat16", "float32")
    )
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (half, full))
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.1


@pytest.mark.slow
def test_parts_of_a_frozen_backbone_and_a_composer_with_batch_norm(x64):
    config = small_config("tirg", dtype="float64")
    config.model.image.frozen = True
    config.model.image.resnet.frozen_batch_norm = "running"
    whole = _gradients(config)
    config.train.micro_batch_size = 2
    for found, expected in zip(_gradients(config), whole, strict=True):
        _assert_equal(found, expected)
    assert "gate_norm" in whole[2]["composer"]


@pytest.mark.slow
def test_parts_with_statistics_of_their_own(x64):
    """By batch statistics each micro-batch is normalised by itself: as groups of the whole are."""
    config = small_config(dtype="float64")
    config.model.image.resnet.batch_norm_groups = 4
    grouped = _gradients(config)
    config.model.image.resnet.batch_norm_groups = 1
    config.train.micro_batch_size = 2
    _assert_equal(_gradients(config)[0], grouped[0])


def test_a_micro_batch_must_divide_the_batch():
    config = small_config()
    config.train.micro_batch_size = 3
    with pytest.raises(ValueError, match="micro_batch_size=3 does not divide the batch of 8"):
        _gradients(config, dtype=np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("devices", [1, 4])
def test_parts_are_joined_again_where_they_were(axis, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    x = np.arange(3 * 16).reshape((16, 3) if axis == 0 else (3, 16))
    placed = jax.device_put(x, sharding.split_over_devices(mesh, axis))
    parts = jax.jit(lambda x: _split(x, 2, axis, mesh))(placed)
    assert parts.shape == (2, *(n // 2 if i == axis else n for i, n in enumerate(x.shape)))
    joined = jax.jit(lambda x: _join(x, axis, mesh))(parts)
    np.testing.assert_array_equal(joined, x)
    # Each device's rows stay on it.
    rows = np.moveaxis(np.asarray(parts), axis + 1, 1).reshape(2, devices, -1)
    mine = np.moveaxis(x, axis, 0).reshape(devices, -1)
    for device in range(devices):
        assert set(rows[:, device].ravel()) == set(mine[device])


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_a_backbone_that_is_computed_again_is_the_same(remat, x64):
    config = small_config(dtype="float64")
    kept = _gradients(config)
    config.model.remat = remat
    for found, expected in zip(_gradients(config), kept, strict=True):
        _assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_texts_that_are_computed_again_are_the_same(encoder):
    batch = random_batch(4)
    found = {}
    for remat in get_args(Remat):
        settings = dict(small_config().model.text[encoder])
        model = TEXT_ENCODERS[encoder].build(settings, VOCABULARY, EMBED, remat, jnp.float32)
        inputs = batch["text_tokens"], batch["text_lengths"]
        variables = model.init(jax.random.key(0), *inputs, train=False)

        def loss(variables, model=model, inputs=inputs):
            return jnp.sum(model.apply(variables, *inputs, train=True)[:, 0])

        found[remat] = jax.grad(loss)(variables)
    for remat in ("products", "blocks"):
        _assert_equal(found[remat], found["none"], 1e-6)


@pytest.mark.slow
def test_remat_keeps_less():
    """Residuals of the backward pass by policy: all, products alone, block inputs alone."""
    sizes = {}
    images = jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.float32)
    for remat in get_args(Remat):
        config = small_config(image_depth=34)  # a whole one, although the module is shallow
        config.model.remat = remat
        model = CMAP.from_config(config)
        variables = jax.eval_shape(
            lambda m=model: m.init(jax.random.key(0), **CMAP.example_inputs(64))
        )

        def pull_back(variables, images, model=model):
            def encode(params):
                together = {**variables, "params": params}
                options = {"train": True, "mutable": ["batch_stats"], "method": "encode_images"}
                return model.apply(together, images, **options)[0]

            return jax.vjp(encode, variables["params"])[1]

        kept = jax.tree.leaves(jax.eval_shape(pull_back, variables, images))
        sizes[remat] = sum(x.size for x in kept)
    assert sizes["blocks"] < 0.9 * sizes["products"] < 0.9 * 0.9 * sizes["none"]


ROWS, WIDTH = 1024, 16
_SET = 4 * 3 * ROWS**2  # bytes of the scores of a batch at three levels


def _compile_objective(devices, parts):
    """The gradient of a batch's loss with respect to what the encoders give, compiled."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    settings = small_config().loss

    def loss(reference, targets, text, attention):
        query = ComposedQuery(
            (modified_branch(text, attention), preserved_branch(reference, attention)),
            PreservationInputs(text, None, attention),
            ("modified", "preserved"),
            ("high", "mid", "low"),
        )
        outputs = TrainingOutputs(query, targets, jnp.float32(2.0))
        return objective(outputs, settings, mesh, parts)[0]

    pyramids, vectors = (sharding.split_over_devices(mesh, axis) for axis in (1, 0))
    specs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
        for shape, where in [((3, ROWS, WIDTH), pyramids)] * 2 + [((ROWS, WIDTH), vectors)] * 2
    ]
    gradient = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2, 3)), out_shardings=(pyramids, pyramids, vectors, vectors)
    )
    return gradient.lower(*specs).compile()


def test_memory_of_the_scores_is_rows_by_batch():
    """A device of eight holds an eighth of the score matrices; in parts, one part's at a time."""
    scratch = {
        key: _compile_objective(*key).memory_analysis().temp_size_in_bytes
        for key in ((1, 1), (1, 16), (8, 1), (8, 16))
    }
    embeddings = 4 * 3 * ROWS * WIDTH
    assert scratch[1, 1] > 2 * _SET
    for (devices, parts), size in scratch.items():
        assert size < 1.1 * scratch[1, 1] / (devices * parts) + 8 * embeddings


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_targets_are_gathered_once_and_their_gradient_sent_back_once(parts):
    text = _compile_objective(8, parts).as_text()
    assert text.count(" all-gather(") == 1
    assert text.count(" reduce-scatter(") == 1
    for other in ("all-reduce", "all-to-all", "collective-permute"):
        assert f" {other}(" not in text
