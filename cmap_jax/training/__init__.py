"""Training: the state, the optimiser, the step, checkpoints and the loop.

See docs/method.md, sections 2 and 3.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.training import (
        check,
        checkpoint_folder,
        checkpointing,
        curves,
        display,
        feed,
        finite,
        frozen_encoder,
        gradients,
        initial_weights,
        moving_average,
        objective,
        optimizer,
        parameter_groups,
        progress,
        run,
        same_data,
        start,
        stopping,
        train,
        train_state,
        train_step,
        training_log,
        watch,
    )

__all__ = [
    "check",
    "checkpoint_folder",
    "checkpointing",
    "curves",
    "display",
    "feed",
    "finite",
    "frozen_encoder",
    "gradients",
    "initial_weights",
    "moving_average",
    "objective",
    "optimizer",
    "parameter_groups",
    "progress",
    "run",
    "same_data",
    "start",
    "stopping",
    "train",
    "train_state",
    "train_step",
    "training_log",
    "watch",
]
