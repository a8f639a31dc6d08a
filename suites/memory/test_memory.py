"""The engines stay within their memory."""

import pytest


@pytest.mark.memory
def test_memory(wan_case, wan_measure, wan_judge):
    """Peak, engine and workspace sizes are within their bounds, and repeated runs do not grow."""
    wan_judge(wan_measure(wan_case, "memory"))
