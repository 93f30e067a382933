"""An index that Apache Beam's DirectRunner embeds is, byte for byte, that of one process."""

import pathlib

import pytest
from fake_data import image as write_picture
from optional import require
from small import write_workdir

import cmap_jax
from cmap_jax.retrieval.index_files import form
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.indexing import build_index

pytestmark = pytest.mark.slow


def _content(index: pathlib.Path) -> dict[str, bytes]:
    stored = StoredIndex(index)
    stored.verify()
    names = [n for shard in stored.manifest.shards for n in shard.files]
    names.append("unreadable.jsonl")
    return {name: pathlib.Path(stored.generation_folder, name).read_bytes() for name in names}


def _without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the DirectRunner run in this process: it first tries a program that it downloads."""
    runner = require("apache_beam.runners.portability.prism_runner").PrismRunner

    def refuse(self, pipeline, options):
        raise RuntimeError("no network")

    monkeypatch.setattr(runner, "run_pipeline", refuse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_result_is_that_of_one_process(tmp_path, monkeypatch):
    require("apache_beam")
    _without_downloads(monkeypatch)
    from cmap_jax.retrieval.beam_indexing import beam_writer

    monkeypatch.setattr(form, "_MOST_ROWS", 10)
    workdir = write_workdir(tmp_path / "model", "folder", "folder/val")
    trained, shop = cmap_jax.load(workdir), tmp_path / "shop"
    for number in range(45):
        write_picture(shop / f"{number:02}.png", number)
    (shop / "17.png").write_text("no picture")
    write = beam_writer(str(workdir), ["--runner=DirectRunner"])
    for number, options in enumerate(({"dtype": "int8"}, {"update": True})):
        for name, more in (("beam", {"write": write}), ("local", {})):
            report = build_index(trained, shop, tmp_path / name, **options, **more)
            assert report.encoded == (44, 2)[number]
        assert _content(tmp_path / "beam") == _content(tmp_path / "local")
        # For the update.
        write_picture(shop / "05.png", 100)
        write_picture(shop / "99.png", 101)
        (shop / "30.png").unlink(missing_ok=True)
    assert not list(tmp_path.glob("beam/*/task-*"))


def test_a_runner_that_does_not_exist_and_a_flag_of_another_kind():
    require("apache_beam")
    from cmap_jax.retrieval.beam_indexing import beam_writer

    with pytest.raises(ValueError, match="the runner 'Nothing' of Apache Beam cannot be used: Un"):
        beam_writer("model", ["--runner=Nothing"])
    with pytest.raises(ValueError, match="refuses its flags: argument --direct_num_workers: inv"):
        beam_writer("model", ["--runner=DirectRunner", "--direct_num_workers=many"])


def test_a_shard_of_two_workers_that_do_not_agree(tmp_path, monkeypatch):
    """One writes its files between the files and the marker of the other."""
    require("apache_beam")
    from cmap_jax.retrieval import beam_indexing

    workdir = write_workdir(tmp_path / "model", "folder", "folder/val")
    for number in range(3):
        write_picture(tmp_path / "shop" / f"{number}.png", number)
    other = []

    def run(worker, numbers, options):
        for number in numbers:
            worker(number)
            (path,) = tmp_path.glob(f"index/*/vectors-{number:05}.safetensors")
            other.append(path.read_bytes())
            path.write_bytes(other[-1][:-1] + b"x")

    monkeypatch.setattr(beam_indexing, "_run_pipeline", run)
    write = beam_indexing.beam_writer(str(workdir), ["--runner=DirectRunner"])
    trained = cmap_jax.load(workdir)
    with pytest.raises(OSError, match=r"vectors-00000.* by two workers that do not agree \(1 such"):
        build_index(trained, tmp_path / "shop", tmp_path / "index", write=write)
    assert build_index(trained, tmp_path / "shop", tmp_path / "index").encoded == 3
    StoredIndex(tmp_path / "index").verify()


def test_a_worker_with_another_model_fails(tmp_path):
    require("apache_beam")
    from cmap_jax.retrieval.beam_indexing import ShardWorker

    workdir = write_workdir(tmp_path / "model", "folder", "folder/val")
    description = form.Description(
        model=str(workdir),
        fingerprint="0" * 16,
        variant="cmap",
        levels=3,
        width=8,
        dtype="float32",
        preprocessing=cmap_jax.load(workdir).preprocessing,
    )
    worker = ShardWorker(str(tmp_path / "index"), "generation-000001", description, str(workdir))
    with pytest.raises(ValueError, match="holds another model on this worker"):
        worker(0)
