"""Checkpoints of a run: the latest states to continue from, and the best variables apart.

Writes go on in the background, and a checkpoint appears under its name only when it is complete.
Each holds a fingerprint of its arrays and its run's mark; what is read is compared with both, so
that a truncated or a foreign one is found and named, and the one before it used.
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

from cmap_jax.training.train_state import TrainState
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint
from cmap_jax.workdir.weights import check_variables, variables_to_save

_logger = logging.getLogger(__name__)

# Where checkpoints that cannot be used are moved to, out of the way of those to come.
DAMAGED = "damaged"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which keeps out of the agreement on when to stop.

    JAX counts one sequence of calls, and `StopRequest` makes them; those that Orbax would make with
    a step in between would put the agreed call where no process comes by.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False: `StopRequest` says when a run is asked to stop."""
        return False


class Checkpoints:
    """The two folders of checkpoints in a workdir."""

    def __init__(self, workdir: str | os.PathLike, keep: int, run: str):
        """Open or make them.

        Args:
            workdir: the workdir.
            keep: number of latest states that are kept.
            run: the run's mark, `workdir.mark_of_run`.
        """
        self._root = workdir_lib.absolute(workdir)
        self._run = run
        self._latest = self._manager(workdir_lib.CHECKPOINTS, keep)
        # Two: the earlier best stays until the state that knows of the new one is written.
        self._best = self._manager(workdir_lib.BEST, 2)

    def latest_step(self) -> int | None:
        """Return the step of the latest state, or None."""
        return self._latest.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Save a state to continue from, with JSON-able facts about the run so far.

        Raises:
            OSError: this one or the one before could not be written; the earlier ones are whole.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        tree = _as_tree(state)
        about = {"run": self._run, "fingerprint": fingerprint(tree), "progress": progress}
        with self.explained(f"the state of step {step}"):
            self._latest.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)
                ),
            )

    def save_best(self, state: TrainState) -> None:
        """Save the variables to use. Save the state too: only then is the one before given up."""
        step = int(state.step)
        with self.explained(f"the best variables, of step {step}"):
            if step in self._best.all_steps():  # of a run that was killed before it knew of them
                self._best.delete(step)
            self._best.save(step, args=variables_to_save(state.variables, self._run))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore the latest good state, with the shapes and shardings of ``like``.

        One that cannot be used is named in a warning and moved to ``damaged/``.

        Returns:
            The state and the facts it was saved with; None if none was ever saved.

        Raises:
            ValueError: there are states, but none can be used.
        """
        problems = []
        steps = sorted(self._latest.all_steps(), reverse=True)
        for step in steps:
            found, problem = None, "another process could not read it"
            try:
                found = self._restore(step, like)
            except (ValueError, KeyError, TypeError, OSError, jax.errors.JaxRuntimeError) as error:
                problem = _in_short(error)
            if not _all_processes(found is not None):
                path = self._root / workdir_lib.CHECKPOINTS / str(step)
                problems.append(f"{path}: {problem}")
                _logger.warning("Cannot continue from %s", problems[-1])
                continue
            for bad in [s for s in steps if s > step]:
                self._put_away(workdir_lib.CHECKPOINTS, bad)
            self._latest.reload()
            self._restore_best(*found)
            return found
        if problems:
            raise ValueError(
                "no checkpoint of this run can be used:\n  "
                + "\n  ".join(problems)
                + f"\nStart again in another folder with --workdir=..., or delete {self._root}"
            )
        return None

    @contextlib.contextmanager
    def explained(
        self,
        what: str,
        errors: tuple[type[Exception], ...] = (ValueError, OSError, jax.errors.JaxRuntimeError),
    ) -> Iterator[None]:
        """Turn whatever a failed write raises into one OSError that says what is left."""
        try:
            yield
        except errors as error:
            good = max(workdir_lib.saved_steps(self._root), default=None)
            raise OSError(
                f"{what} could not be written to {self._root}: {_in_short(error)}. "
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
        """Close at the end; after an error too, where no other process could keep it waiting."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close: a write that goes on would be in the way of this process's next run."""
        if kind is None:
            self.close()
        elif jax.process_count() == 1:
            with contextlib.suppress(OSError):  # there is an error to be seen already
                self.close()

    def _manager(self, folder: str, count: int) -> _Manager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=count,
            create=True,
            cleanup_tmp_directories=True,  # of runs that were killed while they wrote
            # Both write in the background: without it, several processes' writes of the same step
            # would meet at barriers of one name.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder
            ),
        )
        return _Manager(self._root / folder, options=options)

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        about = self._latest.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        about = about["about"]
        if about["run"] != self._run:
            raise ValueError("it belongs to another run")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(like)))
        tree = self._latest.restore(step, args=args)["state"]
        check_fingerprint(tree, about["fingerprint"])
        return TrainState(**tree), about["progress"]

    def _restore_best(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Make the best variables those that the state knows of."""
        known = progress["best_step"]
        for step in self._best.all_steps():
            if known is None or step > known:
                # Saved by a run that was killed before its state was: it will be saved again.
                self._best.delete(step)
        if known is None:
            return
        problem = "they are not there"
        if known in self._best.all_steps():
            try:
                check_variables(self._root, known, self._run, state.variables)
                return
            except (ValueError, KeyError, OSError, jax.errors.JaxRuntimeError) as error:
                problem = _in_short(error)
            self._put_away(workdir_lib.BEST, known)
            self._best.reload()
        if int(state.step) == known:
            self.save_best(state)
            return
        _logger.warning(
            "The best variables, of step %d, cannot be used: %s. The next evaluation's count as "
            "the best",
            known,
            problem,
        )
        # Where this state was evaluated, it is again.
        progress.update(best_recall=-1.0, best_step=None, evaluated_step=0)

    def _put_away(self, folder: str, step: int) -> None:
        """Move a checkpoint out of the way; no process goes on before it is gone."""
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
    """Return whether it is so in all processes: they go on from one state."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.asarray(good)).all())


def _in_short(error: Exception) -> str:
    """Return what an error says; storage libraries add pages of their settings."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _as_tree(state: TrainState) -> dict[str, Any]:
    """Return a state as a dict: a model can be read from it without the optimiser's classes."""
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "step": state.step,
        "skipped": state.skipped,
    }
