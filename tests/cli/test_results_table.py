"""The line below a table of results that says where a part of the query does as well."""

import numpy as np
import pytest

from cmap_jax.cli.results_table import results_table
from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.evaluation.results import EvaluationFacts, ProtocolResult, Result
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.facts import DataFacts
from cmap_jax.protocols import PROTOCOLS

_NAME = "folder/val"


def _numbers(*recalls: float) -> dict[str, float]:
    names = ("R@1", "R@10", "R@50", "mR")
    values = dict(zip(names, (*recalls, sum(recalls) / 3), strict=True))
    return {**values, "median_rank": 1, "mean_rank": 1.0}


@pytest.mark.parametrize(
    ("recalls", "expected"),
    [
        # A model of colours alone, and one that reads half of each query.
        ((9, 57, 90), "the text alone 51.00, (any image of the right color) 52.00."),
        ((11, 60, 91), "(any image of the right color) 52.00."),
        ((30, 80, 99), None),
    ],
)
def test_parts_of_a_query_that_do_as_well(recalls, expected):
    guess = {"R@1": 9.0, "R@10": 57.0, "R@50": 90.0}
    numbers = {**_numbers(*recalls), "queries": 9, "gallery_images": 9, "skipped": 0}
    result = ProtocolResult(
        protocol=PROTOCOLS[_NAME],
        numbers=numbers,
        outcomes=Outcomes(groups={"all": 1}, annotation=np.zeros(1, int), rank=np.zeros(1)),
        conditions={},
        shortcuts={"text": _numbers(8, 55, 90), "image": None},
        intervals={name: (value - 2, value + 2) for name, value in numbers.items()},
    )
    oracles = {_NAME: {"any_image_of_the_right_color": guess, "any_image": {"R@1": 99.0}}}
    facts = EvaluationFacts(data_set=DataFacts(oracles=oracles))
    printed = results_table(StoredResults(3, Result({_NAME: result}), facts))
    assert "(any image of the right color)" in printed
    lines = [line for line in printed.splitlines() if "not clearly above" in line]
    assert len(lines) == (expected is not None)
    if expected:
        assert lines[0].startswith(f"{_NAME}: mR {sum(recalls) / 3:.2f} is not clearly above")
        assert lines[0].endswith(expected)
