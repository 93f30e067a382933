"""Runs of several processes: how the processes find one another, and how they end together."""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.errors import explain, status_of
from cmap_jax.training.stopping import Stopped
from cmap_jax.workdir.same_run import mark_of_run

_logger = logging.getLogger(__name__)

# Words in the errors of a collective operation after another process was lost.
_PARTNER_LOST = re.compile(
    r"\b(gloo|nccl|heartbeat|coordination.?service\w*|connection (reset|closed|refused)|peer)\b",
    re.IGNORECASE,
)


def join(
    config: ConfigDict,
    *,
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    cluster: bool,
) -> None:
    """Join the other processes of a run, if the flags ask for it, before JAX's first use.

    Args:
        config: a whole config, with the heartbeat timeout in seconds after which the processes end
            when one of them is lost.
        coordinator: "host:port" of process 0, or None.
        process_count: 1 or more, or None.
        process_index: 0 to ``process_count`` - 1, or None.
        cluster: let JAX ask the cluster (Cloud TPU, SLURM, MPI, Kubernetes) for the three values.

    Raises:
        ValueError: the three values are not given together, or do not fit; no cluster is found; JAX
            finds no device of the platform that it was told to use.
    """
    given = (coordinator, process_count, process_index)
    if all(value is None for value in given) and not cluster:
        check_devices()
        return
    if cluster and any(value is not None for value in given):
        raise ValueError(
            "--cluster finds out by itself what --coordinator, --process_count and "
            "--process_index say: give one or the other"
        )
    if not cluster:
        if any(value is None for value in given):
            raise ValueError(
                "several processes need --coordinator=HOST:PORT, --process_count=N and "
                "--process_index=I (0 to N-1), all three"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise ValueError(f"--coordinator must be HOST:PORT, not {coordinator!r}")
        if not 0 <= process_index < process_count:
            raise ValueError(
                f"--process_index must be 0 to {process_count - 1} (--process_count less one), "
                f"not {process_index}"
            )
    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
            heartbeat_timeout_seconds=config.distributed.heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        if cluster:
            raise ValueError(
                f"--cluster found no cluster to ask ({error}); say it with --coordinator, "
                "--process_count and --process_index"
            ) from error
        raise ValueError(
            f"process {process_index} of {process_count} could not join at {coordinator}: {error}"
        ) from error
    check_devices()
    _logger.info(
        "Process %d of %d, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def check_same_config(config: ConfigDict) -> None:
    """Refuse a run whose processes have different configs; all processes must call this.

    Fields that may change at every start, such as folders, may differ between hosts.

    Raises:
        ValueError: this process or another has another config than process 0; says which.
    """
    if jax.process_count() == 1:
        return
    mark = np.frombuffer(bytes.fromhex(mark_of_run(config)), np.uint8)
    marks = multihost_utils.process_allgather(mark)
    others = [str(i) for i, other in enumerate(marks) if not np.array_equal(other, marks[0])]
    if others:
        raise ValueError(
            f"{'process' if len(others) == 1 else 'processes'} {', '.join(others)} of the run got "
            "another config than process 0: start all of them with the same --config flags"
        )


@contextlib.contextmanager
def ending_together(program: str, amended: Callable[[str], str] = str) -> Iterator[None]:
    """End this process at once when it fails; JAX tells the other processes, which end too.

    An ordinary exit of the interpreter would wait for the other processes, and they for this one.
    The environment variable CMAP_TRACEBACK=1 adds the traceback to the message.

    Args:
        program: command as it was typed, with which the message begins.
        amended: see `errors.expected_errors`.
    """
    try:
        yield
    except Stopped:  # every process stops, and none has to be ended
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        sys.stdout.flush()
        if os.environ.get("CMAP_TRACEBACK"):
            traceback.print_exception(error)
        sys.stderr.write(f"{program}: {amended(_message(error))}\n")
        sys.stderr.flush()
        os._exit(status_of(error))


def _message(error: BaseException) -> str:
    """Return a message that names the process and says what mends the error, if that is known."""
    here = f"process {jax.process_index()} of {jax.process_count()}"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | RuntimeError) and _PARTNER_LOST.search(text):
        return (
            f"{here} lost another process of the run, which was killed or has failed: see its own "
            "output. This one ends too. Start all of them again with the same commands, and the "
            f"run goes on from its last checkpoint. ({text[:200]})"
        )
    if line := explain(error):
        return f"{here}: {' '.join(line.split())}"
    return f"{here}: " + ("".join(traceback.format_exception(error)) if text else "ended")
