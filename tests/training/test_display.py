"""The lines of a run: speed and time left of finished steps, evaluations, slow checkpoints."""

import types

import numpy as np
import pytest

from cmap_jax import progress
from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.evaluation.results import ProtocolResult, Result
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.training import display as display_lib
from cmap_jax.training.display import Display, evaluations_left


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(display_lib.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress, "_PLAIN", 0.0)  # each update is a line
    return clock


def _display(**changes):
    sizes = {"first_step": 0, "total_steps": 100, "steps_per_epoch": 25, "images_per_step": 256}
    return Display(**sizes | changes)


def _step(clock, seconds):
    def run(state):
        clock.now += seconds
        return state

    return run


def test_speed_and_time_left_are_those_of_finished_steps(clock, capsys):
    """Compiling and evaluating are no time of a step; dispatched steps say nothing."""
    display = _display(evaluations_left=lambda step: 2.0)
    step = display.compiled(_step(clock, 50.0), "the training step")
    assert step(3) == 3
    assert capsys.readouterr().err == (
        "compiling the training step ...\ncompiled the training step in 50 s\n"
    )
    step(4)  # dispatched: nothing is known yet
    assert capsys.readouterr().err == ""
    clock.now += 50.0
    display.finished(1, 12.0, waited=10.0)  # 100 s after the program was compiled
    line = "step 1/100, epoch 1/4, loss 12.000, 3 images/s, 10% waiting for data, 2 h 45 min left\n"
    assert capsys.readouterr().err == line
    for seconds in (30.0, 10.0):  # the first one compiles too
        with display.evaluating():
            clock.now += seconds
    clock.now += 100.0
    display.finished(2, 11.5, waited=10.0)
    # 98 steps of 100 s, and two evaluations of 10 s.
    line = "step 2/100, epoch 1/4, loss 11.500, 3 images/s, 5% waiting for data, 2 h 43 min left\n"
    assert capsys.readouterr().err == line


def test_the_last_step_is_not_done_before_the_device_is(clock, capsys):
    display = _display(first_step=98)
    step = display.compiled(_step(clock, 0.0), "the training step")
    step(0), step(0)
    clock.now += 40.0
    display.finished(99, 1.0, waited=0.0)
    assert "step 99/100" in (shown := capsys.readouterr().err)
    assert shown.endswith("40 s left\n")
    clock.now += 40.0
    display.finished(100, 1.0, waited=0.0)
    assert capsys.readouterr().err.endswith("0 s left\n")


def test_an_evaluation_is_one_line(clock, capsys):
    shoes = ProtocolResult(
        protocol=PROTOCOLS["shoes"],
        numbers={"R@1": 10.0, "R@10": 40.0, "R@50": 70.0, "mR": 40.0},
        outcomes=Outcomes(groups={}, annotation=np.empty(0), rank=np.empty(0)),
        conditions={},
    )
    result = Result({"shoes": shoes})
    display = _display()
    display.evaluated(25, result, None)
    display.evaluated(50, result, (25, 42.5))
    recalls = "shoes R@1 10.00, R@10 40.00, R@50 70.00, mR 40.00"
    assert capsys.readouterr().err.splitlines() == [
        f"step 25, epoch 1: {recalls}; the best so far",
        f"step 50, epoch 2: {recalls}; the best so far is mR 42.50 of step 25",
    ]
    display.ended(25, result)
    assert capsys.readouterr().err.splitlines() == [
        "the best variables, of step 25:",
        f"  shoes  {recalls.removeprefix('shoes ')}",
    ]


def test_only_a_slow_checkpoint_is_worth_a_line(clock, capsys):
    display = _display()
    for seconds in (4.0, 7.0):
        with display.saving(25):
            clock.now += seconds
    assert capsys.readouterr().err == "saved the state of step 25 in 7 s\n"


def test_evaluations_left():
    """In units of the val split's; the one at the end is of all splits."""
    split = lambda images: types.SimpleNamespace(image_ids=[""] * images)  # noqa: E731
    config = types.SimpleNamespace(
        train=types.SimpleNamespace(epochs=5), eval=types.SimpleNamespace(every_epochs=2)
    )
    datasets = types.SimpleNamespace(
        train=types.SimpleNamespace(steps_per_epoch=10),
        evaluations={"val": split(10), "test": split(30)},
    )
    left = [evaluations_left(config, datasets, step) for step in (0, 19, 20, 40, 49)]
    # After epochs 2 and 4, at the end of the fifth, and that of all splits.
    assert left == [3 + 4, 3 + 4, 2 + 4, 1 + 4, 1 + 4]
