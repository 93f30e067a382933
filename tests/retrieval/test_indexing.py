"""Making an index and bringing one up to date: the model's embeddings, reports, kills, refusals."""

import contextlib
import copy
import json
import os
import pathlib
import shutil

import compilations
import jax
import numpy as np
import pytest
from buckets import use_folder_as_bucket
from fake_data import image as write_picture
from optional import require
from PIL import Image
from small import EMBED, one_device, small_trained

from cmap_jax import scoring
from cmap_jax.retrieval import indexing, pictures, rounding_loss
from cmap_jax.retrieval.backends import BACKENDS, settings_of
from cmap_jax.retrieval.backends.milvus_client import Connection
from cmap_jax.retrieval.catalogue import items_of_folder
from cmap_jax.retrieval.index_files import form, reading, tensors, writing
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.indexing import build_index
from cmap_jax.retrieval.pictures import PictureEncoder
from cmap_jax.workdir.lock import WorkdirInUse, WorkdirLock

_COUNT, _SHARD = 25, 10


@pytest.fixture(scope="module")
def trained():
    return small_trained(image_name="cells")


@pytest.fixture(scope="module")
def encoder(trained):
    """One compiled program for all indexes of this file."""
    return PictureEncoder(trained)


def test_the_shape_of_embeddings(trained):
    assert pictures.embedding_shape(trained) == (3, EMBED)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, encoder):
    monkeypatch.setattr(form, "_MOST_ROWS", _SHARD)
    monkeypatch.setattr(indexing, "PictureEncoder", lambda trained: encoder)
    monkeypatch.setattr(indexing, "embedding_shape", lambda trained: (3, EMBED))


@pytest.fixture
def shop(tmp_path) -> pathlib.Path:
    for number in range(_COUNT):
        write_picture(tmp_path / "shop" / f"{number:02}.png", number)
    return tmp_path / "shop"


def _content(index: pathlib.Path) -> dict[str, bytes]:
    """The bytes of an index's embeddings, items and report."""
    stored = StoredIndex(index)
    stored.verify()
    names = [n for shard in stored.manifest.shards for n in shard.files]
    names += ["unreadable.jsonl"] * (stored.manifest.unreadable > 0)
    return {name: pathlib.Path(stored.generation_folder, name).read_bytes() for name in names}


def _paths(shop: pathlib.Path) -> list[str]:
    return [item.image for item in items_of_folder(shop)]


def test_embeddings_are_the_models(trained, shop, tmp_path):
    report = build_index(trained, shop, tmp_path / "index")
    stored = StoredIndex(tmp_path / "index")
    assert list(stored.items) == items_of_folder(shop)
    np.testing.assert_allclose(
        stored.rows(range(_COUNT)), trained.encode_images(_paths(shop)), atol=2e-6
    )
    assert (report.encoded, report.removed, report.unreadable, report.loss) == (25, 0, None, None)
    about = stored.manifest
    assert about == report.manifest
    assert (about.levels, about.width, about.count, len(about.shards)) == (3, 8, 25, 3)
    assert (about.variant, about.dtype, about.backend) == ("cmap", "float32", "exact")
    assert about.preprocessing == trained.preprocessing
    stored.check_model(trained.fingerprint, "the same model")
    assert not (tmp_path / "index" / "run.lock").exists()


def test_metadata_of_items(trained, shop, tmp_path):
    (tmp_path / "list.csv").write_text("image,color,price\n03.png,red,1\n01.png,blue,2.5\n")
    list_ = tmp_path / "shop" / "list.csv"
    shutil.move(tmp_path / "list.csv", list_)
    build_index(trained, list_, tmp_path / "index")
    stored = StoredIndex(tmp_path / "index")
    assert [item.id for item in stored.items] == ["03.png", "01.png"]
    assert list(stored.column("color")) == ["red", "blue"]
    np.testing.assert_array_equal(stored.column("price"), [1, 2.5])
    # Metadata alone change: nothing is embedded again.
    list_.write_text("image,color,price\n03.png,green,1\n01.png,blue,2.5\n")
    assert build_index(trained, list_, tmp_path / "index", update=True).encoded == 0
    assert list(StoredIndex(tmp_path / "index").column("color")) == ["green", "blue"]


def test_pictures_that_cannot_be_read_are_reported(trained, shop, tmp_path):
    whole = (shop / "00.png").read_bytes()
    (shop / "03.png").write_bytes(whole[:100])
    (shop / "11.png").write_bytes(b"")
    (shop / "12.png").write_text("no picture")
    (shop / "link.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(shop / "pipe.png")
    pathlib.Path(os.fsdecode(os.fsencode(shop) + b"/\xff.png")).write_bytes(whole)
    for number in range(20, 25):
        (shop / f"{number}.png").write_text("no picture")
    report = build_index(trained, shop, tmp_path / "index")
    lines = pathlib.Path(report.unreadable).read_text().splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons.keys() == {
        *("03.png", "11.png", "12.png", "link.png", "pipe.png", "\\udcff.png"),
        *(f"{n}.png" for n in range(20, 25)),
    }
    assert reasons["03.png"].startswith("truncated")
    assert reasons["11.png"] == "zero bytes"
    assert reasons["12.png"].startswith("not an image")
    assert reasons["link.png"] == "missing"
    assert reasons["pipe.png"] == "not a file"
    assert reasons["\\udcff.png"] == "its name is not UTF-8: rename it"
    stored = StoredIndex(tmp_path / "index")
    kept = [item.id for item in stored.items]
    assert kept == [f"{n:02}.png" for n in range(20) if n not in (3, 11, 12)]
    np.testing.assert_allclose(
        stored.rows(range(17)),
        trained.encode_images([str(shop / name) for name in kept]),
        atol=2e-6,
    )
    assert stored.manifest.unreadable == 11
    # One of them is mended, and another one breaks.
    (shop / "12.png").write_bytes(whole)
    (shop / "13.png").write_text("no picture")
    report = build_index(trained, shop, tmp_path / "index", update=True)
    assert (report.encoded, report.removed, report.manifest.unreadable) == (1, 1, 11)
    # A report changes even where the images do not.
    (shop / "13.png").rename(shop / "14.jpg")
    report = build_index(trained, shop, tmp_path / "index", update=True)
    assert "14.jpg" in pathlib.Path(report.unreadable).read_text()
    again = build_index(trained, shop, tmp_path / "index", update=True)
    assert (again.manifest, again.unreadable) == (report.manifest, report.unreadable)


def test_names_that_no_file_can_have(trained, shop, tmp_path):
    names = ("\\ud800.png", "a\\u0000.png", "00.png")
    lines = [f'{{"id": "{number}", "image": "{name}"}}' for number, name in enumerate(names)]
    (shop / "list.jsonl").write_text("\n".join(lines))
    report = build_index(trained, shop / "list.jsonl", tmp_path / "index")
    assert [item.id for item in StoredIndex(tmp_path / "index").items] == ["2"]
    lines = pathlib.Path(report.unreadable).read_text().splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons == {
        "0": "its name is not UTF-8: rename it",
        "1": "no file has a name with a null character",
    }


def test_a_model_in_a_folder_whose_name_is_not_utf8(trained, shop, tmp_path):
    other = copy.copy(trained)
    other.workdir = "/models/\udcff"
    with pytest.raises(ValueError, match=r"udcff': the name of this workdir is not UTF-8"):
        build_index(other, shop, tmp_path / "index")


def test_an_index_without_any_picture_is_refused(trained, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.jpg").write_text("no picture")
    message = r"none of the pictures can be read, such as .*a\.jpg: not an image"
    with pytest.raises(ValueError, match=message):
        build_index(trained, tmp_path / "shop", tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_update_is_a_new_index_to_the_byte(trained, shop, tmp_path, dtype):
    index = tmp_path / "index"
    build_index(trained, shop, index, dtype=dtype)
    old, old_content = StoredIndex(index), _content(index)
    write_picture(shop / "00a.png", 100)
    write_picture(shop / "05.png", 101)
    write_picture(shop / "13.png", 102)
    (shop / "08.png").unlink()
    os.utime(shop / "17.png")  # its content is as before
    report = build_index(trained, shop, index, update=True)
    assert (report.encoded, report.removed) == (3, 1)
    build_index(trained, shop, tmp_path / "new", dtype=dtype)
    assert _content(index) == _content(tmp_path / "new")
    # A server that has opened the old index still reads it.
    assert [item.id for item in old.items] == [f"{n:02}.png" for n in range(_COUNT)]
    old.verify()
    assert old_content != _content(index)


def test_an_update_without_changes(trained, shop, tmp_path):
    build_index(trained, shop, tmp_path / "index")
    manifest = (tmp_path / "index" / "manifest.json").read_text()
    report = build_index(trained, shop, tmp_path / "index", update=True)
    assert (report.encoded, report.removed) == (0, 0)
    assert (tmp_path / "index" / "manifest.json").read_text() == manifest
    assert form.generations(tmp_path / "index") == ["generation-000001"]
    # Generations that were begun are no longer needed, nor do those of another dtype disturb.
    about = form.read_manifest(tmp_path / "index")
    writing.GenerationWriter(tmp_path / "index", indexing.describe(trained, "bfloat16"))
    shutil.copytree(tmp_path / "index" / "generation-000001", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "index" / "generation-000003")
    for marker in (tmp_path / "index" / "generation-000001").glob("shard-*.json"):
        marker.unlink()  # the manifest has all that they say
    report = build_index(trained, shop, tmp_path / "index", update=True)
    assert report.encoded == 0
    assert report.manifest == about
    assert form.generations(tmp_path / "index") == ["generation-000001"]


def test_an_update_needs_the_manifest_alone(trained, shop, tmp_path):
    build_index(trained, shop, tmp_path / "index")
    for marker in (tmp_path / "index" / "generation-000001").glob("shard-*.json"):
        marker.unlink()
    write_picture(shop / "00a.png", 100)
    assert build_index(trained, shop, tmp_path / "index", update=True).encoded == 1
    build_index(trained, shop, tmp_path / "new")
    assert _content(tmp_path / "index") == _content(tmp_path / "new")


def test_an_update_reads_items_without_their_embeddings(trained, shop, tmp_path, monkeypatch):
    build_index(trained, shop, tmp_path / "index")
    read = []

    def read_tensors(path):
        read.append(os.path.basename(path))
        return tensors.read_tensors(path)

    monkeypatch.setattr(reading, "read_tensors", read_tensors)
    before = form.read_manifest(tmp_path / "index")
    known = indexing._known_embeddings(str(tmp_path / "index"), before, before)
    assert len(known.embeddings) == _COUNT
    assert read == [f"items-0000{n}.safetensors" for n in range(3)]


def test_unchanged_shards_are_not_stored_twice(trained, shop, tmp_path):
    build_index(trained, shop, tmp_path / "index")
    write_picture(shop / "99.png", 100)
    build_index(trained, shop, tmp_path / "index", update=True)
    old, new = (tmp_path / "index" / f"generation-00000{n}" for n in (1, 2))
    names = [f"vectors-0000{n}.safetensors" for n in range(3)]
    assert [os.path.samefile(old / n, new / n) for n in names] == [True, True, False]


def test_a_file_that_is_replaced_within_its_size(trained, shop, tmp_path):
    """Same size and name, another time and content: it is embedded again."""
    Image.new("RGB", (20, 20), "red").save(shop / "00.bmp")
    build_index(trained, shop, tmp_path / "index")
    size = os.path.getsize(shop / "00.bmp")
    Image.new("RGB", (20, 20), "blue").save(shop / "00.bmp")
    assert os.path.getsize(shop / "00.bmp") == size
    assert build_index(trained, shop, tmp_path / "index", update=True).encoded == 1


def test_a_catalogue_that_has_moved(trained, shop, tmp_path):
    """Times say nothing about files under other paths; their content decides."""
    build_index(trained, shop, tmp_path / "index")
    shutil.copytree(shop, tmp_path / "moved")  # with the files' times
    changed = tmp_path / "moved" / "03.png"
    times = os.stat(changed).st_atime_ns, os.stat(changed).st_mtime_ns
    changed.write_bytes((shop / "04.png").read_bytes())
    os.utime(changed, ns=times)
    report = build_index(trained, tmp_path / "moved", tmp_path / "index", update=True)
    assert report.encoded == 1
    rows = StoredIndex(tmp_path / "index").rows([3, 4])
    np.testing.assert_allclose(rows[:, 0], rows[:, 1], atol=2e-6)


class _Killed(BaseException):
    """The end of a process, at a write."""


def _kill_at(monkeypatch, write: int) -> list[int]:
    """Let a file's write number ``write`` end the process, before or after it is done."""
    count = [0]

    def counted(function):
        def call(*arguments, **options):
            count[0] += 1
            if count[0] == write:
                raise _Killed
            return function(*arguments, **options)

        return call

    for name in ("write_bytes", "write_json", "write_text", "_link"):
        monkeypatch.setattr(writing, name, counted(getattr(writing, name)))
    return count


def test_killed_at_any_write(trained, shop, tmp_path):
    """There is always a whole index, old or new, and the next run embeds only what is missing."""
    (shop / "15.png").write_text("no picture")
    build_index(trained, shop, tmp_path / "before")
    old = _content(tmp_path / "before")
    write_picture(shop / "05.png", 101)
    write_picture(shop / "25.png", 102)
    build_index(trained, shop, tmp_path / "new")
    new = _content(tmp_path / "new")
    index, write, outcomes = tmp_path / "index", 0, set()
    while True:
        write += 1
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(tmp_path / "before", index)
        with pytest.MonkeyPatch.context() as patch:
            count = _kill_at(patch, write)
            with contextlib.suppress(_Killed):
                build_index(trained, shop, index, update=True)
        content = _content(index)
        assert content in (old, new)
        if count[0] < write:
            break
        report = build_index(trained, shop, index, update=True)
        assert _content(index) == new
        outcomes.add((content == new, report.encoded))
    assert write > 10
    # Each of the two pictures is in a shard of its own.
    assert {encoded for _, encoded in outcomes} == {0, 1, 2}


def test_a_run_that_was_stopped_goes_on(trained, shop, tmp_path, monkeypatch):
    index = tmp_path / "index"
    build_index(trained, shop, tmp_path / "new")
    with monkeypatch.context() as patch:
        _kill_at(patch, 6)  # the description and a shard of three files are written
        with pytest.raises(_Killed):
            build_index(trained, shop, index)
    with pytest.raises(FileNotFoundError, match="was begun there and is unfinished"):
        StoredIndex(index)
    (shop / "02.png").unlink()  # the catalogue changes meanwhile
    report = build_index(trained, shop, index)
    assert report.encoded == _COUNT - _SHARD
    assert len(StoredIndex(index)) == _COUNT - 1
    assert len(form.generations(index)) == 1


def test_a_damaged_index_is_mended(trained, shop, tmp_path, caplog):
    index = tmp_path / "index"
    build_index(trained, shop, index)
    content = _content(index)
    path = index / "generation-000001" / "vectors-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = build_index(trained, shop, index, update=True)
    assert report.encoded == _SHARD
    assert "vectors-00001.safetensors is damaged; its pictures are embedded again" in caplog.text
    assert _content(index) == content


def test_the_loss_keeps_no_large_pictures_and_compiles_one_program(trained, shop, tmp_path):
    """Shards lack as many images as cannot be read: each has another size."""
    (shop / "03.png").write_text("no picture")
    build_index(trained, shop, tmp_path / "index", dtype="int8")
    stored = StoredIndex(tmp_path / "index")
    kept = rounding_loss._read(trained, stored, np.array([0, 5]))
    assert {p.pixels.shape for p in kept.values()} == {(64, 64, 3)}
    query = rounding_loss._compose(trained, list(kept.values()))
    scores = scoring.score(query, stored.rows(range(len(stored))))
    with compilations.counted() as compiled:
        best = rounding_loss._search(stored, query, len(stored))
    assert len(compiled) <= 1
    np.testing.assert_array_equal(best, np.argsort(-scores, axis=1, kind="stable"))
    # Nothing of the sample can be read any more.
    for picture in shop.iterdir():
        picture.write_text("no picture")
    assert rounding_loss.measure(trained, stored) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_loss_of_rounding(trained, shop, tmp_path, dtype):
    report = build_index(trained, shop, tmp_path / "index", dtype=dtype)
    exact = trained.encode_images(_paths(shop)).astype(np.float64)
    stored = StoredIndex(tmp_path / "index")
    errors = np.linalg.norm(stored.rows(range(_COUNT)) - exact, axis=2)
    loss = report.loss
    # In a catalogue this small, nearly all are among the best 20 of some query.
    assert _COUNT - 3 <= loss.images <= _COUNT
    assert loss.queries == _COUNT
    assert loss.error == pytest.approx(errors.mean(), rel=0.05)
    assert loss.error < loss.worst <= errors.max() * 1.001 < 0.02
    assert 0.9 <= loss.kept <= 1
    assert 0 < loss.score_error < 0.1
    assert stored.manifest.loss == vars(loss)
    assert "stay among the best 10" in str(loss)


def test_kept_images_are_counted_by_their_exact_scores():
    exact = np.array([[0.9, 0.8, 0.8, 0.1], [0.4, 0.3, 0.2, 0.1]])
    rounded = np.array([[0.9, 0.1, 0.8, 0.0], [0.1, 0.3, 0.2, 0.4]])
    # The first query has a tie at the second place; the second keeps one image of two.
    assert rounding_loss._kept(exact, rounded, 2) == 0.75


def test_folders_that_are_refused(trained, shop, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other holds other files; name a new folder"):
        build_index(trained, shop, tmp_path / "other")
    index = tmp_path / "index"
    build_index(trained, shop, index)
    with pytest.raises(ValueError, match="index holds an index of 25 images already: bring"):
        build_index(trained, shop, index)
    with pytest.raises(ValueError, match="of dtype float32, not int8; keep that dtype"):
        build_index(trained, shop, index, dtype="int8", update=True)
    with pytest.raises(ValueError, match="there is no backend 'fast', but exact"):
        build_index(trained, shop, tmp_path / "new", backend="fast")
    other = copy.copy(trained)
    other.variables = jax.tree.map(lambda x: 2 * x, trained.variables)
    other.__dict__.pop("fingerprint", None)
    with pytest.raises(ValueError, match=r"holds an index of another model \(None, fingerprint"):
        build_index(other, shop, index, update=True)
    os.remove(index / "manifest.json")
    with pytest.raises(ValueError, match=r"holds an unfinished index of another model"):
        build_index(other, shop, index)
    assert len(form.generations(index)) == 1


def test_two_runs_in_one_folder(trained, shop, tmp_path):
    with WorkdirLock(tmp_path / "index"), pytest.raises(WorkdirInUse, match="another folder; if"):
        build_index(trained, shop, tmp_path / "index")


def test_a_run_that_ends_while_another_lists_its_pictures(trained, shop, tmp_path, monkeypatch):
    listed = indexing.items_of

    def list_slowly(images):
        monkeypatch.setattr(indexing, "items_of", listed)
        build_index(trained, images, tmp_path / "index")
        return listed(images)

    monkeypatch.setattr(indexing, "items_of", list_slowly)
    with pytest.raises(ValueError, match="holds an index of 25 images already"):
        build_index(trained, shop, tmp_path / "index")
    assert form.generations(tmp_path / "index") == ["generation-000001"]


def test_a_disk_that_is_too_small(trained, shop, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(indexing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"are still to be written, and 0\.0 GB are free"):
        build_index(trained, shop, tmp_path / "index")


def _cut_faiss(files: pathlib.Path) -> None:
    index = files / "faiss.index"
    index.write_bytes(index.read_bytes()[:-1])


def _drop_collection(files: pathlib.Path) -> None:
    connection = Connection("", str(files))
    connection.client.drop_collection(json.loads((files / "milvus.json").read_text())["collection"])
    connection.close()


@pytest.mark.parametrize(
    ("backend", "package", "damage"),
    [("faiss", "faiss", _cut_faiss), ("milvus", "milvus_lite", _drop_collection)],
)
def test_the_remedy_for_damaged_files_of_a_backend(
    trained, shop, tmp_path, backend, package, damage
):
    """The command in the refusal makes them again, embeds nothing, and keeps the settings."""
    require(package)
    index = tmp_path / "index"
    build_index(trained, shop, index, backend=backend, settings={"shortlist": 7})

    def again(**settings):
        return build_index(trained, shop, index, update=True, backend=backend, settings=settings)

    def open_and_search(**settings) -> None:
        stored = StoredIndex(index)
        chosen = settings_of(backend, {**stored.manifest.settings, **settings})
        opened = BACKENDS[backend].open(stored, chosen, one_device())
        if backend == "milvus":
            opened._propose._connection.close()

    remedy = rf"make them again with cmap index --update --backend {backend} --out {index}, and --i"
    for spoil in (damage, lambda files: os.remove(files / f"{backend}.json")):
        before = StoredIndex(index)
        spoil(pathlib.Path(before.backend_folder))
        with pytest.raises((ValueError, FileNotFoundError), match=remedy):
            open_and_search()
        report = again()
        assert (report.encoded, report.manifest.settings["shortlist"]) == (0, 7)
        assert report.manifest.generation != before.manifest.generation
        open_and_search()
    assert again().manifest == report.manifest
    with pytest.raises(ValueError, match=rf"--update --backend {backend} --set kind=ivf --out"):
        open_and_search(kind="ivf")
    assert again(kind="ivf").manifest.settings["shortlist"] == 7
    open_and_search(kind="ivf")


def test_heic(trained, shop, tmp_path):
    pillow_heif = require("pillow_heif")
    Image.open(shop / "00.png").save(tmp_path / "00.png")
    pillow_heif.from_pillow(Image.open(shop / "00.png")).save(shop / "phone.HEIC")
    build_index(trained, shop, tmp_path / "index")
    assert StoredIndex(tmp_path / "index").items[-1].id == "phone.HEIC"


def test_buckets(trained, shop, tmp_path, monkeypatch):
    """Pictures and index in a bucket: the same bytes, but for paths and whole seconds."""
    use_folder_as_bucket(monkeypatch, tmp_path)
    report = build_index(trained, "gs://shop", "gs://out/index")
    build_index(trained, shop, tmp_path / "local")
    assert report.encoded == _COUNT
    stored, local = StoredIndex("gs://out/index"), StoredIndex(tmp_path / "local")
    stored.verify()
    assert stored.items[3].image == "gs://shop/03.png"
    assert [i.id for i in stored.items] == [i.id for i in local.items]
    np.testing.assert_array_equal(stored.rows(range(_COUNT)), local.rows(range(_COUNT)))
    assert build_index(trained, "gs://shop", "gs://out/index", update=True).encoded == 0
    (shop / "list.jsonl").write_text('{"image": "04.png", "n": 1}\n')
    report = build_index(trained, "gs://shop/list.jsonl", "gs://out/index", update=True)
    assert (report.encoded, report.removed) == (0, 24)
    np.testing.assert_array_equal(StoredIndex("gs://out/index").rows([0]), local.rows([4]))


def test_a_bucket_that_tells_no_times(trained, shop, tmp_path, monkeypatch):
    """The content of pictures decides, whatever their sizes are."""
    use_folder_as_bucket(monkeypatch, tmp_path, fsspec=True)
    Image.new("RGB", (20, 20), "red").save(shop / "below.bmp")
    build_index(trained, "gs://shop", tmp_path / "index")
    assert StoredIndex(tmp_path / "index").items.record(0).stamp.modified is None
    Image.new("RGB", (20, 20), "blue").save(shop / "below.bmp")
    assert build_index(trained, "gs://shop", tmp_path / "index", update=True).encoded == 1


def test_a_bucket_that_fails_is_no_unreadable_picture(trained, shop, tmp_path, monkeypatch):
    use_folder_as_bucket(monkeypatch, tmp_path)

    def fail(path):
        raise OSError(5, "no network", str(path))

    monkeypatch.setattr(pictures, "_stat", fail)
    with pytest.raises(OSError, match="no network"):
        build_index(trained, "gs://shop", tmp_path / "index")


def test_reading_keeps_the_order_and_a_bounded_distance():
    taken = []

    def values():
        for number in range(100):
            taken.append(number)
            yield number

    results = pictures._map_ahead(lambda x: x * x, values(), workers=3, ahead=5)
    assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
    assert len(taken) <= 16
    assert list(results) == [n * n for n in range(10, 100)]
