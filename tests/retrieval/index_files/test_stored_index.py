"""An index on disk: numbers and items as they were given, files that others read, and damage."""

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors
from beartype import beartype
from jaxtyping import jaxtyped

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.index_files import form, item_files, quantization, tensors
from cmap_jax.retrieval.index_files.quantization import DTYPES, Quantized, quantize
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.index_files.writing import write_index

_COUNT, _SHARD = 25, 10
_COLORS = ("red", "blue", None)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(form, "_MOST_ROWS", _SHARD)


def _items() -> list[Item]:
    return [
        Item(
            f"ä/{i}\n.jpg",
            f"/shop/{i}.jpg",
            {"color": _COLORS[i % 3], "tags": ["a"] * (i % 2), "n": i, "stock": (i % 4) or None},
        )
        for i in range(_COUNT)
    ]


def _pyramid(count: int = _COUNT) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(3, count, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=2, keepdims=True)


def _write(folder: pathlib.Path, **fields) -> StoredIndex:
    fields = {"fingerprint": "f" * 16, "variant": "cmap", **fields}
    write_index(folder, _items(), _pyramid(), **fields)
    return StoredIndex(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path, dtype):
    stored = _write(tmp_path / "index", dtype=dtype)
    stored.verify()
    assert len(stored) == len(stored.items) == _COUNT
    assert list(stored.items) == [stored.item_at(i) for i in range(_COUNT)] == _items()
    assert stored.items[-1] == _items()[-1]
    assert stored.items[8:12] == _items()[8:12]
    with pytest.raises(IndexError):
        stored.items[_COUNT]
    assert [stored.position_of(item.id) for item in _items()] == list(range(_COUNT))
    assert stored.position_of("b") is None
    assert [part.shape for part in stored.parts] == [(3, 10, 8), (3, 10, 8), (3, 5, 8)]
    positions = [24, 0, 10, 9, 0]
    rows = stored.rows(positions)
    expected = {
        "float32": _pyramid(),
        "bfloat16": _pyramid().astype(ml_dtypes.bfloat16).astype(np.float32),
        "int8": _rounded(_pyramid()),
    }[dtype]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected[:, positions])
    with pytest.raises(IndexError, match="an index of 25"):
        stored.rows([25])


def _rounded(pyramid: np.ndarray) -> np.ndarray:
    """Eight bits in float64, written once more from the definition."""
    wide = pyramid.astype(np.float64)
    scale = np.abs(wide).max(2, keepdims=True) / 127
    return (np.round(wide / scale) * scale.astype(np.float32)).astype(np.float32)


def test_columns(tmp_path):
    stored = _write(tmp_path / "index")
    assert stored.manifest.fields == {
        "color": "text",
        "tags": "texts",
        "n": "integer",
        "stock": "integer",
    }
    assert list(stored.column("color")) == [_COLORS[i % 3] for i in range(_COUNT)]
    assert list(stored.column("tags")) == [["a"] * (i % 2) for i in range(_COUNT)]
    assert stored.column("n").dtype == np.int64
    assert list(stored.column("stock")[:5]) == [None, 1, 2, 3, None]
    with pytest.raises(KeyError):
        stored.column("id")


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_are_read_by_the_library_of_their_format(tmp_path, dtype):
    stored = _write(tmp_path / "index", dtype=dtype)
    for part in stored.parts:
        largest = part.codes if dtype == "int8" else part
        assert largest.ctypes.data % 64 == 0
    with open(f"{stored.generation_folder}/vectors-00001.safetensors", "rb") as file:
        entries = dict(safetensors.deserialize(file.read()))
    part = stored.parts[1]
    if dtype == "int8":
        codes, scales = entries["codes"], entries["scales"]
        assert (codes["dtype"], codes["shape"]) == ("I8", [3, 10, 8])
        assert bytes(codes["data"]) == part.codes.tobytes()
        assert bytes(scales["data"]) == part.scales.tobytes()
    else:
        names = {"float32": "F32", "bfloat16": "BF16"}
        entry = entries["embeddings"]
        assert (entry["dtype"], entry["shape"]) == (names[dtype], [3, 10, 8])
        assert bytes(entry["data"]) == part.tobytes()
    with open(f"{stored.generation_folder}/items-00002.safetensors", "rb") as file:
        lines = dict(safetensors.deserialize(file.read()))["lines"]
    items = [json.loads(line) for line in bytes(lines["data"]).decode().splitlines()]
    assert [item["id"] for item in items] == [item.id for item in _items()[20:]]


def test_files_of_the_library_are_read(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.ones(3, np.int8)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"by": "another"})
    for name, array in tensors.read_tensors(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_parts_are_maps_that_devices_can_read_in_place(tmp_path):
    part = _write(tmp_path / "index").parts[0]
    assert isinstance(part, np.memmap)
    assert not part.flags.writeable
    assert part.ctypes.data % 64 == 0


def test_eight_bits():
    values = np.array([[[0, 0, 0], [1, -0.5, 0.25], [3e-30, 0, -3e-30]]], np.float32)
    quantized = jaxtyped(typechecker=beartype)(quantize)(values)
    np.testing.assert_array_equal(quantized.codes[0], [[0, 0, 0], [127, -64, 32], [127, 0, -127]])
    assert quantized.shape == (1, 3, 3)
    np.testing.assert_allclose(
        quantized.rows(np.array([1, 0]))[0], [[1, -64 / 127, 32 / 127], [0, 0, 0]], rtol=1e-6
    )
    random = _pyramid(1000)
    error = np.abs(quantize(random).rows(slice(None)) - random)
    assert (error <= np.abs(random).max(2, keepdims=True) / 254 * (1 + 1e-5)).all()


def test_ids_of_one_hash(monkeypatch):
    """Where hashes collide, the ids themselves decide."""
    monkeypatch.setattr(item_files, "hash_of", lambda name: len(name))
    records = [item_files.Record(Item(name, "/x"), None) for name in ("aa", "b", "cc", "a")]
    file = item_files.ItemFile(item_files.to_arrays(records))
    assert [file.row_of(name) for name in ("aa", "b", "cc", "a", "bb", "ccc")] == [
        *(0, 1, 2, 3),
        *(None, None),
    ]


def test_an_index_that_is_replaced_stays_readable(tmp_path):
    old = _write(tmp_path / "index")
    for seed in range(3):  # the second replacement removes the generation's files
        pyramid = np.full((3, 4, 8), seed, np.float32)
        write_index(tmp_path / "index", _items()[:4], pyramid, fingerprint="g", variant="cmap")
    np.testing.assert_array_equal(old.rows(range(_COUNT)), _pyramid())
    assert list(old.items) == _items()
    assert sorted(form.generations(tmp_path / "index")) == [
        "generation-000003",
        "generation-000004",
    ]
    np.testing.assert_array_equal(StoredIndex(tmp_path / "index").rows([3]), 2)


def test_an_index_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    _write(folder)
    read = form.read_manifest
    from cmap_jax.retrieval.index_files import reading

    def read_then_replace(path):
        manifest = read(path)
        if manifest.count == _COUNT:
            for _ in range(2):
                write_index(folder, _items()[:4], _pyramid(4), fingerprint="g", variant="cmap")
        return manifest

    monkeypatch.setattr(reading, "read_manifest", read_then_replace)
    assert len(StoredIndex(folder)) == 4


def _damage(folder: pathlib.Path, name: str, change) -> None:
    (path,) = folder.glob(f"**/{name}")
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["vectors-00001.safetensors", "items-00000.safetensors"])
def test_damage(tmp_path, name):
    folder = tmp_path / "index"

    def flip(content):
        content[-3] ^= 1

    def cut(content):
        del content[-1]

    _write(folder)
    _damage(folder, name, flip)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its checksum"):
        StoredIndex(folder).verify()
    _damage(folder, name, cut)
    with pytest.raises(ValueError, match=rf"{name} is damaged: it has \d+ bytes, not \d+"):
        StoredIndex(folder)
    (path,) = folder.glob(f"**/{name}")
    path.unlink()
    with pytest.raises(ValueError, match=rf"is damaged: .*{name} is missing"):
        StoredIndex(folder)


def test_damaged_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (b"", b"1234", b"\xff" * 30, (9).to_bytes(8, "little") + b'{"a": {}}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
            tensors.read_tensors(path)


def test_manifests_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no index .*run cmap index"):
        StoredIndex(tmp_path / "none")
    folder = tmp_path / "index"
    _write(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copytree(folder, tmp_path / "begun")
    os.remove(tmp_path / "begun" / "manifest.json")
    with pytest.raises(FileNotFoundError, match="an index was begun there and is unfinished"):
        StoredIndex(tmp_path / "begun")
    for change, message in (
        ({"format": 2}, "has another form"),
        ({"dtype": "int4"}, "is damaged: no dtype 'int4'"),
        ({"count": 24}, "its shards do not hold 24 images"),
        ({"shards": 3}, r"manifest\.json is damaged"),
        ({"width": 9}, r"vectors-00000\.safetensors is damaged: embeddings \(3, 10, 8\)"),
        ({"dtype": "int8"}, "it has embeddings, not codes, scales"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            StoredIndex(folder)


def test_another_model_is_refused(tmp_path):
    stored = _write(tmp_path / "index", model="/runs/shop")
    stored.check_model("f" * 16, "mine")
    with pytest.raises(ValueError, match=r"another model: /runs/shop with fingerprint f{16}"):
        stored.check_model("0" * 16, "mine")


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_that_are_not_finite_are_refused(tmp_path, dtype):
    pyramid = _pyramid()
    pyramid[1, 13, 2] = np.nan
    with pytest.raises(ValueError, match=r"/shop/13\.jpg is not finite"):
        write_index(tmp_path, _items(), pyramid, fingerprint="f", variant="cmap", dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_moved_as_they_are(dtype):
    part = quantization.to_part(_pyramid(), dtype)
    first, rest = (quantization.take(part, rows) for rows in (slice(0, 7), slice(7, None)))
    joined = quantization.take(quantization.join([rest, first]), np.roll(np.arange(_COUNT), 7))
    for name, array in quantization.to_arrays(part).items():
        np.testing.assert_array_equal(quantization.to_arrays(joined)[name], array)
    assert isinstance(joined, Quantized) == (dtype == "int8")
