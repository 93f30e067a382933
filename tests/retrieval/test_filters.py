"""Filters on metadata: exact, any of, ranges, and refusals that name the fields."""

import math

import numpy as np
import pytest

from cmap_jax.retrieval.filters import Fields

_COLUMNS = {
    "color": ["red", "blue", "red", None, "green"],
    "tags": [["new", "sale"], [], ["sale"], None, ["new", "new"]],
    "price": [10, 50.5, 9.99, None, 30],
    "stock": np.array([3, 0, 7, 7, 1]),
    "code": [2**53, 2**53 + 1, None, 2**63 - 1, -(2**63)],
    "sold": [True, False, None, False, True],
    "empty": [None] * 5,
    "unknown": [None] * 5,
    "numberless": [None] * 5,
}
_KINDS = {
    "color": "text",
    "tags": "texts",
    "price": "number",
    "stock": "integer",
    "code": "integer",
    "sold": "boolean",
    "empty": "text",
    "unknown": "number",
    "numberless": "integer",
}


@pytest.fixture
def fields():
    return Fields(_KINDS, _COLUMNS.__getitem__, 5)


def _images(fields: Fields, **where) -> list[int]:
    mask = fields.mask(where)
    assert (mask.dtype, mask.shape) == (bool, (5,))
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("where", "images"),
    [
        ({"color": "red"}, [0, 2]),
        ({"color": ["red", "green"]}, [0, 2, 4]),
        ({"color": "purple"}, []),
        ({"tags": "new"}, [0, 4]),
        ({"tags": ["new", "sale"]}, [0, 2, 4]),
        ({"price": {"min": 10, "max": 30}}, [0, 4]),  # both ends are included
        ({"price": {"min": 10}}, [0, 1, 4]),
        ({"price": {"max": 10, "min": None}}, [0, 2]),
        ({"price": [10, 30.0]}, [0, 4]),
        ({"stock": 7}, [2, 3]),
        ({"stock": {"max": 0}}, [1]),
        ({"stock": {"min": 0.5, "max": 3.5}}, [0, 4]),
        ({"stock": [3.5, 1.0, math.inf]}, [4]),
        ({"code": 2**53 + 1}, [1]),  # a float64 of it is that of 2^53
        ({"code": [2**53, 5]}, [0]),
        ({"code": {"min": 2**53 + 1}}, [1, 3]),
        ({"code": {"max": 2**53}}, [0, 4]),
        ({"code": {"min": 2**63 - 1, "max": 2**70}}, [3]),
        ({"code": {"min": 2**63}}, []),
        ({"code": [2**63, -(2**64)]}, []),
        ({"code": {"max": -math.inf}}, []),
        ({"code": {"min": 0.25, "max": 0.5}}, []),
        ({"unknown": {"min": 0}}, []),
        ({"numberless": 0}, []),
        ({"sold": True}, [0, 4]),
        ({"sold": "false"}, [1, 3]),
        ({"empty": "red"}, []),
        ({"color": "red", "price": {"max": 9.995}}, [2]),
        ({"color": "red", "stock": 7, "tags": "new"}, []),
    ],
)
def test_images_that_fulfil_all_conditions(fields, where, images):
    assert _images(fields, **where) == images


def test_no_condition_is_no_mask(fields):
    assert fields.mask(None) is None
    assert fields.mask({}) is None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": "red"}, r"no field 'colour'; the fields are color .text., .* mean color"),
        ({1: "red"}, r"there is no field 1; the fields are color \(text\), tags \(texts\)"),
        ({"color": 5}, r"color holds words, such as 'blue' or 'green': .* not 5; the fields are"),
        ({"color": []}, "give a word or a list of words, not"),
        ({"color": {"min": "a"}}, "color holds words"),
        ({"color": None}, "color holds words"),
        ({"color": True}, "color holds words"),
        ({"sold": "yes"}, "sold holds true and false: give one of them, not 'yes'"),
        ({"sold": 1}, "sold holds true and false"),
        ({"price": "cheap"}, r"price holds numbers from 9.99 to 50.5: .*, not 'cheap'; the fields"),
        ({"price": True}, "price holds numbers"),
        ({"price": []}, "price holds numbers"),
        ({"price": {}}, "price holds numbers"),
        ({"price": {"min": None}}, "price holds numbers"),
        ({"price": {"least": 5}}, "price holds numbers"),
        ({"price": {"min": "5"}}, "price holds numbers"),
        ({"price": {"min": float("nan")}}, "price holds numbers"),
        ({"price": {"min": 5, "max": 4}}, 'price has no number between "min": 5 and "max": 4'),
        ({"price": 10**400}, "price holds numbers"),
        (
            {"code": "5"},
            "code holds numbers from -9223372036854775808 to 9223372036854775807: give",
        ),
        ({"unknown": "5"}, "unknown holds numbers: give a number"),
        ({"price": ["5"] * 999}, r"not \['5', .*\.\.\.; the fields"),
        ("color=red", "a filter is a mapping"),
    ],
)
def test_refusals(fields, where, message):
    with pytest.raises(ValueError, match=message) as caught:
        fields.mask(where)
    assert "\n" not in str(caught.value)


def test_images_without_metadata():
    with pytest.raises(ValueError, match="no field 'color'; the images have no metadata"):
        Fields({}, {}.__getitem__, 3).mask({"color": "red"})


def test_fields_to_choose_from(fields):
    assert fields.describe() == {
        "color": {"kind": "choice", "values": {"blue": 1, "green": 1, "red": 2}},
        "tags": {"kind": "choice", "values": {"new": 2, "sale": 2}},
        "price": {"kind": "range", "min": 9.99, "max": 50.5},
        "stock": {"kind": "range", "min": 0, "max": 7},
        "code": {"kind": "range", "min": -(2**63), "max": 2**63 - 1},
        "sold": {"kind": "choice", "values": {"false": 2, "true": 2}},
    }
    assert "color" not in fields.describe(most_words=2)


def test_a_column_is_read_once_and_only_if_it_is_used():
    read = []

    def column(name):
        read.append(name)
        return _COLUMNS[name]

    fields = Fields(_KINDS, column, 5)
    for _ in range(2):
        fields.mask({"color": "red"})
    assert read == ["color"]
