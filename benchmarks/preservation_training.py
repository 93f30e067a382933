"""Training of `preservation.py`: many settings of the losses share one compiled program.

The model, its losses, the optimiser and its schedule, and the evaluation are the library's. The
step is written again, because here the settings of the losses are arrays, so that they need not be
compiled anew, and both losses' gradients are wanted apart.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from preservation_data import Data

from cmap_jax import scoring, sharding
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.overlap import OverlapMeasure
from cmap_jax.losses import REVERSALS, entropy_shortfall, preservation_loss, ramp
from cmap_jax.models.cmap import CMAP
from cmap_jax.numerics import l2_normalize
from cmap_jax.training.objective import objective
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import TrainState, create_train_state

PROBE_QUERIES, PROBE_IMAGES = 128, 256
OVERLAP_QUERIES = 64
_MODES = [(reversal, moves) for reversal in REVERSALS for moves in (True, False)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        variant: the composition method.
        weight: factor of the config's weights of the preservation loss; 0: without the loss.
        reversal: see ``config.loss.preservation_reversal``.
        moves_text: see ``config.loss.preservation_moves_text``.
        start: part of the run without the preservation loss.
        ramp: part of the run, after that, in which its weight rises.
        margin: factor of the config's margins.
        entropy_floor: see ``config.loss.entropy_floor``.
        entropy_weight: see ``config.loss.entropy_weight``.
        length: factor of the config's epochs.
    """

    variant: str = "cmap"
    weight: float = 1.0
    reversal: str = "released"
    moves_text: bool = True
    start: float = 0.0
    ramp: float = 0.0
    margin: float = 1.0
    entropy_floor: float = 0.0
    entropy_weight: float = 1.0
    length: int = 1

    def arrays(self, loss: Any, steps: int) -> dict[str, jax.Array]:
        """Return what the compiled program takes.

        Args:
            loss: ``config.loss``.
            steps: length of the run.
        """
        weights = np.zeros((len(_MODES), len(loss.preservation_weights)))
        mode = _MODES.index((self.reversal, self.moves_text))
        weights[mode] = self.weight * np.array(loss.preservation_weights)
        values = {
            "weights": weights,
            "margins": self.margin * np.array(loss.margins),
            "start": round(self.start * steps),
            "ramp": round(self.ramp * steps),
            "entropy_floor": self.entropy_floor,
            "entropy_weight": self.entropy_weight if self.entropy_floor else 0.0,
        }
        return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


class Trainer:
    """Trains one method on one data set, with any settings of the losses."""

    def __init__(self, data: Data, variant: str, *, longest: int, chunk: int):
        """Place the data on the device; nothing is compiled yet.

        Args:
            data: the data set.
            variant: the composition method.
            longest: most steps of a run.
            chunk: steps that one call of the compiled program makes.
        """
        config = data.config.copy_and_resolve_references()
        config.model.variant = variant
        config.loss.preservation_weights = (0.0, 0.0, 0.0)  # it is added with traced weights
        self._config, self._data, self._chunk, self._longest = config, data, chunk, longest
        self._model = CMAP.from_config(config)
        self._mesh = sharding.make_mesh(data=1)
        self._evaluator = Evaluator(self._model, self._mesh)
        self._overlap = OverlapMeasure(self._model, self._mesh, OVERLAP_QUERIES)
        self._arrays = jax.device_put(
            {
                "squares": data.squares,
                "tokens": data.tokens,
                "lengths": data.lengths,
                "probe": _probe(data.split),
            }
        )
        optimizer = make_optimizer(config, lambda count: 0.0)
        self._create = jax.jit(
            lambda seed: create_train_state(
                self._model, optimizer, seed=seed, image_size=config.data.crop
            )
        )
        self._train = jax.jit(self._train_chunk, donate_argnums=0)

    def compile(self) -> float:
        """Compile all programs, and return the seconds that it took."""
        started = time.perf_counter()
        batches = self._data.batches(0)
        part = {name: jnp.asarray(x[: self._chunk]) for name, x in batches.items()}
        rates = jnp.zeros(self._longest, jnp.float32)
        settings = Setting(self._model.variant).arrays(self._data.config.loss, 1)
        state = self._create(0)
        arguments = (part, rates, settings, self._arrays)
        self._train = self._train.lower(state, *arguments).compile()
        self._evaluator(state.variables, self._data.split)
        self._measure(state.variables)
        return time.perf_counter() - started

    def run(self, setting: Setting, seed: int, steps: int | None = None) -> dict[str, Any]:
        """Train with a setting and return its results.

        Args:
            setting: its variant is the trainer's.
            seed: seed of the initial values and the batches.
            steps: length of the run; None: the config's epochs times the setting's factor.
        """
        started = time.perf_counter()
        config, data = self._config.copy_and_resolve_references(), self._data
        config.train.epochs *= setting.length
        steps = steps or config.train.epochs * data.steps_per_epoch
        schedule = make_schedule(config, data.steps_per_epoch)
        rates = np.zeros(self._longest, np.float32)
        rates[:steps] = schedule(jnp.arange(steps))
        settings = setting.arrays(data.config.loss, steps)
        plan = {name: jnp.asarray(x[:steps]) for name, x in data.batches(seed).items()}
        state, curve = self._create(seed), []
        for start in range(0, steps, self._chunk):
            part = {name: x[start : start + self._chunk] for name, x in plan.items()}
            state, point = self._train(state, part, jnp.asarray(rates), settings, self._arrays)
            curve.append({"step": start + len(part["texts"]), **point})
        curve = jax.tree.map(lambda x: np.round(np.asarray(x, np.float64), 6).tolist(), curve)
        trained = time.perf_counter() - started
        result = self._evaluator(state.variables, data.split)
        variables = jax.tree.map(np.asarray, state.variables)
        overlap = self._measure(variables)
        return {
            "steps": steps,
            "recalls": {name: dict(r.numbers) for name, r in result.protocols.items()},
            "overlap": overlap,
            "curve": curve,
            "training_seconds": round(trained, 2),
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _measure(self, variables: Any) -> dict[str, float]:
        """Return the overlap of the modified and the preserved part."""
        split = self._data.split
        gallery = np.concatenate(
            [
                np.asarray(self._encode(variables, batch["image"]))[:, batch["mask"]]
                for batch in split.image_batches()
            ],
            axis=1,
        )
        return self._overlap(variables, split, split.evaluations[0], gallery)

    @property
    def _encode(self) -> Any:
        """The program that encodes pictures, which the evaluator has compiled."""
        return self._evaluator._programs.encode_images

    def _train_chunk(
        self, state: TrainState, plan: dict, rates: jax.Array, settings: dict, arrays: dict
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Make some steps, then measure."""
        optimizer = make_optimizer(self._config, lambda count: rates[count])

        def step(state: TrainState, rows: dict) -> tuple[TrainState, dict[str, jax.Array]]:
            batch = _gather(rows, arrays, self._config.data.crop)

            def total(params: Any) -> tuple[jax.Array, tuple]:
                (matching, preservation), stats = self._losses(
                    params, state.batch_stats, batch, settings, state.step
                )
                return matching + preservation, (matching, preservation, stats)

            gradients, (matching, preservation, stats) = jax.grad(total, has_aux=True)(state.params)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            state = state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                batch_stats=stats,
                opt_state=opt_state,
            )
            return state, {"matching": matching, "preservation": preservation}

        state, losses = jax.lax.scan(step, state, plan)
        last = _gather(jax.tree.map(lambda x: x[-1], plan), arrays, self._config.data.crop)
        point = jax.tree.map(jnp.mean, losses)
        point |= self._gradients(state, last, settings)
        return state, point | self._probe(state, arrays["probe"])

    def _losses(
        self, params: Any, stats: Any, batch: dict, settings: dict, step: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        """Return the weighted matching and preservation loss, and the running statistics."""
        outputs, updates = self._model.apply(
            {"params": params, "batch_stats": stats},
            **batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},  # the small models have no dropout
        )
        matching, _ = objective(outputs, self._config.loss, self._mesh)
        inputs, preservation = outputs.query.preservation, jnp.zeros(())
        if inputs is not None:
            levels = len(outputs.targets)
            for weights, (reversal, moves_text) in zip(settings["weights"], _MODES, strict=True):
                preservation += preservation_loss(
                    inputs,
                    outputs.targets,
                    margins=settings["margins"][:levels],
                    level_weights=weights[:levels],
                    alpha=self._config.loss.alpha,
                    reduction=self._config.loss.preservation_reduction,
                    reversal=reversal,
                    moves_text=moves_text,
                )
            preservation *= ramp(step, start=settings["start"], length=settings["ramp"])
            shortfall = entropy_shortfall(inputs.attention, settings["entropy_floor"])
            preservation += settings["entropy_weight"] * shortfall
        return (matching, preservation), updates["batch_stats"]

    def _gradients(self, state: TrainState, batch: dict, settings: dict) -> dict[str, jax.Array]:
        """Return the norms of both losses' gradients, by part of the model, and their cosine."""

        def losses(params: Any) -> tuple[jax.Array, jax.Array]:
            return self._losses(params, state.batch_stats, batch, settings, state.step)[0]

        _, pull = jax.vjp(losses, state.params)
        both = jax.lax.map(lambda one: pull((one[0], one[1]))[0], jnp.eye(2))
        products = sum(jnp.sum(x[0] * x[1]) for x in jax.tree.leaves(both))
        numbers = {}
        parts = {"": both} | {f"/{name}": both[name] for name in both if name != "logit_scale"}
        for name, tree in parts.items():
            squares = sum(jnp.sum(x.reshape(2, -1) ** 2, axis=1) for x in jax.tree.leaves(tree))
            for loss, square in zip(("matching", "preservation"), squares, strict=True):
                numbers[f"gradient_{loss}{name}"] = jnp.sqrt(square)
        norms = numbers["gradient_matching"] * numbers["gradient_preservation"]
        return numbers | {"gradient_cosine": products / jnp.maximum(norms, 1e-12)}

    def _probe(self, state: TrainState, probe: dict) -> dict[str, jax.Array]:
        """Return what the trained model does on some queries and pictures of the evaluation."""

        def apply(*inputs: jax.Array, method: str) -> Any:
            return self._model.apply(state.variables, *inputs, method=method)

        text = apply(probe["tokens"], probe["lengths"], method="encode_text")
        names, count = ("references", "targets", "gallery"), len(text)
        pictures = jnp.concatenate([probe[name] for name in names])  # compiled once for all
        embedded = apply(pictures, method="encode_images")
        references, targets, gallery = jnp.split(embedded, (count, 2 * count), axis=1)
        query = apply(references, text, method="compose")
        scores = scoring.score_branches(query, gallery)  # [K, L, Q, N]
        numbers = {}
        similar = text @ text.T
        numbers["text_similarity"] = (similar.sum() - count) / (count * (count - 1))
        for name, branch, score in zip(query.branch_names, query.branches, scores, strict=True):
            attention = branch.weight[0]  # [Q, D]
            weighted = l2_normalize(attention * targets)  # [L, Q, D]
            squares = weighted**2
            strongest = jnp.argmax(squares, axis=-1)  # [L, Q]
            commonest = jax.vmap(lambda x: jnp.bincount(x, length=text.shape[-1]).max())(strongest)
            mean = attention.mean(0, keepdims=True)
            numbers |= {
                f"{name}/spread": _spread(score),
                f"{name}/entropy": -jnp.mean(
                    jnp.sum(attention * jnp.log(jnp.maximum(attention, 1e-12)), axis=-1)
                ),
                f"{name}/variation": 0.5 * jnp.mean(jnp.sum(jnp.abs(attention - mean), axis=-1)),
                f"{name}/participation": jnp.mean(1 / jnp.sum(squares**2, axis=-1), axis=-1),
                f"{name}/top_shared": commonest / count,
                f"{name}/text_cosine": jnp.mean(jnp.sum(text * weighted, axis=-1), axis=-1),
            }
        return numbers


def _spread(scores: jax.Array) -> jax.Array:
    """Return the standard deviation of scores over a gallery by level, [L, Q, N] -> [L]."""
    return jnp.mean(jnp.std(scores, axis=-1), axis=-1)


def _gather(rows: dict, arrays: dict, size: int) -> dict[str, jax.Array]:
    """Return a batch: pictures are flipped and cut as `augmentation.cut_one` does."""

    def cut(image: jax.Array, crop: jax.Array) -> jax.Array:
        square = arrays["squares"][image]
        square = jnp.where(crop[2] > 0, square[:, ::-1], square)
        start = (crop[0], crop[1], jnp.zeros((), crop.dtype))
        return jax.lax.dynamic_slice(square, start, (size, size, 3))

    crops = rows["crops"].astype(jnp.int32)
    images = jax.vmap(jax.vmap(cut))(rows["images"].astype(jnp.int32), crops)  # [B, 2, S, S, 3]
    texts = rows["texts"].astype(jnp.int32)
    return {
        "reference_image": images[:, 0],
        "target_image": images[:, 1],
        "text_tokens": arrays["tokens"][texts],
        "text_lengths": arrays["lengths"][texts],
    }


def _probe(split: Any) -> dict[str, np.ndarray]:
    """Return queries and pictures at even distances in the first evaluation."""
    evaluation = split.evaluations[0]
    gallery = [image for images in evaluation.galleries.values() for image in images]
    queries = [evaluation.queries[i] for i in _even(len(evaluation.queries), PROBE_QUERIES)]
    tokens, lengths = split.encode([query.captions for query in queries])

    def pixels(ids: list[str]) -> np.ndarray:
        return split.pixels[[split.positions[i] for i in ids]]

    known = set(gallery)
    return {
        "tokens": tokens,
        "lengths": lengths,
        "references": pixels([query.reference for query in queries]),
        "targets": pixels([next(t for t in query.targets if t in known) for query in queries]),
        "gallery": pixels([gallery[i] for i in _even(len(gallery), PROBE_IMAGES)]),
    }


def _even(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)
