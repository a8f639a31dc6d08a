"""The engines are fast enough."""

import pytest


@pytest.mark.perf
def test_perf(wan_case, wan_measure, wan_judge):
    """The same outputs as stock diffusers, in a time that is provably shorter by the case's threshold."""
    wan_judge(wan_measure(wan_case, "perf"))
