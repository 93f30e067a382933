"""Garment queries with judgments: right, wrong and texts by the attributes alone; the command."""

import json

import numpy as np
import pytest

from cmap_jax.cli import command
from input_pipeline.garments import attributes, judged
from input_pipeline.garments.attributes import ATTRIBUTES, NAMES, Garment, garment
from input_pipeline.garments.captions import ABSOLUTE, RELATIVE_PHRASES, Change
from input_pipeline.readers import folder

MEMBERS = attributes.split(0)["test"]


@pytest.fixture(scope="module")
def queries():
    return list(judged.draw(MEMBERS, 40, np.random.default_rng(1)))


def _misses(query, item: Garment) -> list[str]:
    """The attributes in which a garment is not as the texts and the references say."""
    named = {change.attribute: change for change in query.changes}
    missed = []
    for name, values in ATTRIBUTES.items():
        own = [getattr(reference, name) for reference in query.references]
        has, change = getattr(item, name), named.get(name)
        if change is None:
            fits = has in own
        elif change.value is not None:
            fits = has == change.value
        else:
            steps = values.index(has) - values.index(own[0])
            fits = steps >= change.steps if change.steps > 0 else steps <= change.steps
        missed += [] if fits else [name]
    return missed


def test_right_and_wrong_by_definition(queries):
    items = [garment(index) for index in MEMBERS]
    for query in queries:
        assert set(query.right) == {item for item in items if not _misses(query, item)}
        assert len(query.right) >= judged.LEAST_RIGHT
        assert 1 <= len(query.wrong) <= judged.MOST_WRONG == 5
        assert len(set(query.wrong)) == len(query.wrong)
        assert all(len(_misses(query, item)) == 1 for item in query.wrong)
        assert not set(query.references) & {*query.right, *query.wrong}
        assert {*query.references, *query.wrong} <= set(items)


def test_two_references_leave_one_attribute_open(queries):
    several = [query for query in queries if len(query.references) == 2]
    assert 3 <= len(several) <= 20  # a quarter of 40
    for query in several:
        one, other = query.references
        (open_one,) = [n for n in NAMES if getattr(one, n) != getattr(other, n)]
        assert open_one not in {change.attribute for change in query.changes}


def test_paraphrases_name_the_same_changes(queries):
    for query in queries:
        assert len(set(query.texts)) == judged.TEXTS == 6
        assert len({change.attribute for change in query.changes}) == 2
        for text in query.texts:
            for change in query.changes:
                choices = (
                    RELATIVE_PHRASES[change.attribute][change.steps]
                    if change.value is None
                    else ABSOLUTE[change.attribute][change.value]
                )
                assert any(choice in caption for caption in text for choice in choices), text


def test_scales_are_taken_at_their_word():
    bare = garment(0)
    assert (bare.sleeves, bare.length) == ("sleeveless", "short")
    masks = judged.admitted((bare,), (Change("sleeves", steps=2), Change("length", steps=1)))
    assert masks[NAMES.index("sleeves")].tolist() == [False, False, True, True]
    assert masks[NAMES.index("length")].tolist() == [False, True, True]
    assert masks[NAMES.index("type")].tolist() == [True, False, False, False]


def test_too_few_garments():
    with pytest.raises(ValueError, match="3 garments have no query with 2 right ones"):
        next(judged.draw(MEMBERS[:3], 1, np.random.default_rng(0)))


@pytest.fixture
def rendered(tmp_path):
    """The files of rendered garments that the queries are made from, without pictures."""
    root = tmp_path / "garments"
    (root / "image_splits").mkdir(parents=True)
    (root / "garments.json").write_text("{}")
    ids = [garment(index).id for index in MEMBERS]
    (root / "image_splits" / "split.garments.test.json").write_text(json.dumps(ids))
    return root


def test_the_command_writes_a_folder(rendered, tmp_path, capsys):
    out = tmp_path / "judged"
    call = ["judged", str(rendered), "--out", str(out), "--count", "5", "--seed", "3"]
    assert command.main(call) == 0
    printed = capsys.readouterr().out
    assert "5 queries with 6 texts each" in printed
    assert f"cmap evaluate WORKDIR --data folder --dir {out} --images {rendered}/images" in printed
    records = folder.read(str(out), str(tmp_path))
    listed = next(
        e for e in records.evaluations["val"] if e.protocol.name == "folder/val-judged-gallery"
    )
    assert len(listed.galleries["all"]) == len(MEMBERS) == 2000
    drawn = judged.draw(MEMBERS, 5, np.random.default_rng([3, 11]))
    for number, expected in enumerate(drawn):
        mine = [q for q in listed.queries if q.annotation == f"{number}"]
        assert tuple(q.captions for q in mine) == expected.texts
        assert mine[0].references == tuple(g.id for g in expected.references)
        assert mine[0].targets == tuple(g.id for g in expected.right)
        assert mine[0].wrong == tuple(g.id for g in expected.wrong)
    again = command.main(call)
    assert again == 1
    assert f"--out: {out} is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count", "0"], "--count must be 1 or more, not 0"),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
    ],
)
def test_impossible_arguments(rendered, tmp_path, capsys, more, message):
    out = tmp_path / "judged"
    assert command.main(["judged", str(rendered), "--out", str(out), *more]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_garments(tmp_path, capsys):
    assert command.main(["judged", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "so no garments are rendered there" in capsys.readouterr().err
