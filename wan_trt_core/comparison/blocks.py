"""Which block broke: reference and candidate with every block's output, and where they part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from wan_trt_core.measure.quality import PSNR_CAP_DB
from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.component import Tensors

NOISE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Relative L2 error of a healthy block's output, with a margin of ten: rounding alone stays under it."""

MARGIN = 10.0
JUMP = 2.0
"""Rounding adds up slowly: an error that grows by this factor in one block, over what came before and over a healthy
block's own, is a fault even where it stays under the noise (one per cent of one block does, in half precision)."""


@dataclass(frozen=True)
class BlockError:
    """Relative L2 error of one block's output against the reference's, and the PSNR that it comes to."""

    block: str
    relative_l2: float
    psnr_db: float = math.nan


@dataclass(frozen=True)
class Divergence:
    """Where a candidate leaves its reference: the first block over ``noise`` or far over those before it, or none.

    A component that names no blocks has no ``errors``.
    """

    errors: tuple[BlockError, ...]
    noise: float
    first: str | None

    def describe(self) -> str:
        """One line for the failure message."""
        if not self.errors:
            return (
                "the component names no blocks, so where it leaves the reference is not known; let its `blocks` name"
                " what its graph computes on the way"
            )
        if self.first is None:
            worst = max(self.errors, key=lambda error: error.relative_l2)
            return (
                f"no block leaves the reference by more than rounding (worst {worst.block}, relative L2 "
                f"{worst.relative_l2:.1e}): what differs arises after the last block or in what is fed to the engine"
            )
        at = next(index for index, error in enumerate(self.errors) if error.block == self.first)
        before = f", after {self.errors[at - 1].relative_l2:.1e} in {self.errors[at - 1].block}" if at else ""
        return f"first diverging block: {self.first} (relative L2 {self.errors[at].relative_l2:.1e}{before})"

    def growth(self) -> tuple[float | None, ...]:
        """By which factor the error grows in each block, over the block before; None where that had none."""
        errors = [error.relative_l2 for error in self.errors]
        return (None, *(now / last if last else None for last, now in pairwise(errors)))

    def table(self, around: int | None = None) -> tuple[str, ...]:
        """A heading and a line for each block: relative L2, PSNR, growth; the first diverging one is marked. Empty
        where there are no blocks.

        Args:
            around: only as many blocks before and after that one.
        """
        if not self.errors:
            return ()
        names = [error.block for error in self.errors]
        at = names.index(self.first) if self.first else len(names) - 1
        shown = range(len(names)) if around is None else range(max(0, at - around), at + around + 1)
        width = max(map(len, names))
        lines = [f"  {'block':{width}}  relative L2  PSNR (dB)  growth"]
        for index, (error, growth) in enumerate(zip(self.errors, self.growth(), strict=True)):
            if index in shown:
                mark = ">" if error.block == self.first else " "
                grown = "" if growth is None else f"{growth:.3g}x"
                numbers = f"{error.relative_l2:11.1e}  {error.psnr_db:9.1f}  {grown:>6}"
                lines.append(f"{mark} {error.block:{width}}  {numbers}")
        return tuple(lines)


def find_divergence(
    reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor], noise: float
) -> Divergence:
    """Compare block outputs in the order of ``reference``; NaN counts as divergence.

    Raises:
        KeyError: when the candidate lacks a block of the reference.
    """
    errors = tuple(_error(name, expected, candidate[name]) for name, expected in reference.items())
    return Divergence(errors, noise, _first(errors, noise))


def limits(precision: str) -> tuple[float, ...]:
    """Relative L2 errors within which one operation is healthy on inputs without an error: rounding of two sums in
    another order, where that is less than what a healthy block may come to, and what that may."""
    rounding, block = 16 * torch.finfo(torch_dtype(precision)).eps, JUMP * NOISE[precision] / MARGIN
    return (rounding, block) if rounding < block else (block,)


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


def _error(block: str, reference: Tensor, candidate: Tensor) -> BlockError:
    expected, found = reference.double(), candidate.to(reference.device).double()
    error, size = float((found - expected).norm()), float(expected.norm())
    rms, peak = error / math.sqrt(expected.numel()), float(expected.abs().max())
    relative = error / max(size, 1e-30)
    if not math.isfinite(relative):  # an overflow: such a block has no PSNR
        return BlockError(block, relative)
    psnr = min(PSNR_CAP_DB, 20 * math.log10(peak / rms)) if peak and rms else PSNR_CAP_DB
    return BlockError(block, relative, psnr)
