"""The engines compute what stock diffusers computes."""

import pytest


@pytest.mark.parity
def test_parity(wan_case, wan_measure, wan_judge):
    """Engine outputs match stock diffusers, and their error is that of the stored baseline."""
    wan_judge(wan_measure(wan_case, "parity"))
