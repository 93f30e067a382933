"""Searches that arrive one by one, computed together in batches of fixed shapes.

batcher = Batcher(retriever, settings, metrics)
hits = batcher.submit(Search(Query(image=pixels, text="in red"), k=24)).result()

A thread takes the searches that wait, at most `Settings.batch` of them. They are composed together,
and those with the same filter are scored together. The retriever pads both to the sizes that it was
warmed up for, and nothing compiles any more. While a batch is computed, the next one gathers.
"""

import concurrent.futures
import dataclasses
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cmap_jax import scoring
from cmap_jax.processing.image_files import ImageReadError
from cmap_jax.retrieval.queries import joined
from cmap_jax.retrieval.retriever import Hit, Query, Retriever
from cmap_jax.serving.metrics import Metrics
from cmap_jax.serving.settings import Settings

_logger = logging.getLogger(__name__)

_MEMORY = 0.2  # weight of the last batch in the running mean of the batches' seconds
_LONGEST_RETRY = 30  # seconds


@dataclasses.dataclass(frozen=True)
class Search:
    """A search that can be computed with others.

    Attributes:
        query: one query; uploaded pictures in it are already pixels.
        k: number of results.
        where: filter on metadata, as the retriever takes it; None for none.
    """

    query: Query
    k: int
    where: Mapping[str, Any] | None = None

    @property
    def filter_key(self) -> str:
        """A text that is equal for equal filters."""
        return json.dumps(self.where, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    search: Search
    future: concurrent.futures.Future


class Unfit(ValueError):  # noqa: N818
    """A query that cannot be composed; the message is for the client."""


class Unreachable(Exception):  # noqa: N818
    """The backend cannot be reached, which the log says more of; no search can be answered."""


class Batcher:
    """Computes searches of one retriever in one thread, since a backend allows no more."""

    def __init__(self, retriever: Retriever, settings: Settings, metrics: Metrics):
        """Start the thread.

        Args:
            retriever: what is searched.
            settings: sizes of batches, and how long a search waits for others.
            metrics: receive the sizes and times of the batches.
        """
        self._retriever = retriever
        self._settings = settings
        self._metrics = metrics
        self._waiting: list[_Waiting] = []
        self._closed = False
        self._changed = threading.Condition()
        self._batch_seconds = 0.0
        threading.Thread(target=self._run, name="searches", daemon=True).start()

    def warm_up(self) -> None:
        """Compile all that searches need; call it before the first `submit`."""
        self._retriever.warm_up(self._settings.batch_sizes, self._settings.k)

    def submit(self, search: Search) -> concurrent.futures.Future[list[Hit]]:
        """Queue a search; cancelling the future removes one that has not begun.

        The future raises `Unfit` or `Unreachable`.

        Raises:
            RuntimeError: after `close`.
        """
        waiting = _Waiting(search, concurrent.futures.Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.future

    @property
    def retry_after(self) -> int:
        """Seconds after which the searches that wait now should be answered, 1 to 30."""
        batches = 1 + len(self._waiting) / self._settings.batch
        return min(_LONGEST_RETRY, max(1, math.ceil(batches * self._batch_seconds)))

    def close(self) -> None:
        """Take no more searches; the thread answers those that wait, closes the retriever, ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._take():
            started = time.perf_counter()
            self._answer(batch)
            seconds = time.perf_counter() - started
            self._batch_seconds += _MEMORY * (seconds - self._batch_seconds)
            self._metrics.observe_batch(len(batch), seconds)
        self._retriever.close()

    def _take(self) -> list[_Waiting]:
        """Wait for searches, and return at most a batch; an empty list after `close`."""
        limit, batch = self._settings.batch, []
        while not batch:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                self._changed.wait_for(
                    lambda: len(self._waiting) >= limit or self._closed, self._settings.batch_wait
                )
                taken, self._waiting = self._waiting[:limit], self._waiting[limit:]
            batch = [w for w in taken if w.future.set_running_or_notify_cancel()]
        return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Set the results of a batch; a search that fails does not fail the others."""
        composed, query = self._compose(batch)
        if composed:
            self._score(composed, query)

    def _compose(
        self, batch: Sequence[_Waiting]
    ) -> tuple[Sequence[_Waiting], scoring.ComposedQuery | None]:
        """Return the searches that can be composed, and their queries; the others fail."""
        try:
            return batch, self._retriever.compose([waiting.search.query for waiting in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(_explained(error))
                return [], None
        _logger.warning("%d queries failed together and are composed singly", len(batch))
        parts = [(waiting, self._compose([waiting])[1]) for waiting in batch]
        fit = [(waiting, query) for waiting, query in parts if query is not None]
        return [waiting for waiting, _ in fit], joined([query for _, query in fit])

    def _score(self, batch: Sequence[_Waiting], query: scoring.ComposedQuery) -> None:
        """Set the results of searches whose queries are composed."""
        try:
            answers = self._search([waiting.search for waiting in batch], query)
        except Exception as error:
            if len(batch) == 1 or isinstance(error, Unreachable):  # a repetition would wait again
                for waiting in batch:
                    waiting.future.set_exception(error)
                return
            _logger.warning("%d searches failed together and are repeated singly", len(batch))
            for row, waiting in enumerate(batch):
                self._score([waiting], scoring.take(query, np.array([row])))
            return
        for waiting, hits in zip(batch, answers, strict=True):
            waiting.future.set_result(hits)

    def _search(self, searches: Sequence[Search], query: scoring.ComposedQuery) -> list[list[Hit]]:
        """Return the hits of each search; those with the same filter are scored together."""
        answers: dict[int, list[Hit]] = {}
        for rows in _grouped(range(len(searches)), lambda i: searches[i].filter_key):
            k = max(searches[i].k for i in rows)
            part = scoring.take(query, np.array(rows))
            try:
                hits = self._retriever.search_composed(part, k, searches[rows[0]].where)
            except OSError as error:
                _logger.exception("the search backend cannot be reached")
                raise Unreachable("the search backend cannot be reached") from error
            answers |= {i: own[: searches[i].k] for i, own in zip(rows, hits, strict=True)}
        return [answers[i] for i in range(len(searches))]


def _explained(error: Exception) -> Exception:
    """Return the error of a query that cannot be composed, in words for the client."""
    if isinstance(error, ImageReadError):  # names a path of the gallery, which is not the client's
        return Unfit("the picture of an item cannot be read")
    return Unfit(str(error)) if isinstance(error, ValueError) else error


def _grouped(items: Sequence[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Return the items with equal keys together, in their order."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
