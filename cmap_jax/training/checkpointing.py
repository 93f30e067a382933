"""Checkpoints of a run: the latest states to continue from and, separately, the best variables.

Writes go on in the background, and a checkpoint appears under its name only when it is complete.
Each checkpoint holds a fingerprint of its arrays and a record of whose they are. Both are checked
at reading: a truncated or foreign checkpoint is named in a warning, and the one before it is used.
The first state that a run writes is read back at once, lest a run go on that could never continue.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cmap_jax.training.checkpoint_folder import CheckpointFolder, in_short
from cmap_jax.training.finite import not_finite
from cmap_jax.training.progress import Progress
from cmap_jax.training.train_state import TrainState
from cmap_jax.workdir import about as about_lib
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import check_fingerprint, fingerprint
from cmap_jax.workdir.weights import AVERAGE, READ_ERRORS, check_variables, variables_to_save

_logger = logging.getLogger(__name__)


class Checkpoints:
    """The two folders of checkpoints in a workdir."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int,
        run: str,
        describes: Mapping[str, Any] | None = None,
    ):
        """Open the two folders, and make them if needed.

        Args:
            workdir: folder of the run, local or in a bucket.
            keep: number of latest states that are kept, 1 or more.
            run: mark of the config and seed, as `same_run.mark_of_run` returns it.
            describes: the result of `cmap_jax.workdir.about.describe`; None: the mark alone is
                recorded and compared.
        """
        self._root = workdir_lib.absolute(workdir)
        self._run, self._describes = run, describes
        self._latest = CheckpointFolder(self._root, workdir_lib.CHECKPOINTS, keep)
        # Two are kept: until the state that knows of the new best is written, a resumed run needs
        # the earlier one.
        self._best = CheckpointFolder(self._root, workdir_lib.BEST, 2)
        self._can_be_read = False  # whether a state was read from the folder

    def latest_step(self) -> int | None:
        """Return the step of the latest state, or None."""
        return max(self._latest.steps(), default=None)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save a state to continue from; a no-op where the latest checkpoint is of its step.

        Args:
            state: arrays on the devices; they are copied before this returns.
            progress: facts about the run so far, saved beside the arrays.

        Raises:
            FloatingPointError: an array is not finite; nothing is written.
            OSError: this checkpoint, the one before or the best variables could not be written, or
                the first one could not be read back; earlier ones are whole.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        tree = _as_tree(state)
        self._check_finite(tree, step)
        # A state that knows of a best must not be there without it.
        self._best.wait()
        about = about_lib.make(
            self._run, step, fingerprint(tree), self._describes, progress=progress.to_dict()
        )
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)
        )
        self._latest.save(step, content, f"a checkpoint, the state of step {step},")
        if not self._can_be_read:
            self._read_back(step, tree)

    def save_best(self, state: TrainState) -> None:
        """Save the variables as the best so far; the earlier best stays until `save` is called.

        Args:
            state: the state whose variables are the best.

        Raises:
            FloatingPointError: an array is not finite; nothing is written.
            OSError: the variables could not be written.
        """
        step, variables = int(state.step), state.variables_to_use
        self._check_finite(variables, step)
        self._best.wait()
        for later in [s for s in self._best.steps() if s > step]:
            self._best.put_away(later)  # left by a run whose states are no longer there
        # A run that was killed before its next state was saved may have left variables.
        if step in self._best.steps():
            self._best.delete(step)
        content = variables_to_save(variables, self._run, step, self._describes)
        self._best.save(step, content, f"the best variables, of step {step},")

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
        steps = self._latest.steps()[::-1]
        for step in steps:
            restored, problem = None, "another process could not read it"
            try:
                restored = self._restore(step, like)
            except READ_ERRORS as error:
                problem = in_short(error)
            if not _all_processes(restored is not None):
                problems.append(f"{self._latest.path / str(step)}: {problem}")
                _logger.warning("Cannot continue from %s", problems[-1])
                continue
            for bad in [s for s in steps if s > step]:
                self._latest.put_away(bad)
            self._can_be_read = True
            self._restore_best(*restored)
            return restored
        raise ValueError(
            "no checkpoint of this run can be used:\n  "
            + "\n  ".join(problems or ["none was saved"])
            + f"\nStart again in another folder with --workdir=..., or delete {self._root}"
        )

    def check(self) -> None:
        """Raise the error of a background write that has failed; waits for none.

        Raises:
            OSError: a checkpoint could not be written; names it.
        """
        self._latest.check()
        self._best.check()

    def wait(self) -> None:
        """Return when all writes are complete.

        Raises:
            OSError: a checkpoint could not be written; names it.
        """
        self._latest.wait()
        self._best.wait()

    def close(self) -> None:
        """Complete all writes and release the folders.

        Raises:
            OSError: a checkpoint could not be written; names it.
        """
        try:
            self._latest.close()
        finally:
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

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        about = self._latest.read_about(step)
        self._check_same(about)
        progress = Progress.from_dict(about.get("progress"))
        tree = self._latest.restore(step, _as_tree(like))
        check_fingerprint(tree, about["fingerprint"])
        about_lib.check_number(int(tree["step"]), step)
        if names := not_finite(tree):
            raise ValueError(f"it has values that are not finite, in {_few(names)}")
        return TrainState(**tree), progress

    def _check_same(self, about: Mapping[str, Any]) -> None:
        about_lib.check_same(about, self._run, self._describes)

    def _restore_best(self, state: TrainState, progress: Progress) -> None:
        """Bring the best variables to the step that a restored state knows as the best."""
        known = progress.best_step
        for step in self._best.steps():
            if known is None or step > known:
                # The run was killed before it saved a state that knows of them; the resumed run
                # will save them again.
                self._best.delete(step)
        if known is None:
            return
        problem = "they are not there"
        if known in self._best.steps():
            try:
                check_variables(self._root, known, state.variables_to_use, self._check_same)
                return
            except READ_ERRORS as error:
                problem = in_short(error)
            self._best.put_away(known)
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

    def _read_back(self, step: int, tree: Mapping[str, Any]) -> None:
        """Refuse to go on where the state that was just written cannot be read.

        It is read into the host's memory, since the devices' may hold no second state.
        """
        self._latest.wait()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = ocp.args.PyTreeRestore(shapes, restore_args=kinds)
        try:
            # A manager that has restored with these arguments refuses to save with others.
            with ocp.CheckpointManager(self._latest.path) as manager:
                about = about_lib.read(manager, step)
                content = manager.restore(step, args=ocp.args.Composite(state=state))
            check_fingerprint(content["state"], about["fingerprint"])
        except READ_ERRORS as error:
            raise OSError(
                f"{self._latest.path / str(step)} was written and cannot be read back: "
                f"{in_short(error)}. The run ends here, since it could never continue: choose "
                "another folder with --workdir=..."
            ) from error
        self._can_be_read = True

    def _check_finite(self, tree: Mapping[str, Any], step: int) -> None:
        names = not_finite(tree)
        if names:
            self.wait()
            raise FloatingPointError(
                f"after step {step} there are values that are not finite in {_few(names)}, and "
                f"nothing of it was saved. {advice(self.latest_step())}"
            )


def advice(good: int | None) -> str:
    """Return sentences on what can be done after a step that went wrong.

    Args:
        good: step of the last state that was saved; None: there is none.
    """
    saved = f"The last good checkpoint is of step {good}" if good else "None was saved"
    return (
        f"{saved}. Try a lower --config.optimizer.learning_rate or --config.optimizer.clip_norm=1 "
        "in a new run, with another --workdir=..."
    )


def _all_processes(good: bool) -> bool:
    """Return whether a state is good in all processes, which must continue from the same one."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.asarray(good)).all())


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more arrays" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


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
