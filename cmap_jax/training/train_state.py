"""All that a training run must keep to continue."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cmap_jax.models.cmap import CMAP


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics and optimiser state after ``step`` steps.

    No random key is kept: the dropout key of a step is a function of the seed and the step.

    Attributes:
        step: steps done, int32.
        params: parameters.
        batch_stats: running statistics of the batch-norms.
        opt_state: moments and counts.
        skipped: steps among them that changed nothing, their loss not being finite, int32.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    skipped: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, with the collections that `CMAP.init` returns."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}


def create_train_state(
    model: CMAP, tx: optax.GradientTransformation, seed: int, image_size: int
) -> TrainState:
    """Return the state at step 0. Trace it with `jax.eval_shape` for shapes alone."""
    inputs = CMAP.example_inputs(image_size)
    variables = model.init(jax.random.key(seed), **inputs)
    params = variables["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, variables.get("batch_stats", {}), tx.init(params), zero)
