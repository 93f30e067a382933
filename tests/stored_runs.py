"""A workdir's content read back for comparison: arrays, results and the curves of event files."""

import json
import pathlib
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

# Measurements of time, which differ from run to run.
TIMINGS = {"steps_per_sec", "uptime", "data_wait"}


def arrays(workdir: pathlib.Path, folder: str, item: str) -> tuple[int, dict[str, np.ndarray]]:
    """Return the step of a folder's latest checkpoint, and its arrays by path."""
    step = max(int(p.name) for p in (workdir / folder).iterdir() if p.name.isdigit())
    path = workdir / folder / str(step) / item
    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = checkpointer.metadata(path).item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=kinds))
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}


def results(workdir: pathlib.Path) -> dict:
    """Return the content of evaluation.json."""
    return json.loads((workdir / "evaluation.json").read_text())


def curves(workdir: pathlib.Path) -> dict[tuple[str, int], set[float]]:
    """Return all values logged of each metric at each step, without the timings."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    accumulator.Reload()
    values: dict[tuple[str, int], set[float]] = {}
    for tag in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors(tag):
            value = tf.make_ndarray(event.tensor_proto)
            if tag not in TIMINGS and value.dtype.kind == "f" and value.size == 1:
                values.setdefault((tag, event.step), set()).add(value.item())
    return values


def assert_same(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Assert that final state, best variables, results and curves are equal to the bit."""
    for folder, item in (("checkpoints", "state"), ("best", "variables")):
        (step, ours), (other_step, theirs) = (arrays(w, folder, item) for w in (workdir, other))
        assert step == other_step, folder
        assert set(ours) == set(theirs)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{folder} {name}")
    assert results(workdir) == results(other)
    ours, theirs = curves(workdir), curves(other)
    assert set(ours) == set(theirs)
    # A step that was repeated after a resume has logged the same values again.
    assert {k: v for k, v in ours.items() if v != theirs[k]} == {}
    assert all(len(values) == 1 for values in ours.values())
