"""The whole loop on a tiny data set: resume after any interruption, refusals, non-finite losses."""

import contextlib
import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from fake_data import fashion_iq as write_fashion_iq
from PIL import Image
from small import small_config
from stored_runs import TIMINGS, assert_same, curves
from subword_files import write_clip_pairs

import cmap_jax
from cmap_jax import sharding
from cmap_jax.models.encoders.clip import WORDS_END
from cmap_jax.training import run as run_lib
from cmap_jax.training import start as start_lib
from cmap_jax.training.stopping import Stopped
from cmap_jax.training.train import train
from cmap_jax.training.watch import LossWatch
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.event_files import read_curves
from cmap_jax.workdir.lock import WorkdirInUse, WorkdirLock
from input_pipeline import create_datasets
from input_pipeline.batching import EvaluationData

STEPS_PER_EPOCH, EPOCHS = 3, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = small_config(image_name="cells")
    config.model.text.vocabulary_size = None
    config.data.directory = str(write_fashion_iq(tmp_path_factory.mktemp("data")))
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size = 8
    config.train.epochs = EPOCHS
    config.train.log_every_steps = 1
    config.eval.batch_size = 16
    config.eval.rankings = True
    return config


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        result = train(config, create_datasets(config), workdir)
    workdir.with_suffix(".shown").write_text(shown.getvalue())
    return workdir, result


class Disturbed:
    """Training data that do something after a number of steps."""

    def __init__(self, data, after: int, action):
        self._data, self._after, self._action = data, after, action

    def __getattr__(self, name):
        return getattr(self._data, name)

    def batches(self, start, stop):
        for step, batch in enumerate(self._data.batches(start, stop), start):
            if step == self._after:
                batch = self._action(batch) or batch
            yield batch


def _with_interruption(config, after, action):
    datasets = create_datasets(config)
    object.__setattr__(datasets, "train", Disturbed(datasets.train, after, action))
    return datasets


def _final_state(workdir, step=STEPS_PER_EPOCH * EPOCHS):
    import orbax.checkpoint as ocp

    path = workdir / "checkpoints" / str(step) / "state"
    return ocp.StandardCheckpointer().restore(path)


def _assert_same_end(workdir, other):
    a, b = _final_state(workdir), _final_state(other)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    results = [json.loads((w / "evaluation.json").read_text()) for w in (workdir, other)]
    assert results[0] == results[1]


class Killed(BaseException):
    pass


def _kill(_):
    raise Killed


def _train_through_a_kill(config, workdir, after):
    """Train until a kill at the batch of that number, and then to the end."""
    with pytest.raises(Killed):
        train(config, _with_interruption(config, after, _kill), workdir)
    train(config, create_datasets(config), workdir)


@pytest.mark.parametrize(
    "after", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 4]
)
def test_a_killed_run_ends_with_the_same_bits(config, undisturbed, tmp_path, after):
    """Killed in the first epoch (nothing saved), at its end, and in the second."""
    _train_through_a_kill(config, tmp_path, after)
    _assert_same_end(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_a_killed_run_with_groups_and_an_average_ends_with_the_same_bits(config, tmp_path):
    """The average is restored, evaluated and saved as the best."""
    config = config.copy_and_resolve_references()
    config.train.ema_decay = 0.9
    config.optimizer.undecayed = ("biases", "norms")
    config.optimizer.groups.image.learning_rate = 0.1
    train(config, create_datasets(config), tmp_path / "alone")
    _train_through_a_kill(config, tmp_path / "killed", 4)
    _assert_same_end(tmp_path / "alone", tmp_path / "killed")
    trained = cmap_jax.load(tmp_path / "killed")
    state = _final_state(tmp_path / "killed")
    if trained.step == STEPS_PER_EPOCH * EPOCHS:
        average, raw = (tree["params"]["logit_scale"] for tree in (state["average"], state))
        assert trained.variables["params"]["logit_scale"] == average != raw


# A tiny CLIP: its maps and projected feature, with texts of words; and both projected features as
# they are, with sub-words.
_OVER_A_CLIP = {
    "cmap": {"text_tokenizer": "words", "text_end_token": WORDS_END},
    "magiclens": {"image_map_blocks": (), "dtype": "bfloat16"},
}


@pytest.fixture
def over_a_clip(config, request, tmp_path, monkeypatch):
    """The config of a run of six steps, by its variant.

    One run splits its parameters over devices; the other encodes micro-batches, in bfloat16.
    """
    variant, config = request.param, config.copy_and_resolve_references()
    fields = _OVER_A_CLIP[variant]
    config.model = small_config(
        variant, image_name="clip", image_image_size=config.data.crop, **fields
    ).model
    config.model.text.vocabulary_size = None
    if variant == "cmap":
        config.mesh.fsdp = 2
        monkeypatch.setattr(sharding, "_LARGE", 64)
    if variant == "magiclens":
        config.model.text.tokenizer_path = str(write_clip_pairs(tmp_path))
        config.train.batch_size, config.train.micro_batch_size = 16, 8
        config.train.epochs = STEPS_PER_EPOCH * EPOCHS  # an epoch is one step
    return config


@pytest.mark.endurance
@pytest.mark.parametrize("over_a_clip", ["cmap", "magiclens"], indirect=True)
def test_a_killed_run_over_a_clip_ends_with_the_same_bits(over_a_clip, tmp_path):
    """From the data to a workdir that composes queries."""
    config = over_a_clip
    train(config, create_datasets(config), tmp_path / "alone")
    _train_through_a_kill(config, tmp_path / "killed", 4)
    assert_same(tmp_path / "alone", tmp_path / "killed")
    trained = cmap_jax.load(tmp_path / "killed")
    query = trained.compose([np.zeros((40, 30, 3), np.uint8)], ["is red"])
    assert query.branches[0].numerator.shape[1:] == (1, config.model.embed_dim)
    assert len(trained.model.levels) == (3 if config.model.variant == "cmap" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_ends_with_the_same_bits(
    config, undisturbed, tmp_path, monkeypatch, number
):
    watch = LossWatch.__call__

    def stop(self, step, metrics):
        watch(self, step, metrics)
        if step == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(LossWatch, "__call__", stop)
        with pytest.raises(Stopped, match="stopped at step 5 of 6") as stopped:
            train(config, create_datasets(config), tmp_path)
    assert stopped.value.exit_status == 128 + number
    assert (tmp_path / "checkpoints" / "5").is_dir()
    assert cmap_jax.load(tmp_path).step == 3
    train(config, create_datasets(config), tmp_path)
    _assert_same_end(undisturbed[0], tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_a_run_stopped_in_an_evaluation_evaluates_when_it_goes_on(
    config, undisturbed, tmp_path, monkeypatch
):
    """It does not wait for the evaluation's end, saves, and ends with the same bits."""
    batches = EvaluationData.query_batches

    def stop(self, queries):
        for number, batch in enumerate(batches(self, queries)):
            if number == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                pytest.fail("the evaluation went on")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationData, "query_batches", stop)
        with pytest.raises(Stopped, match="stopped at step 3 of 6"):
            train(config, create_datasets(config), tmp_path)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert not list((tmp_path / "best").iterdir())
    train(config, create_datasets(config), tmp_path)
    _assert_same_end(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_a_run_stopped_in_its_last_evaluation(config, undisturbed, tmp_path, monkeypatch):
    def stop(**_):
        raise Stopped("stopped", 130)

    with monkeypatch.context() as patch:
        patch.setattr(run_lib, "evaluate_workdir", stop)
        with pytest.raises(Stopped, match="stopped at step 6 of 6"):
            train(config, create_datasets(config), tmp_path)
    train(config, create_datasets(config), tmp_path)
    _assert_same_end(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_curves_of_a_resumed_run_are_those_of_an_undisturbed_one(config, tmp_path):
    """The means over steps, too, where the window was half full when the run was stopped."""
    config = config.copy_and_resolve_references()
    config.train.log_every_steps = 2
    train(config, create_datasets(config), tmp_path / "alone")
    _train_through_a_kill(config, tmp_path / "killed", 4)
    alone, killed = (read_curves(tmp_path / name) for name in ("alone", "killed"))
    kept = {tag for tag in alone if tag not in TIMINGS}
    assert {tag: killed[tag] for tag in kept} == {tag: alone[tag] for tag in kept}
    alone, killed = (curves(tmp_path / name) for name in ("alone", "killed"))
    assert ("loss/total", 4) in alone
    assert alone == killed


def test_two_runs_in_one_workdir_are_refused(config, tmp_path):
    with WorkdirLock(tmp_path), pytest.raises(WorkdirInUse, match=f"process {os.getpid()}"):
        train(config, create_datasets(config), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("failing_reads")
def test_a_damaged_state_is_replaced_by_the_one_before(config, undisturbed, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed[0], workdir)
    for path in (workdir / "checkpoints" / "6" / "state").rglob("d"):
        shutil.rmtree(path)
    train(config, create_datasets(config), workdir)
    assert (workdir / "damaged" / "checkpoints" / "6").is_dir()
    _assert_same_end(undisturbed[0], workdir)


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_by_policy(config, tmp_path, caplog):
    def poison(batch):
        image = batch["target_image"].astype(np.float32)
        return {**batch, "target_image": np.full_like(image, np.nan)}

    config = config.copy_and_resolve_references()
    config.train.non_finite = "skip"
    train(config, _with_interruption(config, 4, poison), tmp_path)
    assert "of step 5 is not finite: skipped, 1 of this run so far" in caplog.text
    state = _final_state(tmp_path)
    assert int(state["skipped"]) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert curves(tmp_path)["skipped_steps", 6] == {1.0}


@pytest.mark.slow
def test_a_best_of_older_rules_is_not_believed(config, undisturbed, tmp_path, caplog):
    """A run that goes on under a newer version of its protocols chooses its best anew."""
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / "model.json").read_text())
    for protocol in about["protocols"]:
        protocol["version"] = 1
    (tmp_path / "model.json").write_text(json.dumps(about))
    train(config, create_datasets(config), tmp_path)
    assert "the protocols' rules have changed" in caplog.text
    assert cmap_jax.load(tmp_path).step == STEPS_PER_EPOCH * EPOCHS
    about = json.loads((tmp_path / "model.json").read_text())
    assert {protocol["version"] for protocol in about["protocols"]} == {2}


@pytest.mark.slow
def test_two_runs_with_one_seed_agree(config, undisturbed, tmp_path, monkeypatch):
    evaluators = []

    class Watched(start_lib.Evaluator):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            evaluators.append(self)

    monkeypatch.setattr(start_lib, "Evaluator", Watched)
    train(config, create_datasets(config), tmp_path)
    _assert_same_end(undisturbed[0], tmp_path)
    # In training and at the end, the state's variables and those read back.
    (evaluator,) = evaluators
    programs = evaluator._programs
    assert programs._encode_both._cache_size() == programs._compose._cache_size() == 1


def test_a_person_sees_a_few_lines(config, undisturbed):
    """From the library too, as in a notebook: nobody has set up a log."""
    lines = undisturbed[0].with_suffix(".shown").read_text().splitlines()
    start = [
        f"data      fashion_iq: 24 training items on 14 images; val 24 queries and 16 images; "
        f"from {config.data.directory}",
        "model     cmap, ",
        "devices   8 x ",
        "training  6 steps, 2 epochs of 3 steps, 8 items a step",
        f"workdir   {undisturbed[0]}",
        "compiling the training step ...",
        "compiled the training step in ",
        "step 3, epoch 1: fashioniq/original R@10 ",
        "step 6, epoch 2: fashioniq/original R@10 ",
        "the best variables, of step ",
        "  fashioniq/original ",
        "  fashioniq/val ",
        "  fashioniq/original-joined ",
        "  fashioniq/original-averaged ",
    ]
    # Live lines come every 30 seconds, if the machine is slow.
    lines = [line for line in lines if "images/s" not in line]
    assert [line[: len(begin)] for line, begin in zip(lines, start, strict=True)] == start
    assert lines[7].endswith("; the best so far")


def test_tensorboard_gets_the_parameters_and_what_queries_find(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, _ = undisturbed
    overview = (workdir / "parameters.txt").read_text()
    assert "| text_encoder/word_embedding " in overview
    accumulator = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    accumulator.Reload()
    (text,) = accumulator.Tensors("parameters")
    assert b"text_encoder/word_embedding" in text.tensor_proto.string_val[0]
    pictures = accumulator.Tensors("fashioniq/original/examples")
    assert [picture.step for picture in pictures] == [3, 6]
    width, height, picture, *others = pictures[0].tensor_proto.string_val
    assert not others
    assert Image.open(io.BytesIO(picture)).size == (int(width), int(height))
    # The same pictures, and the curves, are files for people without TensorBoard.
    files = sorted((workdir / "pictures" / "fashioniq-original").iterdir())
    assert [file.name for file in files] == ["00000003.jpg", "00000006.jpg"]
    with Image.open(files[0]) as sheet, Image.open(workdir / "curves.png") as drawn:
        assert sheet.size == (int(width), int(height))
        assert drawn.width > 500


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    def poison(batch):
        # An embedding table cannot hold this; the images can, as floating point.
        image = batch["target_image"].astype(np.float32)
        return {**batch, "target_image": np.full_like(image, np.nan)}

    with pytest.raises(
        FloatingPointError, match=r"step 5 is not finite.*loss/matching = nan.*step 3"
    ):
        train(config, _with_interruption(config, 4, poison), tmp_path)
    trained = cmap_jax.load(tmp_path)
    assert trained.step == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained.variables))


@pytest.mark.slow
def test_curves_that_cannot_be_written_end_the_run(config, tmp_path, monkeypatch):
    """TensorFlow's error for a full disk is not Python's."""
    import tensorflow as tf
    from clu import metric_writers

    def full(_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    original = metric_writers.create_default_writer

    def create(*arguments, **options):
        writer = original(*arguments, **options)
        writer.flush = lambda: full(writer) if (tmp_path / "checkpoints/3").is_dir() else None
        return writer

    monkeypatch.setattr(metric_writers, "create_default_writer", create)
    with pytest.raises(OSError, match=r"curves could not be written.*No space.*step [36] is whole"):
        train(config, create_datasets(config), tmp_path)


@pytest.mark.slow
def test_data_may_lie_elsewhere_when_a_run_goes_on(config, tmp_path):
    def stop(_):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(config, _with_interruption(config, 4, stop), tmp_path / "run")
    moved = config.copy_and_resolve_references()
    moved.data.directory = str(shutil.copytree(config.data.directory, tmp_path / "moved"))
    train(moved, create_datasets(moved), tmp_path / "run")


def test_a_run_stopped_before_its_first_evaluation_can_be_loaded(config, tmp_path):
    def stop(_):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(config, _with_interruption(config, 0, stop), tmp_path)
    assert cmap_jax.load(tmp_path).step == 1


def test_other_data_are_refused(config, undisturbed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed[0], copy)
    words = (copy / "vocabulary.txt").read_text().replace("red", "rad")
    (copy / "vocabulary.txt").write_text(words)
    with pytest.raises(ValueError, match=r"other data: the captions give other words"):
        train(config, create_datasets(config), copy)


def test_another_config_is_refused(config, undisturbed):
    other = config.copy_and_resolve_references()
    other.seed = 7
    other.optimizer.learning_rate = 1.0
    with pytest.raises(
        ValueError, match=r"(?s)learning_rate.*config\.seed: 0 there, 7 now.*--workdir"
    ):
        train(other, create_datasets(other), undisturbed[0])


def test_a_vocabulary_that_does_not_fit_is_refused(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.model.text.vocabulary_size = 1000
    with pytest.raises(ValueError, match=r"vocabulary_size is 1000, but the data's vocabulary has"):
        train(other, create_datasets(other), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_results_are_as_published(undisturbed):
    workdir, result = undisturbed
    written = json.loads((workdir / "evaluation.json").read_text())
    assert written["protocols"] == {name: r.numbers for name, r in result.protocols.items()}
    assert next(iter(written["protocols"])) == "fashioniq/original"
    numbers = written["protocols"]["fashioniq/original"]
    assert {"mR", "R@10", "R@50", "dress/R@10", "toptee/R@50", "queries", "skipped"} <= set(numbers)
    lines = (workdir / "rankings" / "fashioniq-original.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert set(record) == {"query", "reference", "text", "targets", "rank", "tied", "top"}
    assert len(lines) == numbers["queries"] == 24
    for line in lines:
        record = json.loads(line)
        assert record["reference"] not in record["top"]
        assert record["top"][record["rank"]] == record["targets"][0]
    assert any(workdir.glob("events.out.tfevents.*"))


def test_the_workdir_is_all_that_is_needed(config, undisturbed):
    trained = cmap_jax.load(undisturbed[0])
    assert trained.protocol.name == "fashioniq/original"
    assert trained.config.model.text.vocabulary_size == len(trained.tokenizer)
    text = trained.encode_text([("is red", "is longer"), "has no sleeves"])
    paths = [f"{config.data.directory}/images/dval{i}.jpg" for i in range(2)]
    pyramid = trained.encode_images(paths)
    assert (pyramid.shape, text.shape) == ((3, 2, 8), (2, 8))
    with pytest.raises(TypeError, match=r"\[text\]"):
        trained.encode_text("is red")
    with pytest.raises(TypeError, match=r"\[image\]"):
        trained.encode_images(paths[0])
    query = trained.model.apply(trained.variables, pyramid, text, method="compose")
    assert cmap_jax.scoring.score(query, pyramid).shape == (2, 2)


def test_broken_workdirs_are_named(undisturbed, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a workdir: it has no config\.json"):
        cmap_jax.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed[0], copy)
    vocabulary = workdir_lib.read_description(copy).tokenizer
    (copy / "vocabulary.txt").write_text("\n".join([*vocabulary.words, "one", "more"]))
    with pytest.raises(ValueError, match="it belongs to another model"):
        cmap_jax.load(copy)
    shutil.copy(undisturbed[0] / "vocabulary.txt", copy)
    for folder in ("best", "checkpoints"):
        shutil.rmtree(copy / folder)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        cmap_jax.load(copy)
