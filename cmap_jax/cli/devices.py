"""The devices that JAX uses: validation of the platform, and a look at them from outside."""

import dataclasses
import json
import os
import subprocess
import sys

import jax

_GPUS = "CUDA_VISIBLE_DEVICES"  # AMD's runtime reads it too


def check_devices() -> None:
    """Refuse a platform that JAX_PLATFORMS asks for and JAX cannot use, before any work starts.

    Raises:
        ValueError: names the platform, the reason and the remedies.
    """
    wanted = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: its plugin is not installed
        if not wanted:
            raise
        extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(wanted.partition(",")[0])
        install = f", install its support (pip install 'cmap_jax[{extra}]')" if extra else ""
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here{reason}. Unset it to use the "
            f"devices that exist{install}, or set JAX_PLATFORMS=cpu"
        ) from error


@dataclasses.dataclass(frozen=True)
class FoundDevices:
    """The devices that a new process on this machine would use.

    Attributes:
        platform: JAX's name, "cpu", "gpu" or "tpu".
        kind: the device's name, such as "NVIDIA H100 80GB HBM3".
        count: number of devices.
    """

    platform: str
    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"

    def slots(self) -> list[dict[str, str]]:
        """Return for each device the variables that let a process see that one alone.

        Raises:
            ValueError: there are no accelerators, or no variables are known for them.
        """
        if self.platform == "gpu":
            visible = os.environ.get(_GPUS, "").split(",")
            ids = visible if len(visible) == self.count else map(str, range(self.count))
            return [{_GPUS: name} for name in ids]
        if self.platform == "tpu":
            # Without the bounds, a process waits for the host's other chips.
            bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
            return [{"TPU_VISIBLE_CHIPS": str(i), **bounds} for i in range(self.count)]
        raise ValueError(
            f"--per-device is for machines with GPUs or TPUs, and JAX finds {self} here: leave it "
            "out"
        )


def find_devices() -> FoundDevices:
    """Ask a process of its own for the devices, since whoever asks JAX takes hold of them.

    Raises:
        ValueError: JAX cannot use the devices that it was asked to; says why.
    """
    program = (
        "import jax, json; d = jax.local_devices(); "
        "print(json.dumps([d[0].platform, d[0].device_kind, len(d)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        reason = next(reversed(done.stderr.split("\n")[:-1]), "it gives no reason")
        raise ValueError(f"JAX cannot use the devices of this machine: {reason}")
    return FoundDevices(*json.loads(done.stdout.splitlines()[-1]))
