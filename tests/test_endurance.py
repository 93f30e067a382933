"""A run that is killed again and again, beside one left alone."""

import pytest
from endurance import endure


@pytest.mark.endurance
def test_kills_leave_no_trace(tmp_path):
    kills = 30
    moments = endure(tmp_path, kills, seed=0)
    assert len(moments) == kills
    # All along the run; some while a checkpoint was being written, some in an evaluation.
    assert len({moment.partition("step ")[2].split(",")[0] for moment in moments}) >= kills // 2
    assert sum("writing" in moment or ", save" in moment for moment in moments) >= kills // 6
    assert sum("evaluation" in moment for moment in moments) >= kills // 6
