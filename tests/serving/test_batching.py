"""Searches that arrive one by one are computed together, and each gets its own answer."""

import time

import pytest
from fake_retriever import FakeRetriever, write_gallery
from optional import require

require("prometheus_client")

from cmap_jax.retrieval.retriever import Query  # noqa: E402
from cmap_jax.serving.batching import Batcher, Search, Unfit, Unreachable  # noqa: E402
from cmap_jax.serving.metrics import Metrics  # noqa: E402
from cmap_jax.serving.settings import Settings  # noqa: E402


@pytest.fixture
def retriever(tmp_path):
    return FakeRetriever(write_gallery(tmp_path))


@pytest.fixture
def start(retriever):
    batchers = []

    def start(**settings) -> Batcher:
        batchers.append(Batcher(retriever, Settings(**settings), Metrics()))
        return batchers[-1]

    yield start
    retriever.gate.set()
    for batcher in batchers:
        batcher.close()


def hold(retriever, batcher) -> list:
    """Make the batcher busy with one search, so that others gather behind it."""
    retriever.gate.clear()
    first = batcher.submit(Search(Query(text="red"), k=1))
    while not first.running():
        time.sleep(0.001)
    return [first]


def names(hits) -> list[str]:
    return [hit.metadata["name"] for hit in hits]


def test_each_search_gets_its_own_answer(retriever, start):
    batcher = start(batch=4)
    futures = hold(retriever, batcher)
    colors = ["green", "blue", "yellow", "red", "green", "blue"]
    futures += [batcher.submit(Search(Query(text=color), k=2)) for color in colors]
    retriever.gate.set()
    answers = [names(future.result(5)) for future in futures]
    assert [answer[0] for answer in answers[1:4]] == ["green", "blue", "yellow"]
    expected = retriever.search_batch([Query(text=color) for color in ["red", *colors]], 2)
    assert answers == [names(hits)[: 1 if i == 0 else 2] for i, hits in enumerate(expected)]
    assert retriever.composed[:3] == [1, 4, 2]


def test_filters_are_searched_apart_and_composed_together(retriever, start):
    batcher = start()
    futures = hold(retriever, batcher)
    wheres = [{"price": {"max": 20}}, None, {"price": {"max": 20}}, {"name": "grey"}, None]
    futures += [
        batcher.submit(Search(Query(text="yellow"), k=number + 1, where=where))
        for number, where in enumerate(wheres)
    ]
    retriever.gate.set()
    answers = [names(future.result(5)) for future in futures[1:]]
    assert answers == [
        ["red"],
        ["yellow", "red"],
        ["red", "green", "blue"],
        ["grey"],
        ["yellow", "red", "green", "grey", "blue"],
    ]
    assert retriever.composed == [1, 5]
    assert retriever.searched[1:] == [(2, 3, wheres[0]), (2, 5, None), (1, 4, wheres[3])]


def test_a_search_that_fails_fails_alone(retriever, start):
    batcher = start()
    futures = hold(retriever, batcher)
    texts = ["green", "poison", "blue", "crash"]
    futures += [batcher.submit(Search(Query(text=text), k=1)) for text in texts]
    retriever.gate.set()
    assert names(futures[1].result(5)) == ["green"]
    assert names(futures[3].result(5)) == ["blue"]
    with pytest.raises(Unfit, match="poison"):
        futures[2].result(5)
    with pytest.raises(RuntimeError, match="secret"):
        futures[4].result(5)
    assert [count for count, _, _ in retriever.searched] == [1, 2]  # the others stay together


def test_searches_without_a_backend_fail_together(retriever, start, caplog):
    """Each repetition would wait for the backend again."""
    batcher = start()
    futures = hold(retriever, batcher)
    retriever.fault = OSError("Milvus at http://10.0.0.7:19530: timeout")
    futures += [batcher.submit(Search(Query(text="red"), k=1)) for _ in range(5)]
    retriever.gate.set()
    for future in futures:
        with pytest.raises(Unreachable) as raised:
            future.result(5)
        assert "10.0.0.7" not in str(raised.value)
    assert len(retriever.searched) == 2
    assert "10.0.0.7" in caplog.text


def test_a_cancelled_search_is_not_computed(retriever, start):
    batcher = start()
    futures = hold(retriever, batcher)
    futures += [batcher.submit(Search(Query(text=text), k=1)) for text in ("green", "blue")]
    assert futures[1].cancel()
    retriever.gate.set()
    assert names(futures[2].result(5)) == ["blue"]
    assert retriever.composed == [1, 1]


def test_closing_answers_what_waits(retriever, start):
    batcher = start(batch=1)
    futures = hold(retriever, batcher)
    futures += [batcher.submit(Search(Query(text="blue"), k=1)) for _ in range(3)]
    batcher.close()
    retriever.gate.set()
    assert [names(future.result(5)) for future in futures] == [["red"], *[["blue"]] * 3]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(Search(Query(text="blue"), k=1))


def test_the_largest_search_is_warmed_up(retriever, start):
    batcher = start(batch=24, k=150)
    batcher.warm_up()
    assert retriever.warmed == [((1, 4, 8, 16, 24), 150)]


def test_the_time_to_wait_follows_the_queue(retriever, start):
    batcher = start(batch=1)
    assert batcher.retry_after == 1
    futures = hold(retriever, batcher)
    futures += [batcher.submit(Search(Query(text="red"), k=1)) for _ in range(50)]
    batcher._batch_seconds = 0.2
    assert batcher.retry_after == 11
    batcher._batch_seconds = 100
    assert batcher.retry_after == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("k", -1), ("timeout", None), ("request_seconds", float("nan"))],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        Settings(**{field: value})
