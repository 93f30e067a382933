"""Whether the preserved part of a score looks where the modified part looks, in numbers.

See docs/method.md, section 13.

    measure = OverlapMeasure(model, mesh, count=64)
    measure(variables, data, data.evaluations[0], gallery)["target_iou"]     # 0.31

Queries with several references, whose mean is no picture, are left out. The numbers are means over
queries and levels. Pictures are "reference" and "target":

    "<picture>_iou", "<picture>_correlation"
        intersection over union, 0 to 1, and correlation of the two parts' heat maps; followed by
        "/high" and so on, the same at one level
    "empty_maps"
        percent of the pairs of heat maps of which one is empty, so that they have no such numbers
    "attention_overlap"
        the part of the two attentions that they have in common, 0 to 1
    "modified_entropy", "preserved_entropy"
        entropies of the attentions, nats
    "modified_text_distance", "preserved_text_distance"
        cosine distance to the text of the target under each attention, 0 to 2
    "queries"
        number of queries that were measured
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from cmap_jax import scoring, sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import find_variant
from cmap_jax.numerics import NORM_FLOOR, round_up
from cmap_jax.visualization.heatmaps import HeatMaps, HeatPrograms, ImageHeat

PARTS = ("modified", "preserved")


class OverlapMeasure:
    """Measures the overlap of the modified and the preserved part on some queries."""

    def __init__(self, model: CMAP, mesh: Mesh, count: int):
        """Compile nothing yet.

        Args:
            model: the Flax module.
            mesh: devices over which the queries are sharded.
            count: most queries that are measured, 1 or more.

        Raises:
            ValueError: the method has no modified and preserved part with attentions.
        """
        check_parts(model)
        self._mesh, self._count = mesh, count
        self._programs = HeatPrograms(model, strongest=0, mesh=mesh)
        self._encode_text = jax.jit(
            lambda variables, *text: model.apply(variables, *text, method="encode_text"),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(
        self, variables: Any, data: Any, evaluation: Any, gallery: Float[np.ndarray, "L N D"]
    ) -> dict[str, float]:
        """Return the numbers over queries at even distances in an evaluation.

        Args:
            variables: the model's variables.
            data: the split, as `Evaluator.__call__` takes it, with a method ``load``.
            evaluation: the protocol with its queries, one of the split's.
            gallery: embeddings of the split's images.

        Raises:
            ValueError: no query with one reference has an image to find among the split's images.
        """
        queries = [q for q in evaluation.queries if not q.more_references and _target(q, data)]
        if not queries:
            raise ValueError(
                f"{evaluation.protocol.name}: no query with one reference has an image to find"
            )
        rows = np.linspace(0, len(queries) - 1, min(self._count, len(queries))).round().astype(int)
        queries = [queries[row] for row in rows]
        parts = list(self._measure_all(variables, data, queries, gallery))
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {**_means(values), "queries": len(queries)}

    def _measure_all(
        self, variables: Any, data: Any, queries: Sequence, gallery: np.ndarray
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the numbers of each query by name, [B, levels], a batch at a time."""
        size = min(data.batch_size, round_up(len(queries), self._mesh.size))
        for number, batch in enumerate(data.query_batches(queries)):
            start = number * data.batch_size
            mine = queries[start : start + data.batch_size]
            text = [self._place(batch[name][:size]) for name in ("text_tokens", "text_lengths")]
            targets = [_target(query, data) for query in mine]
            pictures = [
                self._load(data, ids, size) for ids in ([q.reference for q in mine], targets)
            ]
            maps, query = self._programs(variables, *pictures, *text)
            embedded = self._encode_text(variables, *text)
            maps, query, embedded = jax.tree.map(np.asarray, (maps, query, embedded))
            pyramid = gallery[:, [data.positions[i] for i in targets]]
            numbers = {**_compare_maps(maps), **_compare_attentions(query)}
            numbers = {name: rows[: len(mine)] for name, rows in numbers.items()}
            yield numbers | _text_distances(query, pyramid, embedded[: len(mine)])

    def _load(self, data: Any, ids: Sequence[str], size: int) -> Any:
        """Return images, or their features, in rows that are filled up to ``size``."""
        unique = list(dict.fromkeys(ids))
        kept, loaded = data.load(unique)
        if len(kept) < len(unique):
            raise ValueError(f"{len(unique) - len(kept)} images could be read, and no longer can")
        rows = [unique.index(i) for i in ids]
        rows += rows[-1:] * (size - len(rows))
        return jax.tree.map(lambda array: self._place(array[rows]), loaded)

    def _place(self, array: np.ndarray) -> jax.Array:
        return sharding.place_same(np.asarray(array), self._mesh)


def _target(query: Any, data: Any) -> str | None:
    """Return the first of a query's right images that the split has; None where it has none."""
    return next((target for target in query.targets if target in data.positions), None)


def has_parts(model: CMAP) -> bool:
    """Tell whether a method has the two parts, each with an attention; nothing is computed."""
    query = _query_of(model)
    pairs = zip(query.branch_names, query.branches, strict=True)
    return {name for name, branch in pairs if branch.weight is not None}.issuperset(PARTS)


def has_preservation(model: CMAP) -> bool:
    """Tell whether a method has what the preservation loss is computed from."""
    return _query_of(model).preservation is not None


def _query_of(model: CMAP) -> scoring.ComposedQuery:
    """Return the shapes of a composed query, which say what a method's queries consist of."""
    variant, width = find_variant(model.variant), model.image["embed_dim"]
    settings = {"settings": model.composer_settings} if variant.settings else {}
    composer = variant.build(dtype=model.dtype, **settings)
    pyramid, text = jnp.zeros((len(variant.levels), 2, width)), jnp.zeros((2, width))
    query, _ = jax.eval_shape(
        lambda: composer.init_with_output(jax.random.key(0), pyramid, text, train=False)
    )
    return query


def check_parts(model: CMAP) -> None:
    """Refuse a method without the two parts; nothing is computed.

    Raises:
        ValueError: names the field and the methods that are possible.
    """
    if not has_parts(model):
        raise ValueError(
            "config.eval.overlap compares the attentions of a modified and a preserved part, and "
            f"config.model.variant={model.variant} lacks them: set it to 0, or choose cmap or "
            "artemis"
        )


def map_iou(
    first: Float[np.ndarray, "*B h w"], second: Float[np.ndarray, "*B h w"]
) -> Float[np.ndarray, "*B"]:
    """Return the intersection over union of heat maps, each scaled to the sum 1, 0 to 1.

    See docs/method.md, section 13. It is NaN where a map is 0 everywhere.
    """
    a, b = (_scaled(x) for x in (first, second))
    return np.minimum(a, b).sum((-2, -1)) / np.maximum(a, b).sum((-2, -1))


def map_correlation(
    first: Float[np.ndarray, "*B h w"], second: Float[np.ndarray, "*B h w"]
) -> Float[np.ndarray, "*B"]:
    """Return the correlation of heat maps over their positions, -1 to 1; NaN at a constant map."""
    a, b = (_scaled(x) for x in (first, second))
    a, b = (x - x.mean((-2, -1), keepdims=True) for x in (a, b))
    norms = np.sqrt((a * a).sum((-2, -1)) * (b * b).sum((-2, -1)))
    products = (a * b).sum((-2, -1))
    return np.divide(products, norms, out=np.full_like(norms, np.nan), where=norms > NORM_FLOOR)


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Return maps as float64 of the sum 1, or NaN where they are 0."""
    maps = np.asarray(maps, np.float64)
    totals = maps.sum((-2, -1), keepdims=True)
    return np.divide(maps, totals, out=np.full_like(maps, np.nan), where=totals > 0)


def compare_heat(heat: ImageHeat, branches: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return "iou" and "correlation", [B], of the two parts' maps of pictures, by level."""
    modified, preserved = (branches.index(part) for part in PARTS)
    pairs = {level: (maps[modified, 0], maps[preserved, 0]) for level, maps in heat.heat.items()}
    return {
        level: {"iou": map_iou(*pair), "correlation": map_correlation(*pair)}
        for level, pair in pairs.items()
    }


def _compare_maps(maps: HeatMaps) -> dict[str, np.ndarray]:
    """Return the numbers that compare heat maps: at a level [B, 1], else [B, levels]."""
    numbers = {}
    for picture, heat in (("reference", maps.reference), ("target", maps.target)):
        by_level = compare_heat(heat, maps.branches)
        for measure in ("iou", "correlation") if by_level else ():
            columns = {level: values[measure][:, None] for level, values in by_level.items()}
            numbers[f"{picture}_{measure}"] = np.concatenate(list(columns.values()), axis=1)
            numbers |= {f"{picture}_{measure}/{level}": x for level, x in columns.items()}
    ious = [numbers[f"{p}_iou"] for p in ("reference", "target") if f"{p}_iou" in numbers]
    if ious:
        numbers["empty_maps"] = 100.0 * np.isnan(np.concatenate(ious, axis=1))
    return numbers


def _attentions(query: scoring.ComposedQuery) -> dict[str, np.ndarray]:
    """Return the weights of the two parts, [L, B, D] or [1, B, D] float64."""
    branches = dict(zip(query.branch_names, query.branches, strict=True))
    return {part: np.asarray(branches[part].weight, np.float64) for part in PARTS}


def _compare_attentions(query: scoring.ComposedQuery) -> dict[str, np.ndarray]:
    """Return the overlap and the entropies of the attentions, [B, levels]."""
    shares = {
        part: np.abs(weight) / np.maximum(np.abs(weight).sum(-1, keepdims=True), NORM_FLOOR)
        for part, weight in _attentions(query).items()
    }
    entropies = {
        f"{part}_entropy": -(x * np.log(np.maximum(x, NORM_FLOOR))).sum(-1).T
        for part, x in shares.items()
    }
    return {"attention_overlap": np.minimum(*shares.values()).sum(-1).T, **entropies}


def _text_distances(
    query: scoring.ComposedQuery, targets: np.ndarray, text: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the cosine distance of each part of the targets to the texts, [B, levels]."""
    distances = {}
    for part, weight in _attentions(query).items():
        x = weight[:, : len(text)] * targets
        norms = np.maximum(np.linalg.norm(x, axis=-1), NORM_FLOOR)
        distances[f"{part}_text_distance"] = (1 - (x * text).sum(-1) / norms).T
    return distances


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each number, over the queries and levels that have it."""
    return {
        name: float(np.nanmean(rows)) for name, rows in values.items() if not np.isnan(rows).all()
    }
