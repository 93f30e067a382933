"""The variables in a workdir's ``best/``: written with a fingerprint, read back and verified."""

import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from cmap_jax.models.cmap import CMAP
from cmap_jax.workdir.description import BEST, CHECKPOINTS, CONFIG, absolute
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint


def variables_to_save(variables: Any, mark: str) -> ocp.args.Composite:
    """Return what a checkpoint of ``best/`` holds, for an Orbax manager."""
    about = {"run": mark, "fingerprint": fingerprint(variables)}
    return ocp.args.Composite(
        variables=ocp.args.StandardSave(variables), about=ocp.args.JsonSave(about)
    )


def check_variables(workdir: str | os.PathLike, step: int, mark: str, like: Any) -> None:
    """Refuse a checkpoint of ``best/`` that is damaged or another run's.

    Args:
        workdir: the workdir.
        step: which of the checkpoints.
        mark: the run's.
        like: arrays of the same shapes, where they are to be read to.

    Raises:
        ValueError: says why.
    """
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    # A manager of its own: one that has read in this way refuses to write in the other.
    with ocp.CheckpointManager(absolute(workdir) / BEST) as manager:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        if manager.restore(step, args=args)["about"]["run"] != mark:
            raise ValueError("they belong to another run")
        _read_verified(manager, step, "variables", expected)


def read_variables(
    workdir: str | os.PathLike,
    model: CMAP,
    image_size: int,
    shard: Callable[[Any], Any] | None = None,
) -> tuple[int, Any]:
    """Return the step and the best variables of a workdir; the latest if none is best yet.

    Args:
        workdir: the workdir.
        model: what the variables belong to.
        image_size: side of its images.
        shard: from the variables' shapes to their shardings; None: on one device of this process.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: one that is damaged, or does not fit the model; names it.
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
        path = absolute(workdir) / folder
        if not path.is_dir():
            continue
        with ocp.CheckpointManager(path) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            try:
                return step, _read_verified(manager, step, item, expected)
            except (ValueError, KeyError, OSError, jax.errors.JaxRuntimeError) as error:
                raise ValueError(
                    f"{path / str(step)} cannot be read as the model that {CONFIG} describes: "
                    f"{error}"
                ) from error
    raise FileNotFoundError(f"{os.fspath(workdir)} has no checkpoint yet")


def _read_verified(manager: ocp.CheckpointManager, step: int, item: str, expected: Any) -> Any:
    """Read an item's arrays, or the part of them that is expected, and compare fingerprints."""
    restore = ocp.args.PyTreeRestore(
        expected,
        restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
        # A state holds the optimiser's part too.
        partial_restore=item == "state",
    )
    args = ocp.args.Composite(**{item: restore, "about": ocp.args.JsonRestore()})
    restored = manager.restore(step, args=args)
    check_fingerprint(restored[item], restored["about"]["fingerprint"])
    return restored[item]
