"""The case file: which cases exist and what each must reach, every threshold with its reason."""

from wan_trt_core.cases.case import (
    BESIDE,
    COMPOSITES,
    ERROR_OVER_STOCK,
    MAX_SEED,
    MEAN,
    PEAK_OVER_PLAN,
    PEAK_OVER_REFERENCE,
    SUITES,
    Band,
    Case,
    Limit,
    MemoryBand,
    MemoryGate,
    ParityGate,
    PerfGate,
    Prompt,
    Suite,
    better_of,
    precision_word,
)
from wan_trt_core.cases.case_file import CaseFile, load_cases
from wan_trt_core.cases.checks import Allowed
from wan_trt_core.cases.document import CaseFileError

__all__ = [
    "BESIDE",
    "COMPOSITES",
    "ERROR_OVER_STOCK",
    "MAX_SEED",
    "MEAN",
    "PEAK_OVER_PLAN",
    "PEAK_OVER_REFERENCE",
    "SUITES",
    "Allowed",
    "Band",
    "Case",
    "CaseFile",
    "CaseFileError",
    "Limit",
    "MemoryBand",
    "MemoryGate",
    "ParityGate",
    "PerfGate",
    "Prompt",
    "Suite",
    "better_of",
    "load_cases",
    "precision_word",
]
