"""One mesh for everything: batches are sharded over all of its devices, large parameters over some.

The mesh has two axes. A batch is sharded over both. Parameters are replicated; where "fsdp" is
longer than 1, the large ones and the optimiser's moments are sharded over that axis. A single
device is a mesh of one.

    mesh = make_mesh(data=-1, fsdp=2)            # 8 devices: 4 x 2
    state = jax.device_put(state, by_size(state, mesh))
    batch = place_batch(batch, mesh)
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)

# Elements from which a parameter is sharded: gathering a smaller one costs more than it saves.
_LARGE = 2**14


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1
) -> Mesh:
    """Return a mesh of all devices (or those given) with the axes "data" and "fsdp".

    The devices of a process are adjacent, so that the batch's rows have one order on any machine.

    Args:
        devices: devices to use; None: all devices of all processes.
        data: length of the axis that only batches are sharded over, 1 or more; -1: all devices,
            divided by ``fsdp``.
        fsdp: length of the axis that large parameters are sharded over too, 1 or more.

    Raises:
        ValueError: the lengths do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    if fsdp < 1 or data < -1 or data == 0:
        raise ValueError(
            f"config.mesh.data={data} must be 1 or more, or -1 for all devices that "
            f"config.mesh.fsdp leaves, and "
            f"config.mesh.fsdp={fsdp} must be 1 or more"
        )
    if len(devices) % fsdp or (data != -1 and data * fsdp != len(devices)):
        raise ValueError(
            f"config.mesh.data={data} times config.mesh.fsdp={fsdp} does not give the "
            f"{len(devices)} devices"
        )
    # `jax.make_mesh` would order the devices of a TPU slice by their position in the torus, which
    # separates those of a host, and it refuses lengths that would split an axis of the torus.
    # With Auto axes the compiler chooses shardings that are not given; the default, Explicit,
    # refuses `x @ x.T`.
    return Mesh(np.reshape(devices, (-1, fsdp)), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a replicated array: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_devices(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array whose ``axis`` is split over all devices, like a batch."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def by_size(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of each array of a state: large ones over "fsdp", others replicated.

    It depends on an array's shape alone, so that a parameter and its moments get the same. The
    longest axis that divides evenly is split; the last one, where several are as long.

    Args:
        tree: arrays or their shapes, as `jax.eval_shape` returns them.
        mesh: a mesh of `make_mesh`.
    """
    parts = mesh.shape[FSDP_AXIS]

    def choose(leaf: Any) -> NamedSharding:
        even = [(side, axis) for axis, side in enumerate(leaf.shape) if side % parts == 0]
        if parts == 1 or not even or leaf.size < _LARGE:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(None,) * max(even)[1], FSDP_AXIS))

    return jax.tree.map(choose, tree)


def place_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Shard a batch over all devices; each process gives its own rows.

    Args:
        batch: arrays, or dicts of arrays, with this process's rows of the global batch on their
            first axis.
        mesh: a mesh of `make_mesh`.

    Returns:
        Global arrays, with the rows of all processes.

    Raises:
        ValueError: the rows do not divide evenly over the devices.
    """
    local = len(mesh.local_devices)
    for path, array in jax.tree_util.tree_leaves_with_path(batch):
        if len(array) % local:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name} has {len(array)} rows, which {local} devices cannot share evenly; choose "
                "a batch size that is a multiple of the number of devices"
            )
    sharding = split_over_devices(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def place_same(array: np.ndarray, mesh: Mesh, axis: int = 0) -> jax.Array:
    """Shard an array, all of which every process holds, over the devices of all processes."""
    return jax.make_array_from_callback(
        array.shape, split_over_devices(mesh, axis), lambda index: array[index]
    )
