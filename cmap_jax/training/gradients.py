"""Loss and gradients of a batch, which is encoded whole or in micro-batches.

With micro-batches (gradient caching; Gao et al., 2021) the encoders see one micro-batch at a time,
but the loss sees the embeddings of all, and each query has the whole batch's targets as negatives:

1. Encode every micro-batch, and keep the embeddings alone.
2. Score one micro-batch of queries at a time against all targets, and differentiate the loss with
   respect to the embeddings.
3. Encode every micro-batch again, and pull its part of that gradient back to the parameters.

The gradient equals that of the whole batch if an encoder's output for a row depends on that row
alone. Two things break this: batch-norm by batch statistics, which become the micro-batch's, and
the encoders' dropout, which draws other masks. A composer is given the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP, Encoded
from cmap_jax.training.objective import Metrics, objective
from cmap_jax.training.optimizer import TRAINED, label_parameters

# (params, batch_stats, batch, dropout key, step or None) -> (gradients, loss terms, new
# batch_stats); the step may be left out.
GradientFunction = Callable[..., tuple[Any, Metrics, Any]]


def make_gradient_function(model: CMAP, config: Any, mesh: Mesh) -> GradientFunction:
    """Return a pure function from params, batch_stats, batch, key and step to gradients and losses.

    Args:
        model: its ``encode_triplets`` and ``compose_triplets`` are called in training mode.
        config: a whole config; ``config.train.micro_batch_size`` rows are encoded at a time, the
            whole batch if it is None.
        mesh: the devices over which the batch is sharded.
    """

    def encode(params: Any, stats: Any, batch: dict, key: jax.Array) -> tuple[Encoded, Any]:
        names = ("reference_image", "target_image", "text_tokens", "text_lengths")
        encoded, updates = model.apply(
            {"params": params, "batch_stats": stats},
            *(batch[name] for name in names),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            method="encode_triplets",
        )
        return encoded, {**stats, **updates.get("batch_stats", {})}

    def loss_of(
        params: Any, stats: Any, encoded: Encoded, key: jax.Array, step: Any, parts: int
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        outputs, updates = model.apply(
            {"params": params, "batch_stats": stats},
            encoded,
            train=True,
            mutable=["batch_stats"],
            # Flax folds a module's path into the key: the encoders draw other numbers from it.
            rngs={"dropout": key},
            method="compose_triplets",
        )
        total, terms = objective(outputs, config.loss, mesh, parts, step)
        return total, (terms, {**stats, **updates.get("batch_stats", {})})

    def whole(
        params: Any, stats: Any, batch: dict, key: jax.Array, step: Any
    ) -> tuple[Any, Metrics, Any]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            encoded, encoder_stats = encode(params, stats, batch, key)
            return loss_of(params, encoder_stats, encoded, key, step, 1)

        gradients, (terms, stats_after) = jax.grad(loss, has_aux=True)(params)
        return gradients, terms, stats_after

    def in_parts(
        params: Any, stats: Any, batch: dict, key: jax.Array, step: Any, parts: int
    ) -> tuple[Any, Metrics, Any]:
        batch = jax.tree.map(lambda x: _split(x, parts, 0, mesh), batch)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))

        def embed(stats: Any, xs: tuple) -> tuple[Any, Encoded]:
            encoded, stats = encode(params, stats, *xs)
            return stats, encoded

        encoder_stats, pieces = jax.lax.scan(embed, stats, (batch, keys))
        encoded = Encoded(*(_join(x, axis, mesh) for x, axis in zip(pieces, (1, 1, 0))))  # noqa: B905
        (gradients, pulls), (terms, stats_after) = jax.grad(loss_of, argnums=(0, 2), has_aux=True)(
            params, encoder_stats, encoded, key, step, parts
        )
        pulls = Encoded(*(_split(x, parts, axis, mesh) for x, axis in zip(pulls, (1, 1, 0))))  # noqa: B905

        def pull_back(gradients: Any, xs: tuple) -> tuple[Any, None]:
            micro_batch, micro_key, pull = xs
            _, vjp = jax.vjp(lambda p: encode(p, stats, micro_batch, micro_key)[0], params)
            return jax.tree.map(jnp.add, gradients, vjp(pull)[0]), None

        gradients, _ = jax.lax.scan(pull_back, gradients, (batch, keys, pulls))
        return gradients, terms, stats_after

    def gradients_of(
        params: Any,
        stats: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array | None = None,
    ) -> tuple[Any, Metrics, Any]:
        labels = label_parameters(params, config)
        params = jax.tree.map(
            lambda p, label: p if label == TRAINED else jax.lax.stop_gradient(p), params, labels
        )
        # Parameters that are sharded over "fsdp" are all-gathered here, once a step.
        params = jax.lax.with_sharding_constraint(params, sharding.replicated(mesh))
        rows = len(batch["text_lengths"])
        micro = config.train.micro_batch_size or rows
        if rows % micro:
            raise ValueError(
                f"config.train.micro_batch_size={micro} does not divide the batch of {rows}"
            )
        if micro == rows:
            return whole(params, stats, batch, key, step)
        return in_parts(params, stats, batch, key, step, rows // micro)

    return gradients_of


def _split(x: jax.Array, parts: int, axis: int, mesh: Mesh) -> jax.Array:
    """Split an array's batch axis into parts, [..., B, ...] -> [parts, ..., B / parts, ...].

    Every part takes the same number of rows from each device, and no row moves between devices.
    """
    devices = mesh.size
    rows = x.shape[axis] // (devices * parts)
    x = x.reshape(*x.shape[:axis], devices, parts, rows, *x.shape[axis + 1 :])
    x = jnp.moveaxis(x, axis + 1, 0)
    x = x.reshape(parts, *x.shape[1 : axis + 1], devices * rows, *x.shape[axis + 3 :])
    return jax.lax.with_sharding_constraint(x, sharding.split_over_devices(mesh, axis + 1))


def _join(x: jax.Array, axis: int, mesh: Mesh) -> jax.Array:
    """Return the array that `_split` was called on."""
    devices, parts = mesh.size, x.shape[0]
    rows = x.shape[axis + 1] // devices
    x = x.reshape(*x.shape[: axis + 1], devices, rows, *x.shape[axis + 2 :])
    x = jnp.moveaxis(x, 0, axis + 1)
    x = x.reshape(*x.shape[:axis], devices * parts * rows, *x.shape[axis + 3 :])
    return jax.lax.with_sharding_constraint(x, sharding.split_over_devices(mesh, axis))
