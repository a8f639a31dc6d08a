"""The case file: which cases exist and what each must reach, every threshold with its reason."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SUITES = ("parity", "perf", "memory")
Suite = Literal["parity", "perf", "memory"]

DEFAULT_SPEEDUP = 1.5
"""The gate of a performance case that names no other, against stock diffusers."""


class CaseFileError(ValueError):
    """The case file is wrong; the message names the file, the line, the key and what is allowed."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limit(_Model):
    """A bound on one metric: at least ``min`` or at most ``max``, and why that number."""

    min: float | None = None
    max: float | None = None
    reason: str = Field(min_length=1)


class Band(_Model):
    """How far a metric may be from its baseline: the larger of ``rel`` (a fraction) and ``abs`` (its unit)."""

    rel: float = Field(ge=0, le=10)
    abs: float = Field(default=0.0, ge=0)
    reason: str = Field(min_length=1)


class ParityGate(_Model):
    """Quality floors against the reference (``limits``) and bands against the baseline (``bands``), by metric."""

    limits: dict[str, Limit] = Field(min_length=1)
    bands: dict[str, Band] = Field(default_factory=dict)


class PerfGate(_Model):
    """The least speed-up over stock diffusers (a ratio), and what a timed output must still reach."""

    speedup: float = Field(default=DEFAULT_SPEEDUP, gt=0)
    reason: str | None = None
    parity: dict[str, Limit] = Field(min_length=1)
    bands: dict[str, Band] = Field(default_factory=dict)

    @property
    def below_gate(self) -> bool:
        """Its threshold is under the product's gate; every report marks it."""
        return self.speedup < DEFAULT_SPEEDUP


class MemoryGate(_Model):
    """Bounds and bands on memory; growth over repeated runs must be nil within ``growth`` (bytes a run)."""

    limits: dict[str, Limit] = Field(default_factory=dict)
    bands: dict[str, Band] = Field(default_factory=dict)
    growth: Limit


class Case(_Model):
    """One row of the case file.

    Attributes:
        id: stable name; baselines and reports are keyed by it, never by pytest's node id.
        component: a component, or ``vae_decoder`` (the streaming pair) or ``pipeline`` (prompt to video).
        precision: of the component; for composites by component, as ``{dit: fp16, vae: fp32}``.
        reference_precision: of stock diffusers; the candidate's own unless given.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    model: str
    component: str
    profile: str
    precision: str | dict[str, str]
    reference_precision: str | dict[str, str] | None = None
    backend: str
    parity: ParityGate | None = None
    perf: PerfGate | None = None
    memory: MemoryGate | None = None
