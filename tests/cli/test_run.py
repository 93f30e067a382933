"""The train and evaluate modes: refusals before any data are read, interruptions and results."""

import os
import signal

import pytest
from fake_data import cirr as write_cirr
from fake_data import fashion_iq as write_fashion_iq
from small import small_config, write_workdir

from cmap_jax.cli import from_workdir, run
from cmap_jax.training.stopping import Stopped
from cmap_jax.workdir import description as workdir_lib
from input_pipeline.batching import EvaluationData


@pytest.fixture
def no_data(monkeypatch):
    """Fail where a data set is read."""
    monkeypatch.setattr("input_pipeline.datasets.read_records", lambda _: pytest.fail("was read"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("runs") / "small", "cirr", "cirr/val")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "config.seed must be 0 to"),
        ("optimizer.b1", 1.0, "config.optimizer.b1 must be 0 to"),
        ("optimizer.b2", 1 - 1e-9, "config.optimizer.b2 must be 0 to 0.9999999, not 0.999999999"),
        ("optimizer.eps", -1.0, "config.optimizer.eps must be 1e-37 or more, not -1.0"),
        ("optimizer.eps", 0.0, "config.optimizer.eps must be 1e-37 or more, not 0.0"),
        ("optimizer.groups.text.weight_decay", -1e-3, "weight_decay must be 0 or more, not -0.001"),
        ("optimizer.learning_rate", float("inf"), "learning_rate must be 0 or more, not inf"),
        ("optimizer.weight_decay", float("nan"), "weight_decay must be 0 or more, not nan"),
        ("model.variant", "cnap", "config.model.variant must be one of cmap"),
        ("data.name", "coco", "config.data.name must be one of fashion_iq"),
        ("data.missing_images", "ignore", 'missing_images must be "fail" or "skip"'),
    ],
)
def test_impossible_values_go_before_another_runs_config(field, value, message, tmp_path, no_data):
    """An impossible value is refused before a difference from the workdir's config."""
    config = small_config()
    stored = config.copy_and_resolve_references()
    stored.train.epochs = 7
    (tmp_path / "config.json").write_text(stored.to_json())
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        run.run(config, str(tmp_path), evaluate_only=False)


def test_folders_that_cannot_be_written(tmp_path, trained, no_data, monkeypatch):
    config = small_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        run.run(config, str(tmp_path / "file" / "run"), evaluate_only=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"no permission to write into {tmp_path}"):
        run.run(config, str(tmp_path / "run"), evaluate_only=False)
    with pytest.raises(PermissionError, match="no permission to write into"):
        run.run(from_workdir.get_config(str(trained)), str(trained), evaluate_only=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_that_is_stopped(trained, tmp_path, monkeypatch, number, status):
    """It ends between two batches, writes nothing, and has the status that a shell expects."""
    batches = EvaluationData.image_batches

    def stop(self):
        for batch in batches(self):
            os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(EvaluationData, "image_batches", stop)
    config = from_workdir.get_config(str(trained))
    config.data.directory = str(write_cirr(tmp_path / "data"))
    with pytest.raises(Stopped, match=f"nothing was written to {trained}") as stopped:
        run.run(config, str(trained), evaluate_only=True)
    assert stopped.value.exit_status == status
    assert not (trained / "evaluation.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_unfinished_run_is_said_to_be(tmp_path, monkeypatch, capsys):
    run_folder = write_workdir(tmp_path / "run", "fashion_iq", "fashioniq/original")
    config = from_workdir.get_config(str(run_folder))
    config.data.directory = str(write_fashion_iq(tmp_path / "data"))
    monkeypatch.setattr(workdir_lib, "unfinished", lambda _: (1200, 5000))
    run.run(config, str(run_folder), evaluate_only=True, command="cmap train")
    printed = capsys.readouterr().out
    assert "unfinished: it stands at step 1,200 of 5,000" in printed
    assert "variables so far, of step 0." in printed
    assert f"images: cmap train --mode=evaluate --workdir={run_folder}" in printed


def test_evaluation_does_not_ask_for_training_batches(trained, no_data):
    """A training batch that the eight devices cannot split does not prevent an evaluation."""
    config = from_workdir.get_config(str(trained))
    config.train.batch_size = 9
    config.data.directory = None
    with pytest.raises(pytest.fail.Exception, match="was read"):
        run.read_for_evaluation(config, str(trained))
    config.eval.batch_size = 9
    with pytest.raises(ValueError, match=r"config\.eval\.batch_size=9 is not a multiple of the 8"):
        run.read_for_evaluation(config, str(trained))


def test_a_trained_model_is_evaluated_as_it_was_made(trained, no_data):
    """How results are computed may differ, as when a run continues; the model may not."""
    config = from_workdir.get_config(str(trained))
    config.model.remat = "blocks"
    config.optimizer.learning_rate = 1.0
    config.data.missing_images = "skip"
    with pytest.raises(pytest.fail.Exception, match="was read"):
        run.read_for_evaluation(config, str(trained))
    config.model.dtype = "bfloat16"
    config.model.text.gru.word_dim += 1
    config.data.crop = 32
    changed = (
        r"config\.data\.crop: 64 there, 32 now; config\.model\.dtype: .* now; config\.model\.text"
    )
    with pytest.raises(ValueError, match=f"a trained model cannot be changed: {changed}"):
        run.read_for_evaluation(config, str(trained))
