"""The moving average: NumPy's numbers, what it leaves out, and that it is saved and evaluated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_batch, small_config

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.moving_average import start_average
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.progress import Progress
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step
from cmap_jax.workdir.weights import read_variables, with_average

DECAY = 0.3  # less than (1 + n) / (10 + n) from the third update on


def _run(config, dtype, fsdp=1, steps=5, poisoned=()):
    """Yield the state at the start and after each step."""
    mesh = sharding.make_mesh(jax.devices()[: 2 * fsdp], fsdp=fsdp)
    model, schedule = CMAP.from_config(config), make_schedule(config, 2)
    tx = make_optimizer(config, schedule)
    average = functools.partial(start_average, config=config)

    def create():
        state = create_train_state(model, tx, config.seed, config.data.crop, average)
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)

    where = sharding.by_size(jax.eval_shape(create), mesh)
    state = jax.jit(create, out_shardings=where)()
    step = jax.jit(
        make_train_step(model, tx, schedule, config, mesh),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    )
    yield state
    for number in range(steps):
        batch = random_batch(config.train.batch_size, seed=number, dtype=dtype)
        if number in poisoned:
            batch["target_image"][0] = np.nan
        state, _ = step(state, sharding.place_batch(batch, mesh))
        yield state


def _names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.slow
def test_the_average_is_numpys(x64, monkeypatch):
    """In float64 to 1e-12, sharded as the parameters are; a skipped step does not count."""
    monkeypatch.setattr(sharding, "_LARGE", 64)
    config = small_config(image_name="cells", dtype="float64", text_frozen=True)
    config.train.ema_decay, config.train.non_finite = DECAY, "skip"
    states = _run(config, np.float64, fsdp=2, poisoned=(1,))
    state = next(states)
    expected = jax.tree.map(np.array, _names(state.variables))
    count = 0
    for number, state in enumerate(states):
        if number != 1:
            decay = min(DECAY, (1 + count) / (10 + count))
            count += 1
            for name, value in _names(state.variables).items():
                expected[name] = decay * expected[name] + (1 - decay) * np.asarray(value)
        used = _names(state.variables_to_use)
        for name, value in expected.items():
            np.testing.assert_allclose(used[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
    averaged, everything = _names(state.average), _names(state.variables)
    assert set(everything) - set(averaged) == {"params/text_encoder/word_embedding"}
    assert {name for name in averaged if name.startswith("batch_stats/")}
    assert all(x.sharding == everything[name].sharding for name, x in averaged.items())
    assert not all(x.sharding.is_fully_replicated for x in averaged.values())


def test_no_average_by_default():
    config = small_config(image_name="cells")
    assert start_average({"params": {}}, config) is None
    variables = {"params": {"a": {"b": 1}}}
    assert with_average(variables, {}) == variables
    assert with_average(variables, {"params": {"a": {"b": 2}}}) == {"params": {"a": {"b": 2}}}


@pytest.fixture(scope="module")
def stepped():
    """A config with an average, and a state in which it differs from the variables."""
    config = small_config(image_name="cells")
    config.train.ema_decay = 0.9
    return config, list(_run(config, np.float32, steps=1))[-1]


@pytest.mark.slow
def test_a_state_is_restored_with_its_average(stepped, tmp_path):
    """To the bit; the best variables are the average; a changed average is noticed."""
    config, state = stepped
    with Checkpoints(tmp_path, 2, "run") as checkpoints:
        checkpoints.save_best(state)
        checkpoints.save(state, Progress(best_recall=1.0, best_step=1, evaluated_step=1))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(tmp_path, 2, "run") as checkpoints:
        restored, _ = checkpoints.restore(like)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    step, best = read_variables(tmp_path, CMAP.from_config(config), config.data.crop)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, best, state.variables_to_use)
    leaves = zip(*map(jax.tree.leaves, (best, state.variables)), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)


@pytest.mark.slow
def test_a_state_before_the_first_evaluation_gives_its_average(stepped, tmp_path):
    config, state = stepped
    with Checkpoints(tmp_path, 2, "run") as checkpoints:
        checkpoints.save(state, Progress())
    _, variables = read_variables(tmp_path, CMAP.from_config(config), config.data.crop)
    assert jax.tree.structure(variables) == jax.tree.structure(state.variables)
    jax.tree.map(np.testing.assert_array_equal, variables, state.variables_to_use)
