"""The record beside a checkpoint's arrays, compared with the files around it."""

import contextlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from small import write_workdir

import cmap_jax
from cmap_jax.workdir import about as about_lib
from cmap_jax.workdir.description import (
    BEST,
    CONFIG,
    MODEL,
    absolute,
    read_description,
    saved_steps,
)

# Orbax drops coroutines where a read fails, and they complain when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("module_of_failing_reads"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("about") / "run"
    return write_workdir(folder, "fashion_iq", "fashioniq/original")


@pytest.fixture
def workdir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def _about(workdir):
    with ocp.CheckpointManager(workdir / BEST) as manager:
        return about_lib.read(manager, saved_steps(workdir, BEST)[0])


@contextlib.contextmanager
def _edited(path):
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def _without(workdir, *names):
    """Make a record that of an earlier version."""
    with _edited(workdir / BEST / "0" / "about" / "metadata") as about:
        for name in names:
            del about[name]


def _swap_words(workdir):
    path = workdir / "vocabulary.txt"
    *lines, a, b = path.read_text().splitlines()
    path.write_text("\n".join([*lines, b, a]) + "\n")


def _set_config(part, name, value):
    def change(workdir):
        with _edited(workdir / CONFIG) as config:
            config[part][name] = value

    return change


def _set_preprocessing(workdir):
    with _edited(workdir / MODEL) as model:
        model["preprocessing"]["resize"] = 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap_words, "vocabulary.txt: another content"),
        (_set_preprocessing, "model.json: preprocessing.resize: 72 there, 80 now"),
        (_set_config("data", "resize", 80), "config.json: config.data.resize: 72 there, 80 now"),
        (_set_config("train", "epochs", 3), "config.json: config.train.epochs: 16 there, 3 now"),
    ],
)
def test_a_file_that_was_edited_is_named(change, message, workdir):
    about = _about(workdir)
    about_lib.check_workdir(about, workdir)
    change(workdir)
    with pytest.raises(ValueError, match=f"{message}. Put back what was changed") as refused:
        about_lib.check_workdir(about, workdir)
    assert "\n" not in str(refused.value)


def test_variables_of_another_seed_are_not_loaded(workdir, tmp_path):
    """Nor those of a model that the config no longer describes; put back, they are."""
    other = shutil.copytree(workdir, tmp_path / "other")
    with _edited(other / BEST / "0" / "about" / "metadata") as about:
        about["describes"]["config"]["seed"] = 1
        del about["digest"]
        about["digest"] = about_lib._digest(about)
    with pytest.raises(ValueError, match=r"best/0 .*: config\.seed: 1 there, 0 now"):
        cmap_jax.load(other)
    with _edited(workdir / CONFIG) as config:
        config["model"]["image"]["cross_level"] = "up"
    with pytest.raises(ValueError, match=r"image\.cross_level: 'down' there, 'up' now"):
        cmap_jax.load(workdir)
    with _edited(workdir / CONFIG) as config:
        config["model"]["image"]["cross_level"] = "down"
    cmap_jax.load(workdir)


def test_a_fact_that_changed_is_named(original):
    description = read_description(original)
    description.facts["images"] = {"digest": "a" * 200}
    about = {"describes": about_lib.describe(description)}
    later = read_description(original)
    later.facts.update(images={"digest": "b"}, new=1)
    with pytest.raises(ValueError, match=r"facts\.images: 'sha256 .* there, .*b.* now") as refused:
        about_lib.check_same(about, None, about_lib.describe(later))
    assert "facts.new" not in str(refused.value)  # a later version may know more facts


def test_the_environment_may_change(workdir):
    about = _about(workdir)
    _set_config("data", "directory", "elsewhere")(workdir)
    _set_config("mesh", "fsdp", 2)(workdir)
    about_lib.check_workdir(about, workdir)


def test_a_record_of_an_earlier_version_has_its_mark_compared(workdir):
    _without(workdir, "describes", "step", "digest")
    cmap_jax.load(workdir)
    _swap_words(workdir)
    about_lib.check_workdir(_about(workdir), workdir)
    _set_config("train", "epochs", 3)(workdir)
    with pytest.raises(ValueError, match=r"another run, .*: config\.json has another mark"):
        about_lib.check_workdir(_about(workdir), workdir)


def test_a_field_of_the_environment_that_was_renamed_changes_no_mark(workdir):
    _without(workdir, "describes", "step", "digest")
    with _edited(workdir / CONFIG) as config:
        text = config["model"]["text"]
        text["tokenizer_files"] = text.pop("tokenizer_path")
        for name in ("sum", "magiclens"):  # fields that such a version lacked
            del config["model"][name]
    about_lib.check_workdir(_about(workdir), workdir)
    assert cmap_jax.load(workdir).config.model.text.tokenizer_path is None


def test_a_folder_that_was_renamed_says_its_step(workdir):
    (workdir / BEST / "0").rename(workdir / BEST / "7")
    with pytest.raises(ValueError, match="named 7, but what it holds is of step 0; rename it to 0"):
        cmap_jax.load(workdir)


def _run(about):
    about["run"] = 5


def _fingerprint(about):
    about["fingerprint"] = [1]


def _describes(about):
    about["describes"] = "x"


def _added(about):
    about["progress"] = {"best_recall": 1e9}


@pytest.mark.parametrize("change", [_run, _fingerprint, _describes, _added])
def test_a_record_of_another_form_or_content_is_damaged(change, workdir):
    with _edited(workdir / BEST / "0" / "about" / "metadata") as about:
        change(about)
    with pytest.raises(ValueError, match="its record is damaged"):
        _about(workdir)


@pytest.mark.parametrize("content", ["[]", "5", "null", "{}", "[" * 100_000])
def test_a_record_that_is_no_object_is_damaged(content, workdir):
    (workdir / BEST / "0" / "about" / "metadata").write_text(content)
    with pytest.raises(ValueError, match="its record is damaged"):
        _about(workdir)


def test_a_pipe_inside_a_checkpoint_is_not_waited_for(workdir):
    path = next((workdir / BEST / "0" / "variables" / "d").iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path}: is a pipe"):
        cmap_jax.load(workdir)


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\nb", "a\\b", "gs:", "a\udc80"])
def test_paths_that_orbax_mistakes_are_refused(name, tmp_path):
    from cmap_jax.workdir.lock import lock_workdir

    folder = tmp_path / name / "run"
    for use in (lambda: lock_workdir(folder).__enter__(), lambda: cmap_jax.load(folder)):
        with pytest.raises(ValueError, match=r"no workdir can have .* in its path") as refused:
            use()
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="no workdir can have"):
        write_workdir(folder, "fashion_iq", "fashioniq/original")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "a]", "a{b,c}", "a:b", "100%", "日本", "a'b", "a://b"])
def test_other_paths_can_be_read_back(name, tmp_path):
    """Orbax's arrays at least, which a description is written beside."""
    tree, path = {"a": jnp.arange(4.0)}, absolute(tmp_path / name)
    with ocp.CheckpointManager(path) as manager:
        manager.save(0, args=ocp.args.StandardSave(tree))
    with ocp.CheckpointManager(path) as manager:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        assert (manager.restore(0, args=ocp.args.StandardRestore(like))["a"] == tree["a"]).all()


def test_a_link_gives_a_path_that_orbax_reads(original, tmp_path):
    shutil.copytree(original, tmp_path / "a[1]")
    (tmp_path / "link").symlink_to("a[1]")
    cmap_jax.load(tmp_path / "link")


def test_something_else_in_place_of_the_checkpoints(workdir):
    shutil.rmtree(workdir / BEST)
    (workdir / BEST).write_text("")
    with pytest.raises(NotADirectoryError, match=f"{workdir}/best: a folder of checkpoints"):
        cmap_jax.load(workdir)
    (workdir / BEST).unlink()
    (workdir / BEST).symlink_to("nothing")
    with pytest.raises(NotADirectoryError, match="or a link to one that exists"):
        saved_steps(workdir, BEST)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (CONFIG, lambda c: c["model"]["image"].pop("cross_level"), "no config.model.image.cross_l"),
        (CONFIG, lambda c: c["model"].update(embed_dim="x"), "config.model.embed_dim is 'x'"),
        (CONFIG, lambda c: c["model"].update(image=5), "no config.model.image.name"),
        (CONFIG, lambda c: c["train"].pop("epochs"), "no config.train.epochs"),
        (MODEL, lambda c: c.pop("preprocessing"), '"preprocessing" is missing'),
        (MODEL, lambda c: c["preprocessing"].update(crop="x"), '"preprocessing" cannot be used'),
        (MODEL, lambda c: c.update(protocols={"a": 1}), '"protocols" cannot be used'),
        (MODEL, lambda c: c.update(facts=[1]), '"facts" cannot be used'),
        (MODEL, lambda c: c.update(format=[]), r"has format \[\]"),
    ],
)
def test_a_described_field_that_is_broken_is_named(file, edit, message, workdir):
    with _edited(workdir / file) as content:
        edit(content)
    with pytest.raises(ValueError, match=f"{workdir / file}.*{message}"):
        cmap_jax.load(workdir)


@pytest.mark.parametrize("file", [CONFIG, MODEL])
@pytest.mark.parametrize("text", ["[]", "5", "null", "{", "[" * 100_000])
def test_a_described_file_of_another_type_is_named(file, text, workdir):
    (workdir / file).write_text(text)
    with pytest.raises(ValueError, match=str(workdir / file)):
        cmap_jax.load(workdir)
