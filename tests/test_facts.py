"""Facts of a data set and their form in JSON."""

import json

from cmap_jax.facts import DataFacts


def test_facts_survive_json():
    fields = {
        "categories_missing": ["shirt"],
        "features": "0a1b2c3d",
        "oracles": {},
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


def test_facts_that_do_not_apply_are_absent():
    assert DataFacts.from_dict({}) == DataFacts()
    assert DataFacts().to_dict() == {"skipped_images": [], "images_skipped": 0}
