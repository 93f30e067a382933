"""docs/design.md is true: its examples run as printed, and its layers are the tested ones."""

import ast
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import EMBED, small_config
from test_house import LAYERS

from cmap_jax import scoring
from cmap_jax.models.cmap import CMAP

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "design.md"


def example(file: str) -> str:
    """Return the Python block whose docstring begins with a file's name."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    docstrings = {block: ast.get_docstring(ast.parse(block)) or "" for block in blocks}
    (block,) = (block for block, text in docstrings.items() if text.startswith(f"{file}: "))
    return block


def run(file: str) -> dict:
    """Return what the block defines."""
    names: dict = {"__name__": file}
    exec(compile(example(file), f"docs/design.md, {file}", "exec"), names)
    return names


def shapes(config: ConfigDict) -> tuple[scoring.ComposedQuery, jax.ShapeDtypeStruct]:
    """Return the shapes of a model's query and of its targets, for a batch of 2."""
    model, inputs = CMAP.from_config(config), CMAP.example_inputs(config.data.crop)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    outputs = jax.eval_shape(lambda v: model.apply(v, **inputs), variables)
    return outputs.query, outputs.targets


def test_the_layers():
    """The table is LAYERS, except for packages that do not exist."""
    rows = re.findall(r"^\| \d \| (.*) \|$", DOCUMENT.read_text(), re.M)
    written = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    existing = {path.stem for path in (DOCUMENT.parents[1] / "cmap_jax").iterdir()}
    assert [row & existing for row in written] == [layer & existing for layer in LAYERS]


def test_the_composer(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "my_module.py").write_text(example("my_package/my_module.py"))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        query, targets = shapes(small_config("my_package.my_module:Change"))
    finally:
        for name in ("my_package", "my_package.my_module"):
            sys.modules.pop(name, None)
    assert query.branch_names == ("changed",)
    assert query.branches[0].numerator.shape == targets.shape == (3, 2, EMBED)


def test_the_image_encoder(monkeypatch):
    from cmap_jax.models.encoders import IMAGE_ENCODERS

    names = run("cmap_jax/models/encoders/patches.py")
    monkeypatch.setitem(IMAGE_ENCODERS, "patches", names["ENTRY"])
    config = small_config("tirg")
    config.model.image.name = "patches"
    config.model.image.patches = ConfigDict({"features": 5})
    config.data.crop = 48
    assert shapes(config)[1].shape == (1, 2, EMBED)
    config.model.variant = "cmap"
    with pytest.raises(ValueError, match="mid"):
        shapes(config)


def test_the_tokenizer_and_the_text_encoder(monkeypatch, tmp_path):
    from cmap_jax.models.encoders import TEXT_ENCODERS

    characters = run("cmap_jax/processing/characters.py")["Characters"].from_data(None, [], ())
    tokens, lengths = characters.encode_batch(["Ab!", ("a", "b c")])
    assert tokens.tolist() == [[1, 2, 0, 0, 0], [1, 27, 2, 27, 3]]
    assert lengths.tolist() == [2, 5]
    characters.save(tmp_path)
    assert type(characters).load(tmp_path) == characters
    names = run("cmap_jax/models/encoders/bag.py")
    monkeypatch.setitem(TEXT_ENCODERS, "bag", names["ENTRY"])
    config = small_config("text_only")
    config.model.text.name, config.model.text.tokenizer = "bag", "characters"
    config.model.text.bag = ConfigDict()
    config.model.text.vocabulary_size = len(characters)
    assert shapes(config)[0].branches[0].numerator.shape == (1, 2, EMBED)


def test_the_data_set(tmp_path, monkeypatch):
    from cmap_jax.protocols import PROTOCOLS, Protocol
    from input_pipeline.readers.data_set import DataSet

    protocol = Protocol(
        name="catalog",
        gallery="the images that val.json names",
        captions="one",
        correct="the annotation's target",
        metrics=("R@1",),
        headline=("R@1",),
    )
    monkeypatch.setitem(PROTOCOLS, "catalog", protocol)
    entry = run("input_pipeline/readers/catalog.py")["DATA_SET"]
    assert isinstance(entry, DataSet)
    for split in ("train", "val"):
        pair = {"reference": "a.jpg", "target": f"{split}.jpg", "text": "is red"}
        (tmp_path / f"{split}.json").write_text(json.dumps([pair]))
    records = entry.read(str(tmp_path))
    assert len(records.train) == 1
    assert set(records.images) == {"a.jpg", "train.jpg", "val.jpg"}
    (evaluation,) = records.evaluations["val"]
    assert evaluation.galleries == {"all": ("a.jpg", "val.jpg")}
    assert evaluation.queries[0].targets == ("val.jpg",)


class _Stored:
    """The part of a stored index that the example of a backend uses."""

    def __init__(self, pyramid: np.ndarray):
        self._pyramid = pyramid

    def __len__(self) -> int:
        return self._pyramid.shape[1]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        return self._pyramid[:, positions]


@pytest.mark.parametrize("masked", [False, True])
def test_the_backend(masked):
    rng = np.random.default_rng(0)
    pyramid = rng.normal(size=(2, 9, 4)).astype(np.float32)
    branch = scoring.Branch(rng.normal(size=(2, 3, 4)).astype(np.float32))
    query = scoring.ComposedQuery((branch,), levels=("high", "mid"))
    entry = run("cmap_jax/retrieval/backends/high_level.py")["ENTRY"]
    allowed = np.arange(9) % 3 == 1 if masked else None  # 3 images
    result = entry.open(_Stored(pyramid), entry.settings(), None).search(query, 4, allowed)
    expected = np.array(scoring.score(query, pyramid))
    if masked:
        expected[:, ~allowed] = -np.inf
        assert (result.positions[:, 3] == -1).all()
    kept = 3 if masked else 4
    order = np.argsort(-expected, axis=1)[:, :4]
    np.testing.assert_array_equal(result.positions[:, :kept], order[:, :kept])
    best = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(result.scores, best, rtol=1e-6)
