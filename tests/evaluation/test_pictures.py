"""Grids of an evaluation's queries: which queries, which images, and the title."""

import numpy as np
import pytest
from PIL import Image

from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.evaluation.pictures import choose_queries, queries_grid, result_row, results_title
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
