"""Baselines: what a case measured when it was accepted, one file per hardware, model and suite.

``<root>/<hardware key>/<model>/<suite>.json`` holds, by case, the banded metrics with their tolerances, where
they come from, for perf the kernels that a later failure is explained with, and what a run showed beside all that,
which nothing judges (``observed``). Reading is strict: what is not
exactly a baseline of this schema and this hardware is an error that names the file, the key and the command to
mend it, never a gate that holds nothing. Nothing is looked up under another hardware key.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

from wan_trt_core.deciding_settings import differing, in_words
from wan_trt_core.gates.bands import (
    BaselineEntry,
    BaselineMetric,
    Better,
    Observed,
    ObservedMetric,
    Tolerance,
    band_limits,
    position,
    regenerate_command,
    usable,
)
from wan_trt_core.gates.verdict import Reason

if TYPE_CHECKING:
    from wan_trt_core.cases import Band
    from wan_trt_core.records import Measurement

__all__ = [
    "BaselineEntry",
    "BaselineError",
    "BaselineFile",
    "BaselineMetric",
    "Change",
    "Row",
    "Tolerance",
    "baseline_path",
    "carried_over",
    "compare_entries",
    "derived",
    "find_orphans",
    "new_entry",
    "other_origin",
    "other_settings",
    "read_baselines",
    "write_baselines",
]

SCHEMA_VERSION = 1
SIGNIFICANT_DIGITS = 6
"""Stored digits: far below any noise, and few enough that a diff can be read."""

LONGEST_INTEGER = 20
"""Digits: more bytes or nanoseconds than there are, and few enough for a float to hold."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE_KEYS = {"schema_version", "hardware_key", "model", "suite", "cases"}
_ENTRY_KEYS = {"metrics", "provenance", "kernels"}
_OBSERVED_KEY = {"observed"}
"""Of an entry; absent where no run left anything of it."""

_SETTINGS_KEY = {"settings"}
"""Of the provenance and of what was observed; files of older releases do not say it, which is no difference."""

_OBSERVED_KEYS = {"commit", "date", "metrics"}
_NUMBER_KEYS = {"value", "unit"}
_INTERVAL_KEYS = {"low", "high", "pairs"}
_POINTS_KEY = {"points"}
_METRIC_KEYS = {"value", "unit", "better", "n", "spread", "samples", "tolerance"}
_TOLERANCE_KEYS = {"rel", "abs", "reason"}
_TIMES_KEYS = {"groups_ms", "total_ms"}
_KERNELS_KEYS = {*_TIMES_KEYS, "top", "reference"}
_LAYERS_KEY = {"layers"}
"""Of the kernels; not every backend has them."""

ORIGIN = ("backend", "weights", "profile")
"""Keys of the provenance in which a run and a baseline must agree, or the one says nothing about the other."""

_PROVENANCE_KEYS = {
    *ORIGIN,
    "commit",
    "dirty",
    "date",
    "command",
    "versions",
    "runs",
    "accepted_regression",
}


class BaselineError(ValueError):
    """A baseline cannot be used or made; the message names the file and the key, and what to run."""


@dataclass(frozen=True)
class BaselineFile:
    """The baselines of one hardware, model and suite, by case."""

    hardware_key: str
    model: str
    suite: str
    cases: Mapping[str, BaselineEntry]


class Change(StrEnum):
    """What a new measurement means for a stored metric."""

    NEW = "new"
    REMOVED = "removed"
    WITHIN_BAND = "within band"
    BETTER = "better"
    WORSE = "worse"
    TIGHTER = "tighter tolerance"
    LOOSER = "looser tolerance"
    OTHER_UNIT = "other unit"


LOOSENING = frozenset({Change.WORSE, Change.LOOSER, Change.REMOVED})
"""Changes that let something pass that failed before: they need a reason."""


@dataclass(frozen=True)
class Row:
    """Old and new value of one metric; values in ``unit``.

    Attributes:
        change: the relative change of the value, ``None`` unless there is an old and a new one.
        kind: what it means; of several (worse and looser), the one that needs a reason.
    """

    case: str
    metric: str
    unit: str
    old: float | None
    new: float | None
    tolerance: Tolerance
    kind: Change

    @property
    def change(self) -> float | None:
        """The new value over the old, less one."""
        return self.new / self.old - 1 if self.old and self.new is not None else None

    @property
    def loosens(self) -> bool:
        """Whether accepting it needs a reason."""
        return self.kind in LOOSENING


def baseline_path(root: Path, hardware_key: str, model: str, suite: str) -> Path:
    """Where the baselines of one hardware, model and suite are kept; of a model folder, its last name counts.

    Raises:
        BaselineError: when a part cannot be a folder's name.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name)
    for what, part in (("hardware key", hardware_key), ("model", name), ("suite", suite)):
        if not _SAFE_NAME.fullmatch(part):
            raise BaselineError(
                f"the {what} {part!r} cannot name a baseline; use letters, digits, '.', '_', '-'"
            )
    return root / hardware_key / name / f"{suite}.json"


def read_baselines(
    root: Path, hardware_key: str, model: str, suite: str, command: Sequence[str] = ()
) -> BaselineFile | None:
    """The baselines of this hardware, model and suite; ``None`` when it has no file.

    Args:
        command: the command line of the run that reads them, see
            :func:`~wan_trt_core.gates.bands.regenerate_command`.

    Raises:
        BaselineError: when there is one and it is not whole, of another schema, hardware, model or suite, has
            a key too many or too few, or a value that is not a positive number.
    """
    path = baseline_path(root, hardware_key, model, suite)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error
    reader = _Reader(path, suite, tuple(command))
    return reader.file(reader.data(text), hardware_key, path.parent.name)


def carried_over(path: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """A baseline file as ``change`` leaves its JSON object, read as strictly as ever; ``None`` if nothing changed.

    Raises:
        BaselineError: when the file is no JSON, or would not be a baseline file of this schema afterwards.
    """
    reader = _Reader(path, path.stem)
    try:
        before = reader.data(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error
    after = copy.deepcopy(before)
    change(after)
    reader.file(after, path.parts[-3], path.parts[-2])
    return None if after == before else _sorted(after)


def write_baselines(root: Path, baselines: BaselineFile, touched: Collection[str]) -> Path:
    """Write a baseline file atomically; every entry but the ``touched`` ones stays byte for byte.

    Args:
        root: the baselines folder.
        baselines: all entries of the file, untouched ones as they were read.
        touched: cases that are new, changed or removed.

    Returns:
        The file written.

    Raises:
        BaselineError: when the file on disk is not in the form this function writes (then rewriting it would
            touch every entry), or an untouched entry differs from the one on disk.
    """
    from wan_trt_core.records import write_json

    path = baseline_path(root, baselines.hardware_key, baselines.model, baselines.suite)
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "hardware_key": baselines.hardware_key,
        "model": path.parent.name,
        "suite": baselines.suite,
        "cases": {case: _entry_data(entry) for case, entry in baselines.cases.items()},
    }
    if path.exists():
        before = path.read_text(encoding="utf-8")
        stored = json.loads(before)
        if _canonical(stored) != before:
            raise BaselineError(
                f"{path}: was formatted by something else, so writing it would touch every entry; "
                f"restore it from version control (git checkout -- {path})"
            )
        for case, entry in stored["cases"].items():
            if case not in touched and data["cases"].get(case) != entry:
                raise BaselineError(f"{path}: case {case} would change although it was not regenerated")
    write_json(path, _sorted(data))
    return path


def find_orphans(baselines: BaselineFile, cases: Collection[str]) -> tuple[str, ...]:
    """Cases with a baseline that no case file has: nothing will ever be held against them."""
    return tuple(sorted(set(baselines.cases) - set(cases)))


def other_origin(
    case: str, suite: str, stored: BaselineEntry, run: Mapping[str, Any], command: Sequence[str] = ()
) -> str | None:
    """Why an entry says nothing about a run: another backend, profile or other weights made it. ``None`` if none did.

    Several backends run the same cases on one GPU, one model runs with a checkpoint or with seeded random weights, and
    ``--wan-profile`` gives every case other sizes; what one of them needs is no measure of the other. That holds for
    speed and memory too: random weights may be of fewer layers, and most have no text encoder, which a pipeline's time
    and memory include.

    Args:
        run: the run's :data:`ORIGIN`; other keys are ignored.
        command: its command line, whose case file the message names too.
    """
    for key in ORIGIN:
        if stored.provenance[key] != run[key]:
            elsewhere = (*command, "--wan-baselines", "OTHER")  # the last one counts
            remake = regenerate_command(suite, case, elsewhere)
            return (
                f"case {case}: the stored baseline was made with the {key} '{stored.provenance[key]}', this run with "
                f"'{run[key]}'; keep this run's in a folder of their own: {remake} "
                "(with this run's --backend, --checkpoint and --profile), then --wan-baselines OTHER"
            )
    return None


def other_settings(
    case: str,
    suite: str,
    stored: BaselineEntry,
    run: Mapping[str, Any],
    own: Mapping[str, Any],
    command: Sequence[str] = (),
) -> str | None:
    """Why an entry says nothing about a run of its backend, weights and profile: other settings made it, of those that
    decide what is measured. ``None`` if none did, or the entry does not say.

    Args:
        run: the run's :func:`~wan_trt_core.deciding_settings.deciding`.
        own: what the case sets for itself, which that leaves out; the baseline's run may have been given it otherwise.
        command: its command line, whose case file and folder the message names too.
    """
    made = stored.provenance.get("settings")
    changed = (
        differing(made, {**{key: own[key] for key in own if key in made}, **run}) if made is not None else {}
    )
    if not changed:
        return None
    made_with, runs_with = (in_words({key: pair[at] for key, pair in changed.items()}) for at in (0, 1))
    elsewhere = regenerate_command(suite, case, (*command, "--wan-baselines", "OTHER"))
    here = regenerate_command(suite, case, command)
    return (
        f"case {case}: the stored baseline was made with {made_with}, this run with {runs_with}; run with the "
        f"baseline's settings, or keep this run's in a folder of their own: {elsewhere}, then "
        f"--wan-baselines OTHER; to replace the stored: {here} --accept-regression REASON (both "
        "with this run's settings)"
    )


def new_entry(
    case: str,
    bands: Mapping[str, Band],
    measurements: Sequence[Measurement],
    provenance: Mapping[str, Any],
    observed: Observed | None = None,
) -> BaselineEntry:
    """The entry of one case from one or more independent runs: the median of each banded metric, the kernels of
    the run whose kernels took the median time, and what was ``observed`` (rounded as all else).

    Raises:
        BaselineError: when a metric was not measured, is not a positive number, changes its unit between
            runs, or the runs do not fit into the band that they are to set.
    """
    if not measurements:
        raise BaselineError(f"case {case}: no run measured it")
    metrics = {name: _new_metric(case, name, band, measurements) for name, band in bands.items()}
    return BaselineEntry(
        metrics,
        {**provenance, "runs": len(measurements)},
        _typical_kernels(measurements),
        _rounded_observed(observed) if observed else None,
    )


def compare_entries(case: str, old: BaselineEntry | None, new: BaselineEntry) -> tuple[Row, ...]:
    """Old against new, one row a metric; an entry whose rows are all within the band need not change."""
    before = old.metrics if old else {}
    rows = [_row(case, name, before.get(name), metric) for name, metric in new.metrics.items()]
    for name in set(before) - set(new.metrics):
        gone = before[name]
        rows.append(Row(case, name, gone.unit, gone.value, None, gone.tolerance, Change.REMOVED))
    return tuple(sorted(rows, key=lambda row: row.metric))


def derived(samples: Sequence[float]) -> dict[str, Any]:
    """What a stored metric says of its samples: ``value``, ``n`` and ``spread``."""
    value = _rounded(median(samples))
    return {"value": value, "n": len(samples), "spread": _rounded((max(samples) - min(samples)) / value)}


def _row(case: str, name: str, old: BaselineMetric | None, new: BaselineMetric) -> Row:
    kind = _change(old, new) if old else Change.NEW
    return Row(case, name, new.unit, old.value if old else None, new.value, new.tolerance, kind)


def _change(old: BaselineMetric, new: BaselineMetric) -> Change:
    if (old.unit, old.better) != (new.unit, new.better):
        return Change.OTHER_UNIT
    where = position(new.value, old, new.tolerance)
    if where is Reason.WORSE_THAN_BAND:
        return Change.WORSE
    if new.tolerance.looser_than(old.tolerance):
        return Change.LOOSER
    if where is Reason.BETTER_THAN_BAND:
        return Change.BETTER
    return Change.WITHIN_BAND if new.tolerance.same_width(old.tolerance) else Change.TIGHTER


def _new_metric(case: str, name: str, band: Band, measurements: Sequence[Measurement]) -> BaselineMetric:
    found = [measurement.metrics.get(name) for measurement in measurements]
    values, units, better = [], set(), set()
    for metric in found:
        if metric is None or metric.value is None:
            why = metric.detail if metric and metric.detail else "the run did not measure it"
            raise BaselineError(f"case {case}: {name} has a band but no value ({why})")
        if not usable(metric.value):
            raise BaselineError(
                f"case {case}: {name} measured {metric.value!r}; a band needs a positive number, "
                "so hold it by a limit in the case file instead"
            )
        values.append(_rounded(metric.value))
        units.add(metric.unit)
        better.add(metric.better)
    if len(units) > 1 or len(better) > 1:
        raise BaselineError(f"case {case}: {name} changes its unit or direction between runs")
    stored = BaselineMetric(
        unit=units.pop(),
        better=better.pop(),
        tolerance=Tolerance(band.rel, band.abs, band.reason),
        samples=tuple(values),
        **derived(values),
    )
    low, high = band_limits(stored)
    if min(values) < low or max(values) > high:
        raise BaselineError(
            f"case {case}: {name} differs by {stored.spread:.1%} between {len(values)} runs, "
            f"more than its band (rel {band.rel:g}, abs {band.abs:g}) lets through; "
            "run on a quieter machine or widen the band"
        )
    return stored


def _rounded_observed(observed: Observed) -> Observed:
    metrics = {
        name: ObservedMetric(**_all_rounded(asdict(metric))) for name, metric in observed.metrics.items()
    }
    return replace(observed, metrics=metrics)


def _typical_kernels(measurements: Sequence[Measurement]) -> dict[str, Any] | None:
    """Those of one run, since medians by kernel would be of no run at all; ``None`` where every profiler failed."""
    found = [measurement.facts.get("kernels", {}) for measurement in measurements]
    found = sorted((each for each in found if "reference" in each), key=lambda each: each["total_ms"])
    if not found:
        return None
    typical = found[(len(found) - 1) // 2]
    kept = {key: typical[key] for key in _KERNELS_KEYS | _LAYERS_KEY & typical.keys()}
    kept["reference"] = {key: typical["reference"][key] for key in _TIMES_KEYS}
    rounded: dict[str, Any] = _all_rounded(kept)
    return rounded


@dataclass(frozen=True)
class _Reader:
    """Reads one file strictly; every error names the file, the key and the next command."""

    path: Path
    suite: str
    run: tuple[str, ...] = ()

    def data(self, text: str) -> dict[str, Any]:
        try:
            data = json.loads(
                text, parse_int=self._integer, parse_constant=self._constant, object_pairs_hook=self._object
            )
        except json.JSONDecodeError as error:
            self._fail(f"is no whole JSON ({error})")
        if not isinstance(data, dict):
            self._fail("is no JSON object")
        return data

    def file(self, data: dict[str, Any], hardware_key: str, model: str) -> BaselineFile:
        version = data.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            self._fail(f"schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
        self._keys("", data, _FILE_KEYS)
        for key, expected in (("hardware_key", hardware_key), ("model", model), ("suite", self.suite)):
            if data[key] != expected:
                self._fail(
                    f"{key} is {data[key]!r}, but the file lies under {expected!r}: never copied from there"
                )
        cases = self._dict("cases", data["cases"])
        return BaselineFile(
            hardware_key, model, self.suite, {case: self._entry(case, entry) for case, entry in cases.items()}
        )

    def _entry(self, case: str, data: Any) -> BaselineEntry:
        at = f"cases.{case}"
        if "kernels" not in self._dict(at, data, case):
            self._fail(
                f"{at}: key kernels is absent, as in files of older releases; add it: wan-trt baselines migrate",
                case,
            )
        if "reference" in data:
            self._fail(
                f"{at}: key reference is of older releases, which had no observed; carry it over: "
                "wan-trt baselines migrate",
                case,
            )
        beside = _OBSERVED_KEY & data.keys()
        self._keys(at, data, _ENTRY_KEYS | beside, case)
        metrics = self._dict(f"{at}.metrics", data["metrics"], case)
        provenance = self._dict(f"{at}.provenance", data["provenance"], case)
        if absent := [key for key in ORIGIN if key not in provenance]:
            options = " ".join(f"--{key} NAME" for key in absent)
            self._fail(
                f"{at}.provenance: key {', '.join(absent)} is absent, as in files of older releases; say what made it: "
                f"wan-trt baselines migrate {options}",
                case,
            )
        told = _SETTINGS_KEY & provenance.keys()
        self._keys(f"{at}.provenance", provenance, _PROVENANCE_KEYS | told, case)
        if told:
            self._settings(f"{at}.provenance.settings", case, provenance["settings"])
        stored = {
            name: self._metric(f"{at}.metrics.{name}", case, metric) for name, metric in metrics.items()
        }
        kernels = self._kernels(f"{at}.kernels", case, data["kernels"])
        observed = self._observed(f"{at}.observed", case, data["observed"]) if beside else None
        return BaselineEntry(stored, provenance, kernels, observed)

    def _observed(self, at: str, case: str, data: Any) -> Observed:
        told = _SETTINGS_KEY & self._dict(at, data, case).keys()
        self._keys(at, data, _OBSERVED_KEYS | told, case)
        metrics = self._dict(f"{at}.metrics", data["metrics"], case)
        return Observed(
            self._text(f"{at}.commit", case, data["commit"]),
            self._text(f"{at}.date", case, data["date"]),
            {name: self._number_seen(f"{at}.metrics.{name}", case, seen) for name, seen in metrics.items()},
            self._settings(f"{at}.settings", case, data["settings"]) if told else None,
        )

    def _settings(self, at: str, case: str, data: Any) -> dict[str, Any]:
        """Of any names: a setting may go, and what a baseline was made with stays true."""
        for key, value in self._dict(at, data, case).items():
            for each in value if isinstance(value, list) else [value]:
                if not isinstance(each, (str, int, float, bool, type(None))):
                    self._fail(f"{at}.{key} is {value!r}, not a setting's value", case)
        return dict(data)

    def _number_seen(self, at: str, case: str, data: Any) -> ObservedMetric:
        has = self._dict(at, data, case).keys()
        interval = _INTERVAL_KEYS if _INTERVAL_KEYS & has else set()
        self._keys(at, data, _NUMBER_KEYS | interval | _POINTS_KEY & has, case)
        points = self._dict(f"{at}.points", data.get("points", {}), case)
        low, high, pairs = (
            self._number(f"{at}.{key}", case, data[key]) if interval else None
            for key in ("low", "high", "pairs")
        )
        return ObservedMetric(
            self._number(f"{at}.value", case, data["value"]),
            self._text(f"{at}.unit", case, data["unit"]),
            low,
            high,
            None if pairs is None else int(pairs),
            {point: self._number(f"{at}.points.{point}", case, value) for point, value in points.items()},
        )

    def _kernels(self, at: str, case: str, data: Any) -> dict[str, Any] | None:
        if data is None:
            return None
        has_layers = _LAYERS_KEY & self._dict(at, data, case).keys()
        self._keys(at, data, _KERNELS_KEYS | has_layers, case)
        reference = self._dict(f"{at}.reference", data["reference"], case)
        self._keys(f"{at}.reference", reference, _TIMES_KEYS, case)
        for where, times in ((at, data), (f"{at}.reference", reference)):
            self._number(f"{where}.total_ms", case, times["total_ms"])
            for group, ms in self._dict(f"{where}.groups_ms", times["groups_ms"], case).items():
                self._number(f"{where}.groups_ms.{group}", case, ms)
        for key in ("top", *has_layers):
            if not isinstance(data[key], list):
                self._fail(f"{at}.{key} is {data[key]!r}, not a list", case)
            for row in data[key]:
                if not isinstance(row, list) or len(row) != 3:
                    self._fail(
                        f"{at}.{key} holds {row!r}, not a name, its milliseconds and its launches", case
                    )
                self._text(f"{at}.{key}", case, row[0])
                self._number(f"{at}.{key}: {row[0]}", case, row[1])
                self._number(f"{at}.{key}: {row[0]}", case, row[2])
        return dict(data)

    def _metric(self, at: str, case: str, data: Any) -> BaselineMetric:
        self._keys(at, self._dict(at, data, case), _METRIC_KEYS, case)
        better: Better
        if data["better"] == "higher":
            better = "higher"
        elif data["better"] == "lower":
            better = "lower"
        else:
            self._fail(f"{at}.better is {data['better']!r}, allowed are 'higher' and 'lower'", case)
        samples = data["samples"]
        if not isinstance(samples, list) or not samples or len(samples) != data["n"]:
            self._fail(f"{at}.samples does not hold the {data['n']!r} values that n says, one at least", case)
        metric = BaselineMetric(
            self._positive(f"{at}.value", case, data["value"]),
            self._text(f"{at}.unit", case, data["unit"]),
            better,
            self._tolerance(f"{at}.tolerance", case, data["tolerance"]),
            len(samples),
            self._number(f"{at}.spread", case, data["spread"]),
            tuple(self._positive(f"{at}.samples", case, sample) for sample in samples),
        )
        # what was measured sets the band: a number written over by hand, or by a merge, would move it unseen
        for key, said in derived(metric.samples).items():
            if data[key] != said:
                self._fail(
                    f"{at}.{key} is {data[key]!r}, but its samples say {said!r}; take it from them: "
                    "wan-trt baselines migrate",
                    case,
                )
        return metric

    def _tolerance(self, at: str, case: str, data: Any) -> Tolerance:
        self._keys(at, self._dict(at, data, case), _TOLERANCE_KEYS, case)
        return Tolerance(
            self._number(f"{at}.rel", case, data["rel"]),
            self._number(f"{at}.abs", case, data["abs"]),
            self._text(f"{at}.reason", case, data["reason"]),
        )

    def _number(self, at: str, case: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            self._fail(f"{at} is {value!r}, not a number of at least 0", case)
        return float(value)

    def _positive(self, at: str, case: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not usable(value):
            self._fail(f"{at} is {value!r}, not a positive number", case)
        return float(value)

    def _text(self, at: str, case: str, value: Any) -> str:
        if not isinstance(value, str):
            self._fail(f"{at} is {value!r}, not a text", case)
        return value

    def _dict(self, at: str, value: Any, case: str | None = None) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(f"{at} is {value!r}, not an object", case)
        return value

    def _keys(self, at: str, data: Mapping[str, Any], allowed: set[str], case: str | None = None) -> None:
        where = f"{at}: " if at else ""
        if unknown := sorted(set(data) - allowed):
            self._fail(
                f"{where}unknown key {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}", case
            )
        if absent := sorted(allowed - set(data)):
            self._fail(f"{where}key {', '.join(absent)} is absent", case)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) != len(pairs):
            names = [name for name, _ in pairs]
            self._fail(f"key {next(name for name in names if names.count(name) > 1)} is there twice")
        return data

    def _integer(self, digits: str) -> int:
        if len(digits) > LONGEST_INTEGER:
            self._fail(f"holds {digits[:LONGEST_INTEGER]}…, a number too large to be measured")
        return int(digits)

    def _constant(self, name: str) -> float:
        self._fail(f"holds {name}, not a positive number")

    def _fail(self, what: str, case: str | None = None) -> NoReturn:
        command = regenerate_command(self.suite, case, self.run)
        raise BaselineError(
            f"{self.path}: {what}; restore the file from version control, or delete it and make it again: "
            f"{command}"
        )


def _entry_data(entry: BaselineEntry) -> dict[str, Any]:
    return {
        "metrics": {name: _metric_data(metric) for name, metric in entry.metrics.items()},
        "provenance": dict(entry.provenance),
        "kernels": entry.kernels,
        **({} if entry.observed is None else {"observed": _observed_data(entry.observed)}),
    }


def _observed_data(observed: Observed) -> dict[str, Any]:
    """An interval and points only where there are any."""
    metrics = {
        name: {key: value for key, value in asdict(metric).items() if value not in (None, {})}
        for name, metric in observed.metrics.items()
    }
    told = {} if observed.settings is None else {"settings": dict(observed.settings)}
    return {"commit": observed.commit, "date": observed.date, "metrics": metrics, **told}


def _metric_data(metric: BaselineMetric) -> dict[str, Any]:
    tolerance = metric.tolerance
    return {
        "value": metric.value,
        "unit": metric.unit,
        "better": metric.better,
        "n": metric.n,
        "spread": metric.spread,
        "samples": list(metric.samples),
        "tolerance": {"rel": tolerance.rel, "abs": tolerance.abs, "reason": tolerance.reason},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _all_rounded(data: Any) -> Any:
    """Every fraction in it."""
    if isinstance(data, float):
        return _rounded(data)
    if isinstance(data, Mapping):
        return {key: _all_rounded(value) for key, value in data.items()}
    return [_all_rounded(each) for each in data] if isinstance(data, (list, tuple)) else data


def _canonical(data: Any) -> str:
    """As :func:`wan_trt_core.records.write_json` writes it, keys in order."""
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _sorted(data: Any) -> Any:
    return json.loads(json.dumps(data, sort_keys=True))
