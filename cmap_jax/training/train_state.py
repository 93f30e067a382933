"""The state of a training run: all arrays that it needs to continue."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cmap_jax.models.cmap import CMAP
from cmap_jax.workdir.weights import with_average


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics and optimiser state after a number of steps.

    It holds no random key, because the dropout key of a step is a function of seed and step.

    Attributes:
        step: number of steps done, a scalar int32.
        params: the model's parameters, frozen ones included.
        batch_stats: running means and variances of the batch-norms.
        opt_state: the optimiser's moments and counts.
        skipped: number of steps that were left out because their loss or gradient was not finite,
            a scalar int32.
        average: the moving average of trained parameters and statistics, in the collections that
            `variables` has; None if the run keeps none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    skipped: jax.Array
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, with the collections that `CMAP.init` returns."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}

    @property
    def variables_to_use(self) -> dict[str, Any]:
        """The variables to evaluate and to save as the best: the average where there is one."""
        return with_average(self.variables, self.average or {})


def create_train_state(
    model: CMAP,
    tx: optax.GradientTransformation,
    seed: int,
    image_size: int,
    average: Callable[[dict[str, Any]], Any] = lambda variables: None,
) -> TrainState:
    """Return the state at step 0; under `jax.eval_shape`, its shapes and dtypes alone.

    Args:
        model: the model whose parameters are drawn.
        tx: the optimiser.
        seed: seed of the parameters, 0 to 2**32 - 1.
        image_size: side of the square images in pixels.
        average: from the variables to the moving average at step 0, or None.
    """
    inputs = CMAP.example_inputs(image_size)
    variables = model.init(jax.random.key(seed), **inputs)
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),  # a buffer of its own, since states are donated
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )
    return state.replace(average=average(state.variables))
