"""A workdir's variables, saved with a fingerprint and verified when read."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import orbax.checkpoint as ocp

from cmap_jax.models.cmap import CMAP
from cmap_jax.workdir import about as about_lib
from cmap_jax.workdir import tensors
from cmap_jax.workdir.description import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    TENSORS,
    absolute,
    is_exported,
    saved_steps,
)
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint

# Exceptions by which a damaged checkpoint cannot be read.
READ_ERRORS = (ValueError, KeyError, TypeError, OSError, jax.errors.JaxRuntimeError)
AVERAGE = "average"  # the part of a saved state that holds the moving average, if it has one


def with_average(variables: Mapping[str, Any], average: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with their moving average in place of those that have one.

    Args:
        variables: all variables of a model.
        average: a part of their tree; see `cmap_jax.training.moving_average`.
    """
    flat, averaged = (flax.traverse_util.flatten_dict(dict(tree)) for tree in (variables, average))
    return flax.traverse_util.unflatten_dict(flat | averaged)


def variables_to_save(
    variables: Any, mark: str, step: int, describes: Mapping[str, Any] | None
) -> ocp.args.Composite:
    """Return the content of a checkpoint of ``best/``, as Orbax's `CheckpointManager` saves it.

    Args:
        variables: all variables of the model.
        mark: identifies the run; see `cmap_jax.workdir.same_run.mark_of_run`.
        step: training steps of the variables.
        describes: the result of `about.describe`; None: nothing describes the model.
    """
    return ocp.args.Composite(
        variables=ocp.args.StandardSave(variables),
        about=ocp.args.JsonSave(about_lib.make(mark, step, fingerprint(variables), describes)),
    )


def check_variables(
    workdir: str | os.PathLike,
    step: int,
    like: Any,
    check: Callable[[Mapping[str, Any]], None],
) -> None:
    """Refuse a checkpoint of ``best/`` that is damaged or belongs to another run.

    Args:
        workdir: a folder that holds ``best/``, local or in a bucket.
        step: training step of the checkpoint.
        like: arrays with the shapes, dtypes and shardings to read the variables with.
        check: raises a ValueError for a record of another run; see `cmap_jax.workdir.about`.

    Raises:
        ValueError: another run's record, or an array that differs from the saved one.
    """
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    # A manager that has restored with these arguments refuses to save with others: use a new one.
    with ocp.CheckpointManager(absolute(workdir) / BEST) as manager:
        about = about_lib.read(manager, step)
        check(about)
        _read_verified(manager, step, "variables", expected, about)


def read_variables(
    workdir: str | os.PathLike,
    model: CMAP,
    image_size: int,
    shard: Callable[[Any], Any] | None = None,
) -> tuple[int, Any]:
    """Return the step and the best variables of a workdir; the latest ones before an evaluation.

    The record beside the variables is compared with the workdir's files; see
    `cmap_jax.workdir.about`.

    Args:
        workdir: a folder that holds ``best/``, ``checkpoints/`` or an exported model's
            ``model.safetensors``, local or in a bucket.
        model: the model that the workdir's config describes.
        image_size: side of the model's images, pixels.
        shard: maps the variables' shapes to their shardings; None: one device of this process.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: a checkpoint that is damaged, does not fit the model, or was saved with other
            files than those of the workdir; names it.
    """
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(image_size))
    )
    if shard is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, expected)
    else:
        shardings = shard(expected)
    expected = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        expected,
        shardings,
    )
    for folder, item in ((BEST, "variables"), (CHECKPOINTS, "state")):
        steps = saved_steps(workdir, folder)
        if not steps:
            continue
        path, step = absolute(workdir) / folder, max(steps)
        with ocp.CheckpointManager(path) as manager:
            try:
                about = about_lib.read(manager, step)
                about_lib.check_workdir(about, workdir)
                return step, _read_verified(manager, step, item, expected, about)
            except READ_ERRORS as error:
                raise ValueError(
                    f"{path / str(step)} cannot be read as the model that {CONFIG} describes: "
                    f"{error}"
                ) from error
    if is_exported(workdir):
        return _read_exported(workdir, expected)
    raise FileNotFoundError(f"{os.fspath(workdir)} has no checkpoint yet")


def _read_exported(workdir: str | os.PathLike, expected: Any) -> tuple[int, Any]:
    """Return the step and the variables of an exported model, as `read_variables` does."""
    path = absolute(workdir) / TENSORS
    try:
        about, arrays = tensors.read(path)
        about_lib.check_workdir(about, workdir)
        variables = tensors.arranged_like(expected, arrays)
        check_fingerprint(variables, about["fingerprint"])
    except READ_ERRORS as error:
        raise ValueError(
            f"{path} cannot be read as the model that {CONFIG} describes: {error}"
        ) from error
    return about["step"], jax.tree.map(
        lambda array, like: jax.device_put(array, like.sharding), variables, expected
    )


def _read_verified(
    manager: ocp.CheckpointManager,
    step: int,
    item: str,
    expected: Any,
    about: Mapping[str, Any],
) -> Any:
    """Return an item's arrays, those that ``expected`` has, and verify their fingerprints.

    A state's moving average is read in place of the variables that have one.
    """
    saved = {tuple(name.split("/")) for name in about["fingerprint"]}
    wanted = {
        (AVERAGE, *path) if (AVERAGE, *path) in saved else path: array
        for path, array in flax.traverse_util.flatten_dict(dict(expected)).items()
    }
    wanted = flax.traverse_util.unflatten_dict(wanted)
    restore = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        # A state also holds the optimiser's part, which is not read here.
        partial_restore=item == "state",
    )
    restored = manager.restore(step, args=ocp.args.Composite(**{item: restore}))[item]
    check_fingerprint(restored, about["fingerprint"])
    return with_average(restored, restored.pop(AVERAGE, {}))
