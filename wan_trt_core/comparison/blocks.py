"""Which block broke: reference and candidate with every block's output, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from wan_trt_core.models.component import Tensors

NOISE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Relative L2 error of a healthy block's output, with a margin of ten: rounding alone stays under it."""

MARGIN = 10.0
JUMP = 2.0
"""Rounding adds up slowly: an error that grows by this factor in one block, over what came before and over a healthy
block's own, is a fault even where it stays under the noise (one per cent of one block does, in half precision)."""


@dataclass(frozen=True)
class BlockError:
    """Relative L2 error of one block's output against the reference's."""

    block: str
    relative_l2: float


@dataclass(frozen=True)
class Divergence:
    """Where a candidate leaves its reference: the first block over ``noise`` or far over those before it, or none."""

    errors: tuple[BlockError, ...]
    noise: float
    first: str | None

    def describe(self) -> str:
        """One line for the failure message."""
        if self.first is None:
            worst = max(self.errors, key=lambda error: error.relative_l2)
            return (
                f"no block leaves the reference by more than rounding (worst {worst.block}, relative L2 "
                f"{worst.relative_l2:.1e}): the difference arises after the last block or in what is fed to the engine"
            )
        at = next(index for index, error in enumerate(self.errors) if error.block == self.first)
        before = f", after {self.errors[at - 1].relative_l2:.1e} in {self.errors[at - 1].block}" if at else ""
        return f"first diverging block: {self.first} (relative L2 {self.errors[at].relative_l2:.1e}{before})"


def find_divergence(
    reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor], noise: float
) -> Divergence:
    """Compare block outputs in the order of ``reference``; NaN counts as divergence.

    Raises:
        KeyError: when the candidate lacks a block of the reference.
    """
    errors = tuple(
        BlockError(name, _relative_l2(expected, candidate[name])) for name, expected in reference.items()
    )
    return Divergence(errors, noise, _first(errors, noise))


def trace(
    reference: Callable[[Tensors], Tensors],
    candidate: Callable[[Tensors], Tensors],
    inputs: Tensors,
    blocks: Sequence[str],
    precision: str,
) -> Divergence:
    """Run both sides on the same call tensors and compare the outputs named in ``blocks``."""
    expected, found = reference(inputs), candidate(inputs)
    return find_divergence({name: expected[name] for name in blocks}, found, NOISE[precision])


def _first(errors: Sequence[BlockError], noise: float) -> str | None:
    before = noise / MARGIN
    for error in errors:
        if not error.relative_l2 <= min(noise, JUMP * before):
            return error.block
        before = max(before, error.relative_l2)
    return None


def _relative_l2(reference: Tensor, candidate: Tensor) -> float:
    expected, found = reference.double(), candidate.to(reference.device).double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
