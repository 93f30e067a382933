"""One mesh for everything: batches are split over all of its devices, large parameters over some.

The mesh has two axes. A batch is split over both. Parameters are whole on every device, or, where
"fsdp" is longer than 1, the large ones are split over that axis, and so are the optimiser's
moments. A single device is the special case of a mesh of one.

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

# Elements from which a parameter is split: below, gathering it costs more than it takes.
_LARGE = 2**14


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1
) -> Mesh:
    """Return a mesh of all devices (or those given) with the axes "data" and "fsdp".

    Each process's devices stand together, so that the batch's rows are in one order on any machine.

    Args:
        devices: the devices; None: all there are, of all processes.
        data: length of the axis that only batches are split over; -1: what ``fsdp`` leaves.
        fsdp: length of the axis that large parameters are split over too.

    Raises:
        ValueError: the lengths do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    if fsdp < 1 or data < -1 or data == 0:
        raise ValueError(
            f"config.mesh.data={data} must be 1 or more, or -1 for what is left, and "
            f"config.mesh.fsdp={fsdp} must be 1 or more"
        )
    if len(devices) % fsdp or (data != -1 and data * fsdp != len(devices)):
        raise ValueError(
            f"config.mesh.data={data} times config.mesh.fsdp={fsdp} does not give the "
            f"{len(devices)} devices"
        )
    # Not `jax.make_mesh`: on a TPU slice it orders devices by their place in the torus, a host's
    # apart from one another, and refuses lengths that would split one of the torus's axes.
    # Auto: the compiler places what is not said; Explicit, the default, refuses `x @ x.T`.
    return Mesh(np.reshape(devices, (-1, fsdp)), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what stands whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_devices(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array whose ``axis`` is split over all devices, as a batch's is."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def by_size(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of each array of a state: large ones split over "fsdp", others whole.

    A function of an array's shape alone: a parameter and its moments get the same. Split is the
    longest axis that the devices can share evenly, the last one of equals.

    Args:
        tree: arrays, or anything with shapes.
        mesh: the devices.
    """
    parts = mesh.shape[FSDP_AXIS]

    def choose(leaf: Any) -> NamedSharding:
        even = [(side, axis) for axis, side in enumerate(leaf.shape) if side % parts == 0]
        if parts == 1 or not even or leaf.size < _LARGE:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(None,) * max(even)[1], FSDP_AXIS))

    return jax.tree.map(choose, tree)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put this process's share of a batch on the devices.

    Raises:
        ValueError: the batch does not divide evenly over the devices.
    """
    local = len(mesh.local_devices)
    for name, array in batch.items():
        if len(array) % local:
            raise ValueError(
                f"{name} has {len(array)} rows, which {local} devices cannot share evenly; choose "
                "a batch size that is a multiple of the number of devices"
            )
    sharding = split_over_devices(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def place_same(array: np.ndarray, mesh: Mesh, axis: int = 0) -> jax.Array:
    """Split an array that every process holds whole over the devices of all of them."""
    return jax.make_array_from_callback(
        array.shape, split_over_devices(mesh, axis), lambda index: array[index]
    )
