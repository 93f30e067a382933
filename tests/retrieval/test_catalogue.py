"""The items of a folder or of a list: ids, order, types of metadata, and refusals."""

import datetime
import decimal
import json
import os
import pathlib
import re

import pytest
from buckets import use_folder_as_bucket
from optional import require

from cmap_jax.cli.where import parse_where
from cmap_jax.retrieval.catalogue import (
    Item,
    field_kinds,
    items_of,
    items_of_folder,
    items_of_list,
)
from cmap_jax.retrieval.filters import Fields


def _write(path, text: str = ""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _list(tmp_path, text: str, name: str = "list.csv") -> list[Item]:
    return items_of_list(_write(tmp_path / name, text))


def test_a_folder_with_all_below_it(tmp_path):
    for name in ("b.JPG", "a/z.png", "a/b/c.heic", "é 1.webp", "a-b.jpeg"):
        _write(tmp_path / name)
    for name in ("notes.txt", ".hidden.jpg", ".thumbs/a.jpg", "a/.x/b.jpg", "jpg", "._b.JPG"):
        _write(tmp_path / name)
    items = items_of_folder(tmp_path)
    # Names are sorted as whole paths, by code point: "-" comes before "/".
    assert [item.id for item in items] == ["a-b.jpeg", "a/b/c.heic", "a/z.png", "b.JPG", "é 1.webp"]
    assert [item.image for item in items] == [str(tmp_path / item.id) for item in items]
    assert all(item.metadata == {} for item in items)
    assert items_of(str(tmp_path)) == items_of(tmp_path) == items


def test_a_relative_folder_has_absolute_paths(tmp_path, monkeypatch):
    _write(tmp_path / "shop" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert items_of_folder("shop/") == [Item("a.jpg", str(tmp_path / "shop" / "a.jpg"))]


def test_links_to_folders_are_not_followed(tmp_path):
    _write(tmp_path / "in" / "a.jpg")
    _write(tmp_path / "out" / "b.jpg")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    assert [item.id for item in items_of_folder(tmp_path / "in")] == ["a.jpg"]


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder of pictures"):
        items_of_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no pictures in it or below it"):
        items_of_folder(tmp_path)
    file = _write(tmp_path / "list.txt")
    with pytest.raises(NotADirectoryError, match=r"a list of pictures ends in \.csv, \.jsonl"):
        items_of(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path):
    _write(tmp_path / "a.jpg")
    (tmp_path / "secret").mkdir(0)
    with pytest.raises(PermissionError, match="secret"):
        items_of_folder(tmp_path)


def test_csv_columns_are_typed(tmp_path):
    text = (
        "id,image,color,price,size,stock,sku,sale,mixed,none\n"
        "7,a.jpg,red,9.5,38,3,007,true,1,\n"
        '8,"b, c.jpg",,10,40,,12,False,x,\n'
        "\n"
        "9,/abs/d.jpg,dark blue,1e2,-1,5,0,TRUE,,\n"
    )
    first, second, third = _list(tmp_path, text)
    assert [i.id for i in (first, second, third)] == ["7", "8", "9"]
    assert first.image == str(tmp_path / "a.jpg")
    assert second.image == str(tmp_path / "b, c.jpg")
    assert third.image == "/abs/d.jpg"
    assert dict(first.metadata) == {
        "color": "red",
        "price": 9.5,
        "size": 38,
        "stock": 3,
        "sku": "007",
        "sale": True,
        "mixed": "1",
        "none": None,
    }
    assert second.metadata["price"] == 10.0
    assert isinstance(second.metadata["price"], float)
    assert (second.metadata["color"], second.metadata["stock"]) == (None, None)
    assert third.metadata["price"] == 100.0
    assert field_kinds([first, second, third]) == {
        "color": "text",
        "price": "number",
        "size": "integer",
        "stock": "integer",
        "sku": "text",
        "sale": "boolean",
        "mixed": "text",
        "none": "text",
    }


@pytest.mark.parametrize(
    "text",
    ["image;color\na.jpg;red\n", "color\timage\nred\ta.jpg\n", "\ufeffimage,color\na.jpg,red"],
)
def test_other_delimiters_and_a_byte_order_mark(tmp_path, text):
    (item,) = _list(tmp_path, text)
    assert item == Item("a.jpg", str(tmp_path / "a.jpg"), {"color": "red"})


def test_the_folder_of_the_pictures(tmp_path):
    path = _write(tmp_path / "lists" / "list.csv", "image\nsub/../a.jpg\ngs://b/c.jpg\n")
    with pytest.raises(FileNotFoundError, match="pictures: there is no such folder of pictures"):
        items_of_list(path, tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    items = items_of_list(path, tmp_path / "pictures")
    assert [i.image for i in items] == [str(tmp_path / "pictures" / "a.jpg"), "gs://b/c.jpg"]
    assert [i.id for i in items] == ["sub/../a.jpg", "gs://b/c.jpg"]


def test_json_lines(tmp_path):
    text = (
        '{"image": "a.jpg", "id": 3, "colors": ["red", "blue"], "price": 5}\n\n'
        '{"image": "b.jpg", "colors": [], "price": 5.5, "sale": null, "other": NaN, '
        f'"long": {10**30}}}\n'
    )
    first, second = _list(tmp_path, text, "list.JSONL")
    assert (first.id, second.id) == ("3", "b.jpg")
    assert first.metadata == {"colors": ["red", "blue"], "price": 5}
    values = {"colors": [], "price": 5.5, "sale": None, "other": None, "long": str(10**30)}
    assert second.metadata == values
    kinds = {"colors": "texts", "price": "number", "sale": "text", "other": "text"}
    kinds["long"] = "text"
    assert field_kinds([first, second]) == kinds


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.parquet"])
def test_integers_that_filters_cannot_tell_apart_are_texts(tmp_path, name):
    """A float64 holds 15 digits: with more, a number would match its neighbors."""
    numbers = {"code": [12345678901234567, 12345678901234568, None], "short": [10**15 - 1, -1, 0]}
    rows = [{"image": f"{n}.jpg", **{c: v[n] for c, v in numbers.items()}} for n in range(3)]
    if name == "list.parquet":
        pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    elif name == "list.jsonl":
        _write(tmp_path / name, "\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        _write(tmp_path / name, "\n".join(["image,code,short", *lines]))
    items = items_of_list(tmp_path / name)
    codes = [item.metadata["code"] for item in items]
    assert codes == ["12345678901234567", "12345678901234568", None]
    assert [item.metadata["short"] for item in items] == numbers["short"]
    assert field_kinds(items) == {"code": "text", "short": "integer"}
    columns = {field: [item.metadata[field] for item in items] for field in numbers}
    fields = Fields(field_kinds(items), columns.__getitem__, 3)
    for field, shown in (("code", "12345678901234567"), ("short", str(10**15 - 1))):
        mask = fields.mask(parse_where([f"{field}={shown}"], fields))
        assert list(mask) == [True, False, False]


@pytest.mark.parametrize("fsspec", [False, True])
def test_a_folder_in_a_bucket(tmp_path, monkeypatch, fsspec):
    for name in ("a.png", "b/a.png", "b/c/d.jpg", ".thumbs/a.jpg"):
        _write(tmp_path / "shop" / "pictures" / name)
    use_folder_as_bucket(monkeypatch, tmp_path, fsspec=fsspec)
    for folder in ("gs://shop/pictures", "gs://shop/pictures/"):
        items = items_of_folder(folder)
        assert [item.id for item in items] == ["a.png", "b/a.png", "b/c/d.jpg"]
        assert items[1].image == "gs://shop/pictures/b/a.png"
    assert items_of_folder("gs://shop")[1].id == "pictures/b/a.png"


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    _write(folder / "a.jpg")
    list_ = _write(tmp_path / "list.csv", "image\na.jpg\n")
    for read in (lambda: items_of_folder(folder), lambda: items_of_list(list_, folder)):
        with pytest.raises(ValueError, match=r"\\udcff.*the name of this folder is not UTF-8: ren"):
            read()


def test_parquet(tmp_path):
    pyarrow = require("pyarrow")
    parquet = require("pyarrow.parquet")
    columns = {
        "image": ["a.jpg", "b.jpg"],
        "price": [decimal.Decimal("9.50"), None],
        "since": [datetime.date(2026, 1, 2), None],
        "tags": [["new", "red"], []],
        "count": pyarrow.array([1, 2], pyarrow.int16()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    first, second = items_of_list(tmp_path / "list.parquet")
    assert first.metadata == {
        "price": 9.5,
        "since": "2026-01-02",
        "tags": ["new", "red"],
        "count": 1,
    }
    assert second.metadata == {"price": None, "since": None, "tags": [], "count": 2}
    (tmp_path / "list.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ValueError, match=r"list\.parquet: not a Parquet file: "):
        items_of_list(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "list.csv: needs a column 'image'; the header is empty"),
        ("a.csv", "photo,id\nx,1\n", "needs a column 'image'; the header is 'photo', 'id'"),
        ("a.csv", "image,a,a\n", "two columns 'a'"),
        ("a.csv", "image,\n", "a column without a name"),
        ("a.csv", "image\n", "no rows"),
        ("a.csv", "image,a\nx\n", "line 2: 1 fields; the header has 2"),
        ("a.csv", 'image,a\n"x\ny",1\nz,"1\n', "line 4: not CSV"),
        ("a.csv", "image,id\n,1\n", "line 2: no path in the column 'image', but None"),
        ("a.csv", "image,id\na,1\nb,1\n", "two pictures have the id '1'"),
        ("a.csv", "image\nhttp://x/a.jpg\n", "http://x/a.jpg cannot be opened: pictures are read"),
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: must be a JSON object"),
        ("a.jsonl", '{"image": ["a"]}\n', "line 1: no path in the column 'image', but ['a']"),
        ("a.jsonl", '{"image": "a", "id": true}\n', "an id is a text or an integer, not True"),
        ("a.jsonl", '{"image": "a", "id": ""}\n', "the picture {folder}/a has an empty id"),
        ("a.jsonl", '{"image": "a", "id": ".."}\n', "the id '..', which stands for a folder"),
        ("a.jsonl", '{"image": "a", "x": {"y": 1}}\n', "x of 'a' is {'y': 1}: metadata are text"),
        ("a.jsonl", '{"image": "a", "x": "\\ud800"}\n', "x of 'a' is '\\ud800': metadata are"),
        (
            "a.jsonl",
            '{"image": "a", "\\ud800": 1}\n',
            "'a' has a field '\\ud800', whose name",
        ),
        (
            "a.jsonl",
            '{"image": "a", "x": 1' + 400 * "0" + '}\n{"image": "b", "x": 0.5}\n',
            "x of 'a' is an integer of more than 15 digits, which filters cannot tell from",
        ),
        (
            "a.jsonl",
            '{"image": "a", "x": 1}\n{"image": "b", "x": "1"}\n',
            "x is integer for 'a' and text for 'b': a field has values of one kind",
        ),
        ("a.txt", "", "a list of pictures ends in .csv, .jsonl, .parquet"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, text, message):
    name = name.replace("a.", "list.")
    message = message.replace("{folder}", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        _list(tmp_path, text, name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_items_of_a_program_are_checked():
    items = [Item("a", "/a.jpg"), Item("b", "/b.jpg", {"n": 1.5})]
    assert items_of(iter(items)) == items
    with pytest.raises(ValueError, match="two pictures have the id 'a'"):
        items_of([items[0], items[0]])


def test_a_list_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        items_of_list(tmp_path / "none.csv")
