"""A budget of a GPU's memory that holds: everything beyond it is taken while something is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wan_trt_core.gates.formatting import quantity

GRANULE = 2 << 20
"""Pieces in which the driver gives memory."""


class BudgetError(RuntimeError):
    """A budget cannot be held on this device; the message says what is free."""


@contextmanager
def ballast(budget: int, cuda: Any, allocate: Callable[[int], object]) -> Iterator[int]:
    """Meanwhile other processes can have ``budget`` bytes of the device and no more.

    To be held by a process that measures nothing itself: what it holds is no part of the other one's use.

    Args:
        budget: bytes, the other process's CUDA context among them.
        cuda: ``torch.cuda``.
        allocate: takes so many bytes of the device until its result is dropped.

    Yields:
        What is free, bytes: at most the budget, and less by no more than a few granules.

    Raises:
        BudgetError: when less than the budget is free, or the rest cannot be taken whole.
    """
    cuda.synchronize()
    cuda.empty_cache()
    free, total = cuda.mem_get_info()
    if free < budget:
        raise BudgetError(
            f"a memory budget of {quantity(budget, 'B')} cannot be given: {quantity(free, 'B')} of"
            f" {quantity(total, 'B')} are free"
        )
    held = None
    size = -(-(free - budget) // GRANULE) * GRANULE
    try:
        for _ in range(2):  # the second time without what the driver took to map the first
            held = None
            cuda.empty_cache()
            held = allocate(size) if size > 0 else None
            left, _ = cuda.mem_get_info()
            size -= max(0, budget - left) // GRANULE * GRANULE
            if left >= budget - 4 * GRANULE:
                break
        if not budget - 4 * GRANULE <= left <= budget:
            raise BudgetError(
                f"a memory budget of {quantity(budget, 'B')} does not hold: {quantity(left, 'B')} are free beside the"
                " ballast; does another process use the device?"
            )
        yield left
    finally:
        del held
        cuda.empty_cache()


@contextmanager
def current_ballast(budget: int) -> Iterator[int]:
    """:func:`ballast` on PyTorch's current device.

    Raises:
        BudgetError: also where there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise BudgetError("a memory budget is of a GPU, and PyTorch sees no CUDA device")
    with ballast(
        budget, torch.cuda, lambda size: torch.empty(size, dtype=torch.uint8, device="cuda")
    ) as left:
        yield left
