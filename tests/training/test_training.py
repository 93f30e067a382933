"""Freezing, sharding over devices, and the log."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ON_FEATURES, random_batch, small_config

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS
from cmap_jax.models.layers import BatchNorm
from cmap_jax.training.optimizer import label_parameters, make_optimizer, make_schedule
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("shallow_module")


def _run(config, dtype, devices: int = 1, fsdp: int = 1, steps: int = 3, make_batch=random_batch):
    """Losses and final state of a few steps on some devices."""
    mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    model = CMAP.from_config(config)
    schedule = make_schedule(config, steps_per_epoch=2)
    tx = make_optimizer(config, schedule)

    def create():
        state = create_train_state(model, tx, config.seed, config.data.crop)
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)

    where = sharding.by_size(jax.eval_shape(create), mesh)
    state = jax.jit(create, out_shardings=where)()
    step = jax.jit(
        make_train_step(model, tx, schedule, config, mesh),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    )
    losses = []
    for number in range(steps):
        batch = make_batch(config.train.batch_size, seed=number, dtype=dtype)
        state, metrics = step(state, sharding.place_batch(batch, mesh))
        losses.append(float(metrics["loss/total"]))
    return losses, state


def _assert_alike(one, other, tolerance):
    """Parameters and statistics agree, by the norm of each tensor."""
    for collection in ("params", "batch_stats"):
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(getattr(one, collection)),
            jax.tree.leaves(getattr(other, collection)),
            strict=True,
        ):
            a, b = np.asarray(a), np.asarray(b)
            difference = np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-300)
            assert difference < tolerance, (jax.tree_util.keystr(path), difference)


# Devices, and over how many of them parameters are split.
_MESHES = [(2, 1), (4, 1), (8, 1), (8, 2), (8, 4)]


@pytest.fixture
def all_split(monkeypatch):
    """Split small parameters too: the tests' models have no large ones."""
    monkeypatch.setattr(sharding, "_LARGE", 64)


@pytest.mark.slow
def test_losses_agree_on_any_devices_in_float32(all_split):
    one, _ = _run(config := small_config(image_name="cells"), np.float32)
    for devices, fsdp in [(2, 1), (8, 2)]:
        np.testing.assert_allclose(_run(config, np.float32, devices, fsdp)[0], one, rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "encoder", "meshes"),
    [
        ("cmap", "cells", [(8, 2)]),  # the batch and the parameters both split
        pytest.param("cmap", "resnet", _MESHES, marks=pytest.mark.endurance),
        *(
            pytest.param(variant, "cells", [(8, 2)], marks=pytest.mark.slow)
            for variant in ("artemis", "tirg", "image_only")
        ),
        *(
            pytest.param(variant, "vectors", [(8, 2)], marks=pytest.mark.slow)
            for variant in ON_FEATURES
        ),
    ],
)
def test_parameters_agree_on_any_devices_in_float64(variant, encoder, meshes, x64, all_split):
    """After three steps, 1e-9 per tensor: batch-norm is over the global batch."""
    config = small_config(variant, image_name=encoder, dtype="float64")
    losses, one = _run(config, np.float64)
    for devices, fsdp in meshes:
        other_losses, other = _run(config, np.float64, devices, fsdp)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-9)
        _assert_alike(one, other, 1e-9)
        split = [x for x in jax.tree.leaves(other.params) if not x.sharding.is_fully_replicated]
        moments = [
            x for x in jax.tree.leaves(other.opt_state) if not x.sharding.is_fully_replicated
        ]
        assert len(moments) == 2 * len(split)
        assert bool(split) == (fsdp > 1)
        assert all(len(x.addressable_shards[0].data.ravel()) * fsdp == x.size for x in split)


@pytest.mark.slow
def test_a_clip_trains_alike_on_any_devices(all_split):
    """The towers' softmax is float32, whatever the rest is: so is everything here."""
    config = small_config(image_name="clip")
    config.optimizer.eps = 1e-3  # AdamW turns roundings of a zero gradient into whole steps
    losses, one = _run(config, np.float32)
    other_losses, other = _run(config, np.float32, devices=8, fsdp=2)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=0), one.params, other.params
    )
    blocks = other.params["text_encoder"]["blocks"]
    assert not blocks["mlp"]["fc1"]["kernel"].sharding.is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPOSERS)
def test_every_variant_trains_over_a_clip(variant):
    """The loss of a batch that comes again falls, and every parameter of both towers learns.

    For a method of one level, the tower gives its projected feature alone.
    """
    fields = {} if len(COMPOSERS[variant].levels) > 1 else {"image_map_blocks": ()}
    if variant == "tirg":  # words and another text encoder
        fields |= {"text_name": "gru", "text_tokenizer": "words"}
    config = small_config(variant, image_name="clip", **fields)
    config.optimizer.learning_rate = 3e-3
    losses, state = _run(config, np.float32, steps=6, make_batch=_the_first)
    assert losses[-1] < 0.98 * losses[0]
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if x.ndim
    }
    # A bias of the keys adds the same to all logits of a softmax.
    dead = {name for name, x in moments.items() if not np.any(x) and "key/bias" not in name}
    assert not dead
    params = [x for x in jax.tree.leaves(state.params) if x.ndim]
    assert len(moments) == 2 * len(params)


def _the_first(batch, seed, dtype):
    return random_batch(batch, dtype=dtype)


@pytest.mark.parametrize("groups", [1, 4])
def test_statistics_of_a_sharded_batch(groups, x64):
    """The statistics are those of the global batch or of its equal parts, on any devices."""
    norm = BatchNorm(groups=groups, dtype=jnp.float64)
    x = np.random.default_rng(0).normal(2, 3, (8, 2, 3, 5))
    variables = norm.init(jax.random.key(0), x, use_batch_statistics=True)

    @jax.jit
    def normalize(x):
        return norm.apply(variables, x, use_batch_statistics=True, mutable=["batch_stats"])

    parts = x.reshape(groups, -1, 5)
    mean, var = parts.mean(1, keepdims=True), parts.var(1, keepdims=True)
    expected = ((parts - mean) / np.sqrt(var + norm.epsilon)).reshape(x.shape)
    for devices in (1, 4):
        rows = sharding.split_over_devices(sharding.make_mesh(jax.devices()[:devices]))
        y, updates = normalize(jax.device_put(x, rows))
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        running = updates["batch_stats"]["mean"]
        np.testing.assert_allclose(running, norm.momentum * x.mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.slow
def test_batch_norm_by_device_is_batch_norm_by_groups(x64):
    """A device's own statistics: the same from one device that is told of the groups."""
    config = small_config(dtype="float64")
    everyone = _run(config, np.float64, 8)[1]
    config.model.image.resnet.batch_norm_groups = 4
    alone, shared = (_run(config, np.float64, devices)[1] for devices in (1, 4))
    _assert_alike(alone, shared, 1e-9)
    with pytest.raises(AssertionError):
        _assert_alike(everyone, shared, 1e-3)


def test_what_is_frozen():
    config = small_config()
    config.model.image.frozen = config.model.text.frozen = True
    model = CMAP.from_config(config)
    tx = make_optimizer(config, make_schedule(config, 2))
    state = jax.eval_shape(lambda: create_train_state(model, tx, 0, 64))
    labels = label_parameters(state.params, config)
    frozen = {
        "/".join(k.key for k in path)
        for path, label in jax.tree_util.tree_leaves_with_path(labels)
        if label == "frozen"
    }
    names = [
        "/".join(k.key for k in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state.params)
    ]
    backbone = {name for name in names if name.startswith("image_encoder/backbone/")}
    assert frozen == backbone | {"text_encoder/word_embedding"}


def test_the_order_of_the_devices_is_that_of_the_batch():
    """Whatever the order they are given in, or the torus suggests: each process's together."""
    devices = jax.devices()
    mesh = sharding.make_mesh(devices[::-2] + devices[::2], fsdp=2)
    assert mesh.devices.ravel().tolist() == devices


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="6 rows, which 8 devices cannot share"):
        sharding.place_batch({"mask": np.ones(6, bool)}, sharding.make_mesh())


def test_cosine_schedule():
    config = small_config()
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 10
    config.optimizer.learning_rate = 1.0
    config.train.epochs = 4
    schedule = make_schedule(config, steps_per_epoch=25)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 100)], [0, 0.5, 1, 0], atol=1e-6)
    config.optimizer.schedule = "linear"
    with pytest.raises(ValueError, match='"stepped" or "cosine"'):
        make_schedule(config, 25)


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step():
    config = small_config(image_name="cells", text_name="lstm", text_dropout=0.5)
    first, again = (_run(config, np.float32, steps=2)[0] for _ in range(2))
    assert first == again
    config.seed = 1
    assert _run(config, np.float32, steps=2)[0] != first


def _poisoned(batch, seed, dtype):
    made = random_batch(batch, seed=seed, dtype=dtype)
    if seed == 1:
        made["target_image"][0] = np.nan
    return made


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted():
    """Steps 0 and 2 with a poisoned one between are those two alone, but for the count."""
    config = small_config(image_name="cells")
    config.train.non_finite = "skip"
    losses, state = _run(config, np.float32, make_batch=_poisoned)
    assert np.isfinite(losses).tolist() == [True, False, True]
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    two = _run(
        config,
        np.float32,
        steps=2,
        make_batch=lambda batch, seed, dtype: random_batch(batch, seed=2 * seed, dtype=dtype),
    )
    assert losses[::2] == two[0]
    jax.tree.map(np.testing.assert_array_equal, state.params, two[1].params)
