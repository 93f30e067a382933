"""Published numbers: those of the method's document, and beside equal galleries alone."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from published_results import stored_results

from cmap_jax.evaluation.results import Result
from cmap_jax.facts import DataFacts
from cmap_jax.reporting.published import PUBLISHED, why_not_comparable

_DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "method.md"


def test_all_numbers_are_those_of_the_document():
    section = re.search(r"^## 7\..*?(?=^## 8\.)", _DOCUMENT.read_text(), re.M | re.S)[0]
    written = {float(number) for number in re.findall(r"\d+\.\d+", section)}
    for published in PUBLISHED.values():
        for numbers in (*published.methods.values(), *published.vision_language.values()):
            assert set(numbers.values()) <= written


def test_the_means_are_the_means():
    ours = PUBLISHED["fashioniq/original"].methods["CMAP, as published"]
    for k in ("R@10", "R@50"):
        mean = np.mean([ours[f"{category}/{k}"] for category in ("dress", "shirt", "toptee")])
        # Means were published of recalls with more digits than are published.
        assert ours[k] == pytest.approx(mean, abs=0.07)
    assert ours["mR"] == pytest.approx((ours["R@10"] + ours["R@50"]) / 2, abs=0.07)


@pytest.mark.parametrize(
    ("facts", "numbers", "reason"),
    [
        (DataFacts(), {}, None),
        (DataFacts(), {"queries": 12000, "skipped": 32}, None),
        (DataFacts(skipped_images=("a",)), {}, "1 unusable images were left out here"),
        (DataFacts(categories_missing=("dress",)), {}, "there is no dress here"),
        (DataFacts(), {"gallery_images": 8619}, "8,619 images here and 15,536 there"),
        (DataFacts(), {"queries": 6016}, "6,016 queries were asked here and 12,032 there"),
    ],
)
def test_only_equal_galleries_and_queries_are_comparable(facts, numbers, reason):
    name = "fashioniq/original"
    why = why_not_comparable(name, stored_results(name, facts, **numbers))
    assert why is None if reason is None else reason in why


def test_results_of_older_rules_are_not_comparable():
    stored = stored_results("shoes", DataFacts())
    result = stored.result.protocols["shoes"]
    older = dataclasses.replace(result, protocol=dataclasses.replace(result.protocol, version=1))
    stored = dataclasses.replace(stored, result=Result({"shoes": older}))
    assert "version 1" in why_not_comparable("shoes", stored)
