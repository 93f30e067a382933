"""A new generation of the index replaces the old one, and no request is lost."""

import asyncio
import logging

import pytest
from fake_retriever import FakeRetriever, write_gallery
from optional import require

require("prometheus_client")
require("starlette")

from cmap_jax.retrieval.retriever import Query  # noqa: E402
from cmap_jax.serving.batching import Search  # noqa: E402
from cmap_jax.serving.generations import Generations  # noqa: E402
from cmap_jax.serving.metrics import Metrics  # noqa: E402
from cmap_jax.serving.refusals import Refused  # noqa: E402
from cmap_jax.serving.settings import Settings  # noqa: E402


class Index:
    """An index whose generations are made on demand, and whose opening may fail."""

    def __init__(self, folder):
        self._items = write_gallery(folder)
        self.manifest = folder / "manifest.json"
        self.opened: list[FakeRetriever] = []
        self.given: list[FakeRetriever | None] = []
        self.error: Exception | None = None
        self.publish()

    def publish(self) -> None:
        """Replace the manifest, as an update of the index does."""
        scratch = self.manifest.with_suffix(".tmp")
        scratch.write_text(f"{len(self.opened)}")
        scratch.rename(self.manifest)

    def open(self, previous):
        self.given.append(previous)
        if self.error is not None:
            raise self.error
        number = len(self.opened) + 1
        self.opened.append(FakeRetriever(self._items[:number], f"generation-{number:06}"))
        return self.opened[-1]


@pytest.fixture
def index(tmp_path):
    return Index(tmp_path)


def generations_of(index, metrics=None, **settings) -> Generations:
    return Generations(index.open, str(index.manifest), Settings(**settings), metrics or Metrics())


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def count(generation) -> int:
    """The number of items that a search in a generation returns."""
    search = Search(Query(text="red"), k=10)
    return len(await asyncio.wrap_future(generation.batcher.submit(search)))


def test_a_request_keeps_the_generation_that_it_began_with(index):
    async def run():
        generations = generations_of(index)
        with pytest.raises(Refused) as refused, generations.lease():
            pass
        assert refused.value.status == 503
        await generations.load()
        with generations.lease() as old:
            await generations.load()
            with generations.lease() as new:
                assert (await count(old), await count(new)) == (1, 2)
        assert index.given == [None, index.opened[0]]
        assert await asyncio.to_thread(index.opened[0].closed.wait, 5)
        assert not index.opened[1].closed.is_set()
        with pytest.raises(RuntimeError, match="closed"):
            old.batcher.submit(Search(Query(text="red"), k=1))
        with generations.lease() as current:
            assert await count(current) == 2
        generations.close()
        assert not generations.is_ready

    asyncio.run(run())


def test_searches_that_wait_are_answered_by_the_old_generation(index):
    async def run():
        generations = generations_of(index, batch=1)
        await generations.load()
        index.opened[0].gate.clear()

        async def search():
            with generations.lease() as generation:
                return await count(generation)

        waiting = [asyncio.create_task(search()) for _ in range(5)]
        await asyncio.sleep(0.02)
        await generations.load()
        assert await search() == 2
        index.opened[0].gate.set()
        assert await asyncio.gather(*waiting) == [1] * 5
        generations.close()

    asyncio.run(run())


def test_the_manifest_is_watched(index):
    async def run():
        metrics = Metrics()
        generations = generations_of(index, metrics, reload_seconds=0.01)
        await generations.load()
        watching = asyncio.create_task(generations.watch())
        await asyncio.sleep(0.05)
        assert len(index.opened) == 1  # nothing has changed
        index.publish()
        await until(lambda: len(index.opened) == 2)
        index.manifest.unlink()  # nothing to load
        await asyncio.sleep(0.05)
        assert len(index.given) == 2
        watching.cancel()
        generations.close()
        assert 'cmap_reloads_total{outcome="loaded"} 1.0' in metrics.exposition().decode()

    asyncio.run(run())


def test_a_broken_update_leaves_the_old_generation(index, caplog):
    async def run():
        metrics = Metrics()
        generations = generations_of(index, metrics, reload_seconds=0.01)
        await generations.load()
        watching = asyncio.create_task(generations.watch())
        index.error = ValueError("INDEX is damaged")
        index.publish()
        await until(lambda: len(index.given) == 2)
        await asyncio.sleep(0.05)
        assert len(index.given) == 2  # it is not tried again and again
        with generations.lease() as generation:
            assert await count(generation) == 1
        index.error = None
        await generations.reload()  # as SIGHUP asks for
        with generations.lease() as generation:
            assert await count(generation) == 2
        watching.cancel()
        generations.close()
        text = metrics.exposition().decode()
        assert 'cmap_reloads_total{outcome="failed"} 1.0' in text
        assert 'cmap_reloads_total{outcome="loaded"} 1.0' in text

    caplog.set_level(logging.ERROR)
    asyncio.run(run())
    (record,) = caplog.records
    assert "INDEX is damaged" in str(record.exc_info[1])
