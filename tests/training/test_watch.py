"""The watch over the losses, the means that wait to be written, and the progress as JSON."""

import json
import math
import types

import pytest

from cmap_jax.training.progress import PendingMeans, Progress
from cmap_jax.training.run import Length
from cmap_jax.training.training_log import TrainingLog
from cmap_jax.training.watch import FinishedStep, LossWatch


def _metrics(loss: float, gradient: float = 1.0, skipped: int = 0) -> dict[str, float]:
    return {
        "loss/total": loss,
        "gradient_norm": gradient,
        "learning_rate": 0.5,
        "skipped_steps": skipped,
    }


def _checkpoints(latest: int | None, waits: list):
    return types.SimpleNamespace(latest_step=lambda: latest, wait=lambda: waits.append(1))


def test_steps_are_checked_late_and_in_order():
    """Two dispatched steps may be unfinished; nothing waits for them before it must."""
    seen = []
    watch = LossWatch(_checkpoints(None, []), observers=[seen.append])
    for step in range(1, 5):
        watch(step, _metrics(loss=step))
    assert [finished.step for finished in seen] == [1, 2]
    watch.check_all()
    assert [finished.measurements["loss/total"] for finished in seen] == [1.0, 2.0, 3.0, 4.0]
    assert seen[0].states == {"learning_rate": 0.5, "skipped_steps": 0.0}


@pytest.mark.parametrize(("latest", "said"), [(3, "checkpoint is of step 3"), (None, "None was")])
@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (1.0, math.inf)])
def test_a_step_that_is_not_finite_stops_the_run(loss, gradient, latest, said):
    """Writes in progress end first: the message names the last checkpoint that is whole."""
    seen, waits = [], []
    watch = LossWatch(_checkpoints(latest, waits), observers=[seen.append])
    watch(5, _metrics(loss, gradient))
    with pytest.raises(FloatingPointError, match=rf"of step 5 is not finite: loss/total.*{said}"):
        watch.check_all()
    assert waits
    assert not seen


def test_skipped_steps_are_warned_of_and_have_no_part_in_the_means(caplog):
    pending, written = PendingMeans(), {}
    writer = types.SimpleNamespace(write_scalars=lambda step, means: written.update({step: means}))
    log = TrainingLog(writer, pending, lambda: 0.0)
    watch = LossWatch(_checkpoints(None, []), skips=True, observers=[log.add])
    for step, metrics in enumerate(
        (_metrics(1.0), _metrics(math.nan, skipped=1), _metrics(4.0)), 1
    ):
        watch(step, metrics)
    watch.check_all()
    assert "step 2 is not finite: skipped, 1 of this run so far" in caplog.text
    assert (pending.sums["loss/total"], pending.count) == (5.0, 2)
    log.write(3)
    assert written[3]["loss/total"] == 2.5
    assert pending == PendingMeans()  # the same object, which the next checkpoint saves


def test_progress_survives_json():
    progress = Progress(best_recall=12.5, best_step=3, evaluated_step=6)
    TrainingLog(None, progress.log, lambda: 0.0).add(FinishedStep.fetch(7, _metrics(2.0)))
    stored = json.loads(json.dumps(progress.to_dict()))
    # Runs that were stopped by earlier versions have this form too.
    assert stored == {
        "best_recall": 12.5,
        "best_step": 3,
        "evaluated_step": 6,
        "log": {
            "sums": {"loss/total": 2.0, "gradient_norm": 1.0},
            "count": 1,
            "states": {"learning_rate": 0.5, "skipped_steps": 0.0},
        },
    }
    assert Progress.from_dict(stored) == progress
    assert Progress.from_dict(stored | {"log": {}}).log == PendingMeans()


def test_the_best_is_the_first_of_equals_and_a_number():
    progress = Progress()
    recalls = [0.0, 10.0, 10.0, math.nan, 9.0, 11.0]
    is_best = [progress.record(step, recall) for step, recall in enumerate(recalls, 1)]
    assert is_best == [True, True, False, False, False, True]
    assert (progress.best_step, progress.evaluated_step) == (6, 6)
    progress.forget_best()
    assert progress == Progress()


def test_work_that_is_due_every_few_epochs_and_at_the_end():
    length = Length(epochs=5, steps_per_epoch=3)
    assert [step for step in range(1, 16) if length.is_due(step, 2)] == [6, 12, 15]
    assert [step for step in range(1, 16) if length.is_due(step, 1)] == [3, 6, 9, 12, 15]
