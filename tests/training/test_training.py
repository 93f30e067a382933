"""Freezing, sharding over devices, and the log."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_batch, small_config

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import COMPOSERS
from cmap_jax.training.optimizer import label_parameters, make_optimizer, make_schedule
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step


def _run(config, devices: int, dtype, steps: int = 3):
    """Losses and final state of a few steps on some devices."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = CMAP.from_config(config)
    schedule = make_schedule(config, steps_per_epoch=2)
    tx = make_optimizer(config, schedule)
    everywhere = sharding.replicated(mesh)

    def create():
        state = create_train_state(model, tx, config.seed, config.data.crop)
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)

    state = jax.jit(create, out_shardings=everywhere)()
    step = jax.jit(
        make_train_step(model, tx, schedule, config), donate_argnums=0, out_shardings=everywhere
    )
    losses = []
    for number in range(steps):
        batch = sharding.place_batch(random_batch(8, seed=number, dtype=dtype), mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/total"]))
    return losses, jax.tree.map(np.asarray, state)


def test_one_and_eight_devices_agree_in_float32():
    config = small_config()
    np.testing.assert_allclose(
        _run(config, 1, np.float32)[0], _run(config, 8, np.float32)[0], rtol=1e-4
    )


@pytest.mark.parametrize("variant", COMPOSERS)
def test_one_and_eight_devices_agree_in_float64(variant, x64):
    """Parameters after three steps, 1e-9 per tensor: batch-norm is over the global batch."""
    config = small_config(variant, dtype="float64")
    one, eight = (_run(config, devices, np.float64)[1] for devices in (1, 8))
    for collection in ("params", "batch_stats"):
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(getattr(one, collection)),
            jax.tree.leaves(getattr(eight, collection)),
            strict=True,
        ):
            difference = np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-300)
            assert difference < 1e-9, (jax.tree_util.keystr(path), difference)


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


def test_dropout_is_a_function_of_seed_and_step():
    config = small_config(text_encoder="lstm", text_dropout=0.5)
    first, again = (_run(config, 1, np.float32, 2)[0] for _ in range(2))
    assert first == again
    config.seed = 1
    assert _run(config, 1, np.float32, 2)[0] != first
