"""`cmap search`: the table, JSON, the picture, conditions on the command line, and refusals."""

import json

import numpy as np
import pytest
from PIL import Image
from small import write_workdir

import cmap_jax
from cmap_jax.cli import command
from cmap_jax.cli.where import parse_where
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.filters import Fields
from cmap_jax.retrieval.index_files.writing import write_index
from cmap_jax.visualization import grids


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of six pictures, "shop/0.png" and so on, and the model beside it."""
    folder = tmp_path_factory.mktemp("search")
    trained = cmap_jax.load(write_workdir(folder / "run", "folder", "folder/val"))
    rng = np.random.default_rng(0)
    items = []
    for number, color in enumerate(("red", "blue", "red", "off-white, stained", None, "red")):
        path = folder / "shop" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        title = f"A {'very ' * 9}long title"
        metadata = {"color": color, "price": 10 * number, "weight": None, "title": title}
        items.append(Item(f"shop/{number}.png", str(path), metadata))
    write_index(
        folder / "index",
        items,
        trained.encode_images([item.image for item in items]),
        fingerprint=trained.fingerprint,
        variant="cmap",
        model=str(folder / "run"),
    )
    return folder / "index"


def _search(index, *arguments: str) -> int:
    return command.main(["search", str(index), *arguments])


def test_a_table_of_hits(index, capsys):
    picture = str(index.parent / "shop" / "1.png")
    assert _search(index, "--image", picture, "--text", "is red", "--k", "4") == 0
    heading, columns, *lines = capsys.readouterr().out.splitlines()
    assert heading == f"{picture} + “is red”: 4 of 6 images"
    assert columns.split() == [
        "id",
        "score",
        "modified",
        "preserved",
        "color",
        "price",
        "weight",
        "title",
    ]
    hits = cmap_jax.Retriever.load(index).search(picture, "is red", k=4)
    assert [line.split()[0] for line in lines] == [hit.id for hit in hits]
    for line, hit in zip(lines, hits, strict=True):
        score, modified, preserved = map(float, line.split()[1:4])
        assert score == pytest.approx(hit.score, abs=6e-5)
        assert modified + preserved == pytest.approx(score, abs=2e-4)
        assert line.endswith("A very very very very...")


def test_json_and_conditions(index, capsys, tmp_path):
    grid = tmp_path / "hits.png"
    arguments = ["--item", "shop/0.png", "--item", "shop/1.png", "--text", "longer", "--text", "no"]
    conditions = ["--where", "color=red,blue", "--where", "price=10..50"]
    assert _search(index, *arguments, *conditions, "--json", "--grid", str(grid)) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(hit["id"] for hit in hits) == ["shop/1.png", "shop/2.png", "shop/5.png"]
    expected = cmap_jax.Retriever.load(index).search(
        item=["shop/0.png", "shop/1.png"], text=("longer", "no"), where={"price": [10, 20, 50]}
    )
    for hit, other in zip(hits, expected, strict=True):
        assert hit["score"] == pytest.approx(other.score, abs=1e-6)
        assert hit["metadata"] == other.metadata
        assert hit["parts"] == pytest.approx(other.parts, abs=1e-6)
        assert hit["image"] == other.image
    with Image.open(grid) as picture:
        assert picture.width > 3 * grids.SIDE


def test_the_picture_shows_the_query_and_its_hits(index, capsys, tmp_path, monkeypatch):
    drawn = []
    draw = grids.results_grid
    monkeypatch.setattr(
        "cmap_jax.cli.search.results_grid",
        lambda rows, title: drawn.append((rows, title)) or draw(rows, title),
    )
    grid = str(tmp_path / "new" / "hits.jpg")
    picture = str(index.parent / "shop" / "3.png")
    query = ["--image", picture, "--item", "shop/2.png", "--text", "red"]
    assert _search(index, *query, "--grid", grid, "--where", "price=..20") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"The query with its first 3 images: {grid}"
    )
    ((row,), title) = drawn[0]
    assert title == "index · 6 images"
    assert row.names[0] == "3.png + 2.png"
    assert sorted(row.names[1:]) == ["shop/0.png", "shop/1.png", "shop/2.png"]
    assert (row.captions, row.note) == (["red"], "price=..20")
    assert row.reference.size == (2 * grids.SIDE, 2 * grids.SIDE)


def test_no_hits(index, capsys, tmp_path):
    query = ["--item", "shop/1.png", "--text", "red"]
    grid = tmp_path / "hits.png"
    assert _search(index, *query, "--where", "color=purple", "--grid", str(grid)) == 0
    output = capsys.readouterr().out
    assert "0 of 6 images, where color=purple\n" in output
    assert "color: there are blue, off-white, stained, red" in output
    assert f"no picture drawn: {grid}" in output
    assert not grid.exists()
    assert _search(index, *query, "--where", "weight=heavy", "--where", "price=7") == 0
    output = capsys.readouterr().out
    assert "weight: no image has a value\nprice: there are 0 to 50" in output
    assert "no picture" not in output
    assert _search(index, *query, "--where", "color=blue", "--where", "price=0") == 0
    assert "no image fulfils all of them together" in capsys.readouterr().out
    assert _search(index, *query, "--where", "price=7", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"hits": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to search for: give --image FILE, --item ID or --text CAPTION"),
        (["--text", "a", "--text", "b", "--text", "c"], "--text is given 3 times"),
        (["--text", "a", "--k", "0"], "--k must be 1 or more, not 0"),
        (["--text", "a", "--grid", "hits.gif"], "hits.gif: a picture's name must end in"),
        (["--text", "a", "--image", "/nowhere.jpg"], "/nowhere.jpg: missing"),
        (["--text", "a", "--set", "device_gb"], "--set device_gb: give a name and a value"),
        (["--text", "a", "--set", "size=3"], "the backend exact has no setting 'size'"),
        (["--text", "a", "--backend", "fast"], "there is no backend 'fast'"),
        (["--text", "a", "--where", "colour=red"], "no field 'colour'; the fields are color (text"),
        (["--text", "a"], "a query without images cannot be composed"),
        (["--item", "shop/1.png"], "a query without texts cannot be composed"),
        (["--item", "shop/9.png", "--text", "a"], "no image of the gallery has the id 'shop/9.pn"),
        (["--text", "a", "--model", "/nowhere"], "/nowhere is not a workdir"),
    ],
)
def test_refusals(index, arguments, message, capsys):
    assert _search(index, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


_COLUMNS = {"color": ["red", "a, b", "blue"], "price": [1, 2.5, -3], "new": [True, False, None]}
_COLUMNS |= {"code": [2**53, 2**53 + 1, None], "weight": [None] * 3}
_KINDS = {"color": "text", "price": "number", "new": "boolean", "code": "integer"}
_KINDS |= {"weight": "number"}


@pytest.fixture
def fields():
    return Fields(_KINDS, _COLUMNS.__getitem__, 3)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("color=red", "red"),
        ("color=red, blue", ["red", "blue"]),
        ("color=a, b", "a, b"),  # one word of the index
        ("color=1..2", "1..2"),
        ("color=a=b", "a=b"),
        ("price=2.5", [2.5]),
        ("price=1,2.5", [1, 2.5]),
        ("price=-5..1e3", {"min": -5, "max": 1000}),
        ("price=..2", {"max": 2}),
        ("price=2..", {"min": 2}),
        ("code=9007199254740993", [2**53 + 1]),
        ("code=9007199254740993..1e17", {"min": 2**53 + 1, "max": 1e17}),
        ("new=true", "true"),
    ],
)
def test_conditions(fields, condition, expected):
    name = condition.partition("=")[0]
    assert parse_where([condition], fields) == {name: expected}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["color"], "--where color: a condition is a field and a value"),
        (["=red"], "a condition is a field and a value"),
        (["color="], "a condition is a field and a value"),
        (["size=s"], "no field 'size'; the fields are"),
        (["color=red", "color=blue"], r"color is given twice; join its values"),
        (["price=cheap"], r"--where price=cheap: price holds numbers, such as price=-3, or"),
        (["price=1..b"], r"price=-3\.\.2\.5 for a range"),
        (["price=.."], "price holds numbers"),
        (["weight=light"], r"weight holds numbers, such as weight=10, or weight=10\.\.50"),
        (["price=3..2"], "price has no number between"),
    ],
)
def test_conditions_that_are_refused(fields, conditions, message):
    with pytest.raises(ValueError, match=message):
        parse_where(conditions, fields)


def test_references_whose_pictures_have_moved_are_grey(index, capsys, tmp_path):
    """Their embeddings are stored, so that the search itself needs no picture."""
    pictures = [index.parent / "shop" / f"{number}.png" for number in (0, 1)]
    grid = tmp_path / "hits.png"
    for picture in pictures:
        picture.rename(tmp_path / picture.name)
    try:
        query = ["--item", "shop/0.png", "--item", "shop/1.png", "--text", "red"]
        assert _search(index, *query, "--k", "2", "--grid", str(grid)) == 0
    finally:
        for picture in pictures:
            (tmp_path / picture.name).rename(picture)
    assert str(grid) in capsys.readouterr().out
    with Image.open(grid) as drawn:
        assert grids.MISSING in {color for _, color in drawn.getcolors(1 << 20)}
