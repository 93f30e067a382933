"""One mesh for everything: the batch is split over its devices, parameters stand on each.

A single device is the special case of a mesh of one.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh of all devices (or those given) along the axis "data"."""
    devices = jax.devices() if devices is None else devices
    # Auto: the compiler places what is not said; Explicit, the default, refuses `x @ x.T`.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of parameters: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put this process's share of a batch on the devices.

    Raises:
        ValueError: the batch does not divide evenly over the devices.
    """
    sharding = batch_sharding(mesh)
    local = mesh.local_mesh.size
    for name, array in batch.items():
        if len(array) % local:
            raise ValueError(
                f"{name} has {len(array)} rows, which {local} devices cannot share evenly; choose "
                "a batch size that is a multiple of the number of devices"
            )
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
