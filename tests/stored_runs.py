"""What a workdir holds, read back for comparison: arrays, results and the curves of event files."""

import json
import pathlib
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

# Of time, which no two runs share.
TIMINGS = {"steps_per_sec", "uptime", "data_wait"}


def arrays(workdir: pathlib.Path, folder: str, item: str) -> tuple[int, dict[str, np.ndarray]]:
    """The latest checkpoint of a folder: its step, and its arrays by path."""
    step = max(int(p.name) for p in (workdir / folder).iterdir() if p.name.isdigit())
    path = workdir / folder / str(step) / item
    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = checkpointer.metadata(path).item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=kinds))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}


def results(workdir: pathlib.Path) -> dict:
    """The content of evaluation.json."""
    return json.loads((workdir / "evaluation.json").read_text())


def curves(workdir: pathlib.Path) -> dict[tuple[str, int], set[float]]:
    """All values that were ever logged of each metric at each step, timings left out."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    accumulator.Reload()
    found: dict[tuple[str, int], set[float]] = {}
    for tag in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors(tag):
            value = tf.make_ndarray(event.tensor_proto)
            if tag not in TIMINGS and value.dtype.kind == "f" and value.size == 1:
                found.setdefault((tag, event.step), set()).add(value.item())
    return found


def assert_same(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Final state, best variables, results and curves are the same, to the bit."""
    for folder, item in (("checkpoints", "state"), ("best", "variables")):
        (step, ours), (other_step, theirs) = (arrays(w, folder, item) for w in (workdir, other))
        assert step == other_step, folder
        assert set(ours) == set(theirs)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{folder} {name}")
    assert results(workdir) == results(other)
    ours, theirs = curves(workdir), curves(other)
    assert set(ours) == set(theirs)
    # Steps that were done twice have logged the same twice.
    assert {k: v for k, v in ours.items() if v != theirs[k]} == {}
    assert all(len(values) == 1 for values in ours.values())
