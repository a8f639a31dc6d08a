"""What is wrong with a case, in words: what a schema cannot say, and what it does say in words of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wan_trt_core.cases.case import (
    BESIDE,
    BY_METRIC,
    CASE_SETTINGS,
    CEILINGS,
    COMPOSITES,
    DEFAULT_SPEEDUP,
    ERROR_OVER_STOCK,
    GATES,
    MEAN,
    NO_CUDA_GRAPHS,
    PEAK_OVER_PLAN,
    PEAK_OVER_REFERENCE,
    PRECISION_PARTS,
    PRECISIONS,
    Case,
    better_of,
)
from wan_trt_core.cases.document import Keys, Problem, dotted, unknown
from wan_trt_core.config import KEYS, ConfigError, Settings, with_values
from wan_trt_core.records import OF_REFERENCE


@dataclass(frozen=True)
class Allowed:
    """Which names exist, so that a misspelt one is told from a new one before anything is run.

    Attributes:
        components: single components; :data:`COMPOSITES` are allowed besides.
        models: catalogue names, each with its profiles. Anything else must be a folder.
        metrics: by suite, the metrics that it can measure; a suite that is left out is not checked.
    """

    components: Collection[str]
    backends: Collection[str]
    models: Mapping[str, Collection[str]] = field(default_factory=dict)
    metrics: Mapping[str, Collection[str]] = field(default_factory=dict)


def setting_problems(settings: Any) -> Iterator[Problem]:
    """Settings of a case that are none that a case may have, or have a wrong value."""
    for key in settings if isinstance(settings, dict) else ():
        allowed = [known for known in KEYS if known.startswith(CASE_SETTINGS)]
        if key not in allowed:
            yield Problem(("settings", key), unknown("key", f"settings.{key}", allowed))
            continue
        try:
            with_values(Settings(), {key: settings[key]})
        except ConfigError as error:
            yield Problem(("settings", key), f"key 'settings.{key}': {error}")


def prompt_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Prompts where none can be, or that name no file."""
    if "prompts" not in values:
        return
    if not isinstance(values["prompts"], str):
        yield Problem(("prompts",), "key 'prompts' must name a file beside the case file, as prompts.yaml")
    elif values.get("component") != "pipeline" or "parity" not in values:
        yield Problem(("prompts",), "key 'prompts' is for the parity of the component pipeline only")


def name_problems(values: Mapping[str, Any], allowed: Allowed) -> Iterator[Problem]:
    """Names that do not exist: of components, backends, models, profiles and precisions."""
    components = (*sorted(allowed.components), *COMPOSITES)
    for key, names in (("component", components), ("backend", sorted(allowed.backends))):
        if isinstance(values.get(key), str) and values[key] not in names:
            yield Problem((key,), unknown(key, values[key], names))
    for index, backend in enumerate(values.get("only_backends") or ()):
        if backend not in allowed.backends:
            yield Problem(("only_backends", index), unknown("backend", backend, sorted(allowed.backends)))
    model, profile = values.get("model"), values.get("profile")
    if isinstance(model, str) and allowed.models and model not in allowed.models and not _is_folder(model):
        yield Problem(
            ("model",), unknown("model", model, allowed.models) + ", or a folder in diffusers format"
        )
    profiles = allowed.models.get(model, ()) if isinstance(model, str) else ()
    if isinstance(profile, str) and profiles and profile not in profiles:
        yield Problem(("profile",), unknown("profile", profile, profiles))
    for key in ("precision", "reference_precision"):
        if values.get(key) is not None:
            yield from _precision_problems(key, values[key], values.get("component") in COMPOSITES)
    perf = values.get("perf")
    limits, metric = perf.get("limits") if isinstance(perf, dict) else None, BESIDE[NO_CUDA_GRAPHS]
    if isinstance(limits, dict) and metric in limits and values.get("backend") != "tensorrt":
        yield Problem(
            ("perf", "limits", metric),
            f"a limit of {metric} needs the backend tensorrt, and the case's is {values.get('backend')}, which replays"
            " no CUDA graphs",
        )


def _is_folder(model: str) -> bool:
    return "/" in model or "\\" in model or Path(model).is_dir()


def _precision_problems(key: str, value: Any, composite: bool) -> Iterator[Problem]:
    if not isinstance(value, dict):
        if value not in PRECISIONS:
            yield Problem((key,), unknown(key, value, PRECISIONS))
        return
    if not composite:
        only = f"only {', '.join(COMPOSITES)} have a precision for each part"
        yield Problem((key,), f"key '{key}' must be one word, {only}; allowed: {', '.join(PRECISIONS)}")
        return
    for part, precision in value.items():
        if part not in PRECISION_PARTS:
            yield Problem(
                (key, part), unknown("key", f"{key}.{part}", [f"{key}.{p}" for p in PRECISION_PARTS])
            )
        elif precision not in PRECISIONS:
            yield Problem((key, part), unknown(f"{key}.{part}", precision, PRECISIONS))


def gate_problems(values: Mapping[str, Any], allowed: Allowed) -> Iterator[Problem]:
    """What a schema cannot say: unknown metrics, limits on the wrong side, a gate under the product's."""
    for suite in GATES:
        gate = values.get(suite)
        if not isinstance(gate, dict):
            continue
        for name in BY_METRIC:
            entries = gate.get(name)
            if isinstance(entries, dict) and name in GATES[suite].model_fields:
                metrics = allowed.metrics.get("parity" if name == "parity" else suite, ())
                if (suite, name) == ("perf", "limits"):
                    metrics = tuple(BESIDE.values())
                if suite == "parity" and values.get("prompts"):
                    metrics = (*metrics, *(f"{MEAN}{metric}" for metric in metrics))
                for metric, entry in entries.items():
                    yield from _metric_problems(
                        (suite, name, metric), metric, entry, metrics, name != "bands"
                    )
        if suite == "memory":
            yield from _memory_problems(gate, values.get("component"), allowed.backends)
        if suite == "parity":
            yield from _stock_problems(gate, values)
        if suite == "perf":
            yield from _speedup_problems(gate, values.get("component"), not values.get("settings"))
            yield from _beside_problems(gate)


def _memory_problems(gate: Mapping[str, Any], component: Any, backends: Collection[str]) -> Iterator[Problem]:
    growth = ("growth", "device_growth", "step_growth", "device_step_growth")
    for name in (*growth, "release", "device_release", "release_tensors", "unattributed"):
        if isinstance(gate.get(name), dict) and "max" not in gate[name]:
            yield Problem(("memory", name), f"key 'memory.{name}' needs a max (bytes)")
    bands = gate.get("bands")
    for metric, band in bands.items() if isinstance(bands, dict) else ():
        for key, kind in (("by_backend", dict), ("only_backends", list)):
            named = band.get(key) if isinstance(band, dict) else None
            for backend in named if isinstance(named, kind) else ():
                if backend not in backends:
                    keys = ("memory", "bands", metric, key, *((backend,) if kind is dict else ()))
                    yield Problem(keys, unknown("backend", backend, sorted(backends)))
    limits = gate.get("limits")
    if component != "pipeline" and isinstance(limits, dict) and PEAK_OVER_PLAN in limits:
        message = f"key 'memory.limits.{PEAK_OVER_PLAN}' is measured of pipeline, not of components"
        yield Problem(("memory", "limits", PEAK_OVER_PLAN), message)
    if gate.get("reference") is True:
        return
    for name in ("limits", "bands"):
        entries = gate.get(name)
        for metric in entries if isinstance(entries, dict) else ():
            if metric == PEAK_OVER_REFERENCE or metric.startswith(OF_REFERENCE):
                message = (
                    f"key 'memory.{name}.{metric}' needs 'reference: true' beside it, or it is never measured"
                )
                yield Problem(("memory", name, metric), message)


def _stock_problems(gate: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Problem]:
    """A limit on the error over stock diffusers' is only for tensors, and where the reference is not that already."""
    for name in ("limits", "bands"):
        entries = gate.get(name)
        if not isinstance(entries, dict) or ERROR_OVER_STOCK not in entries:
            continue
        key = f"key 'parity.{name}.{ERROR_OVER_STOCK}'"
        if values.get("reference_precision") in (None, values.get("precision")):
            message = f"{key} needs a reference_precision other than the case's precision"
            yield Problem(("parity", name, ERROR_OVER_STOCK), message)
        elif values.get("component") == "pipeline":
            message = f"{key} is measured of components, not of pipeline"
            yield Problem(("parity", name, ERROR_OVER_STOCK), message)


def _metric_problems(
    keys: Keys, metric: str, entry: Any, metrics: Collection[str], limited: bool
) -> Iterator[Problem]:
    if metrics and metric not in metrics:
        yield Problem(keys, unknown("metric", metric, metrics))
        return
    if not limited or not isinstance(entry, dict):
        return
    kind = metric.rpartition(".")[2]
    better = better_of(metric)
    side = "min" if better == "higher" else "max"
    if {"min", "max"} & set(entry) and side not in entry:
        yield Problem(keys, f"key '{dotted(keys)}' needs a {side}: {kind} is better when {better}")
    floor = entry.get("min")
    if isinstance(floor, (int, float)) and floor > CEILINGS.get(kind, floor):
        yield Problem(
            (*keys, "min"), f"key '{dotted((*keys, 'min'))}' is {floor:g}, {kind} ends at {CEILINGS[kind]:g}"
        )


def _speedup_problems(gate: Mapping[str, Any], component: Any, plain: bool) -> Iterator[Problem]:
    """A whole video holds the gate, unless settings of its case give time for memory, and a reason says what."""
    speedup = gate.get("speedup", DEFAULT_SPEEDUP)
    if speedup is None:
        given = "key 'perf.speedup' is null"
    elif (
        isinstance(speedup, bool)
        or not isinstance(speedup, (int, float))
        or not 0 < speedup < DEFAULT_SPEEDUP
    ):
        return
    else:
        given = f"key 'perf.speedup' is {speedup:g}"
    if component == "pipeline" and plain:
        yield Problem(
            ("perf", "speedup"),
            f"{given}: the whole-video case always holds the gate; allowed: {DEFAULT_SPEEDUP:g} and more",
        )
    elif not gate.get("reason"):
        yield Problem(
            ("perf", "speedup"),
            f"{given}, under the gate of {DEFAULT_SPEEDUP:g}: it needs a 'reason' beside it",
        )


def _beside_problems(gate: Mapping[str, Any]) -> Iterator[Problem]:
    """A limit on what is never measured would be missing in every run."""
    also, limits = gate.get("also", ()), gate.get("limits")
    for name, metric in BESIDE.items():
        if (
            isinstance(limits, dict)
            and metric in limits
            and isinstance(also, list | tuple)
            and name not in also
        ):
            yield Problem(("perf", "limits", metric), f"a limit of {metric} needs '{name}' in 'perf.also'")


def duplicates(rows: Iterable[Any], key: str = "cases") -> Iterator[Problem]:
    """Rows with the id of an earlier one."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield Problem(
                (key, index, "id"),
                f"key 'id' is '{name}', as in {key[:-1]} number {first[name] + 1}; ids must differ",
            )


def explained(error: ValidationError) -> Iterator[Problem]:
    """Pydantic's errors in the words of this file."""
    for details in error.errors(include_url=False):
        keys: Keys = details["loc"]
        if keys and keys[0] in ("precision", "reference_precision"):
            keys = keys[:1]  # the rest names the branches of a union
        name, given = dotted(keys), details["input"]
        message = (
            details["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
        )
        if details["type"] == "extra_forbidden":
            yield Problem(keys, unknown("key", str(keys[-1]), _fields_at(keys[:-1]), shown=name))
        elif details["type"] == "missing":
            yield Problem(keys, f"key '{name}' is missing")
        elif details["type"] == "value_error":
            yield Problem(keys, f"key '{name}' {message}")
        else:
            yield Problem(keys, f"key '{name}' is {_short(given)}: {message[:1].lower()}{message[1:]}")


def _fields_at(keys: Keys) -> tuple[str, ...]:
    """The keys allowed at a place in a case."""
    annotation: Any = Case
    for key in keys:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(key)].annotation
            options = [option for option in get_args(annotation) if option is not type(None)]
            if get_origin(annotation) is not dict and options:
                annotation = options[0]
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
    return tuple(annotation.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
