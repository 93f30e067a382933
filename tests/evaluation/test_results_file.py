"""The form of evaluation.json, and the shortcuts that a new evaluation keeps of an earlier one."""

import dataclasses
import json

import numpy as np
import pytest

from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.results import EvaluationFacts, ImageOrigin, ProtocolResult, Result
from cmap_jax.evaluation.results_file import (
    StoredResults,
    check_can_write_results,
    keep_other_captions,
    keep_shortcuts,
    read_results,
    results_path,
    with_intervals,
    write_results,
)
from cmap_jax.facts import DataFacts, UnreadTexts
from cmap_jax.protocols import PROTOCOLS

TEXT = {"text": {"R@1": 1.0}, "image": None}
NEITHER = {"text": None, "image": None}
SHOES, FOLDER = "shoes", "folder/val"


def _stored(shortcuts=None, step=3, versions=None, **changes) -> StoredResults:
    """Results of two protocols; keyword arguments set facts of the data set, or of the evaluation.

    ``shortcuts`` are by protocol, and so are ``versions`` of the rules.
    """
    results = {}
    for name in (SHOES, FOLDER):
        outcomes = Outcomes(groups={"all": 3}, annotation=np.arange(3), rank=np.array([0, 4, 20.5]))
        results[name] = ProtocolResult(
            protocol=PROTOCOLS[name],
            numbers=summarize(PROTOCOLS[name], outcomes),
            outcomes=outcomes,
            conditions={"version": (versions or {}).get(name, 2), "gallery": "g", "queries": "q"},
            shortcuts=(shortcuts or {}).get(name, {}),
            rankings=[{"query": "q0", "text": ["rød"]}, {"query": "q1", "text": [""]}],
        )
    own = {f.name for f in dataclasses.fields(EvaluationFacts)} & set(changes)
    facts = EvaluationFacts(
        data_set=DataFacts(
            **{"skipped_images": ("x",)} | {k: v for k, v in changes.items() if k not in own}
        ),
        **{"variables": "abc", "data": ImageOrigin(name="shoes", directory="d")}
        | {k: changes[k] for k in own},
    )
    return StoredResults(step, Result(results), facts)


def _reread(stored: StoredResults) -> StoredResults:
    return StoredResults.from_dict(json.loads(json.dumps(stored.to_dict())))


def _shortcuts(stored: StoredResults) -> dict:
    return {name: r.shortcuts for name, r in stored.result.protocols.items() if r.shortcuts}


def test_the_form_of_the_file():
    """People read it in scripts: each key, and their order."""
    unread = UnreadTexts(
        unknown_words_percent=1.5, most_frequent_unknown={"navy": 2}, wordless_captions_percent=0.0
    )
    stored = _stored(
        shortcuts={SHOES: TEXT},
        unread_texts={SHOES: unread},
        other={"repeated_rows": {"val": 1}},
        prepared={"version": "2.0.0"},
        training_items=41,
    )
    stored = dataclasses.replace(stored, result=with_intervals(stored.result))
    content = json.loads(json.dumps(stored.to_dict()))
    assert list(content) == [
        *("step", "protocols", "intervals", "shortcuts"),
        *("facts", "definitions", "conditions", "outcomes"),
    ]
    assert content["step"] == 3
    shoes = content["protocols"][SHOES]
    assert list(shoes) == [
        *("mR", "R@1", "R@10", "R@50", "median_rank", "mean_rank", "queries", "skipped")
    ]
    assert shoes["R@1"] == pytest.approx(100 / 3)
    assert list(content["intervals"][FOLDER]) == list(shoes)[:-2]
    low, high = content["intervals"][SHOES]["R@1"]
    assert low <= shoes["R@1"] <= high
    assert content["shortcuts"] == {SHOES: TEXT}
    assert json.dumps(content["facts"]) == json.dumps(
        {
            "repeated_rows": {"val": 1},
            "prepared": {"version": "2.0.0"},
            "skipped_images": ["x"],
            "training_items": 41,
            "images_skipped": 1,
            "unread_texts": {
                SHOES: {
                    "unknown_words_percent": 1.5,
                    "most_frequent_unknown": {"navy": 2},
                    "wordless_captions_percent": 0.0,
                }
            },
            "data": {
                "name": "shoes",
                "directory": "d",
                "image_directory": None,
                "resize": None,
                "crop": None,
                "read_as": None,
            },
            "variables": "abc",
        }
    )
    assert content["conditions"][SHOES] == {"version": 2, "gallery": "g", "queries": "q"}
    assert content["outcomes"][SHOES]["rank"] == [0, 4, 20.5]
    assert content["definitions"][SHOES]["headline_name"] == "mR"
    assert json.dumps(_reread(stored).to_dict()) == json.dumps(content)


def test_files_by_data_set_and_rankings(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"name": "shoes"}}')
    stored = _stored()
    write_results(tmp_path, 3, stored.result, stored.facts)
    lines = (tmp_path / "rankings" / "folder-val.jsonl").read_text().splitlines()
    assert [json.loads(line)["query"] for line in lines] == ["q0", "q1"]
    assert "rød" in lines[0]
    elsewhere = _stored(data=ImageOrigin(name="circo"), shortcuts={SHOES: TEXT})
    write_results(tmp_path, 4, elsewhere.result, elsewhere.facts)
    assert results_path(tmp_path, "circo") == tmp_path / "evaluation-circo.json"
    steps = [read_results(results_path(tmp_path, name)).step for name in ("shoes", "circo")]
    assert steps == [3, 4]
    # Written again without shortcuts, the file keeps them; the result in memory does not change.
    again = _stored(data=ImageOrigin(name="circo"))
    write_results(tmp_path, 4, again.result, again.facts)
    assert _shortcuts(read_results(tmp_path / "evaluation-circo.json")) == {SHOES: TEXT}
    assert _shortcuts(again) == {}
    # A broken file is replaced.
    (tmp_path / "evaluation.json").write_text('{"step": 1}')
    write_results(tmp_path, 5, stored.result, stored.facts)
    assert read_results(tmp_path / "evaluation.json").step == 5


def test_shortcuts_are_kept_where_nothing_has_changed():
    earlier = _reread(_stored(shortcuts={SHOES: TEXT, FOLDER: TEXT}))
    assert _shortcuts(keep_shortcuts(_stored(), earlier)) == {SHOES: TEXT, FOLDER: TEXT}
    # A shortcut that was measured now goes first.
    now = _stored(shortcuts={SHOES: NEITHER})
    assert _shortcuts(keep_shortcuts(now, earlier)) == {SHOES: NEITHER, FOLDER: TEXT}
    # One protocol has another gallery or another version of its rules.
    now = _stored(versions={SHOES: 3})
    assert _shortcuts(keep_shortcuts(now, earlier)) == {FOLDER: TEXT}


@pytest.mark.parametrize(
    "change",
    [
        {"step": 4},
        {"variables": "abd"},
        {"data": ImageOrigin(name="shoes", directory="e")},
        {"skipped_images": ()},
        {"prepared": {"version": "2.0.0"}},
    ],
    ids=str,
)
def test_shortcuts_of_other_variables_or_data_are_dropped(change):
    earlier = _reread(_stored(shortcuts={SHOES: TEXT}))
    assert _shortcuts(keep_shortcuts(_stored(**change), earlier)) == {}
    assert _shortcuts(keep_shortcuts(_stored(), earlier)) == {SHOES: TEXT}


def test_results_under_another_caption_policy_are_kept():
    def renamed(stored, name):
        (result,) = (r for key, r in stored.result.protocols.items() if key == SHOES)
        result = dataclasses.replace(result, protocol=PROTOCOLS[name])
        unread = {
            name: UnreadTexts(
                unknown_words_percent=1.5, most_frequent_unknown={}, wordless_captions_percent=0.0
            )
        }
        facts = dataclasses.replace(stored.facts, unread_texts=unread)
        return dataclasses.replace(stored, result=Result({name: result}), facts=facts)

    both = {"circo/val", "circo/val-concept"}
    plain, concept = (renamed(_stored(), name) for name in sorted(both))
    for now, earlier in ((plain, concept), (concept, plain)):
        kept = keep_other_captions(now, _reread(earlier))
        assert kept.result.protocols.keys() == kept.facts.unread_texts.keys() == both
        assert keep_other_captions(kept, _reread(earlier)) is kept
    other_weights = renamed(_stored(variables="abd"), "circo/val")
    assert keep_other_captions(other_weights, concept) is other_weights
    assert keep_other_captions(plain, renamed(_stored(), "circo/test")) is plain


def test_files_of_earlier_versions_lack_facts():
    content = json.loads(json.dumps(_stored().to_dict()))
    content["facts"] = {}
    del content["intervals"], content["shortcuts"]
    stored = StoredResults.from_dict(content)
    assert stored.facts == EvaluationFacts(data_set=DataFacts())
    assert stored.result.protocols[SHOES].intervals == {}


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("rank", [0.0, float("nan"), 2.0], "rank has nan at position 1"),
        ("rank", [0.0, float("inf"), 2.0], "rank has inf at position 1"),
        ("rank", [0.0, 1.0], "rank has 2 entries for 3 queries"),
        ("rank", [0.0, -2.0, 1.0], "rank has -2.0 at position 1"),
        ("tied", [0, 0, -1], "tied has -1 at position 2"),
        ("annotation", [0, float("nan"), 1], "cannot convert float NaN"),
        ("annotation", [0, 10**400, 1], "too large"),
        ("subset_rank", [float("nan")] * 3, "subset_rank has nan at position 0"),
    ],
)
def test_lists_that_no_evaluation_writes(tmp_path, part, values, message):
    content = _stored().to_dict()
    content["outcomes"][SHOES][part] = values
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"evaluation\.json is no .*{message}.*write it again"):
        read_results(tmp_path / "evaluation.json")


def test_numbers_that_are_not_finite(tmp_path):
    content, path = _stored().to_dict(), tmp_path / "evaluation.json"
    content["protocols"][SHOES]["mean_rank"] = float("nan")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"evaluation\.json is no .*shoes has mean_rank = nan"):
        read_results(path)
    content = _stored().to_dict()
    del content["conditions"][SHOES]["gallery"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"evaluation\.json is no .*it lacks 'gallery'"):
        read_results(path)


def test_a_place_for_results_is_looked_for_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"name": "shoes"}}))
    check_can_write_results(tmp_path, "shoes", rankings=True)
    (tmp_path / "rankings").write_text("")
    check_can_write_results(tmp_path, "shoes", rankings=False)
    with pytest.raises(NotADirectoryError, match="rankings is a file, not a folder"):
        check_can_write_results(tmp_path, "shoes", rankings=True)
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"evaluation\.json: is a folder"):
        check_can_write_results(tmp_path, "shoes", rankings=False)
