"""The feed: batches in order on the devices, errors passed on, waits measured."""

import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmap_jax import sharding
from cmap_jax.training import feed as feed_lib
from cmap_jax.training.feed import DeviceFeed
from cmap_jax.training.progress import PendingMeans
from cmap_jax.training.training_log import TrainingLog
from cmap_jax.training.watch import FinishedStep


def _batches(count, delay=0.0):
    for i in range(count):
        time.sleep(delay)
        yield {"x": np.full((8, 2), i, np.float32)}


class _Work:
    """A device's output that is ready at some time."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def is_ready(self):
        return time.monotonic() >= self.end


def test_batches_come_in_order_and_placed():
    mesh = sharding.make_mesh()
    with DeviceFeed(_batches(7), mesh) as feed:
        placed = list(feed)
    assert [float(batch["x"][0, 0]) for batch in placed] == list(range(7))
    assert placed[0]["x"].sharding == sharding.split_over_devices(mesh)


def test_only_so_many_batches_are_made_ahead():
    made = []

    def batches():
        for batch in _batches(50):
            made.append(1)
            yield batch

    with DeviceFeed(batches(), sharding.make_mesh()) as feed:
        next(iter(feed))
        time.sleep(0.3)
        # One taken, two in the queue, one that waits to get there.
        assert len(made) <= feed_lib._AHEAD + 2
    assert threading.active_count() < 50
    assert "device feed" not in {thread.name for thread in threading.enumerate()}


def test_what_making_a_batch_raises_comes_out():
    def batches():
        yield from _batches(2)
        raise ValueError("a broken image")

    with DeviceFeed(batches(), sharding.make_mesh()) as feed:
        placed = iter(feed)
        next(placed), next(placed)
        with pytest.raises(ValueError, match="a broken image"):
            next(placed)


def test_an_error_of_the_loop_ends_the_thread():
    def loop():
        with DeviceFeed(_batches(10_000), sharding.make_mesh()) as feed:
            for _ in feed:
                raise RuntimeError("of a step")

    with pytest.raises(RuntimeError, match="of a step"):
        loop()
    assert "device feed" not in {thread.name for thread in threading.enumerate()}


def test_waiting_counts_only_while_the_devices_are_idle():
    with DeviceFeed(_batches(6, delay=0.5), sharding.make_mesh()) as feed:
        batches = iter(feed)
        next(batches)
        feed.take_waited_fraction()
        feed.working_on(_Work(0.0))  # done at once: nearly all of the time is waiting
        next(batches), next(batches)
        assert feed.take_waited_fraction() > 0.5
        feed.working_on(_Work(60.0))  # still at work: none of it is
        next(batches)
        assert feed.take_waited_fraction() == 0.0
        started = time.monotonic()
        feed.working_on(_Work(0.3))  # the time of its work is no waiting
        next(batches)
        elapsed = time.monotonic() - started
        assert feed.take_waited_fraction() * elapsed < elapsed - 0.25


def test_a_real_output_tells_whether_it_is_ready():
    output = jax.jit(lambda x: x + 1)(jnp.zeros(3))
    jax.block_until_ready(output)
    with DeviceFeed(_batches(2, delay=0.5), sharding.make_mesh()) as feed:
        batches = iter(feed)
        next(batches)
        feed.take_waited_fraction()
        feed.working_on(output)
        next(batches)
        assert feed.take_waited_fraction() > 0.3


@pytest.mark.parametrize(("fraction", "said"), [(0.34, True), (0.09, False)])
def test_the_log_writes_the_wait_and_warns_above_a_tenth(fraction, said, caplog):
    written = {}
    writer = types.SimpleNamespace(write_scalars=lambda step, means: written.update({step: means}))
    log = TrainingLog(writer, PendingMeans(), lambda: fraction)
    for step in (1, 2):
        log.add(FinishedStep(step, {"loss/total": 0.0, "gradient_norm": 0.0}, {"logit_scale": 1.0}))
    log.write(2)
    log.write(3)  # nothing was added since
    assert {step: means["data_wait"] for step, means in written.items()} == {2: fraction}
    text = "Up to step 2 the devices waited for data 34% of the time"
    assert (text in caplog.text) == said
    assert ("--config.data.cache_gb" in caplog.text) == said
