"""The case file: read, checked and completed with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from wan_trt_core.cases.case import (
    BY_METRIC,
    GATES,
    MEAN,
    SUITES,
    VERSION,
    Case,
    Limit,
    MemoryGate,
    ParityGate,
    PerfGate,
    Prompt,
    Suite,
)
from wan_trt_core.cases.checks import (
    Allowed,
    duplicates,
    explained,
    gate_problems,
    name_problems,
    prompt_problems,
    setting_problems,
)
from wan_trt_core.cases.document import CaseFileError, Document, Keys, Problem

_Gate = TypeVar("_Gate", ParityGate, PerfGate, MemoryGate)

_DEFAULTS = ("model", "component", "profile", "precision", "reference_precision", "backend", *GATES)


@dataclass(frozen=True)
class CaseFile:
    """A case file, read and checked."""

    path: Path
    version: int
    cases: tuple[Case, ...]

    def of_suite(self, suite: Suite) -> tuple[Case, ...]:
        """The cases with that suite's gate, in the order of the file."""
        return tuple(case for case in self.cases if suite in case.suites)

    def for_backend(self, backend: str | None) -> CaseFile:
        """Without the cases that are for other backends only than the one that the run names, if it names one."""
        kept = tuple(case for case in self.cases if not case.only_backends or backend in case.only_backends)
        return CaseFile(self.path, self.version, kept)

    def overridden(self, **fields: str | None) -> CaseFile:
        """The same cases with ``model``, ``backend`` or ``profile`` replaced in all; ``None`` keeps."""
        given = {name: value for name, value in fields.items() if value is not None}
        return CaseFile(self.path, self.version, tuple(case.model_copy(update=given) for case in self.cases))

    def held_to(self, thresholds: Mapping[str, float], source: str) -> CaseFile:
        """The same cases with other thresholds, by metric, wherever a gate has a limit on it (``speedup``: every perf).

        Raises:
            CaseFileError: naming ``source``, for a metric that no case has a limit on, or a value that none can have.
        """
        named: set[str] = set()
        cases = tuple(
            case.model_copy(
                update={
                    name: _held_to(getattr(case, name), thresholds, source, named) for name in case.suites
                }
            )
            for case in self.cases
        )
        if unknown := sorted(thresholds.keys() - named):
            raise CaseFileError(f"{source}: no case of {self.path} has a limit on {', '.join(unknown)}")
        return CaseFile(self.path, self.version, cases)

    def require_names(self, allowed: Allowed, source: str) -> None:
        """Check the names again, after :meth:`overridden`.

        Raises:
            CaseFileError: naming the source of the overrides, for the first case that they do not fit.
        """
        for case in self.cases:
            for problem in name_problems(case.model_dump(), allowed):
                raise CaseFileError(
                    f"{source} does not fit case '{case.id}' of {self.path}: {problem.message}"
                )


def _held_to(gate: _Gate, thresholds: Mapping[str, float], source: str, named: set[str]) -> _Gate:
    """The gate with these thresholds; those that are of it are added to ``named``."""

    def limit(metric: str, old: Limit) -> Limit:
        if metric not in thresholds:
            return old
        named.add(metric)
        if old.min is not None and old.max is not None:
            raise CaseFileError(f"{source}: {metric} has a min and a max; change them in the case file")
        try:
            return Limit(**{"max" if old.min is None else "min": thresholds[metric]}, reason=source)
        except ValidationError as error:
            raise CaseFileError(f"{source}: {metric}: {error.errors()[0]['msg']}") from None

    new: dict[str, Any] = {}
    for name, value in gate:
        if isinstance(value, Limit):
            new[name] = limit(name, value)
        elif isinstance(value, Mapping):
            new[name] = {
                key: limit(key, one) if isinstance(one, Limit) else one for key, one in value.items()
            }
    if isinstance(gate, PerfGate) and "speedup" in thresholds and gate.speedup is not None:
        speedup = limit("speedup", Limit(min=gate.speedup, reason=source))
        new |= {"speedup": speedup.min, "reason": speedup.reason}
    return gate.model_copy(update=new)


def load_cases(path: Path, allowed: Allowed, option: str = "--wan-cases") -> CaseFile:
    """Read a case file.

    ``defaults`` holds keys that complete every case that lacks them. A gate among the defaults (``parity``,
    ``perf``, ``memory``) completes the gate of the cases that have one; it gives no case a gate.

    Args:
        option: what the caller's user names another file with; told where there is none.

    Raises:
        CaseFileError: with one line ``file:line: what is wrong; allowed: …`` for each mistake.
    """
    document = Document.read(path, f"case file; name one with {option} FILE")
    root = document.mapping((), ("version", "defaults", "cases"))
    version = root.get("version")
    if version != VERSION or isinstance(version, bool):
        raise document.error(("version",), f"key 'version' is {version!r}; allowed: {VERSION}")
    defaults = document.mapping(("defaults",), _DEFAULTS) if "defaults" in root else {}
    rows = root.get("cases")
    if not isinstance(rows, list) or not rows:
        raise document.error(("cases",), "key 'cases' must be a list with at least one case")
    problems: list[Problem] = []
    cases = tuple(
        case
        for index, row in enumerate(rows)
        if (case := _read_case(row, defaults, ("cases", index), allowed, problems, path.parent)) is not None
    )
    problems += duplicates(rows)
    if problems:
        raise document.errors(problems)
    return CaseFile(path, VERSION, cases)


def _read_case(
    row: Any,
    defaults: Mapping[str, Any],
    keys: Keys,
    allowed: Allowed,
    problems: list[Problem],
    folder: Path,
) -> Case | None:
    if not isinstance(row, dict):
        problems.append(Problem(keys, f"a case must be a mapping; allowed: {', '.join(Case.model_fields)}"))
        return None
    values = _with_defaults(row, defaults)
    who = f"case '{values.get('id', f'number {int(keys[-1]) + 1}')}'"
    found = [
        *name_problems(values, allowed),
        *gate_problems(values, allowed),
        *prompt_problems(values),
        *setting_problems(values.get("settings")),
    ]
    if isinstance(values.get("prompts"), str):
        values["prompts"] = _read_prompts(folder / values["prompts"])
    case = None
    try:
        case = Case.model_validate(values)
    except ValidationError as error:
        named = {problem.keys for problem in found}
        found += [problem for problem in explained(error) if problem.keys not in named]
    if case is not None and not case.suites:
        found.append(
            Problem((), f"has no gate, so nothing would judge it; give it one of {', '.join(SUITES)}")
        )
    problems += [Problem((*keys, *problem.keys), f"{who}: {problem.message}") for problem in found]
    return case


def _read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a file of prompts.

    Raises:
        CaseFileError: as :func:`load_cases`.
    """
    document = Document.read(path, "file of prompts")
    root = document.mapping((), ("version", "prompts"))
    if root.get("version") != VERSION or isinstance(root["version"], bool):
        raise document.error(("version",), f"key 'version' is {root.get('version')!r}; allowed: {VERSION}")
    rows = root.get("prompts")
    if not isinstance(rows, list) or not rows:
        raise document.error(("prompts",), "key 'prompts' must be a list with at least one prompt")
    prompts, problems = [], [*duplicates(rows, "prompts")]
    for index in range(len(rows)):
        row = document.mapping(("prompts", index), tuple(Prompt.model_fields))
        if row.get("id") == MEAN.rstrip("."):
            problems.append(Problem(("prompts", index, "id"), "key 'id' is 'mean', the name of their mean"))
        try:
            prompts.append(Prompt.model_validate(row))
        except ValidationError as error:
            problems += [
                Problem(("prompts", index, *problem.keys), problem.message) for problem in explained(error)
            ]
    if problems:
        raise document.errors(problems)
    return tuple(prompts)


def _with_defaults(row: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in defaults.items() if key not in GATES} | dict(row)
    for suite in GATES:
        own, default = row.get(suite), defaults.get(suite)
        if isinstance(own, dict) and isinstance(default, dict):
            values[suite] = _completed(own, default)
    return values


def _completed(own: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A gate completed, metric by metric: whole limits only, or a number would get another one's reason. A metric that
    is null in the case has no default."""
    gate = {**default, **own}
    if "speedup" in own and "reason" not in own:
        gate.pop("reason", None)
    for name in BY_METRIC:
        if isinstance(own.get(name), dict) and isinstance(default.get(name), dict):
            merged = {**default[name], **own[name]}
            gate[name] = {
                metric: entry
                for metric, entry in merged.items()
                if entry is not None or metric not in default[name]
            }
    return gate
