"""Checkpoints that are damaged, foreign or half-written; a full disk; fingerprints."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmap_jax
from cmap_jax import sharding
from cmap_jax.training import checkpointing, finite
from cmap_jax.training.checkpointing import Checkpoints
from cmap_jax.training.finite import not_finite
from cmap_jax.training.progress import Progress
from cmap_jax.training.train_state import TrainState
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint

# Orbax drops coroutines where a read or a write fails, and they complain when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("module_of_failing_reads"),
]


def _state(step: int, value: float | None = None) -> TrainState:
    """A state whose arrays are as large as a file system's block at least."""
    value = step if value is None else value
    params = {"kernel": jnp.full((64, 64), value, jnp.float32), "scale": jnp.float32(value)}
    moments = {"mu": jnp.arange(4096.0).reshape(64, 64) * value}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"mean": jnp.ones(3)},
        opt_state=moments,
        skipped=jnp.int32(0),
    )


def _like(mesh=None):
    where = sharding.replicated(mesh or sharding.make_mesh(jax.devices()[:1]))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), _state(0))


def _progress(step):
    return Progress(best_recall=float(step), best_step=step, evaluated_step=step)


def _write(workdir, steps, run="run", keep=5):
    checkpoints = Checkpoints(workdir, keep, run)
    for step in steps:
        checkpoints.save_best(_state(step))
        checkpoints.save(_state(step), _progress(step))
    checkpoints.close()


def _restore(workdir, run="run", like=None):
    checkpoints = Checkpoints(workdir, 5, run)
    restored = checkpoints.restore(like or _like())
    checkpoints.close()
    return restored


def _largest_files(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and "state" in str(p)]
    return sorted(files, key=lambda p: p.stat().st_size)[::-1]


def _truncate(folder):
    for path in _largest_files(folder)[:2]:
        os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(folder):
    path = next(p for p in _largest_files(folder) if "/d/" in str(p))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lose_the_arrays(folder):
    for path in folder.rglob("d"):
        if path.is_dir():
            shutil.rmtree(path)


def _half_copied(folder):
    shutil.rmtree(folder / "state")


def _not_json(folder):
    next((folder / "about").rglob("metadata")).write_text("{")


@pytest.mark.parametrize(
    "damage", [_truncate, _flip_a_bit, _lose_the_arrays, _half_copied, _not_json]
)
def test_a_bad_checkpoint_is_named_and_the_one_before_used(damage, tmp_path, caplog):
    _write(tmp_path, (3, 6))
    damage(tmp_path / "checkpoints" / "6")
    state, progress = _restore(tmp_path)
    assert int(state.step) == progress.best_step == 3
    np.testing.assert_array_equal(state.params["kernel"], 3.0)
    assert f"Cannot continue from {tmp_path}/checkpoints/6: " in caplog.text
    # Out of the way, and not lost; what comes again is saved again.
    assert (tmp_path / "damaged" / "checkpoints" / "6").is_dir()
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["3"]
    _write(tmp_path, (6,))
    assert int(_restore(tmp_path)[0].step) == 6


def test_a_run_goes_on_saving_after_it_was_restored(tmp_path):
    _write(tmp_path, (3,))
    checkpoints = Checkpoints(tmp_path, 5, "run")
    checkpoints.restore(_like())
    checkpoints.save_best(_state(6))
    checkpoints.save(_state(6), _progress(6))
    checkpoints.close()
    assert int(_restore(tmp_path)[0].step) == 6
    assert (tmp_path / "best" / "6").is_dir()


def test_a_foreign_checkpoint_is_not_used(tmp_path, caplog):
    _write(tmp_path / "other", (9,), run="another")
    _write(tmp_path / "own", (3,))
    shutil.copytree(tmp_path / "other/checkpoints/9", tmp_path / "own/checkpoints/9")
    state, _ = _restore(tmp_path / "own")
    assert int(state.step) == 3
    assert "checkpoints/9: it belongs to another run" in caplog.text


def test_none_that_is_good_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of this run .*:\n  none was saved"):
        _restore(tmp_path)
    _write(tmp_path, (3, 6))
    for step in (3, 6):
        _half_copied(tmp_path / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"(?s)no checkpoint.*checkpoints/6: .*checkpoints/3: "):
        _restore(tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} >= {"3", "6"}


def test_what_was_being_written_is_no_checkpoint(tmp_path):
    _write(tmp_path, (3,))
    shutil.copytree(
        tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    )
    assert workdir_lib.saved_steps(tmp_path) == [3]
    assert int(_restore(tmp_path)[0].step) == 3
    # Nor left to fill the disk.
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"3"}


def test_retention_and_the_best_of_two(tmp_path):
    """The best before stays until a state knows of the new one."""
    _write(tmp_path, (3, 6, 9), keep=2)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"6", "9"}
    checkpoints = Checkpoints(tmp_path, 2, "run")
    checkpoints.save_best(_state(12))
    checkpoints.close()  # killed before the state was saved
    assert {p.name for p in (tmp_path / "best").iterdir()} == {"9", "12"}
    state, progress = _restore(tmp_path)
    assert (int(state.step), progress.best_step) == (9, 9)
    assert {p.name for p in (tmp_path / "best").iterdir()} >= {"9"}
    assert "12" not in {p.name for p in (tmp_path / "best").iterdir()}


def test_best_variables_that_are_lost(tmp_path, caplog):
    """Written again from the state of their step, or else the next evaluation's are the best."""
    _write(tmp_path, (3,))
    shutil.rmtree(tmp_path / "best" / "3")
    _restore(tmp_path)
    assert (tmp_path / "best" / "3").is_dir()
    checkpoints = Checkpoints(tmp_path, 2, "run")
    checkpoints.save(_state(6), _progress(3))
    checkpoints.close()
    shutil.rmtree(tmp_path / "best" / "3" / "variables")
    state, progress = _restore(tmp_path)
    assert int(state.step) == 6
    # The evaluation is pending again if it is due at this step.
    assert progress == Progress(best_recall=-1.0, best_step=None, evaluated_step=0)
    assert "The best variables, of step 3, cannot be used" in caplog.text


def save_on_a_full_disk(workdir, limit):
    """Save where no file may grow beyond a limit: to those who write, the disk is full."""
    checkpoints = Checkpoints(workdir, 5, "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        checkpoints.save(_state(6), _progress(6))
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_last_checkpoint(limit, tmp_path):
    _write(tmp_path, (3,))
    # In a process of its own: pytest writes files too.
    code = (
        f"import runpy; runpy.run_path({__file__!r})['save_on_a_full_disk']"
        f"({str(tmp_path)!r}, {limit})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    # The error that it came from is printed before, and Orbax's threads may have a word after it.
    line = next(x for x in done.stderr.splitlines() if x.startswith("OSError: a checkpoint"))
    assert f"could not be written to {tmp_path}: " in line
    assert "The state of step 3 is whole: free some space, if there is none, and run" in line
    state, _ = _restore(tmp_path)
    assert int(state.step) == 3


def test_a_state_moves_to_other_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_LARGE", 64)
    _write(tmp_path, (3,))
    mesh = sharding.make_mesh(fsdp=4)
    shapes = jax.eval_shape(lambda: _state(0))
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.by_size(shapes, mesh),
    )
    state, _ = _restore(tmp_path, like=like)
    assert not state.params["kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(state.params["kernel"], 3.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "float64"])
def test_fingerprints_see_everything_and_no_sharding(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        array = rng.integers(-100, 100, (8, 5, 3)).astype(jnp.dtype(dtype))
        expected = fingerprint({"a": {"b": jnp.asarray(array)}})
        assert list(expected) == ["a/b"]
        split = jax.device_put(array, sharding.split_over_devices(sharding.make_mesh()))
        check_fingerprint({"a": {"b": split}}, expected)
        changed = array.copy()
        changed[7, 4, 2] += 1
        swapped = array.copy()
        swapped[0, 0, 0], swapped[0, 0, 1] = array[0, 0, 1], array[0, 0, 0]
        assert array[0, 0, 0] != array[0, 0, 1]
        for other in (changed, swapped, np.zeros_like(array), array.transpose(1, 0, 2)):
            with pytest.raises(ValueError, match="damaged: a/b is not what was saved"):
                check_fingerprint({"a": {"b": jnp.asarray(other)}}, expected)
    with pytest.raises(ValueError, match="damaged: b is not"):
        check_fingerprint({"b": jnp.zeros(2)}, expected)


def test_damaged_weights_are_not_loaded(tmp_path):
    from small import write_workdir

    workdir = write_workdir(tmp_path / "model", "fashion_iq", "fashioniq/original")
    cmap_jax.load(workdir)
    for path in (workdir / workdir_lib.BEST).rglob("d"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"best/0 cannot be read as the model"):
        cmap_jax.load(workdir)


def _rewrite_about(checkpoint, change):
    path = checkpoint / "about" / "metadata"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["progress"].update(best_recall=1e9),
        lambda about: about.update(run=5),
        lambda about: about.update(fingerprint=[]),
        lambda about: about.update(step="6"),
        lambda about: about.pop("fingerprint"),
        # An earlier version's, which has no digest.
        lambda about: about.pop("digest") and about.update(progress=7),
        lambda about: about.pop("digest") and about["progress"].update(best_step="3"),
        lambda about: about.pop("digest") and about["progress"].update(best_recall=None),
        lambda about: about.pop("digest") and about["progress"].update(log={"sums": [1]}),
        lambda about: about.pop("digest") and about["progress"].update(log={"count": True}),
        lambda about: about.pop("digest") and about["progress"].update(more=1),
    ],
)
def test_a_record_that_was_changed_is_damaged(change, tmp_path, caplog):
    _write(tmp_path, (3, 6))
    _rewrite_about(tmp_path / "checkpoints" / "6", change)
    state, _ = _restore(tmp_path)
    assert int(state.step) == 3
    assert f"Cannot continue from {tmp_path}/checkpoints/6: " in caplog.text
    assert (tmp_path / "damaged" / "checkpoints" / "6").is_dir()


def test_records_of_earlier_versions_are_read(tmp_path):
    _write(tmp_path, (3, 6))
    for folder in ("checkpoints", "best"):
        for step in ("3", "6"):
            _rewrite_about(
                tmp_path / folder / step, lambda about: [about.pop("digest"), about.pop("step")]
            )
    state, progress = _restore(tmp_path)
    assert int(state.step) == progress.best_step == 6
    assert (tmp_path / "best" / "6").is_dir()


@pytest.mark.parametrize("has_step", [True, False])
def test_a_folder_with_another_number_than_its_state(has_step, tmp_path, caplog):
    """Put away, lest Orbax leave out the states that follow; alone, it says how to rename it."""
    _write(tmp_path, (3, 6))
    folder = tmp_path / "checkpoints"
    if not has_step:
        _rewrite_about(folder / "6", lambda about: [about.pop("digest"), about.pop("step")])
    (folder / "6").rename(folder / "99")
    assert int(_restore(tmp_path)[0].step) == 3
    assert "named 99, but what it holds is of step 6; rename it to 6" in caplog.text
    assert (tmp_path / "damaged" / "checkpoints" / "99").is_dir()
    _write(tmp_path, (6,))
    assert int(_restore(tmp_path)[0].step) == 6
    shutil.rmtree(folder / "3")
    (folder / "6").rename(folder / "7")
    with pytest.raises(ValueError, match=r"no checkpoint .*\n.*checkpoints/7: .* rename it to 6"):
        _restore(tmp_path)


def test_a_state_that_orbax_leaves_out_is_an_error(tmp_path):
    _write(tmp_path, (3,))
    (tmp_path / "checkpoints" / "3").rename(tmp_path / "checkpoints" / "99")
    checkpoints = Checkpoints(tmp_path, 5, "run")
    with pytest.raises(OSError, match=r"state of step 6, could not .* a later number, 99"):
        checkpoints.save(_state(6), _progress(6))


def test_best_variables_with_another_number_are_not_believed(tmp_path, caplog):
    _write(tmp_path, (3,))
    (tmp_path / "best" / "3").rename(tmp_path / "best" / "9")
    state, progress = _restore(tmp_path)
    assert (int(state.step), progress.best_step) == (3, 3)
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["3"]


def test_best_variables_left_by_lost_states_do_not_block_others(tmp_path):
    """Orbax would leave out all that have a lower number."""
    _write(tmp_path, (3, 6))
    shutil.rmtree(tmp_path / "checkpoints")
    with Checkpoints(tmp_path, 5, "run") as checkpoints:
        checkpoints.save_best(_state(3))
    assert {p.name for p in (tmp_path / "best").iterdir()} == {"3"}
    assert (tmp_path / "damaged" / "best" / "6").is_dir()


def test_a_state_waits_for_its_best(tmp_path, monkeypatch):
    """A best whose background write fails is named, and no state that knows of it is written."""
    _write(tmp_path, (3,))
    checkpoints = Checkpoints(tmp_path, 5, "run")
    with monkeypatch.context() as patch:
        _fail_in_the_background(patch)
        checkpoints.save_best(_state(6))
        with pytest.raises(OSError, match="the best variables, of step 6, could not be written"):
            checkpoints.save(_state(6), _progress(6))
    assert workdir_lib.saved_steps(tmp_path) == [3]
    assert _restore(tmp_path)[1].best_step == 3


def test_a_failed_background_write_is_noticed_when_it_has_ended(tmp_path, monkeypatch):
    """Between two steps, and under its own step."""
    _write(tmp_path, (3,))
    checkpoints = Checkpoints(tmp_path, 5, "run")
    checkpoints.restore(_like())
    with monkeypatch.context() as patch:
        _fail_in_the_background(patch)
        checkpoints.save(_state(6), _progress(3))
        message = "the state of step 6, could not be written .*the disk is away"
        for _ in range(500):
            if not checkpoints._latest._manager.is_saving_in_progress():
                break
            checkpoints.check()
            time.sleep(0.01)
        with pytest.raises(OSError, match=message):
            checkpoints.check()
    checkpoints.check()
    checkpoints.close()


def _fail_in_the_background(patch):
    from orbax.checkpoint._src.checkpointers.async_checkpointer import AsyncCheckpointer

    wait = AsyncCheckpointer.wait_until_finished

    def fail(self):
        wait(self)
        if threading.current_thread().name == "save_finalize":
            raise OSError("the disk is away")

    patch.setattr(AsyncCheckpointer, "wait_until_finished", fail)


def test_the_first_state_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "check_fingerprint", _differ)
    checkpoints = Checkpoints(tmp_path, 5, "run")
    with pytest.raises(OSError, match=r"3 was written and cannot be read back: .*--workdir="):
        checkpoints.save(_state(3), _progress(3))
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path, 5, "run")
    checkpoints.save(_state(6), _progress(6))
    monkeypatch.setattr(checkpointing, "check_fingerprint", _differ)
    checkpoints.save(_state(9), _progress(9))  # the second is not
    checkpoints.close()


def _differ(*_):
    raise ValueError("it is damaged")


@pytest.mark.parametrize(
    ("part", "name"),
    [("params", "params/kernel"), ("opt_state", "opt_state/mu"), ("batch_stats", "batch_st")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_saved(part, name, value, tmp_path):
    _write(tmp_path, (3,))
    state = _state(6)
    bad = {key: x.at[(0,) * x.ndim].set(value) for key, x in getattr(state, part).items()}
    state = state.replace(**{part: bad})
    with Checkpoints(tmp_path, 5, "run") as checkpoints:
        message = f"after step 6 .* not finite in {name}.* last good checkpoint is of step 3"
        with pytest.raises(FloatingPointError, match=message):
            checkpoints.save(state, _progress(6))
        if part != "opt_state":
            with pytest.raises(FloatingPointError, match=message):
                checkpoints.save_best(state)
    assert workdir_lib.saved_steps(tmp_path) == [3]
    assert {p.name for p in (tmp_path / "best").iterdir()} == {"3"}


def test_finite_values_on_devices_and_host():
    mesh = sharding.make_mesh()
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        good = jnp.ones((8, 4), dtype)
        assert not not_finite({"a": good, "b": jax.device_put(good, sharding.replicated(mesh))})
        assert finite._all_finite(good)
    bad = jnp.ones((8, 4), jnp.bfloat16).at[7, 3].set(jnp.nan)
    assert not finite._all_finite(bad)
    split = jax.device_put(bad, sharding.split_over_devices(mesh))
    assert not_finite({"a": bad, "b": {"c": split}, "d": jnp.ones(2)}) == ["a", "b/c"]


def test_checkpoints_behind_a_link(tmp_path):
    """To a disk with more space, from which what is damaged is moved away all the same."""
    elsewhere = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        (tmp_path / "checkpoints").symlink_to(elsewhere)
        _write(tmp_path, (3, 6))
        _truncate(elsewhere / "6")
        assert int(_restore(tmp_path)[0].step) == 3
        assert (tmp_path / "damaged" / "checkpoints" / "6").is_dir()
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("part", ["state/manifest.ocdbt", "about/metadata"])
def test_a_pipe_inside_a_state_is_not_waited_for(part, tmp_path, caplog):
    _write(tmp_path, (3, 6))
    path = tmp_path / "checkpoints" / "6" / part
    path.unlink()
    os.mkfifo(path)
    assert int(_restore(tmp_path)[0].step) == 3
    assert f"{path}: is a pipe, not a regular file" in caplog.text


def test_a_pipe_in_place_of_the_metadata_is_refused(tmp_path):
    """Orbax reads them all when it opens the folder."""
    _write(tmp_path, (3, 6))
    path = tmp_path / "checkpoints" / "6" / "_CHECKPOINT_METADATA"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path}: is a pipe, not a regular file"):
        _restore(tmp_path)
