"""Facts of a data set and their form in JSON."""

import dataclasses
import json

from cmap_jax.facts import DataFacts


def test_facts_survive_json():
    fields = {
        "categories_missing": ["shirt"],
        "features": "0a1b2c3d",
        "categories_not_trained": ["toptee"],
        "prepared": {"version": "2.0.0"},
        "skipped_images": ["a.jpg", "b.jpg"],
        "training_items": 0,
        "images_skipped": 2,
    }
    facts = DataFacts.from_dict(fields)
    assert facts.images_skipped == 2
    assert facts.other == {"categories_not_trained": ["toptee"]}
    assert json.dumps(facts.to_dict()) == json.dumps(fields)
    assert DataFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_oracles_belong_to_the_whole_gallery():
    oracles = {"folder/val": {"any_image": {"R@1": 1.0}}}
    whole = DataFacts.from_dict({"oracles": oracles})
    assert DataFacts.from_dict(whole.to_dict()).oracles == oracles
    assert dataclasses.replace(whole, skipped_images=("a.jpg",)).oracles is None
    assert "oracles" not in DataFacts(oracles=oracles, skipped_images=("a.jpg",)).to_dict()


def test_facts_that_do_not_apply_are_absent():
    assert DataFacts.from_dict({}) == DataFacts()
    assert DataFacts().to_dict() == {"skipped_images": [], "images_skipped": 0}
