"""The folder of an exported model: loaded as a workdir, held to its record, shown by a hub."""

import json
import re
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
from fake_data import cirr as write_cirr
from safetensors import safe_open
from small import one_device, small_config, write_workdir

import cmap_jax
from cmap_jax.cli.command import main
from cmap_jax.encoding import EncodePrograms
from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.results import EvaluationFacts, ImageOrigin, ProtocolResult, Result
from cmap_jax.evaluation.results_file import read_results, write_results
from cmap_jax.exporting.folder import without_paths
from cmap_jax.facts import DataFacts
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.scoring import score
from cmap_jax.training.initial_weights import read_initial_weights
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.fingerprint import digest
from cmap_jax.workdir.same_run import check_same_run
from cmap_jax.workdir.weights import read_variables

_NAME, _HOME = "shoes", "/home/ada"


def _write_results(workdir, name, data_name, **facts):
    protocol = PROTOCOLS[name]
    outcomes = Outcomes(groups={"all": 3}, annotation=np.arange(3), rank=np.array([0, 4, 20.5]))
    result = ProtocolResult(
        protocol=protocol,
        numbers={**summarize(protocol, outcomes), "gallery_images": 30},
        outcomes=outcomes,
        conditions={"version": 2, "gallery": "g", "queries": "q"},
    )
    data = ImageOrigin(name=data_name, directory=f"{_HOME}/data", image_directory=f"{_HOME}/images")
    facts = EvaluationFacts(data_set=DataFacts(), data=data, **facts)
    write_results(workdir, 0, Result({name: result}), facts)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with results of its weights, and with others of earlier weights."""
    folder = write_workdir(tmp_path_factory.mktemp("export") / "run", _NAME, _NAME)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["directory"] = f"{_HOME}/shoes"
    (folder / "config.json").write_text(json.dumps(config))
    _write_results(folder, _NAME, _NAME, variables=digest(cmap_jax.load(folder).variables))
    _write_results(folder, "fashioniq/original", "fashion_iq", variables="of another training")
    return folder


@pytest.fixture(scope="module")
def original(workdir):
    out = workdir.parent / "shoes-cmap"
    assert main(["export", str(workdir), "--out", str(out), "--license", "cc-by-4.0"]) == 0
    return out


@pytest.fixture
def exported(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shoes-cmap")


def test_it_loads_as_the_model_that_was_exported(workdir, original):
    ours, theirs = cmap_jax.load(original), cmap_jax.load(workdir)
    assert ours.fingerprint == theirs.fingerprint  # an index of one serves the other
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert (ours.step, ours.protocol, ours.tokenizer) == (0, PROTOCOLS[_NAME], theirs.tokenizer)
    # As an evaluation reads it, on all devices.
    replicated = jax.sharding.NamedSharding(one_device(), jax.sharding.PartitionSpec())
    shard = lambda shapes: jax.tree.map(lambda _: replicated, shapes)  # noqa: E731
    _, variables = read_variables(original, ours.model, ours.preprocessing.crop, shard)
    assert {x.sharding for x in jax.tree.leaves(variables)} == {replicated}


def test_a_run_starts_from_it_elsewhere_and_none_continues_in_it(original):
    config = workdir_lib.read_config(original)
    with pytest.raises(ValueError, match=r"holds an exported model .*--config.init_from="):
        check_same_run(original, config)
    workdir_lib.check_has_weights(original)
    assert workdir_lib.unfinished(original) is None
    config.init_from = str(original)
    initial = read_initial_weights(config)
    assert digest(initial.variables) == digest(cmap_jax.load(original).variables)


def _swap_words(folder):
    path = folder / "vocabulary.txt"
    *lines, a, b = path.read_text().splitlines()
    path.write_text("\n".join([*lines, b, a]) + "\n")


def _set(file, part, name, value):
    def change(folder):
        content = json.loads((folder / file).read_text())
        content[part][name] = value
        (folder / file).write_text(json.dumps(content))

    return change


def _rewrite(change):
    """Return a damage of the safetensors file: ``change`` takes its arrays and its metadata."""

    def damage(folder):
        path = folder / "model.safetensors"
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        arrays = safetensors.numpy.load_file(path)
        change(arrays, metadata)
        safetensors.numpy.save_file(arrays, path, metadata)

    return damage


def _edit_record(arrays, metadata):
    metadata["about"] = metadata["about"].replace('"step": 0', '"step": 7')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_swap_words, r"belongs to another run.*vocabulary\.txt"),
        (_set("config.json", "model", "logit_scale", 3.5), r"another run.*model\.logit_scale"),
        (_set("model.json", "preprocessing", "resize", 80), r"another run.*preprocessing\.resize"),
        (
            _rewrite(lambda arrays, _: arrays["params/logit_scale"].__iadd__(1)),
            "is damaged: params/logit_scale is not what was saved",
        ),
        (_rewrite(lambda arrays, _: arrays.pop("params/logit_scale")), "logit_scale is missing"),
        (_rewrite(lambda arrays, _: arrays.update(a=np.zeros(2, int))), r"a is int64 \(2,\) there"),
        (_rewrite(lambda _, metadata: metadata.pop("about")), "no record .*export the model again"),
        (_rewrite(_edit_record), "its record is damaged: it is not what was saved"),
        (lambda folder: _cut(folder / "model.safetensors"), "is damaged"),
    ],
)
def test_changed_files_are_refused(exported, damage, message):
    damage(exported)
    with pytest.raises(ValueError, match=message) as error:
        cmap_jax.load(exported)
    assert str(exported / "model.safetensors") in str(error.value)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.slow
def test_it_is_evaluated_as_the_workdir_is(tmp_path):
    """The same numbers, of the same variables, on all devices."""
    workdir = write_workdir(tmp_path / "run", "cirr", "cirr/val")
    data, out = write_cirr(tmp_path / "data"), tmp_path / "exported"
    assert main(["evaluate", str(workdir), "--dir", str(data)]) == 0
    assert main(["export", str(workdir), "--out", str(out), "--no-programs"]) == 0
    stored = [json.loads((f / "evaluation.json").read_text()) for f in (workdir, out)]
    assert stored[0]["protocols"] == stored[1]["protocols"]
    # Numbers measured before the export are kept, though it names no folder of data.
    overlap = {"cirr/val": {"target_iou": 0.25, "queries": 1}}
    (out / "evaluation.json").write_text(json.dumps({**stored[1], "overlap": overlap}))
    assert main(["evaluate", str(out), "--dir", str(data)]) == 0
    evaluated = json.loads((out / "evaluation.json").read_text())
    assert evaluated == {**stored[0], "overlap": overlap}


def test_an_id_of_a_hub_names_no_machine(workdir):
    description = workdir_lib.read_description(workdir)
    with description.config.unlocked(), description.config.ignore_type():
        description.config.model.image.init_from = "openai/clip-vit-base-patch32"
        description.config.init_from = "/home/me/runs/first"
    config = without_paths(description).config
    assert config.model.image.init_from == "openai/clip-vit-base-patch32"
    assert config.init_from == "first"


def test_what_depends_on_a_machine_may_be_set(exported):
    _set("config.json", "data", "directory", "/data/shoes")(exported)
    cmap_jax.load(exported)


def test_a_hub_reads_the_card_and_takes_the_files(original):
    card = huggingface_hub.ModelCard.load(original / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "cmap_jax"
    assert card.data.model_name == "shoes-cmap"
    numbers = read_results(original / "evaluation.json").result.protocols[_NAME].numbers
    stated = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert {r.dataset_name for r in card.data.eval_results} == {_NAME}
    assert stated == {
        f"{name} (%, {_NAME})": round(numbers[name], 2) for name in ("mR", "R@1", "R@10", "R@50")
    }
    # From the form that a hub stores to objects and back: nothing is lost or refused.
    header = huggingface_hub.metadata_load(original / "README.md")
    assert huggingface_hub.ModelCardData(**header).to_dict() == card.data.to_dict()
    for path in original.rglob("*"):
        if path.is_file():
            name = path.relative_to(original).as_posix()
            huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
    with safe_open(original / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "flax"
        assert "params/logit_scale" in file.keys()  # noqa: SIM118


def test_the_programs_of_the_card_run_without_the_library(workdir, original, monkeypatch):
    card = (original / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "cmap_jax" not in code
    zeros = "np.zeros((3, 64, 64, 3), np.uint8)"
    assert zeros in code
    monkeypatch.chdir(original)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    names = {"pixels_of_pictures": pixels}
    exec(compile(code.replace(zeros, "pixels_of_pictures"), "README.md", "exec"), names)
    trained = cmap_jax.load(workdir)
    encoder = EncodePrograms(trained.model)
    gallery = encoder.encode_images(trained.variables, pixels)
    query = encoder.compose(trained.variables, gallery[:, :1], names["tokens"], names["lengths"])
    np.testing.assert_allclose(names["scores"], score(query, gallery), atol=1e-5)


def test_no_path_of_the_machine_is_told(workdir, original):
    for path in original.rglob("*"):
        if path.is_file():
            assert _HOME.encode() not in path.read_bytes(), path
            assert str(workdir).encode() not in path.read_bytes(), path


def test_a_config_keeps_the_names_of_the_weights_that_it_started_from():
    config = small_config(image_name="cells")
    config.init_from = f"{_HOME}/runs/stage1/"
    config.model.image.init_from = "efficientnet_lite0"
    config.data.features = f"{_HOME}/features"
    description = workdir_lib.Description(
        config, Vocabulary.build(["red"]), ImagePreprocessing(), (), {}
    )
    changed = without_paths(description).config
    assert changed.init_from == "stage1"
    assert changed.model.image.init_from == "efficientnet_lite0"
    assert changed.data.features is None
    assert config.data.features == f"{_HOME}/features"  # the original is as it was


def test_results_of_other_weights_are_left_out(workdir, original, tmp_path, capsys):
    assert not list(original.glob("evaluation-*.json"))
    out = str(tmp_path / "f")
    assert main(["export", str(workdir), "--out", out, "--no-programs"]) == 0
    printed = capsys.readouterr().out
    assert "left out   evaluation-fashion_iq.json: of other weights" in printed
    assert "results    evaluation.json\n" in printed
    assert "state one with --license" in printed
    assert not (tmp_path / "f" / "stablehlo").exists()
    assert "No licence is stated" in (tmp_path / "f" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--license", "My Licence"], "--license 'My Licence': give an identifier"),
        (["--out", "{workdir}"], "exists; name a new folder with --out"),
    ],
)
def test_impossible_arguments(workdir, tmp_path, capsys, arguments, message):
    arguments = [a.format(workdir=workdir) for a in arguments]
    command = ["export", str(workdir), "--out", str(tmp_path / "f"), *arguments]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_workdir(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "f")]) == 1
    assert "is not a workdir" in capsys.readouterr().err
