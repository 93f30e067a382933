"""Exact search in a gallery of any size: best images and ranks in one pass over its scores.

The gallery is sharded over all devices of a mesh. If it fits into their memory it stays resident;
if not, every search streams it block by block from the host's memory or memory-mapped files.

    index = ExactIndex(np.load("pyramid.npy", mmap_mode="r"), sharding.make_mesh())
    result = index.search(query, 50, targets=targets, exclude=references)
    result.positions, result.ranks                              # [B, 50], [B]

The result is that of one matrix of all float32 scores. Equal scores are listed by ascending
position.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.numerics import round_up
from cmap_jax.retrieval import fast, scan
from cmap_jax.retrieval.blocks import Blocks
from cmap_jax.retrieval.carry import Terms
from cmap_jax.retrieval.margin import largest_norms
from cmap_jax.retrieval.parts import Part
from cmap_jax.retrieval.placement import BROKEN, Placement, Thresholds
from cmap_jax.retrieval.plan import Plan, make_plan
from cmap_jax.retrieval.positions import (
    NO_TARGET,
    Positions,
    padded_positions,
    round_to_power,
)
from cmap_jax.retrieval.request import Call, Lists, Request, check_mask, keep_allowed, pad_rows
from cmap_jax.retrieval.scores import Levels

# Least length of the lists of best images on the devices, so that one program serves most k.
_LEAST_LENGTH = 64
# Most images that a device scores at once for the sake of their own scores.
_SAMPLE = 1024


@dataclasses.dataclass(frozen=True)
class Padding:
    """Least sizes that a search is padded to: searches of one padded size share a program.

    Attributes:
        queries: least number of queries, 0 or more.
        positions: least number of positions a query, correct or excluded, 0 or more.
    """

    queries: int = 0
    positions: int = 0


NO_PADDING = Padding()


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The best images of B queries, and the placement of their correct ones.

    Attributes:
        scores: scores of the best images, [B, k] float32, best first; -inf for excluded ones.
        positions: their positions in the gallery, [B, k] int32; ties go to the lower one; -1 behind
            the last image that takes part.
        placements: placement of each query's best correct image, [B, 1], or of every correct one
            where that was asked for, [B, M]; None where no targets were given.
    """

    scores: np.ndarray
    positions: np.ndarray
    placements: Placement | None

    @property
    def ranks(self) -> np.ndarray | None:
        """Expected rank of each query's best correct image, as `evaluation.metrics.ranks`, [B]."""
        return None if self.placements is None else self.placements.best().ranks()


class ExactIndex:
    """A gallery that is resident on the devices of a mesh, or streamed through them.

    In several processes all make the same index of the same gallery and search together; each has
    the results.
    """

    def __init__(
        self,
        gallery: Part | Sequence[Part],
        mesh: Mesh,
        *,
        dtype: np.typing.DTypeLike | None = None,
        chunk: int | None = None,
        device_gb: float = 0.0,
        room: int = 0,
        fast: bool | None = None,
    ):
        """Put the gallery on the devices, if it fits.

        Args:
            gallery: pyramids [L, N, D], levels high to low, each embedding l2-normalised; one
                array, or several parts that follow one another: arrays of float32 or bfloat16, or
                int8 codes with scales (`parts.Codes`). They must not change any more: CPU devices
                share their memory.
            mesh: the devices that the gallery is sharded over.
            dtype: float32 or bfloat16, in which the devices keep it; None: its own. Scores are
                always float32.
            chunk: images that a device scores at once, rounded up to a multiple of 32; None: by
                the device and the number of queries.
            device_gb: most memory of a device that the gallery takes, in 10^9 bytes. A larger
                gallery is streamed in blocks, two of which are on the devices at a time. 0: three
                fifths of what is free, or 4 where the device does not tell; on CPU a gallery that
                can be read where it lies is never streamed.
            room: least number of images that memory is taken for. Indexes of the same room share
                their compiled programs, however many images they hold.
            fast: whether a pass in bfloat16 shortens what float32 scores, which changes no result
                (docs/method.md, section 11); None: for large batches on accelerators. A streamed
                gallery is always scored in float32.

        Raises:
            ValueError: a gallery of another shape or dtype.
        """
        self._mesh = mesh
        self._chunk, self._fast = chunk, fast
        self._blocks = Blocks(
            gallery, mesh, dtype=dtype, chunk=chunk, device_gb=device_gb, room=room
        )
        # Constant arguments of the programs, kept on the devices.
        self._empty_carry = functools.lru_cache(functools.partial(scan.start, mesh=mesh))
        self._bounds = functools.lru_cache(
            lambda **numbers: self._replicate(scan.Bounds.build(**numbers))
        )
        self._empty_sample = functools.lru_cache(
            lambda rows: self._blocks.gather(np.empty(0, np.int64), rows)[0]
        )

    def __len__(self) -> int:
        """Return the number of images, N."""
        return self._blocks.shape[1]

    def search(
        self,
        query: scoring.ComposedQuery,
        k: int,
        *,
        targets: Positions | None = None,
        exclude: Positions | None = None,
        allowed: np.ndarray | None = None,
        every_target: bool = False,
        padding: Padding = NO_PADDING,
    ) -> SearchResult:
        """Return the k best images of each query, and the placement of its correct ones.

        Args:
            query: B queries, on the host or replicated.
            k: number of images a query; N where there are fewer; 0 for the placement alone.
            targets: correct positions: one a query ([B]), several (a sequence of sequences, or
                [B, M] padded with -1), or a bool mask [B, N].
            exclude: positions whose score counts as -inf, in the same forms; they come last.
            allowed: mask of the images that take part, [N] bool; None: all of them. The result is
                that of a gallery without the others: they are neither listed nor counted, and
                none of them is correct.
            every_target: whether every correct image is placed, or the best one of each query.
            padding: least sizes that the queries and their positions are padded to.

        Raises:
            ValueError: a negative k, shapes that do not fit, a position outside the gallery, or a
                NaN score.
        """
        if k < 0:
            raise ValueError(f"k, the number of images, must be 0 or more, not {k}")
        scoring.check_levels(query, self._blocks.shape)
        allowed = check_mask(allowed, len(self))
        shape, k = (len(query), len(self)), min(k, len(self))
        if targets is None and exclude is None and k > 0:
            return self._list(query, k, allowed, padding.queries)
        correct, excluded = (
            keep_allowed(padded_positions(p, shape, padding.positions), allowed)
            for p in (targets, exclude)
        )
        is_excluded = (correct[:, :, None] == excluded[:, None, :]).any(axis=2)
        in_search = np.where(is_excluded, NO_TARGET, correct)
        prepared = self._prepare(query, padding.queries)
        like = Request(
            rows=np.full_like(correct, NO_TARGET),
            thresholds=np.zeros_like(correct if every_target else correct[:, :1], np.float32),
            uncounted=np.concatenate([in_search, excluded], axis=1),
            excluded=excluded,
            k=k,
        )
        picked = self._pick(prepared, in_search, like)
        thresholds = Thresholds.build(picked, correct, excluded, every=every_target)
        request = dataclasses.replace(like, thresholds=thresholds.scores.astype(np.float32))
        merged = self._scan(prepared, request, allowed)
        if merged.broken.any():
            raise ValueError(BROKEN)
        best = merged.scores[:, :k], merged.positions[:, :k]
        if targets is None:
            return SearchResult(*best, None)
        return SearchResult(*best, thresholds.place(merged.higher, merged.tied))

    def _list(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None, least: int
    ) -> SearchResult:
        """Return the k best images of each query, by a program that counts nothing."""
        merged = self._scan(self._prepare(query, least), Lists(len(query), k), allowed)
        if merged.broken.any():
            raise ValueError(BROKEN)
        return SearchResult(merged.scores[:, :k], merged.positions[:, :k], None)

    def scores_at(
        self,
        query: scoring.ComposedQuery,
        positions: np.ndarray,
        padding: Padding = NO_PADDING,
    ) -> np.ndarray:
        """Return the scores of a few images of each query, as a search with targets has them.

        They are equal to those in every bit. A search without targets may differ in the last one.

        Args:
            query: B queries, as in `search`.
            positions: [B, M] int, padded with -1.
            padding: as in `search`.

        Returns:
            [B, M] float32; -inf for padding.

        Raises:
            ValueError: shapes that do not fit, or a position outside the gallery.
        """
        positions = np.asarray(positions)
        if positions.ndim != 2 or len(positions) != len(query):
            raise ValueError(f"{len(query)} queries, but positions {positions.shape}")
        scoring.check_levels(query, self._blocks.shape)
        if positions.max(initial=NO_TARGET) >= len(self):
            raise ValueError(f"position {positions.max()} in a gallery of {len(self)}")
        query = self._prepare(query, padding.queries)
        nothing = padded_positions(None, (len(positions), len(self)), padding.positions)
        width = nothing.shape[1]
        like = Request(
            rows=nothing,
            thresholds=np.zeros((len(positions), 1), np.float32),
            uncounted=np.concatenate([nothing, nothing], axis=1),
            excluded=nothing,
        )
        parts = [
            self._pick(query, positions[:, start : start + width], like)
            for start in range(0, positions.shape[1], width)
        ]
        return np.concatenate([positions[:, :0].astype(np.float32), *parts], axis=1)

    def _pick(
        self, query: scoring.ComposedQuery, positions: np.ndarray, like: Request
    ) -> np.ndarray:
        """Return the scores of a few images of each query, by the program of a search like it."""
        picked = np.full(positions.shape, -np.inf, np.float32)
        wanted = np.unique(positions[positions >= 0])
        plan = self._plan(len(query))
        rows_each = min(plan.tile, _SAMPLE)
        most = rows_each * self._mesh.size
        for start in range(0, len(wanted), most):
            part = wanted[start : start + most]
            row = np.searchsorted(part, positions)
            is_here = np.isin(positions, part)
            rows = np.full_like(like.rows, NO_TARGET)
            rows[:, : positions.shape[1]] = np.where(is_here, row, NO_TARGET)
            sample, used = self._blocks.gather(part, rows_each)
            request = dataclasses.replace(like, rows=rows)
            bounds = self._bounds(sampled=used)
            carry, terms = self._start(query, request)
            block = self._blocks.resident[0] if self._blocks.resident else ()
            call = Call(block, query, terms, carry=carry, bounds=bounds)
            merged = self._run(call, plan, sample=sample)[1]
            here = np.asarray(merged.picked)[: len(positions), : positions.shape[1]]
            picked = np.where(is_here, here, picked)
        return picked

    def _run(
        self,
        call: Call,
        plan: Plan,
        *,
        sample: Levels = (),
        chosen: scan.Chosen | None = None,
    ) -> tuple[scan.Carry, scan.Merged]:
        """Run the program of a search on a block."""
        if plan.is_fast and chosen is None:
            chosen = self._nothing_chosen
        return scan.program(plan)(
            sample=sample,
            **call.arguments(self._all_allowed),
            chosen=chosen,
            mesh=self._mesh,
            plan=plan,
        )

    def _scan(
        self,
        query: scoring.ComposedQuery,
        request: Request | Lists,
        allowed: np.ndarray | None,
    ) -> scan.Merged:
        """Scan the whole gallery; return the merged results, on the host."""
        carry, terms = self._start(query, request)
        plan = self._plan(len(query), sampled=terms is not None)
        sample = () if terms is None else self._empty_sample(min(plan.tile, _SAMPLE))
        for levels, first, seen in self._blocks.among(allowed):
            before, chosen = carry, None
            mask = self._all_allowed if allowed is None else self._blocks.spread(allowed, first)
            bounds = self._bounds(
                first=first,
                seen=seen,
                total=len(self),
                used=self._blocks.used,
                lists=request.k > 0,
                k=request.k,
                queries=len(request),
            )
            call = Call(levels, query, terms, carry=carry, bounds=bounds, allowed=mask)
            if plan.is_fast:
                call, chosen = self._choose(call, plan)
            carry, merged = self._run(call, plan, sample=sample, chosen=chosen)
            # While this block is scanned, the next one is transferred, and no third.
            jax.block_until_ready(before)
        return jax.tree.map(lambda x: x[: len(request)], jax.device_get(merged))

    def _choose(self, call: Call, plan: Plan) -> tuple[Call, scan.Chosen]:
        """Run the fast pass; return a call that has its counts, and the images that it leaves."""
        _, queries, length = call.carry.scores.shape
        longer = self._empty_carry(
            queries=queries,
            thresholds=call.carry.higher.shape[2],
            k=fast.length_of(length),
        )
        higher, tied, chosen = fast.choose(
            **dataclasses.replace(call, carry=longer).arguments(),
            largest=self._largest,
            mesh=self._mesh,
            plan=plan,
        )
        carry = call.carry.replace(higher=higher, tied=tied)
        return dataclasses.replace(call, carry=carry), chosen

    def _start(
        self, query: scoring.ComposedQuery, request: Request | Lists
    ) -> tuple[scan.Carry, Terms | None]:
        """Return the carry and the terms of a search that has seen no image yet."""
        length = round_to_power(max(request.k, _LEAST_LENGTH))
        if isinstance(request, Lists):
            return self._empty_carry(queries=len(query), thresholds=0, k=length), None
        rows, thresholds, uncounted, excluded = (
            pad_rows(x, len(query))
            for x in (request.rows, request.thresholds, request.uncounted, request.excluded)
        )
        carry = self._empty_carry(queries=len(query), thresholds=thresholds.shape[1], k=length)
        return carry, self._replicate(Terms(rows, thresholds, uncounted, excluded))

    def _plan(self, queries: int, sampled: bool = True) -> Plan:
        """Return the plan of a search for some queries, padding included."""
        is_resident = len(self._blocks.resident) == 1
        return make_plan(
            self._mesh.devices.flat[0].platform,
            queries,
            self._blocks.shard_rows,
            chunk=self._chunk,
            fast=self._fast if is_resident else False,
            sampled=sampled,
        )

    def _prepare(self, query: scoring.ComposedQuery, least: int) -> scoring.ComposedQuery:
        """Replicate queries, padded with zeros so that few programs serve all B."""
        count = max(len(query), least)
        step = 1 << max(count.bit_length() - 3, 0)
        missing = round_up(count, step) - len(query)
        query = query.replace(preservation=None)
        if missing:
            widths = ((0, 0), (0, missing), (0, 0))
            query = jax.tree.map(lambda x: np.pad(np.asarray(x), widths), query)
        return self._replicate(query)

    def _replicate(self, tree: Any) -> Any:
        whole = sharding.replicated(self._mesh)
        if whole.is_fully_addressable:
            return jax.device_put(tree, whole)  # all arrays in one transfer
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, whole, lambda i: np.asarray(x)[i]), tree
        )

    @functools.cached_property
    def _all_allowed(self) -> jax.Array:
        """The mask of a block whose images all take part, [R] bool."""
        return self._blocks.spread(np.ones(len(self), bool))

    @functools.cached_property
    def _largest(self) -> jax.Array:
        """The largest norm of an image at each level, which the fast pass's error depends on."""
        return self._replicate(np.asarray(largest_norms(self._blocks.resident[0])))

    @functools.cached_property
    def _nothing_chosen(self) -> scan.Chosen:
        return scan.Chosen.nothing(self._mesh, fast.capacity_of(self._blocks.shard_rows))
