"""Checkpoints of a run: the latest states to continue from and, separately, the best variables.

Writes go on in the background, and a checkpoint appears under its name only when it is complete.
Each checkpoint holds a fingerprint of its arrays and its run's mark. Both are checked at reading:
a truncated or foreign checkpoint is named in a warning, and the one before it is used.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cmap_jax.training.progress import Progress
from cmap_jax.training.train_state import TrainState
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint
from cmap_jax.workdir.weights import AVERAGE, check_variables, variables_to_save

_logger = logging.getLogger(__name__)

# The folder for checkpoints that cannot be used, where they do not block new ones of their step.
DAMAGED = "damaged"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, made to leave the agreement on when to stop to `StopRequest`.

    JAX's preemption service expects a single sequence of calls with rising numbers, and
    `StopRequest` makes these calls. Orbax would add calls numbered by training steps, and the
    processes could then agree on a number that no call ever has.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False: `StopRequest` says when a run is asked to stop."""
        return False


class Checkpoints:
    """The two folders of checkpoints in a workdir."""

    def __init__(self, workdir: str | os.PathLike, keep: int, run: str):
        """Open the two folders, and make them if needed.

        Args:
            workdir: folder of the run, local or in a bucket.
            keep: number of latest states that are kept, 1 or more.
            run: mark of the config and seed, as `same_run.mark_of_run` returns it.
        """
        self._root = workdir_lib.absolute(workdir)
        self._run = run
        self._latest = self._manager(workdir_lib.CHECKPOINTS, keep)
        # Two are kept: until the state that knows of the new best is written, a resumed run needs
        # the earlier one.
        self._best = self._manager(workdir_lib.BEST, 2)

    def latest_step(self) -> int | None:
        """Return the step of the latest state, or None."""
        return self._latest.latest_step()

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save a state to continue from; a no-op where the latest checkpoint is of its step.

        Args:
            state: arrays on the devices; they are copied before this returns.
            progress: facts about the run so far, saved beside the arrays.

        Raises:
            OSError: this checkpoint or the one before could not be written; earlier ones are whole.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        tree = _as_tree(state)
        about = {
            "run": self._run,
            "fingerprint": fingerprint(tree),
            "progress": progress.to_dict(),
        }
        with self.explained(f"the state of step {step}"):
            self._latest.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)
                ),
            )

    def save_best(self, state: TrainState) -> None:
        """Save the variables as the best so far; the earlier best stays until `save` is called.

        Args:
            state: the state whose variables are the best.

        Raises:
            OSError: the variables could not be written.
        """
        step = int(state.step)
        with self.explained(f"the best variables, of step {step}"):
            # A run that was killed before its next state was saved may have left variables.
            if step in self._best.all_steps():
                self._best.delete(step)
            self._best.save(step, args=variables_to_save(state.variables_to_use, self._run))

    def restore(self, like: TrainState) -> tuple[TrainState, Progress]:
        """Restore the latest good state.

        A state that cannot be used is named in a warning and moved to ``damaged/``.

        Args:
            like: shapes, dtypes and shardings of the state, as `jax.ShapeDtypeStruct`.

        Returns:
            The state, and the progress that it was saved with.

        Raises:
            ValueError: no state can be used; says why for each of them.
        """
        problems = []
        steps = sorted(self._latest.all_steps(), reverse=True)
        for step in steps:
            restored, problem = None, "another process could not read it"
            try:
                restored = self._restore(step, like)
            except (ValueError, KeyError, TypeError, OSError, jax.errors.JaxRuntimeError) as error:
                problem = _in_short(error)
            if not _all_processes(restored is not None):
                path = self._root / workdir_lib.CHECKPOINTS / str(step)
                problems.append(f"{path}: {problem}")
                _logger.warning("Cannot continue from %s", problems[-1])
                continue
            for bad in [s for s in steps if s > step]:
                self._put_away(workdir_lib.CHECKPOINTS, bad)
            self._latest.reload()
            self._restore_best(*restored)
            return restored
        raise ValueError(
            "no checkpoint of this run can be used:\n  "
            + "\n  ".join(problems or ["none was saved"])
            + f"\nStart again in another folder with --workdir=..., or delete {self._root}"
        )

    @contextlib.contextmanager
    def explained(
        self,
        subject: str,
        errors: tuple[type[Exception], ...] = (ValueError, OSError, jax.errors.JaxRuntimeError),
    ) -> Iterator[None]:
        """Turn the errors of a failed write into an OSError that says which state is whole.

        Args:
            subject: grammatical subject of the message, such as "the curves".
            errors: exceptions by which the write may fail.

        Raises:
            OSError: one of them was raised.
        """
        try:
            yield
        except errors as error:
            good = max(workdir_lib.saved_steps(self._root), default=None)
            raise OSError(
                f"{subject} could not be written to {self._root}: {_in_short(error)}. "
                + (f"The state of step {good} is whole" if good else "No state was written yet")
                + ": free some space, if there is none, and run again to continue"
            ) from error

    def wait(self) -> None:
        """Return when all writes are complete."""
        with self.explained("a checkpoint"):
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        """Complete all writes and release the folders."""
        self.wait()
        self._latest.close()
        self._best.close()

    def __enter__(self) -> "Checkpoints":
        """Return the checkpoints; they are closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close: a write that goes on would disturb the next run of this process.

        After an error, a run with several processes is left as it is: closing would wait for the
        other processes, which may never come.
        """
        if kind is None:
            self.close()
        elif jax.process_count() == 1:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self.close()

    def _manager(self, folder: str, count: int) -> _Manager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=count,
            create=True,
            cleanup_tmp_directories=True,  # a run killed in the middle of a write leaves them
            # Both managers write in the background. Without a prefix, the barriers at which the
            # processes wait for one another would have the same names for both.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder
            ),
        )
        return _Manager(self._root / folder, options=options)

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        about = self._latest.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        about = about["about"]
        if about["run"] != self._run:
            raise ValueError("it belongs to another run")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(like)))
        tree = self._latest.restore(step, args=args)["state"]
        check_fingerprint(tree, about["fingerprint"])
        return TrainState(**tree), Progress.from_dict(about["progress"])

    def _restore_best(self, state: TrainState, progress: Progress) -> None:
        """Bring the best variables to the step that a restored state knows as the best."""
        known = progress.best_step
        for step in self._best.all_steps():
            if known is None or step > known:
                # The run was killed before it saved a state that knows of them; the resumed run
                # will save them again.
                self._best.delete(step)
        if known is None:
            return
        problem = "they are not there"
        if known in self._best.all_steps():
            try:
                check_variables(self._root, known, self._run, state.variables_to_use)
                return
            except (ValueError, KeyError, OSError, jax.errors.JaxRuntimeError) as error:
                problem = _in_short(error)
            self._put_away(workdir_lib.BEST, known)
            self._best.reload()
        if int(state.step) == known:
            self.save_best(state)
            return
        _logger.warning(
            "The best variables, of step %d, cannot be used: %s. The next evaluation counts as the "
            "best",
            known,
            problem,
        )
        progress.forget_best()

    def _put_away(self, folder: str, step: int) -> None:
        """Move a checkpoint to ``damaged/``; all processes wait until it is moved."""
        if jax.process_index() == 0:
            target = self._root / DAMAGED / folder / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree()
            (self._root / folder / str(step)).rename(target)
            _logger.warning("It was moved to %s", target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"put away {folder} {step}")


def _all_processes(good: bool) -> bool:
    """Return whether a state is good in all processes, which must continue from the same one."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.asarray(good)).all())


def _in_short(error: Exception) -> str:
    """Return an error's first 300 characters; storage libraries print pages of settings."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _as_tree(state: TrainState) -> dict[str, Any]:
    """Return a state as a dict, from which a model can be read without the optimiser's classes."""
    tree = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "step": state.step,
        "skipped": state.skipped,
    }
    return tree if state.average is None else {**tree, AVERAGE: state.average}
