"""The three suites, as ``wan_trt_core.suites`` has them."""

import pytest


@pytest.mark.parity
def test_parity(wan_case, wan_measure, wan_judge):
    wan_judge(wan_measure(wan_case, "parity"))


@pytest.mark.perf
def test_perf(wan_case, wan_measure, wan_judge):
    wan_judge(wan_measure(wan_case, "perf"))


@pytest.mark.memory
def test_memory(wan_case, wan_measure, wan_judge):
    wan_judge(wan_measure(wan_case, "memory"))
