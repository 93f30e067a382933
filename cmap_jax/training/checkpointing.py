"""Checkpoints of a run: the latest states to continue from, and the best variables apart."""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from cmap_jax import workdir as workdir_lib
from cmap_jax.training.train_state import TrainState


class Checkpoints:
    """The two folders of checkpoints in a workdir; writes go on in the background.

    A checkpoint appears under its name only when it is complete.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int):
        """Open or make them; ``keep`` latest states are kept."""
        root = workdir_lib.absolute(workdir)

        def manager(folder: str, count: int) -> ocp.CheckpointManager:
            options = ocp.CheckpointManagerOptions(max_to_keep=count, create=True)
            return ocp.CheckpointManager(root / folder, options=options)

        self._latest = manager(workdir_lib.CHECKPOINTS, keep)
        self._best = manager(workdir_lib.BEST, 1)
        latest = self._latest.latest_step()
        for step in self._best.all_steps():
            if latest is None or step > latest:
                # Saved by a run that was killed before its state was: it will be saved again.
                self._best.delete(step)

    def latest_step(self) -> int | None:
        """Return the step of the latest state, or None."""
        return self._latest.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Save a state to continue from, with JSON-able facts about the run so far."""
        step = int(state.step)
        if step == self.latest_step():
            return
        # The state as a dict: so a model can be read from it without the optimiser's classes.
        tree = {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "opt_state": state.opt_state,
            "step": state.step,
        }
        self._latest.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree), progress=ocp.args.JsonSave(progress)
            ),
        )

    def save_best(self, state: TrainState) -> None:
        """Save the variables to use, in place of the earlier best ones."""
        step = int(state.step)
        self._best.save(
            step, args=ocp.args.Composite(variables=ocp.args.StandardSave(state.variables))
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restore the latest state, with the shapes and shardings of ``like``."""
        tree = {
            "params": like.params,
            "batch_stats": like.batch_stats,
            "opt_state": like.opt_state,
            "step": like.step,
        }
        restored = self._latest.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(tree), progress=ocp.args.JsonRestore()
            ),
        )
        return TrainState(**restored["state"]), restored["progress"]

    def wait(self) -> None:
        """Return when all writes are complete."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Complete all writes and release the folders."""
        self.wait()
        self._latest.close()
        self._best.close()


def abstract_state(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
    """Return a state's shapes and dtypes with a sharding, to restore into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
