"""A run that is killed again and again, beside one left alone."""

import pytest
from endurance import endure


@pytest.mark.parametrize(
    "kills",
    [pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.endurance)],
)
def test_kills_leave_no_trace(kills, tmp_path):
    moments = endure(tmp_path, kills, seed=0)
    assert len(moments) == kills
    # All along the run; some while a checkpoint was being written, some in an evaluation.
    assert len({moment.partition("step ")[2].split(",")[0] for moment in moments}) >= kills // 2
    few = -(-kills // 6)
    assert sum("writing" in moment or ", save" in moment for moment in moments) >= few
    assert sum("evaluation" in moment for moment in moments) >= few
