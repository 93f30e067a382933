"""Grids of an evaluation's queries: which queries, which images, and the title."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.evaluation.pictures import (
    choose_queries,
    order_queries,
    queries_grid,
    result_row,
    results_title,
)
from cmap_jax.evaluation.results import ProtocolResult
from cmap_jax.protocols import PROTOCOLS


def _record(number: int) -> dict:
    return {
        "query": f"q{number}",
        "reference": f"r{number}",
        "text": ["is red"],
        "targets": ["b", "e"],
        "rank": 1.5,
        "tied": 1,
        "top": ["a", "b", "c", "d", "e"],
    }


@pytest.fixture
def result():
    return ProtocolResult(
        protocol=PROTOCOLS["cirr/val"],
        numbers={"R@5": 50.0, "R_subset@1": 20.004, "mean(R@5, R_subset@1)": 35.0, "R@1": 1.0},
        outcomes=Outcomes(groups={}, annotation=np.empty(0), rank=np.empty(0)),
        conditions={},
        rankings=[_record(number) for number in range(20)],
    )


def test_queries_are_random_and_in_order(result):
    numbers = [int(r["query"][1:]) for r in choose_queries(result, count=5, seed=3)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 5
    assert [r["query"] for r in choose_queries(result, 5, 3)] == [f"q{n}" for n in numbers]
    assert numbers != [int(r["query"][1:]) for r in choose_queries(result, 5, 4)]
    assert choose_queries(result, 99, 0) == result.rankings


def test_a_row_has_the_best_images_with_the_right_ones_marked():
    row = result_row(_record(7), str.upper, columns=3)
    assert (row.reference, row.captions) == ("R7", ["is red"])
    assert row.results == [("A", False), ("B", True), ("C", False)]
    assert row.names == ("r7", "a", "b", "c")
    assert (row.rank, row.tied) == (1.5, 1)


def test_a_grid_reads_only_the_images_that_it_shows(result):
    read = []

    def read_image(name):
        read.append(name)
        return Image.new("RGB", (8, 8))

    queries_grid(result.rankings[:2], read_image, "title", columns=2)
    assert read == ["r0", "a", "b", "r1", "a", "b"]


def test_the_title_has_the_recalls_of_the_headline(result):
    assert results_title("small", result) == (
        "small · cirr/val · R@5 50.00, R_subset@1 20.00, mean(R@5, R_subset@1) 35.00"
    )


def test_a_right_image_further_down_stands_by_itself_with_its_rank():
    record = {**_record(7), "targets": ["d", "e"], "rank": 3, "tied": 0}
    assert result_row(record, str.upper, columns=3).right == ("D", "rank 4 · d")
    assert result_row(record, str.upper, columns=4).right is None  # it is among the first
    # Beyond the list of the best images.
    record |= {"targets": ["z"], "rank": 1234}
    assert result_row(record, str.upper, columns=3).right == ("Z", "rank 1,235 · z")
    record |= {"targets": ["y", "z"]}
    assert result_row(record, str.upper, 3).right == ("Y", "1 of 2, the best at 1,235 · y")
    record |= {"rank": None}
    assert result_row(record, str.upper, columns=3).right is None


def test_best_and_worst_queries(result):
    ranks = [3, 0, None, 7, 0, 7, 1]
    records = [{**_record(n), "rank": rank} for n, rank in enumerate(ranks)]
    # The other caption order of an annotation.
    records.append({**_record(3), "query": "q3b", "rank": 7, "text": ["is red"]})
    result = dataclasses.replace(result, rankings=records)

    def chosen(count, seed, worst):
        return [r["query"] for r in order_queries(result, count, seed, worst=worst)]

    assert set(chosen(2, 0, worst=False)) == {"q1", "q4"}
    assert chosen(4, 0, worst=False)[2:] == ["q6", "q0"]
    worst = chosen(3, 0, worst=True)
    assert worst[2] == "q0"
    assert "q5" in worst
    assert len({"q3", "q3b"} & set(worst)) == 1
    assert chosen(9, 5, worst=True) == chosen(9, 5, worst=True)
    assert len(chosen(9, 0, worst=True)) == 6
    # Equals are drawn by the seed.
    assert len({tuple(chosen(1, seed, worst=False)) for seed in range(9)}) == 2
