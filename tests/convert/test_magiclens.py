"""MagicLens' files: all names and numbers, parity of the whole model, files that are refused."""

import contextlib
import os
import pickle

import flax
import jax
import magiclens_reference as reference
import numpy as np
import pytest

from cmap_jax.convert import load_magiclens
from cmap_jax.convert.bytes_pickle import read_bytes_pickle
from cmap_jax.convert.magiclens import infer_fields, parameter_shapes, released_arrays
from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.models.cmap import CMAP
from configs import default

# Sizes of the published models, as `random_arrays` takes them.
BASE = {
    "patch": 16,
    "grid": 14,
    "vision": (768, 12, 12),
    "text": (512, 12, 8),
    "positions": 77,
    "vocabulary": 49_408,
    "embed_dim": 512,
    "layers": 4,
    "heads": 8,
}
LARGE = {
    **BASE,
    "patch": 14,
    "grid": 16,
    "vision": (1024, 24, 16),
    "text": (768, 12, 12),
    "embed_dim": 768,
    "heads": 16,
}


def write_magiclens(path, arrays: dict, protocol: int = 4) -> dict:
    """Write arrays as the published files hold them, and return them."""
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
    content = flax.serialization.msgpack_serialize({"params": tree})
    path.write_bytes(pickle.dumps(content, protocol))
    return arrays


def _config(changes: dict, **model):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    config.model.update(model)
    return config


@pytest.mark.parametrize(
    ("sizes", "count", "numbers"), [(BASE, 474, 166_433_025), (LARGE, None, None)]
)
def test_published_models(sizes, count, numbers):
    """Our parameters, under the released names, are exactly those of the published file."""
    arrays = reference.random_arrays(**sizes, seed=None)
    if count:
        assert len(arrays) == count
        assert sum(array.size for array in arrays.values()) == numbers
    config = _config(infer_fields(arrays, "base.pkl"))
    assert (config.data.crop, config.data.fit) == (224, "stretch")
    assert config.data.scaling == "own_maximum"
    assert config.model.embed_dim == sizes["embed_dim"]
    assert config.model.magiclens.heads == sizes["heads"]
    shapes = parameter_shapes(CMAP.from_config(config), config.data.crop)
    assert released_arrays(shapes) == {name: array.shape for name, array in arrays.items()}
    if numbers:
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == numbers


def test_the_whole_model_is_numpys(tmp_path, x64):
    """Towers, composer and gallery, from the file on, to 1e-6."""
    arrays = write_magiclens(tmp_path / "small.pkl", reference.random_arrays())
    changes, variables = load_magiclens(tmp_path / "small.pkl")
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(variables))
    assert variables["params"]["logit_scale"] == np.float32(2.65926)  # the file's is not used
    model = CMAP.from_config(_config(changes, dtype="float64"))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
    texts = [[9, 4, 10], [9, 1, 2, 3, 4, 5, 6, 10], [9, 10]]
    tokens = np.array([[*ids, *[0] * (8 - len(ids))] for ids in texts], np.int32)

    @jax.jit
    def run(variables, images, tokens, lengths):
        pictures = model.apply(variables, images, method="encode_references")
        text = model.apply(variables, tokens, lengths, method="encode_text")
        query = model.apply(variables, pictures, text, method="compose").branches[0].numerator
        gallery = model.apply(variables, images, method="encode_images")
        return pictures[0], text, query[0], gallery[0]

    ours = run(variables, images, tokens, np.array(list(map(len, texts)), np.int32))
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    pictures = reference.picture_features(arrays, images)
    text = reference.text_features(arrays, tokens)
    empty = np.broadcast_to(text[2], text.shape)
    theirs = (
        pictures,
        text,
        reference.embed(arrays, pictures, text),
        reference.embed(arrays, pictures, empty),
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert np.abs(ours[2] - ours[3])[:2].max() > 0.01


class _Runs:
    """Pickled, it runs a program when a pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_is_executed(tmp_path):
    """Files that would run something are refused, and nothing runs."""
    ran = tmp_path / "ran"
    inner = pickle.dumps(_Runs(ran))
    assert b"system" in inner
    hostile = {
        "call": inner,
        "call before the bytes": pickle.dumps((_Runs(ran), b"weights")),
        "call after the bytes": pickle.dumps((b"weights", _Runs(ran))),
        "early": pickle.dumps(_Runs(ran), 0),
        "instance": b"(S'touch %b'\nios\nsystem\n." % bytes(ran),
        "persistent": b"Pweights\n.",
        "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "bytes by a call": pickle.dumps(b"weights", 2),  # protocol 2 spells bytes so
        "a dict": pickle.dumps({"params": b"weights"}),
        "text": pickle.dumps("weights"),
        "bytearray": pickle.dumps(bytearray(b"weights"), 5),
        "two": pickle.dumps(b"weights")[:-1] + pickle.dumps(b"more")[2:],
    }
    for name, content in hostile.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"one bytes object is expected") as caught:
            load_magiclens(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert not ran.exists(), name


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "small.pkl"
    write_magiclens(path, reference.random_arrays())
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "without end": whole[:-1],
        "more": whole + b"x",
        "a claim of a petabyte": b"\x80\x04\x8e" + (1 << 50).to_bytes(8, "little") + b"abc.",
        "a claim beyond integers": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
        "no pickle": b"PK\x03\x04 a zip",
        "bytes of something else": pickle.dumps(b"weights", 4),
        "cut msgpack": pickle.dumps(pickle.loads(whole)[:-100], 4),
        "a list": pickle.dumps(flax.serialization.msgpack_serialize([1, 2]), 4),
        "numbers": pickle.dumps(flax.serialization.msgpack_serialize({"params": {"a": 1}}), 4),
    }
    for name, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_magiclens(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_magiclens(tmp_path / "gone.pkl")


def test_changed_bytes_are_refused_or_read(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "bytes.pkl"
    whole = pickle.dumps(bytes(300), 4)
    for _ in range(1000):
        changed = bytearray(whole)
        for position in rng.integers(0, 30, 3):
            changed[position] = rng.integers(256)
        path.write_bytes(bytes(changed))
        with contextlib.suppress(WeightsError):  # any other error fails the test
            assert isinstance(read_bytes_pickle(path), bytes)


def test_wrong_arrays_are_named(tmp_path):
    path, arrays = tmp_path / "small.pkl", reference.random_arrays()
    wrong = dict(arrays)
    del wrong["multimodal_encoder/x_layers_1/layer_norm/bias"]
    wrong["clip/visual/ln_extra/scale"] = np.zeros(3, np.float32)
    wrong["clip/text/ln_final/scale"] = np.zeros(3, np.float32)
    write_magiclens(path, wrong)
    with pytest.raises(WeightsError, match=r"(?s)x_layers_1/layer_norm/bias.*ln_extra.*ln_final"):
        load_magiclens(path)
    wrong = {name: x for name, x in arrays.items() if not name.startswith("clip/visual/conv1")}
    write_magiclens(path, wrong)
    with pytest.raises(WeightsError, match=r"not MagicLens' weights: clip/visual/conv1/k"):
        load_magiclens(path)
    wrong = {**arrays, "clip/visual/class_embedding": np.full(8, np.nan, np.float32)}
    write_magiclens(path, wrong)
    with pytest.raises(WeightsError, match=r"NaN or infinite: 1 .*class_embedding"):
        load_magiclens(path)


def test_a_pickle_of_bytes_is_its_bytes(tmp_path):
    for protocol in (3, 4, 5):
        for content in (b"", b"x", os.urandom(300), os.urandom(1 << 17)):
            path = tmp_path / "bytes.pkl"
            path.write_bytes(pickle.dumps(content, protocol))
            assert read_bytes_pickle(path) == content
