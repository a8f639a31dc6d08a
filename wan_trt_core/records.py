"""Result records: what a run measured and decided. Every report is made from them, and from nothing else.

A run writes one JSON file (``results.json``) with the raw samples, so that it can be judged again, compared,
or made into a baseline without measuring again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from wan_trt_core.gates.verdict import Check, Reason, Verdict, decide

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite

SCHEMA_VERSION: Final = 1


class RecordError(ValueError):
    """A record file is not one of ours, or not of this schema; the message names the file and the key."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Model):
    """One measured quantity.

    Attributes:
        value: ``None`` when it could not be computed; ``detail`` then says why.
        unit: ``s``, ``B``, ``dB``, ``JOD``, ``x`` (a ratio) or empty. Seconds and bytes inside, always.
        better: which direction is better, so that a band knows what a regression is.
        deterministic: repeats exactly on the same machine, so it is gated tightly.
        samples: the raw measurements behind ``value`` (one each timed run, say).
    """

    value: float | None
    unit: str
    better: Literal["higher", "lower"]
    deterministic: bool = False
    samples: tuple[float, ...] = ()
    detail: str = ""


OF_REFERENCE = "reference_"
"""Begins the name of a memory metric of stock diffusers; the rest of it is that of the candidate's metric beside it."""


class Measurement(_Model):
    """What measuring one case came to; numbers only, no opinion. Gates judge it.

    Attributes:
        metrics: by name; the names are stable, baselines are keyed by them.
        series: raw sequences that are no metric themselves (paired times, resident set by run …).
        facts: what the numbers depend on (settings of both arms, shapes, versions, engine hashes, timings).
        problems: what makes the measurement void, reason code to explanation (a fallback, other settings).
        notes: lines for a person that explain a failure (the first diverging block …).
    """

    metrics: dict[str, Metric]
    series: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)
    problems: dict[Reason, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """``checkpoint``, or what is said of weights that were never trained (``seeded random, 10 of 40 layers``)."""
        return str(self.facts.get("random_weights", "checkpoint"))


class Interrupted(KeyboardInterrupt):
    """A run was interrupted when its case was measured, and what explains the numbers was still being looked for.

    Attributes:
        measurement: which can be judged.
    """

    def __init__(self, measurement: Measurement) -> None:
        super().__init__("interrupted after the measurement")
        self.measurement = measurement


class CheckRecord(_Model):
    """A :class:`~wan_trt_core.gates.verdict.Check` as stored."""

    gate: str
    metric: str
    verdict: Verdict
    reason: Reason
    message: str
    value: float | None = None
    limit: float | None = None
    advisory: bool = False
    evidence: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, check: Check) -> CheckRecord:
        """As it is stored."""
        return cls(**asdict(check))


class CaseRecord(_Model):
    """One case of one suite: what was measured, what every gate said, and the verdict."""

    case: str
    suite: Literal["parity", "perf", "memory"]
    model: str
    component: str
    profile: str
    precision: str
    backend: str
    verdict: Verdict
    reason: Reason
    message: str
    below_gate: bool = False
    checks: tuple[CheckRecord, ...]
    measurement: Measurement
    seconds: float

    @classmethod
    def judged(
        cls, case: Case, suite: Suite, checks: Sequence[Check], measurement: Measurement, seconds: float
    ) -> CaseRecord:
        """Of a case with all its checks, the verdict that they come to, and the seconds that measuring took.

        Raises:
            ValueError: when none of the checks decides.
        """
        decisive = decide(checks)
        return cls(
            case=case.id,
            suite=suite,
            model=case.model,
            component=case.component,
            profile=case.profile,
            precision=case.precision_label,
            backend=case.backend,
            verdict=decisive.verdict,
            reason=decisive.reason,
            message=decisive.message,
            below_gate=bool(suite == "perf" and case.perf and case.perf.below_gate),
            checks=tuple(map(CheckRecord.of, checks)),
            measurement=measurement,
            seconds=seconds,
        )

    @property
    def origin(self) -> dict[str, str]:
        """What a baseline must have in common with it, see :func:`wan_trt_core.baselines.other_origin`."""
        return {"backend": self.backend, "weights": self.measurement.weights, "profile": self.profile}

    @property
    def random_weights(self) -> str:
        """What is said of weights that were never trained (``seeded random``); empty where they were."""
        return str(self.measurement.facts.get("random_weights", ""))


class RunRecord(_Model):
    """One run of the suites."""

    schema_version: Literal[1] = SCHEMA_VERSION
    started: str
    command: tuple[str, ...]
    hardware_key: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    cases: tuple[CaseRecord, ...]

    @classmethod
    def merged(cls, records: Sequence[RunRecord]) -> RunRecord:
        """One record of runs that share what is asked: a suite that jobs on machines of one kind split between them.

        Environment, settings and command are those of the first that was started; ``environment["merged"]`` has the
        commands of all.

        Raises:
            RecordError: when they are of different hardware, sources, packages or settings, or have a case in common.
        """
        first, *others = sorted(records, key=lambda record: record.started)
        for other in others:
            for what in ("hardware_key", "source", "packages", "python", "settings"):
                if (one := _of_run(first, what)) != (another := _of_run(other, what)):
                    raise RecordError(
                        f"the runs of {first.started} and {other.started} differ in {what}:"
                        f" {_first_difference(one, another)}; only runs of the same can be one"
                    )
        cases = [case for record in (first, *others) for case in record.cases]
        names = [(case.suite, case.case) for case in cases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecordError(f"{twice[0][1]} ({twice[0][0]}) is in several runs: leave one of them out")
        commands = [
            command
            for each in (first, *others)  # one of them may be merged itself
            for command in each.environment.get("merged", [" ".join(each.command)])
        ]
        environment = {**first.environment, "merged": commands}
        if throttled := [
            each.environment["throttled"] for each in records if each.environment.get("throttled")
        ]:
            environment["throttled"] = "; ".join(throttled)
        return first.model_copy(update={"cases": tuple(cases), "environment": environment})

    def write(self, path: Path) -> None:
        """Write as JSON, atomically; non-finite numbers are stored as strings (JSON has none)."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read and validate.

        Raises:
            RecordError: when the file is missing, no JSON, of another schema, or has an unknown key.
        """
        data = read_json(path, "result record")
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise RecordError(f"{path}: schema_version {version!r}, this version reads {SCHEMA_VERSION}")
        try:
            return cls.model_validate(data)
        except ValueError as error:
            raise RecordError(f"{path}: {error}") from error


def _of_run(record: RunRecord, what: str) -> Any:
    if what == "hardware_key":
        return record.hardware_key
    if what == "settings":  # where it was written to is nothing that was measured
        return {name: value for name, value in record.settings.items() if name != "report"}
    return record.environment.get(what)


def _first_difference(one: Any, another: Any) -> str:
    if isinstance(one, dict) and isinstance(another, dict):
        name = next(name for name in {**one, **another} if one.get(name) != another.get(name))
        return f"{name}: {_first_difference(one.get(name), another.get(name))}"
    return f"{one} and {another}"


def read_json(path: Path, what: str) -> Any:
    """The data of a JSON file.

    Args:
        what: the file should be, for the error.

    Raises:
        RecordError: when the file is missing, no JSON, or ends early.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a readable {what}: {error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON with stable formatting, as :func:`write_text` does."""
    write_text(path, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file in the same folder, which is made, then rename over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(data: Any) -> Any:
    """The data with non-finite numbers as strings: JSON has none."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data
