"""The exponential moving average of a run's variables.

See docs/method.md, section 3, moving average.

    average = start_average(state.variables, config)                    # None without an average
    average = update_average(average, state.variables, decay, updates)  # after each step
    variables = with_average(state.variables, average)                  # evaluated and saved

(`with_average` is in `cmap_jax.workdir.weights`, since a workdir's states hold the average too.)
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cmap_jax.training.optimizer import TRAINED, label_parameters

_WARM_UP = 10  # updates after which the average has about as many in its memory


def start_average(variables: Mapping[str, Any], config: Any) -> dict[str, Any] | None:
    """Return the average before the first step, which is the variables themselves.

    Frozen parameters are left out, since they are their own average.

    Args:
        variables: those of a `CMAP`.
        config: a whole config.

    Returns:
        The trained part of the variables, copied; None if ``config.train.ema_decay`` is 0.
    """
    if not config.train.ema_decay:
        return None
    labels = _flat({"params": label_parameters(variables["params"], config)})
    averaged = {
        path: jnp.copy(value)
        for path, value in _flat(variables).items()
        if labels.get(path, TRAINED) == TRAINED
    }
    return flax.traverse_util.unflatten_dict(averaged)


def update_average(
    average: Mapping[str, Any], variables: Mapping[str, Any], decay: float, updates: Int[Array, ""]
) -> dict[str, Any]:
    """Return the average after a step: ``e + (1 - d) (v - e)`` for each averaged variable v.

    The decay d is ``min(decay, (1 + n) / (10 + n))`` after n updates, lest the initial values weigh
    more than the run where it is short.

    Args:
        average: the average before the step.
        variables: the variables after it.
        decay: largest decay, 0 to 1.
        updates: number of earlier updates, n.
    """
    n = updates.astype(float)
    rate = jnp.maximum(1 - decay, (_WARM_UP - 1) / (_WARM_UP + n))
    new = _flat(variables)
    return flax.traverse_util.unflatten_dict(
        {
            path: value + rate.astype(value.dtype) * (new[path] - value)
            for path, value in _flat(average).items()
        }
    )


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(dict(tree))
