"""Triplets from a catalogue's attributes: pairs, captions, the split, guesses and refusals."""

import collections
import itertools
import json
import math
import random

import pytest
from fake_data import image as write_picture

from input_pipeline.doctor.examine import examine
from input_pipeline.readers import folder
from input_pipeline.records import DataError
from input_pipeline.triplets.guesses import Query, guesses
from input_pipeline.triplets.making import Settings, make_triplets
from input_pipeline.triplets.pairing import Groups
from input_pipeline.triplets.phrases import Phrases
from input_pipeline.triplets.products import Choice, Product, Row, split, tabulate

_COLORS, _SLEEVES, _TYPES = ("red", "blue", "green"), ("short", "long", None), ("dress", "shirt")
_KEEP = Choice(keep=("type",))


def _rows() -> list[Row]:
    """Four pictures of each combination."""
    grid = itertools.product(_COLORS, _SLEEVES, _TYPES, range(4))
    return [
        Row(f"{n}", f"sub/{n:03}.jpg", {"color": c, "sleeves": s, "type": t, "price": 10 + n})
        for n, (c, s, t, _) in enumerate(grid)
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Every row's picture; the last one is a copy of the first."""
    root = tmp_path_factory.mktemp("shop")
    rows = _rows()
    for number, row in enumerate(rows[:-1]):
        write_picture(root / row.image, number, (16, 16))
    (root / rows[-1].image).write_bytes((root / rows[0].image).read_bytes())
    return root


def _lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _alike(row: dict, other: dict) -> bool:
    return all(row[name] == other[name] for name in ("color", "sleeves", "type"))


def _targets(line: dict) -> list[str]:
    return line["target"] if isinstance(line["target"], list) else [line["target"]]


def test_triplets_change_one_or_two_attributes_and_nothing_else(shop, tmp_path):
    out = tmp_path / "out"
    rows = {row.image: row.metadata for row in _rows()}
    summary = make_triplets(_rows(), str(shop), str(out), Settings(choice=_KEEP, val=0.4))
    assert summary.table.attributes == ("color", "sleeves", "type")
    assert summary.table.unused == {"price": "has numbers"}
    assert summary.copies == 1
    pictures = collections.defaultdict(set)
    for part in ("train", "val"):
        lines = _lines(out / f"{part}.jsonl")
        assert sum(summary.triplets[part].values()) == len(lines)
        seen = collections.Counter()
        for line in lines:
            reference = rows[line["reference"]]
            seen[line["reference"], *map(str, _targets(line))] += 1
            for target in map(rows.get, _targets(line)):
                differ = [n for n in ("color", "sleeves", "type") if reference[n] != target[n]]
                assert differ == line["changed"]
                assert "type" not in differ
                assert None not in {reference[n] for n in differ} | {target[n] for n in differ}
                text = " ".join(line["text"] if isinstance(line["text"], list) else [line["text"]])
                assert all(target[n] in text for n in differ)
            pictures[part] |= {line["reference"], *_targets(line)}
        assert max(seen.values()) == 1
        per_reference = collections.Counter(line["reference"] for line in lines)
        assert max(per_reference.values()) == 4
        assert {len(line["changed"]) for line in lines} == {1, 2}
    assert not pictures["train"] & pictures["val"]
    assert _rows()[-1].image not in pictures["train"] | pictures["val"]
    gallery = (out / "gallery.txt").read_text().splitlines()  # two pictures are in no triplet
    assert pictures["val"] <= set(gallery)
    assert not pictures["train"] & set(gallery)
    # A query is answered by every picture of the gallery that is right.
    for line in _lines(out / "val.jsonl"):
        new = {**rows[line["reference"]]}
        new |= {n: rows[_targets(line)[0]][n] for n in line["changed"]}
        right = [i for i in gallery if _alike(rows[i], new)]
        assert sorted(_targets(line)) == sorted(right)
    assert summary.pictures == {"train": len(rows) - 1 - len(gallery), "val": len(gallery)}


def test_the_same_settings_give_the_same_files_and_the_doctor_agrees(shop, tmp_path):
    outs = [tmp_path / name for name in "abc"]
    settings = [Settings(choice=_KEEP, val=0.4, seed=seed) for seed in (0, 0, 1)]
    for out, setting in zip(outs, settings, strict=True):
        make_triplets(_rows(), str(shop), str(out), setting)
    contents = [{p.name: p.read_text() for p in out.iterdir()} for out in outs]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"train.jsonl", "val.jsonl", "gallery.txt", "guesses.json"}
    assert contents[0]["train.jsonl"] != contents[2]["train.jsonl"]
    report = examine("folder", str(outs[0]), image_directory=str(shop))
    assert report.ready()
    assert {f.kind for f in report.findings} <= {"few_items", "unknown_word"}
    assert all(p.queries.total == p.queries.usable for p in report.protocols)


def test_a_grown_catalogue_keeps_its_split_and_a_product_is_whole():
    products = [Product(f"{n}.jpg", ("red",), f"product {n // 2}") for n in range(200)]
    parts = list(split(products, 0.25, seed=3))
    assert parts[:100] == list(split(products[:100], 0.25, seed=3))
    assert parts[::2] == parts[1::2]
    assert 30 < sum(parts) < 70
    assert parts != list(split(products, 0.25, seed=4))


def test_unknown_values_agree_and_never_change():
    values = [("red", None), ("blue", None), ("red", "long"), ("blue", "long"), ("red", "short")]
    groups = Groups([Product(str(v), v, "") for v in values], change=2)
    assert groups.changes(("red", None)) == {(0,): [("blue", None)]}
    assert groups.changes(("blue", "long")) == {(0,): [("red", "long")], (0, 1): [("red", "short")]}
    assert Groups([Product("a", ("red", "long"), "")], change=1).changes(("red", "long")) == {}


def test_captions_read_as_people_write():
    flags = ("pockets", "has_belt", "with zip", "hood", "waterproof", "is new", "sleeveless")
    phrases = Phrases(("color", "sleeves", *flags), flags)
    said = [phrases.one("color", "black", "red", style) for style in range(phrases.styles)]
    assert said == ["is red", "in red", "red instead of black", "make it red", "should be red"]
    change = {
        ("pattern", "plain", "dotted"): ("is dotted", "dotted"),
        ("sleeves", "short", "long"): ("has long sleeves", "with long sleeves"),
        ("sleeves", "long", "sleeveless"): ("is sleeveless", "sleeveless"),
        ("sleeve_length", "short", "long"): ("has long sleeves", "with long sleeves"),
        ("heel height", "flat", "high"): ("has a high heel", "with a high heel"),
        ("collar", "wide", "no collar"): ("has no collar", "with no collar"),
        ("main color", "red", "blue"): ("is blue", "in blue"),
        ("neckline", "round", "square"): ("has a square neckline", "with a square neckline"),
        ("neckline", "round", "v-neck"): ("has a v-neck", "with a v-neck"),
        ("type", "shirt", "dress"): ("is a dress", "as a dress"),
        ("type", "shirt", "shorts"): ("is shorts", "as shorts"),
        ("material", "wool", "cotton"): ("is made of cotton", "in cotton"),
        ("pockets", "false", "true"): ("has pockets", "with pockets"),
        ("pockets", "true", "false"): ("has no pockets", "without pockets"),
        ("has_belt", "true", "false"): ("has no belt", "without belt"),
        ("with zip", "false", "true"): ("has zip", "with zip"),
        ("hood", "yes", "no"): ("has no hood", "without hood"),
        ("waterproof", "false", "true"): ("is waterproof", "waterproof"),
        ("waterproof", "yes", "no"): ("is not waterproof", "not waterproof"),
        ("is new", "true", "false"): ("is not new", "not new"),
        ("sleeveless", "no", "yes"): ("is sleeveless", "sleeveless"),
        ("pattern", "striped", "none"): ("has no pattern", "without pattern"),
        ("sleeve_length", "long", "no"): ("has no sleeves", "without sleeves"),
        ("Größe", "m", "groß"): ("has a groß größe", "with a groß größe"),
    }
    for (attribute, old, new), expected in change.items():
        assert tuple(phrases.one(attribute, old, new, style) for style in (0, 1)) == expected
    assert phrases.one("sleeves", "sleeveless", "long", 2) == "long sleeves instead of sleeveless"
    changes = [("color", "black", "red"), ("sleeves", "short", "long")]
    generator = random.Random(0)
    drawn = [phrases.captions(changes, lambda n: int(generator.random() * n)) for _ in range(100)]
    assert ["is red and has long sleeves"] in drawn
    assert {len(captions) for captions in drawn} == {1, 2}
    assert phrases.captions(changes[:1], lambda n: 0) == ["is red"]


def test_own_phrases_replace_ours_and_are_checked():
    own = {"farbe": ["in {new}", "{new} statt {old}"]}
    phrases = Phrases(("farbe",), own=own)
    assert phrases.one("farbe", "rot", "blau", 1) == "blau statt rot"
    change = ("farbe", "rot", "blau")
    assert phrases.captions([change, change], lambda n: n - 1) == ["in blau", "in blau"]
    for bad, message in (
        ({"color": ["{new}"]}, "'color': no such attribute changes; there are farbe"),
        ({"farbe": "in {new}"}, "must be a list of texts"),
        ({"farbe": ["in {old}"]}, "must hold {new}"),
        ({"farbe": ["{new} {x}"]}, "nothing else in braces"),
        ({"farbe": ["{new} {}"]}, "nothing else in braces"),
        ({"farbe": ["{new:{old}}"]}, "nothing else in braces"),
        ({"farbe": ["{new!r}"]}, "nothing else in braces"),
        ({"farbe": ["{new:>9}"]}, "nothing else in braces"),
        ({"farbe": ["{new"]}, "is no template"),
        ({"farbe": [3]}, "is no template"),
    ):
        with pytest.raises(DataError, match=message):
            Phrases(("farbe",), own=bad)


def test_guesses_are_what_random_draws_give():
    """Counts on hand-made lists, against draws of random orders."""
    gallery = {("red", "dress"): 3, ("blue", "dress"): 4, ("red", "hat"): 5, ("blue", "hat"): 2}
    query = Query(("red", "dress"), (0,), ("blue", "dress"), 2)
    results = guesses([query], gallery, ("color", "type"), 1, (1, 3))
    images = [v for v, count in gallery.items() for _ in range(count)]
    images.remove(query.reference)  # it is never ranked
    agree = {
        "any_image_that_fits_the_text": lambda v: v[0] == "blue",
        "any_image_as_near_the_reference": lambda v: v == ("blue", "dress"),
        "any_image_of_the_right_color": lambda v: v[0] == "blue",
        "any_image_of_the_right_type": lambda v: v[1] == "dress",
    }
    assert set(results) == set(agree)
    generator = random.Random(1)
    for name, fits in agree.items():
        for k in (1, 3):
            hits = 0
            for _ in range(4000):
                order = sorted(images, key=lambda v: (not fits(v), generator.random()))
                hits += query.target in order[:k]
            assert results[name][f"R@{k}"] == pytest.approx(hits / 40, abs=2.5)


def test_results_carry_the_guesses_until_the_files_are_edited(shop, tmp_path, caplog):
    out = tmp_path / "out"
    summary = make_triplets(_rows(), str(shop), str(out), Settings(choice=_KEEP, val=0.4))
    oracles = folder.read(str(out), str(shop)).facts["oracles"]
    assert oracles == summary.guesses
    assert set(oracles) == {"folder/val", "folder/val-gallery"}
    numbers = oracles["folder/val"]["any_image_that_fits_the_text"]
    assert set(numbers) == {"R@1", "R@10", "R@50"}
    lines = (out / "val.jsonl").read_text().splitlines(keepends=True)
    (out / "val.jsonl").write_text("".join(lines[1:]))
    assert "oracles" not in folder.read(str(out), str(shop)).facts
    assert "guesses' recalls are left out" in caplog.text
    (out / "guesses.json").write_text('{"files": {}, "guesses": {"a": 3}}')
    with pytest.raises(DataError, match="are no recalls by name"):
        folder.read(str(out), str(shop))


def test_guesses_are_those_of_a_ranking_by_attributes(shop, tmp_path):
    """Each query of the written files, ranked by what a guess knows of it."""
    out = tmp_path / "out"
    summary = make_triplets(_rows(), str(shop), str(out), Settings(choice=_KEEP, val=0.4))
    names = ("color", "sleeves", "type")
    values = {row.image: tuple(row.metadata[n] for n in names) for row in _rows()}
    lines = _lines(out / "val.jsonl")
    named = {i for line in lines for i in (line["reference"], *_targets(line))}
    listed = (out / "gallery.txt").read_text().splitlines()
    for protocol, gallery in (("folder/val", named), ("folder/val-gallery", listed)):
        sums, total = collections.Counter(), 0
        for line in lines:
            weight = 2 if isinstance(line["text"], list) else 1  # both orders of two captions
            total += weight
            reference, targets = line["reference"], _targets(line)
            old, new = values[reference], values[targets[0]]
            changed = [names.index(name) for name in line["changed"]]
            fits = {"any_image_that_fits_the_text": changed}
            fits |= {f"any_image_of_the_right_{name}": [i] for i, name in enumerate(names)}
            others = [values[i] for i in gallery if i != reference]
            among = {
                guess: sum(all(v[i] == new[i] for i in at) for v in others)
                for guess, at in fits.items()
            }
            differ = [(v[0] != old[0]) + (v[1] != old[1]) for v in others if v[2] == old[2]]
            among["any_image_as_near_the_reference"] = differ.count(len(changed))
            for guess, count in among.items():
                for k in (1, 10, 50):
                    missed = math.comb(count - len(targets), k) / math.comb(max(count, k), k)
                    sums[guess, k] += weight * (1 - missed)
        assert len(summary.guesses[protocol]) == 5
        for guess, recalls in summary.guesses[protocol].items():
            for k in (1, 10, 50):
                assert recalls[f"R@{k}"] == pytest.approx(100 * sums[guess, k] / total, abs=0.006)


def test_values_keep_their_letters_and_are_compared_without_their_case():
    colors = ("Weiß", "WEISS", "weiß ", "Grün", "GRÜN", "grün")
    rows = [
        Row(f"{n}", f"{n}.jpg", {"farbe": color, "neu": ("Yes", "no")[n % 2], "sku": color})
        for n, color in enumerate(colors)
    ]
    table = tabulate(rows, Choice(product="sku"))
    assert [p.values for p in table.products] == [
        *[("weiß", "yes"), ("weiß", "no"), ("weiß", "yes")],
        *[("grün", "no"), ("grün", "yes"), ("grün", "no")],
    ]
    assert len({p.group for p in table.products}) == 2
    assert table.flags == {"neu"}


def _with(**values) -> list[Row]:
    return [Row(r.id, r.image, {**r.metadata, **values}) for r in _rows()]


@pytest.mark.parametrize(
    ("rows", "choice", "message"),
    [
        (_rows(), Choice(change=("colour",)), "no column 'colour'; its columns are color, sleeves"),
        (_rows(), Choice(keep=("sku",)), "no column 'sku'"),
        (_rows(), Choice(change=("type",), keep=("type",)), "'type' is named twice"),
        (_with(tags=["a"]), Choice(change=("tags",)), "'tags' has lists of values"),
        ([Row("1", "a.jpg", {"color": "red"})], Choice(), "color has one value.*--change"),
        ([Row("1", "../a.jpg", {})], Choice(change=()), "no column of the catalogue"),
        (
            [Row("1", "a.jpg", {"color": "red"}), Row("2", "a.jpg", {"color": "blue"})],
            Choice(change=("color",)),
            "'a.jpg' twice",
        ),
        ([Row("1", "../a.jpg", {"color": "red"})], Choice(change=("color",)), "climbs out"),
    ],
)
def test_catalogues_that_are_refused(rows, choice, message):
    with pytest.raises(DataError, match=message):
        tabulate(rows, choice)


def test_refusals_leave_no_folder(shop, tmp_path):
    out = tmp_path / "out"
    missing = [*_rows(), Row("x", "sub/none.jpg", {"color": "red", "type": "dress"})]
    with pytest.raises(
        FileNotFoundError, match=r"1 of 73 pictures are missing.*none.jpg.*--images"
    ):
        make_triplets(missing, str(shop), str(out), Settings(choice=_KEEP))
    # Price tells all pictures apart, so that no two agree in it.
    apart = Settings(choice=Choice(change=("color",), keep=("price",)))
    with pytest.raises(DataError, match="no two of the 71 pictures differ in one or two of color"):
        make_triplets(_rows(), str(shop), str(out), apart)
    with pytest.raises(DataError, match=r"of the val split \(--val 0.001\)"):
        make_triplets(_rows(), str(shop), str(out), Settings(choice=_KEEP, val=0.001))
    assert not list(tmp_path.iterdir())
    for bad, flag in (
        ({"per_reference": 0}, "--per-reference"),
        ({"two_changes": 1.5}, "--two-changes"),
        ({"val": 0.0}, "--val"),
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} \({flag}\) must be"):
            Settings(**bad)
