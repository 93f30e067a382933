"""The index that is served, and its replacement by a new generation without losing a request.

generations = Generations(open_retriever, "INDEX", settings, metrics)
with generations.lease() as generation:
    generation.batcher.submit(search)

A request belongs to the generation that it began with. After a reload the old one answers the
requests that hold it, then ends.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from cmap_jax.retrieval.retriever import Retriever
from cmap_jax.serving.batching import Batcher
from cmap_jax.serving.browsing import Browser
from cmap_jax.serving.explaining import Explainer, find_explainer
from cmap_jax.serving.metrics import Metrics
from cmap_jax.serving.refusals import busy, unread
from cmap_jax.serving.settings import Settings

_logger = logging.getLogger(__name__)

# Opens the index as it is now, given the retriever that is served (None at the start).
OpenRetriever = Callable[[Retriever | None], Retriever]
# The manifest's time of change, size and inode: writing it anew changes at least one of them.
_Stamp = tuple[int, int, int] | None


class Generation:
    """One state of the index, open for searches.

    Attributes:
        retriever: searches it.
        batcher: searches it for many at once.
        browser: its items and fields, for people.
        explainer: shows where scores come from; None where the model has nothing to show.
    """

    def __init__(
        self,
        retriever: Retriever,
        settings: Settings,
        metrics: Metrics,
        explainer: Explainer | None = None,
    ):
        """Open, compile and prepare all that requests need, which takes a while.

        Args:
            retriever: searches the index.
            settings: of the service.
            metrics: receive the sizes and times of batches.
            explainer: the previous generation's, which serves the same model further.
        """
        self.retriever = retriever
        self.batcher = Batcher(retriever, settings, metrics)
        try:
            self.browser = Browser(retriever)
            self.batcher.warm_up()
            self.explainer = find_explainer(retriever.trained, explainer)
        except BaseException:
            self.batcher.close()
            raise
        self._leases = 0
        self._retired = False

    @contextlib.contextmanager
    def lease(self) -> Iterator["Generation"]:
        """Keep the generation open within the block; for the event loop's thread."""
        self._leases += 1
        try:
            yield self
        finally:
            self._leases -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close after the last lease."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._leases:
            self.batcher.close()


class Generations:
    """The generation that is served now, and the loading of the next one."""

    def __init__(
        self, open_retriever: OpenRetriever, manifest: str, settings: Settings, metrics: Metrics
    ):
        """Load nothing yet.

        Args:
            open_retriever: opens the index; called in a thread, one call at a time.
            manifest: the file whose replacement means a new generation.
            settings: of the service.
            metrics: receive the outcome of reloads.
        """
        self._open = open_retriever
        self._manifest = manifest
        self._settings = settings
        self._metrics = metrics
        self._current: Generation | None = None
        self._seen: _Stamp = None
        self._loading = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether searches are answered."""
        return self._current is not None

    @property
    def retry_after(self) -> int:
        """Seconds after which a search that is refused now may be sent again."""
        return self._current.batcher.retry_after if self._current else 1

    @contextlib.contextmanager
    def lease(self) -> Iterator[Generation]:
        """Give the current generation, which stays open within the block.

        Raises:
            Refused: 503, as long as the first generation is not ready.
        """
        if self._current is None:
            raise unread(busy("the service is starting; try again soon"))
        with self._current.lease() as generation:
            yield generation

    async def load(self) -> None:
        """Load the index as it is now, and serve it from then on.

        Raises:
            Exception: it cannot be loaded; what was served before goes on.
        """
        async with self._loading:
            self._seen = _stamp(self._manifest)
            old = self._current
            retriever = old.retriever if old else None
            explainer = old.explainer if old else None
            new = await _in_thread(
                lambda: Generation(self._open(retriever), self._settings, self._metrics, explainer)
            )
            self._current = new
            if old is not None:
                old.retire()
        index = new.retriever.index
        self._metrics.show_generation(index.manifest.generation, len(index))
        about = {"generation": index.manifest.generation, "items": len(index)}
        _logger.info("the index is ready", extra=about)

    async def reload(self) -> None:
        """Load the index again; a failure is logged, and what was served before goes on."""
        try:
            await self.load()
        except Exception:
            self._metrics.observe_reload("failed")
            _logger.exception("the new index cannot be served; the old one goes on")
        else:
            self._metrics.observe_reload("loaded")

    async def watch(self) -> None:
        """Reload whenever the manifest is replaced; never returns."""
        while self._settings.reload_seconds:
            await asyncio.sleep(self._settings.reload_seconds)
            # A missing manifest is a folder that is being moved, or storage that is away.
            stamp = await asyncio.to_thread(_stamp, self._manifest)
            if stamp is not None and stamp != self._seen:
                await self.reload()

    def close(self) -> None:
        """End the current generation after the requests that hold it."""
        if self._current is not None:
            self._current.retire()
            self._current = None


async def _in_thread(make: Callable[[], Generation]) -> Generation:
    """Call a function in a thread that a process which ends does not wait for.

    Compiling takes minutes, and cannot be interrupted.
    """
    future: concurrent.futures.Future[Generation] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
