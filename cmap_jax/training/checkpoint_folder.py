"""One of a workdir's two folders of checkpoints, written in the background.

Orbax writes; this module notices when it has not: a write that failed is raised under its own name
as soon as it has ended, and one that Orbax left out is an error.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cmap_jax.files import is_remote
from cmap_jax.workdir import about as about_lib
from cmap_jax.workdir import description as workdir_lib

_logger = logging.getLogger(__name__)

# The folder for checkpoints that cannot be used, where they do not block new ones of their step.
DAMAGED = "damaged"
_WRITE_ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # by which Orbax fails to write


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, made to leave the agreement on when to stop to `StopRequest`.

    JAX's preemption service expects a single sequence of calls with rising numbers, and
    `StopRequest` makes these calls. Orbax would add calls numbered by training steps, and the
    processes could then agree on a number that no call ever has.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False: `StopRequest` says when a run is asked to stop."""
        return False


class CheckpointFolder:
    """The checkpoints in a folder of a workdir, each in a folder named by its step."""

    def __init__(self, workdir: epath.Path, name: str, keep: int):
        """Open the folder, and make it if needed.

        Args:
            workdir: absolute path or URL of the workdir.
            name: name of the folder in it.
            keep: number of latest checkpoints that are kept, 1 or more.

        Raises:
            NotADirectoryError, ValueError: as `saved_steps`.
        """
        workdir_lib.saved_steps(workdir, name)  # refuses a folder that cannot be opened
        self._workdir, self._name = workdir, name
        self._being_written: str | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,  # a run killed in the middle of a write leaves them
            # Two managers write in the background. Without a prefix, the barriers at which the
            # processes wait for one another would have the same names for both.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=name
            ),
        )
        self._manager = _Manager(self.path, options=options)

    @property
    def path(self) -> epath.Path:
        """Path of the folder."""
        return self._workdir / self._name

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, content: ocp.args.Composite, subject: str) -> None:
        """Begin to write a checkpoint, when the one before is written.

        Args:
            step: the checkpoint's number, higher than all others.
            content: arrays on the devices, copied before this returns, and a record.
            subject: names the checkpoint in messages, such as "the state of step 6".

        Raises:
            OSError: this checkpoint or the one before could not be written; names which.
        """
        self.wait()
        self._being_written = subject
        with explained(self._workdir, subject):
            if not self._manager.save(step, args=content):
                latest = self._manager.latest_step()
                raise ValueError(f"{self.path} holds a checkpoint with a later number, {latest}")

    def check(self) -> None:
        """Raise the error of a background write that has failed; waits for none.

        Raises:
            OSError: the checkpoint could not be written; names it.
        """
        if self._being_written and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Return when the background write, if there is one, is complete.

        Raises:
            OSError: the checkpoint could not be written; names it.
        """
        subject, self._being_written = self._being_written, None
        if subject:
            with explained(self._workdir, subject):
                self._manager.wait_until_finished()

    def read_about(self, step: int) -> dict[str, Any]:
        """Return a checkpoint's record; see `cmap_jax.workdir.about.read`."""
        return about_lib.read(self._manager, step)

    def restore(self, step: int, like: Any) -> Any:
        """Return the state in a checkpoint, a tree with the structure and shardings of ``like``."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=args)["state"]

    def delete(self, step: int) -> None:
        """Delete a checkpoint."""
        self._manager.delete(step)

    def put_away(self, step: int) -> None:
        """Move a checkpoint to ``damaged/``; all processes wait until it is moved."""
        if jax.process_index() == 0:
            target = self._workdir / DAMAGED / self._name / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree()
            _move(self.path / str(step), target)
            _logger.warning("%s was moved to %s", self.path / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"put away {self._name} {step}")
        self._manager.reload()

    def close(self) -> None:
        """Complete the write and release the folder.

        Raises:
            OSError: the checkpoint could not be written; names it.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


@contextlib.contextmanager
def explained(
    workdir: epath.PathLike,
    subject: str,
    errors: tuple[type[Exception], ...] = _WRITE_ERRORS,
) -> Iterator[None]:
    """Turn the errors of a failed write into an OSError that says which state is whole.

    Args:
        workdir: the folder of the run.
        subject: grammatical subject of the message, such as "the curves".
        errors: exceptions by which the write may fail.

    Raises:
        OSError: one of them was raised.
    """
    try:
        yield
    except errors as error:
        good = max(workdir_lib.saved_steps(workdir), default=None)
        raise OSError(
            f"{subject} could not be written to {os.fspath(workdir)}: {in_short(error)}. "
            + (f"The state of step {good} is whole" if good else "No state was written yet")
            + ": free some space, if there is none, and run again to continue"
        ) from error


def in_short(error: Exception) -> str:
    """Return an error's first 300 characters; storage libraries print pages of settings."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _move(source: epath.Path, target: epath.Path) -> None:
    """Move a folder, onto another disk too, where the folder of checkpoints is a link."""
    if is_remote(source):
        source.rename(target)
    else:
        shutil.move(os.fspath(source), os.fspath(target))
