"""The case file: which cases exist and what each must reach, every threshold with its reason."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from wan_trt_core.config import KEYS, ConfigError, Settings, with_values

SUITES = ("parity", "perf", "memory")
Suite = Literal["parity", "perf", "memory"]

VERSION = 1
"""Version of the case file's format."""

COMPOSITES: Mapping[str, tuple[str, ...]] = {
    "vae_decoder": ("vae_decoder_first", "vae_decoder_next"),
    "vae_encoder": ("vae_encoder_first", "vae_encoder_next"),
    "pipeline": ("dit", "dit_2", "vae_decoder_first", "vae_decoder_next"),
}
"""What a case may name beside a component, and the components that each runs together, as far as the model has them:
the streaming pairs of VAE graphs (``vae_decoder``, ``vae_encoder``), and prompt to video (``pipeline``)."""

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
PRECISION_PARTS = ("dit", "vae", "text_encoder")
"""Keys of a composite's precision, as in ``{dit: fp16, vae: fp32}``; that of ``dit`` is of both where there are two."""

DEFAULT_SPEEDUP = 1.5
"""The gate of a performance case that names no other, against stock diffusers."""

BESIDE: Mapping[str, str] = {"torch-compile": "compile_speedup", "no-cuda-graphs": "graph_gain"}
"""What a performance case may time beside its gate, each against the candidate, and the metric that comes of it: how
many times faster the candidate is than ``torch.compile`` of the reference, and than itself without CUDA graphs."""

ERROR_OVER_STOCK = "error_over_stock"
"""How many times further from the reference the candidate is than stock diffusers in the candidate's precision (by
relative L2): what the engine adds to what that precision costs anyway. Measured where a parity gate asks for it."""

HIGHER_IS_BETTER = frozenset(
    {"psnr_db", "psnr_db_mean", "cosine", "ssim", "ssim_mean", "cvvdp_jod", "speedup", *BESIDE.values()}
)
"""Metrics (by the last part of their name) that a limit must bound from below; all others from above."""

CASE_SETTINGS = ("pipeline.", "tensorrt.")
"""Sections of the settings that a case may set for itself: what its candidate does, not how it is measured."""

CEILINGS = {
    "psnr_db": 200.0,
    "psnr_db_mean": 200.0,
    "cosine": 1.0,
    "ssim": 1.0,
    "ssim_mean": 1.0,
    "cvvdp_jod": 10.0,
}
"""The largest value a metric can have: a floor above it could never be reached."""


class CaseFileError(ValueError):
    """The case file is wrong; the message names the file, the line, the key and what is allowed."""


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError(f"must be a number, not {value!r}")
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limit(_Model):
    """A bound on one metric: at least ``min`` or at most ``max``, and why that number."""

    min: Number | None = Field(default=None, gt=0)
    max: Number | None = Field(default=None, ge=0)
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _bounds(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("needs a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"has a min ({self.min:g}) above its max ({self.max:g})")
        return self


class Band(_Model):
    """How far a metric may be from its baseline: the larger of ``rel`` (a fraction) and ``abs`` (a value)."""

    rel: Number = Field(ge=0, le=10)
    abs: Number = Field(default=0.0, ge=0)
    reason: str = Field(min_length=1)


class ParityGate(_Model):
    """By metric, floors against the reference (``limits``) and bands around the baseline (``bands``)."""

    limits: dict[str, Limit] = Field(min_length=1)
    bands: dict[str, Band] = Field(default_factory=dict)


class PerfGate(_Model):
    """The least speed-up over stock diffusers (a ratio), and what a timed output must still reach.

    Attributes:
        also: what is timed beside it, by the names of :data:`BESIDE`.
        limits: floors of what ``also`` measures; the lower end of its interval must reach them, and only where the
            upper end does not either it is a ``fail``.
        time_budget: seconds of measuring, where the calls are too long for the setting of that name; the larger one
            holds.
    """

    speedup: Number = Field(default=DEFAULT_SPEEDUP, gt=0)
    reason: str | None = Field(default=None, min_length=1)
    parity: dict[str, Limit] = Field(min_length=1)
    also: tuple[Literal["torch-compile", "no-cuda-graphs"], ...] = ()
    limits: dict[str, Limit] = Field(default_factory=dict)
    bands: dict[str, Band] = Field(default_factory=dict)
    time_budget: Number | None = Field(default=None, gt=0)

    @property
    def below_gate(self) -> bool:
        """Its threshold is under the product's gate; every report marks it."""
        return self.speedup < DEFAULT_SPEEDUP


PEAK_OVER_REFERENCE = "peak_over_reference"
"""What the candidate uses at most over what the reference does (a ratio)."""

PEAK_OVER_PLAN = "peak_over_plan"
"""What a pipeline uses at most over what ``wan-trt memory plan`` predicts (a ratio); measured where a limit asks for
it."""

DEVICE_GROWTH_LIMIT = 1 << 20
"""Bytes a run by which the use of a GPU may seem to grow unless a case says otherwise."""


RELEASE_LIMIT = 4 << 20
"""Bytes by which a process may seem larger after unloading than after it had unloaded before, unless a case says
otherwise; under 1 MiB was measured."""

DEVICE_RELEASE_LIMIT = 32 << 20
"""The same for its use of a GPU."""


class MemoryGate(_Model):
    """Bounds and bands on memory; growth over repeated runs must be nil within ``growth`` (bytes a run).

    Attributes:
        device_growth: the same for all that the process uses on a GPU; judged where there is one.
        release, device_release: bytes that loading, one run and unloading may leave, of what ``growth`` and
            ``device_growth`` are of.
        reference: measure the reference's peaks as well, and ``peak_over_reference``, which ``limits`` may bound.
    """

    limits: dict[str, Limit] = Field(default_factory=dict)
    bands: dict[str, Band] = Field(default_factory=dict)
    growth: Limit
    device_growth: Limit = Limit(
        max=DEVICE_GROWTH_LIMIT,
        reason="the driver gives memory in pieces of 2 MiB; a leak of half a piece a run takes one every second run",
    )
    release: Limit = Limit(
        max=RELEASE_LIMIT,
        reason="arenas that the allocator keeps; weights that stay are more, in any real model",
    )
    device_release: Limit = Limit(
        max=RELEASE_LIMIT,
        reason="pieces of 2 MiB that the driver keeps; what CUDA loads once was there before",
    )
    reference: bool = False


_Gate = TypeVar("_Gate", ParityGate, PerfGate, MemoryGate)

MEAN = "mean."
"""Begins the name of a metric's mean over the prompts of a case; the metric's own name is that of the worst."""


class Prompt(_Model):
    """One of the videos that a pipeline's parity is judged by, a row of a file of prompts.

    Attributes:
        id: stable name: the metrics of this video are ``{id}.video.psnr_db`` and so on, in baselines too.
        seed: of the noise.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    prompt: str = Field(min_length=1)
    negative_prompt: str = ""
    seed: int = Field(default=0, ge=0)


class Case(_Model):
    """One row of the case file.

    Attributes:
        id: stable name; baselines and reports are keyed by it, never by pytest's node id.
        component: a component, or one of :data:`COMPOSITES`.
        precision: of the component; for composites by component, as ``{dit: fp16, vae: fp32}``.
        reference_precision: of stock diffusers; the candidate's own unless given.
        steps: denoising steps of a ``pipeline`` case; the model's own unless given.
        prompts: of a ``pipeline`` case's parity, in the case file the name of a file beside it: limits hold for the
            worst of these videos (and, as ``mean.video.psnr_db``, for their mean), bands for each. One unless given.
        layers: of the transformer of a model with random weights, its first so many; all of them unless given.
        text_encoder: with random weights there is a text encoder as well, of random weights; a checkpoint has its own.
        tf32: products and convolutions of float32 may use TF32, in both arms, whatever ``perf.allow_tf32`` says.
        settings: of ``config.yaml`` that are others for this case, by dotted key (``pipeline.vae_tile: 256``): of
            :data:`CASE_SETTINGS`.
        only_backends: the backends that the case is for. It then runs only where the run names one of them
            (``--wan-backend``), so that a GPU's cases may stand beside those for every machine.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    model: str = Field(min_length=1)
    component: str
    profile: str
    precision: str | dict[str, str]
    reference_precision: str | dict[str, str] | None = None
    backend: str
    steps: int | None = Field(default=None, ge=1)
    prompts: tuple[Prompt, ...] = ()
    layers: int | None = Field(default=None, ge=1)
    text_encoder: bool = False
    tf32: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    only_backends: tuple[str, ...] = ()
    parity: ParityGate | None = None
    perf: PerfGate | None = None
    memory: MemoryGate | None = None

    @property
    def suites(self) -> tuple[Suite, ...]:
        """The suites that this case is in: those it has a gate for."""
        gates: dict[Suite, object] = {"parity": self.parity, "perf": self.perf, "memory": self.memory}
        return tuple(suite for suite, gate in gates.items() if gate is not None)

    @property
    def parity_bands(self) -> Mapping[str, Band]:
        """By metric; with prompts each video has the bands of the worst of them."""
        bands = self.parity.bands if self.parity else {}
        return bands | {
            f"{prompt.id}.{metric}": band
            for prompt in self.prompts
            for metric, band in bands.items()
            if not metric.startswith(MEAN)
        }

    @property
    def stock_precision(self) -> str | dict[str, str]:
        """That of the reference's modules: the candidate's unless ``reference_precision`` is given."""
        return self.reference_precision or self.precision

    @property
    def precision_label(self) -> str:
        """The precision in one word: ``fp32``, or ``dit=fp16,vae=fp32``."""
        if isinstance(self.precision, str):
            return self.precision
        return ",".join(f"{part}={precision}" for part, precision in self.precision.items())


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
            for problem in _name_problems(case.model_dump(), allowed):
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
    if isinstance(gate, PerfGate) and "speedup" in thresholds:
        speedup = limit("speedup", Limit(min=gate.speedup, reason=source))
        new |= {"speedup": speedup.min, "reason": speedup.reason}
    return gate.model_copy(update=new)


def load_cases(path: Path, allowed: Allowed) -> CaseFile:
    """Read a case file.

    ``defaults`` holds keys that complete every case that lacks them. A gate among the defaults (``parity``,
    ``perf``, ``memory``) completes the gate of the cases that have one; it gives no case a gate.

    Raises:
        CaseFileError: with one line ``file:line: what is wrong; allowed: …`` for each mistake.
    """
    document = _Document.read(path)
    root = document.mapping((), ("version", "defaults", "cases"))
    version = root.get("version")
    if version != VERSION or isinstance(version, bool):
        raise document.error(("version",), f"key 'version' is {version!r}; allowed: {VERSION}")
    defaults = document.mapping(("defaults",), _DEFAULTS) if "defaults" in root else {}
    rows = root.get("cases")
    if not isinstance(rows, list) or not rows:
        raise document.error(("cases",), "key 'cases' must be a list with at least one case")
    problems: list[_Problem] = []
    cases = tuple(
        case
        for index, row in enumerate(rows)
        if (case := _read_case(row, defaults, ("cases", index), allowed, problems, path.parent)) is not None
    )
    problems += _duplicates(rows)
    if problems:
        raise document.errors(problems)
    return CaseFile(path, VERSION, cases)


Keys = tuple[str | int, ...]
"""Where something is in the document: mapping keys and list indices from the root."""

_GATES: Mapping[str, type[_Model]] = {"parity": ParityGate, "perf": PerfGate, "memory": MemoryGate}
_BY_METRIC = ("limits", "bands", "parity")
"""Keys of a gate that hold one entry a metric."""

_DEFAULTS = ("model", "component", "profile", "precision", "reference_precision", "backend", *_GATES)


@dataclass(frozen=True)
class _Problem:
    keys: Keys
    message: str


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's floats: 1.1 reads ``1e-5`` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class _Document:
    """A YAML document as plain data, with the line of every key."""

    path: Path
    data: Any
    lines: Mapping[Keys, int]

    @classmethod
    def read(cls, path: Path, what: str = "case file; name one with --wan-cases FILE") -> _Document:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise CaseFileError(f"{path}: no such {what}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise CaseFileError(f"{path}: not readable: {error}") from error
        loader = _Loader(text)
        lines: dict[Keys, int] = {}
        try:
            node = loader.get_single_node()
            data = None if node is None else _plain(node, (), loader, lines, frozenset())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise CaseFileError(f"{path}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise CaseFileError(f"{path}: not valid YAML: {error}") from error
        finally:
            loader.dispose()
        if data is None:
            raise CaseFileError(f"{path}:1: the file is empty; it needs the keys version and cases")
        return cls(path, data, lines)

    def mapping(self, keys: Keys, allowed: Sequence[str]) -> dict[str, Any]:
        """The mapping at ``keys``, if it has no other keys than these.

        Raises:
            CaseFileError: when it is no mapping or has an unknown key.
        """
        value = self.data
        for key in keys:
            value = value[key]
        if not isinstance(value, dict):
            name = f"key '{keys[-1]}'" if keys else "the file"
            raise self.error(keys, f"{name} must be a mapping; allowed: {', '.join(allowed)}")
        unknown = [
            _Problem((*keys, key), _unknown("key", key, allowed)) for key in value if key not in allowed
        ]
        if unknown:
            raise self.errors(unknown)
        return value

    def error(self, keys: Keys, message: str) -> CaseFileError:
        return self.errors([_Problem(keys, message)])

    def errors(self, problems: Iterable[_Problem]) -> CaseFileError:
        """All of them in one error, ``file:line: message`` each, in the order of the file."""
        located = sorted({(self._line(problem.keys), problem.message): None for problem in problems})
        return CaseFileError("\n".join(f"{self.path}:{line}: {message}" for line, message in located))

    def _line(self, keys: Keys) -> int:
        """The line of the nearest key that the file has: in the case, the defaults, or around it."""
        if keys[:1] == ("cases",) and len(keys) > 2:
            whole = _taken_whole(keys[2:])
            if (*keys[:2], *whole) not in self.lines and ("defaults", *whole) in self.lines:
                keys = ("defaults", *keys[2:])
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)


def _plain(
    node: yaml.Node, keys: Keys, loader: _Loader, lines: dict[Keys, int], above: frozenset[int]
) -> Any:
    """A node as plain data; its line is that of its key."""
    lines.setdefault(keys, node.start_mark.line + 1)
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias refers to what it is in", problem_mark=node.start_mark)
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*keys, index), loader, lines, above) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    _refuse_twice(node)
    loader.flatten_mapping(node)  # resolves "<<"; the mapping's own keys come last and win
    mapping: dict[str, Any] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=name.start_mark)
        key = str(name.value)
        lines[*keys, key] = name.start_mark.line + 1
        mapping[key] = _plain(value, (*keys, key), loader, lines, above)
    return mapping


def _refuse_twice(node: yaml.MappingNode) -> None:
    """YAML lets the last of two equal keys win in silence; here a threshold would vanish that way."""
    seen: set[str] = set()
    # an aliased mapping is visited again after it was flattened
    merged = getattr(node, "wan_flattened", False)
    for name, _ in node.value:
        if not merged and name.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key '{name.value}' is given twice", problem_mark=name.start_mark
            )
        seen.add(str(name.value))
    node.wan_flattened = True  # type: ignore[attr-defined]


def _read_case(
    row: Any,
    defaults: Mapping[str, Any],
    keys: Keys,
    allowed: Allowed,
    problems: list[_Problem],
    folder: Path,
) -> Case | None:
    if not isinstance(row, dict):
        problems.append(_Problem(keys, f"a case must be a mapping; allowed: {', '.join(Case.model_fields)}"))
        return None
    values = _with_defaults(row, defaults)
    who = f"case '{values.get('id', f'number {int(keys[-1]) + 1}')}'"
    found = [
        *_name_problems(values, allowed),
        *_gate_problems(values, allowed),
        *_prompt_problems(values),
        *_setting_problems(values.get("settings")),
    ]
    if isinstance(values.get("prompts"), str):
        values["prompts"] = _read_prompts(folder / values["prompts"])
    case = None
    try:
        case = Case.model_validate(values)
    except ValidationError as error:
        named = {problem.keys for problem in found}
        found += [problem for problem in _explained(error) if problem.keys not in named]
    if case is not None and not case.suites:
        found.append(
            _Problem((), f"has no gate, so nothing would judge it; give it one of {', '.join(SUITES)}")
        )
    problems += [_Problem((*keys, *problem.keys), f"{who}: {problem.message}") for problem in found]
    return case


def _setting_problems(settings: Any) -> Iterator[_Problem]:
    for key in settings if isinstance(settings, dict) else ():
        allowed = [known for known in KEYS if known.startswith(CASE_SETTINGS)]
        if key not in allowed:
            yield _Problem(("settings", key), _unknown("key", f"settings.{key}", allowed))
            continue
        try:
            with_values(Settings(), {key: settings[key]})
        except ConfigError as error:
            yield _Problem(("settings", key), f"key 'settings.{key}': {error}")


def _prompt_problems(values: Mapping[str, Any]) -> Iterator[_Problem]:
    if "prompts" not in values:
        return
    if not isinstance(values["prompts"], str):
        yield _Problem(("prompts",), "key 'prompts' must name a file beside the case file, as prompts.yaml")
    elif values.get("component") != "pipeline" or "parity" not in values:
        yield _Problem(("prompts",), "key 'prompts' is for the parity of the component pipeline only")


def _read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a file of prompts.

    Raises:
        CaseFileError: as :func:`load_cases`.
    """
    document = _Document.read(path, "file of prompts")
    root = document.mapping((), ("version", "prompts"))
    if root.get("version") != VERSION or isinstance(root["version"], bool):
        raise document.error(("version",), f"key 'version' is {root.get('version')!r}; allowed: {VERSION}")
    rows = root.get("prompts")
    if not isinstance(rows, list) or not rows:
        raise document.error(("prompts",), "key 'prompts' must be a list with at least one prompt")
    prompts, problems = [], [*_duplicates(rows, "prompts")]
    for index in range(len(rows)):
        row = document.mapping(("prompts", index), tuple(Prompt.model_fields))
        if row.get("id") == MEAN.rstrip("."):
            problems.append(_Problem(("prompts", index, "id"), "key 'id' is 'mean', the name of their mean"))
        try:
            prompts.append(Prompt.model_validate(row))
        except ValidationError as error:
            problems += [
                _Problem(("prompts", index, *problem.keys), problem.message) for problem in _explained(error)
            ]
    if problems:
        raise document.errors(problems)
    return tuple(prompts)


def _with_defaults(row: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in defaults.items() if key not in _GATES} | dict(row)
    for suite in _GATES:
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
    for name in _BY_METRIC:
        if isinstance(own.get(name), dict) and isinstance(default.get(name), dict):
            merged = {**default[name], **own[name]}
            gate[name] = {
                metric: entry
                for metric, entry in merged.items()
                if entry is not None or metric not in default[name]
            }
    return gate


def _taken_whole(keys: Keys) -> Keys:
    """The part of a case around ``keys`` that comes either from the case or from the defaults."""
    if keys[0] not in _GATES:
        return keys[:1]
    return keys[:3] if keys[1:2] and keys[1] in _BY_METRIC else keys[:2]


def _name_problems(values: Mapping[str, Any], allowed: Allowed) -> Iterator[_Problem]:
    components = (*sorted(allowed.components), *COMPOSITES)
    for key, names in (("component", components), ("backend", sorted(allowed.backends))):
        if isinstance(values.get(key), str) and values[key] not in names:
            yield _Problem((key,), _unknown(key, values[key], names))
    for index, backend in enumerate(values.get("only_backends") or ()):
        if backend not in allowed.backends:
            yield _Problem(("only_backends", index), _unknown("backend", backend, sorted(allowed.backends)))
    model, profile = values.get("model"), values.get("profile")
    if isinstance(model, str) and allowed.models and model not in allowed.models and not _is_folder(model):
        yield _Problem(
            ("model",), _unknown("model", model, allowed.models) + ", or a folder in diffusers format"
        )
    profiles = allowed.models.get(model, ()) if isinstance(model, str) else ()
    if isinstance(profile, str) and profiles and profile not in profiles:
        yield _Problem(("profile",), _unknown("profile", profile, profiles))
    for key in ("precision", "reference_precision"):
        if values.get(key) is not None:
            yield from _precision_problems(key, values[key], values.get("component") in COMPOSITES)
    perf = values.get("perf")
    also = perf.get("also") if isinstance(perf, dict) else None
    if isinstance(also, (list, tuple)) and "no-cuda-graphs" in also and values.get("backend") != "tensorrt":
        yield _Problem(
            ("perf", "also"),
            f"key 'perf.also' asks for no-cuda-graphs, but the backend is {values.get('backend')}; only tensorrt"
            " replays CUDA graphs",
        )


def _is_folder(model: str) -> bool:
    return "/" in model or "\\" in model or Path(model).is_dir()


def _precision_problems(key: str, value: Any, composite: bool) -> Iterator[_Problem]:
    if not isinstance(value, dict):
        if value not in PRECISIONS:
            yield _Problem((key,), _unknown(key, value, PRECISIONS))
        return
    if not composite:
        only = f"only {', '.join(COMPOSITES)} have a precision for each part"
        yield _Problem((key,), f"key '{key}' must be one word, {only}; allowed: {', '.join(PRECISIONS)}")
        return
    for part, precision in value.items():
        if part not in PRECISION_PARTS:
            yield _Problem(
                (key, part), _unknown("key", f"{key}.{part}", [f"{key}.{p}" for p in PRECISION_PARTS])
            )
        elif precision not in PRECISIONS:
            yield _Problem((key, part), _unknown(f"{key}.{part}", precision, PRECISIONS))


def _gate_problems(values: Mapping[str, Any], allowed: Allowed) -> Iterator[_Problem]:
    """What a schema cannot say: unknown metrics, limits on the wrong side, a gate under the product's."""
    for suite in _GATES:
        gate = values.get(suite)
        if not isinstance(gate, dict):
            continue
        for name in _BY_METRIC:
            entries = gate.get(name)
            if isinstance(entries, dict) and name in _GATES[suite].model_fields:
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
            yield from _memory_problems(gate, values.get("component"))
        if suite == "parity":
            yield from _stock_problems(gate, values)
        if suite == "perf":
            yield from _speedup_problems(gate, values.get("component"), not values.get("settings"))
            yield from _beside_problems(gate)


def _memory_problems(gate: Mapping[str, Any], component: Any) -> Iterator[_Problem]:
    for name in ("growth", "device_growth", "release", "device_release"):
        if isinstance(gate.get(name), dict) and "max" not in gate[name]:
            yield _Problem(("memory", name), f"key 'memory.{name}' needs a max (bytes)")
    limits = gate.get("limits")
    if component != "pipeline" and isinstance(limits, dict) and PEAK_OVER_PLAN in limits:
        message = f"key 'memory.limits.{PEAK_OVER_PLAN}' is measured of pipeline, not of components"
        yield _Problem(("memory", "limits", PEAK_OVER_PLAN), message)
    if gate.get("reference") is True:
        return
    for name in ("limits", "bands"):
        entries = gate.get(name)
        for metric in entries if isinstance(entries, dict) else ():
            if metric == PEAK_OVER_REFERENCE or metric.startswith("reference_"):
                message = (
                    f"key 'memory.{name}.{metric}' needs 'reference: true' beside it, or it is never measured"
                )
                yield _Problem(("memory", name, metric), message)


def _stock_problems(gate: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[_Problem]:
    """A limit on the error over stock diffusers' is only for tensors, and where the reference is not that already."""
    for name in ("limits", "bands"):
        entries = gate.get(name)
        if not isinstance(entries, dict) or ERROR_OVER_STOCK not in entries:
            continue
        key = f"key 'parity.{name}.{ERROR_OVER_STOCK}'"
        if values.get("reference_precision") in (None, values.get("precision")):
            message = f"{key} needs a reference_precision other than the case's precision"
            yield _Problem(("parity", name, ERROR_OVER_STOCK), message)
        elif values.get("component") == "pipeline":
            message = f"{key} is measured of components, not of pipeline"
            yield _Problem(("parity", name, ERROR_OVER_STOCK), message)


def _metric_problems(
    keys: Keys, metric: str, entry: Any, metrics: Collection[str], limited: bool
) -> Iterator[_Problem]:
    if metrics and metric not in metrics:
        yield _Problem(keys, _unknown("metric", metric, metrics))
        return
    if not limited or not isinstance(entry, dict):
        return
    kind = metric.rpartition(".")[2]
    side = "min" if kind in HIGHER_IS_BETTER else "max"
    if {"min", "max"} & set(entry) and side not in entry:
        better = "higher" if side == "min" else "lower"
        yield _Problem(keys, f"key '{_dotted(keys)}' needs a {side}: {kind} is better when {better}")
    floor = entry.get("min")
    if isinstance(floor, (int, float)) and floor > CEILINGS.get(kind, floor):
        yield _Problem(
            (*keys, "min"), f"key '{_dotted((*keys, 'min'))}' is {floor:g}, {kind} ends at {CEILINGS[kind]:g}"
        )


def _speedup_problems(gate: Mapping[str, Any], component: Any, plain: bool) -> Iterator[_Problem]:
    """A whole video holds the gate, unless settings of its case give time for memory, and a reason says what."""
    speedup = gate.get("speedup", DEFAULT_SPEEDUP)
    if (
        isinstance(speedup, bool)
        or not isinstance(speedup, (int, float))
        or not 0 < speedup < DEFAULT_SPEEDUP
    ):
        return
    given = f"key 'perf.speedup' is {speedup:g}"
    if component == "pipeline" and plain:
        yield _Problem(
            ("perf", "speedup"),
            f"{given}: the whole-video case always holds the gate; allowed: {DEFAULT_SPEEDUP:g} and more",
        )
    elif not gate.get("reason"):
        yield _Problem(
            ("perf", "speedup"),
            f"{given}, under the gate of {DEFAULT_SPEEDUP:g}: it needs a 'reason' beside it",
        )


def _beside_problems(gate: Mapping[str, Any]) -> Iterator[_Problem]:
    """A limit on what is never measured would be missing in every run."""
    also, limits = gate.get("also", ()), gate.get("limits")
    for name, metric in BESIDE.items():
        if (
            isinstance(limits, dict)
            and metric in limits
            and isinstance(also, list | tuple)
            and name not in also
        ):
            yield _Problem(("perf", "limits", metric), f"a limit of {metric} needs '{name}' in 'perf.also'")


def _duplicates(rows: Iterable[Any], key: str = "cases") -> Iterator[_Problem]:
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield _Problem(
                (key, index, "id"),
                f"key 'id' is '{name}', as in {key[:-1]} number {first[name] + 1}; ids must differ",
            )


def _explained(error: ValidationError) -> Iterator[_Problem]:
    """Pydantic's errors in the words of this file."""
    for details in error.errors(include_url=False):
        keys: Keys = details["loc"]
        if keys and keys[0] in ("precision", "reference_precision"):
            keys = keys[:1]  # the rest names the branches of a union
        name, given = _dotted(keys), details["input"]
        message = (
            details["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
        )
        if details["type"] == "extra_forbidden":
            yield _Problem(keys, _unknown("key", str(keys[-1]), _fields_at(keys[:-1]), shown=name))
        elif details["type"] == "missing":
            yield _Problem(keys, f"key '{name}' is missing")
        elif details["type"] == "value_error":
            yield _Problem(keys, f"key '{name}' {message}")
        else:
            yield _Problem(keys, f"key '{name}' is {_short(given)}: {message[:1].lower()}{message[1:]}")


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


def _unknown(kind: str, value: Any, allowed: Iterable[Any], *, shown: str | None = None) -> str:
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    subject = f"key '{shown or value}' is unknown" if kind == "key" else f"key '{kind}': no {kind} '{value}'"
    if kind == "metric":
        subject = f"no metric '{value}'"
    return f"{subject}{hint}; allowed: {', '.join(names)}"


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
