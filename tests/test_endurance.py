"""A run that is killed again and again, beside one left alone."""

import pytest
from endurance import endure


@pytest.mark.slow
def test_thirty_kills(tmp_path):
    moments = endure(tmp_path, kills=30, seed=0)
    assert len(moments) == 30
    # Some while a checkpoint was being written, some in an evaluation, and all along the run.
    assert sum("writing" in moment or ", save" in moment for moment in moments) >= 3
    assert sum("evaluation" in moment for moment in moments) >= 3
    assert len({moment.partition("step ")[2].split(",")[0] for moment in moments}) >= 10
