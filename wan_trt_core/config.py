"""Settings: one validated tree from ``config.yaml``, ``WAN_TRT_*`` variables and the command line.

Later sources win: defaults < YAML < environment < command line. Every setting remembers where it came from,
and every error names the file and line (or the variable, or the option), the key, and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

CONFIG_FILE = "config.yaml"
"""Read from the working directory when no other file is named."""

ENVIRONMENT_PREFIX = "WAN_TRT_"
CONFIG_VARIABLE = "WAN_TRT_CONFIG"
"""Names the YAML file; set but empty, no file is read."""
TEST_PREFIX = "WAN_TRT_TEST_"
"""Variables that belong to this repository's own tests and are no settings."""

CASE_FIELDS = ("model", "backend", "profile")
"""Settings that replace a case's own field, in every case, where :attr:`Loaded.overrides` has them."""

DEFAULT = "default"

AUTO = "auto"
"""The setting ``backend`` where nobody named one: :func:`~wan_trt_core.backends.registry.with_backend` does."""

ON_ANY_MACHINE = "onnxruntime"
"""The backend that needs no GPU."""

OUTPUTS = Path("outputs")
"""Folder of what commands and suites write unless they are told another."""

THREADS_PER_CORE = 8
MOST_THREADS = THREADS_PER_CORE * (os.cpu_count() or 1)
"""Far more than are of use. Some hundred times as many bring a machine to a stop, and are not ended by a signal."""

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^\s@]+))?", re.ASCII)
"""A model of the Hugging Face hub: ``owner/name``, or ``owner/name@revision`` (branch, tag or commit)."""

_OF_MODEL = re.compile(r"(?P<model>\w[\w.-]*)=(?P<place>.+)", re.ASCII)
"""The checkpoint of one model, ``MODEL=FOLDER``. A name has no slash, so a folder below an ``a=b`` is none of these."""


class ConfigError(ValueError):
    """A setting is wrong; the message names its source, the key and what is allowed."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def _threads(number: int | None) -> int | None:
    """The number of threads, if it is none that the machine cannot bear."""
    if number is not None and number > MOST_THREADS:
        raise ValueError(f"at most {MOST_THREADS}, which is {THREADS_PER_CORE} for each core of this machine")
    return number


class ExportSettings(_Model):
    """How a component becomes ONNX."""

    opset: int = Field(default=20, ge=18, le=24, description="ONNX opset; 20 is what TensorRT 10.6 parses")
    check: bool = Field(
        default=True,
        description="compare the exported graph with PyTorch at the profile's min, opt and max, as far as affordable",
    )
    check_tflop: float | None = Field(
        default=1.0,
        gt=0,
        description="work of a call, in 10^12 operations, up to which a size is compared if memory suffices (else the"
        " next smaller); null: all sizes",
    )
    check_range: bool = Field(
        default=True, description="refuse FP16 where a layer's largest activation comes near its end (3e4)"
    )
    fp32_tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="largest relative L2 difference of a float32 graph from PyTorch"
    )
    fp16_tolerance: float = Field(
        default=2e-2, gt=0, lt=1, description="the same for a graph in half precision"
    )


class OnnxRuntimeSettings(_Model):
    """The ``onnxruntime`` backends. On a GPU TF32 is ``perf.allow_tf32``; ``onnxruntime-tensorrt`` also takes the
    workspace, optimization level and timing cache of the ``tensorrt`` section."""

    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = Field(
        default="all", description="how far the graph is optimised when the engine is built"
    )
    allow_spinning: bool = Field(
        default=True, description="let worker threads spin between the operators of one run"
    )
    cudnn_conv_algo_search: Literal["exhaustive", "heuristic", "default"] = Field(
        default="exhaustive", description="how onnxruntime-cuda finds the algorithm of a convolution"
    )
    cuda_graph: bool = Field(
        default=False, description="replay what onnxruntime-cuda runs repeatedly as CUDA graphs"
    )


class PipelineSettings(_Model):
    """What a pipeline does to need less memory, each at a price (``docs/memory.md``). In a comparison they are the
    candidate's, but for ``vae_tile``: tiles change the video, so stock diffusers decodes in the same."""

    text_encoder_device: Literal["auto", "cpu"] = Field(
        default="auto", description="where the text encoder runs; auto is where all else does"
    )
    offload: bool = Field(
        default=False,
        description="hold a component on the GPU only during its own stage; modules wait in pinned host memory,"
        " engines are loaded again",
    )
    vae_tile: int | None = Field(
        default=None,
        ge=64,
        multiple_of=64,
        description="decode in overlapping tiles of so many pixels a side, as diffusers does; by default whole frames",
    )
    vae_frames_per_step: Literal[1, 2] = Field(
        default=1,
        description="latent frames that the VAE decoder's engine does a step; two halve the passes over its caches and"
        " need twice the scratch memory",
    )
    vae_lean: bool = Field(
        default=False,
        description="the VAE decoder's engines keep their caches in half precision (the 11 bits that a TF32 product"
        " takes of them, up to 65,504) and do their last block two frames at a time: half the caches, less scratch",
    )
    attention_slicing: int | None = Field(
        default=None,
        ge=1,
        description="queries that attention in PyTorch looks at a time, where no fused kernel does; by default all",
    )


class TorchCompileSettings(_Model):
    """The ``torch-compile`` backend."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        default="default", description="mode of torch.compile"
    )
    regional: bool = Field(
        default=True,
        description="compile a model's repeated blocks only, where it names them: seconds instead of minutes; else all"
        " of it",
    )


class TensorRtSettings(_Model):
    """The ``tensorrt`` backend. TF32 is ``perf.allow_tf32``, which holds for both arms of a comparison."""

    profiles: tuple[Literal["range", "fixed"], ...] = Field(
        default=("range",),
        min_length=1,
        description="optimization profiles: range is the shape profile's min to max, fixed its opt alone",
    )
    workspace_gib: float | None = Field(
        default=None, gt=0, description="scratch memory that a kernel may use, GiB; by default all there is"
    )
    optimization_level: int = Field(default=3, ge=0, le=5, description="effort of the builder, 0 to 5")
    max_tactics: int | None = Field(
        default=None,
        ge=1,
        description="kernels that are timed for one layer, the likeliest ones first; by default TensorRT's own choice;"
        " from TensorRT 10.4",
    )
    limited_components: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="components whose engines are built with workspace_gib and max_tactics, the others with all kernels"
        " (vae: decoder and encoder); by default all",
    )
    builder_threads: int | None = Field(
        default=None, ge=1, description="threads that the builder may use; by default TensorRT's own choice"
    )
    timing_cache: bool = Field(
        default=True, description="keep the timings of kernels in the cache, for all builds on this GPU"
    )
    self_attention: Literal["auto", "plain", "centred", "bf16"] = Field(
        default="auto",
        description="of an FP16 transformer: plain; centred, of values less their mean; or in bf16, whose sums are"
        " float32; auto is bf16 where a video may have more than 16,384 tokens, else centred; of the backend"
        " tensorrt alone",
    )
    weight_streaming: bool = Field(
        default=False, description="build engines whose weights may stay in host memory"
    )
    weight_streaming_budget_gib: float | None = Field(
        default=None, ge=0, description="weights kept on the GPU, GiB; by default all of them"
    )
    share_scratch: bool = Field(
        default=True, description="lend scratch memory to one engine at a time; else each has its own"
    )
    cuda_graphs: bool = Field(default=True, description="replay each shape's work as a CUDA graph")
    max_graphs: int = Field(default=8, ge=1, description="CUDA graphs that an engine keeps at most")

    @field_validator("builder_threads")
    @classmethod
    def _few_enough(cls, threads: int | None) -> int | None:
        return _threads(threads)

    @field_validator("profiles")
    @classmethod
    def _each_once(cls, profiles: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(profiles)) < len(profiles):
            raise ValueError("a profile is named twice")
        return profiles


class PerfSettings(_Model):
    """How performance is measured. Thresholds belong to the case file, not here."""

    time_budget: float = Field(
        default=60.0, gt=0, description="seconds a case may go on measuring before it is inconclusive"
    )
    min_pairs: int = Field(
        default=3, ge=3, description="pairs of timed runs before the first decision; then one every second"
    )
    max_pairs: int = Field(default=30, ge=3, description="pairs of timed runs at most")
    confidence: float = Field(
        default=0.99, gt=0.5, lt=1, description="confidence of the interval of the speed-up"
    )
    warmup: int = Field(default=1, ge=0, description="runs of each arm before any is timed")
    warmup_time: float = Field(
        default=0.0, ge=0, description="seconds of warm-up at least; a GPU's clocks take some to settle"
    )
    min_sample_time: float | None = Field(
        default=None,
        ge=0,
        description="seconds that one timed run covers at least, by repeating short calls; 0.1 on a CPU, 0.5 on a GPU",
    )
    noise_pairs: int = Field(
        default=3,
        ge=2,
        description="pairs of the candidate against itself, the noise floor; more while they are cheap",
    )
    allow_tf32: bool | None = Field(
        default=None,
        description="TF32 for the float32 products of engines and PyTorch; by default as in PyTorch, in convolutions"
        " (the VAE's) alone, and in the suites nowhere",
    )
    also_pairs: int = Field(
        default=9, ge=3, description="pairs of what a case times beside its gate (its perf.also)"
    )
    kernels: bool = Field(
        default=True, description="profile one call of each arm in a process of its own (GPU, onnxruntime)"
    )

    @model_validator(mode="after")
    def _order(self) -> PerfSettings:
        if self.min_pairs > self.max_pairs:
            raise ValueError(f"min_pairs ({self.min_pairs}) must not exceed max_pairs ({self.max_pairs})")
        return self


class MemorySettings(_Model):
    """How memory is measured."""

    runs: int = Field(
        default=20,
        ge=5,
        description="repeated runs, at the profile's min size, over which memory must not grow",
    )
    warmup: int = Field(
        default=2, ge=0, description="runs before the one whose peak counts, and before those"
    )
    budget: int | None = Field(
        default=None,
        gt=0,
        description="all that the candidate can have of a GPU meanwhile, as 12GB or 800MB; by default no limit",
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _bytes(cls, budget: Any) -> Any:
        if not isinstance(budget, str):
            return budget
        return parse_size(budget)


def parse_size(text: str) -> int:
    """Bytes of ``24GB``, ``24 GiB`` or ``800MB``: a GPU that is sold as one of 24 GB has 24 GiB.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:(m)i?b|gi?b)", text.strip(), re.IGNORECASE)
    size = round(float(found[1]) * (2**20 if found[2] else 2**30)) if found else 0
    if not size:
        raise ValueError(f"{text!r} is no size; give it as 24GB or 800MB")
    return size


class LogSettings(_Model):
    """What is logged, and where."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe message that is logged"
    )
    file: Path | None = Field(default=None, description="also log to this file (appended)")


class Settings(_Model):
    """Every setting, validated. Paths are absolute once loaded by :func:`load_settings`."""

    model: str = Field(
        default="tiny-wan",
        min_length=1,
        description="a name of the catalogue, a folder in diffusers format, or an id on the hub",
    )
    checkpoint: Path | str | dict[str, Path | str] | None = Field(
        default=None,
        description="folder or hub id of the weights, or of each model's by its name; by default those installed, else"
        " seeded random ones",
    )
    backend: str = Field(
        default=AUTO,
        min_length=1,
        description="what runs the candidate; auto is tensorrt where it is installed and PyTorch sees a GPU, else"
        " onnxruntime",
    )
    profile: str | None = Field(
        default=None,
        description="shape profile; by default the first, for commands the first that serves the video",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where both arms run; auto is where the backend runs",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of both arms alike; by default one a physical core, 8 a core at most",
    )
    cache: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("wan-trt", appauthor=False)),
        description="folder of the ONNX files and engines; by default in the user's cache folder",
    )
    baselines: Path = Field(default=Path("baselines"), description="folder of the stored baselines")
    report: Path = Field(default=OUTPUTS / "report", description="folder of results.json and the reports")
    strict_improvements: bool = Field(
        default=False, description="fail what is better than its baseline too, until it has a new one"
    )
    on_missing_shape: Literal["build", "nearest", "torch"] = Field(
        default="build",
        description="what accelerate does for a video that no engine serves: build one of its size, use the nearest"
        " profile that contains it, or run in PyTorch",
    )
    engine_lock_timeout: float = Field(
        default=1800.0, gt=0, description="seconds to wait for another process that builds the same engine"
    )
    export: ExportSettings = Field(default_factory=ExportSettings)
    onnxruntime: OnnxRuntimeSettings = Field(default_factory=OnnxRuntimeSettings)
    tensorrt: TensorRtSettings = Field(default_factory=TensorRtSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    torch_compile: TorchCompileSettings = Field(default_factory=TorchCompileSettings)
    perf: PerfSettings = Field(default_factory=PerfSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @field_validator("threads")
    @classmethod
    def _few_enough(cls, threads: int | None) -> int | None:
        return _threads(threads)

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _one_or_by_model(cls, given: Any) -> Any:
        by_model = given if isinstance(given, Mapping) else {"": given}
        fit = (isinstance(name, str) and isinstance(place, (str, Path)) for name, place in by_model.items())
        if given is not None and not (by_model and all(fit)):
            raise ValueError("a folder, an id on the hub, or a mapping of models to those")
        return given

    def checkpoint_of(self, model: str) -> Path | str | None:
        """Folder or hub id of a model's weights, where one is given: its own, or that of all models."""
        return self.checkpoint.get(model) if isinstance(self.checkpoint, dict) else self.checkpoint

    def flat(self) -> dict[str, Any]:
        """Every setting by dotted key, in JSON's types."""
        return dict(_flatten(self.model_dump(mode="json")))


@dataclass(frozen=True)
class Setting:
    """One setting as it came out, for people: ``wan-trt doctor`` prints these."""

    key: str
    value: Any
    source: str
    help: str


@dataclass(frozen=True)
class Loaded:
    """The settings and, by dotted key, where each came from.

    Attributes:
        sources: ``default``, ``config.yaml:LINE``, a ``WAN_TRT_`` variable, or a ``--option``.
        config_file: the YAML file that was read, if there was one.
    """

    settings: Settings
    sources: Mapping[str, str]
    config_file: Path | None

    @property
    def overrides(self) -> dict[str, str]:
        """Those of :data:`CASE_FIELDS` that the command line or the environment names.

        ``config.yaml`` does not: it holds defaults, and the case file is more specific.
        """
        values = {name: getattr(self.settings, name) for name in CASE_FIELDS}
        return {
            name: str(value)
            for name, value in values.items()
            if value not in (None, AUTO) and self.sources[name].startswith(("--", ENVIRONMENT_PREFIX))
        }

    def describe(self) -> tuple[Setting, ...]:
        """Every setting with its value, source and meaning, in the order of the tree."""
        values = self.settings.flat()
        return tuple(
            Setting(key, values[key], self.sources[key], KEYS[key].description or "") for key in KEYS
        )


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if _is_section(field):
            yield from _leaves(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", field


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if f"{prefix}{name}" in SECTIONS:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


KEYS: Mapping[str, FieldInfo] = dict(_leaves(Settings))
"""Every setting by dotted key, in the order of the tree."""

SECTIONS = frozenset(key.rpartition(".")[0] for key in KEYS if "." in key)


@dataclass(frozen=True)
class _Given:
    """A value that one source gave."""

    value: Any
    source: str


def load_settings(
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    option_prefix: str = "--",
) -> Loaded:
    """Read and validate the settings.

    Args:
        config_file: YAML file; otherwise ``$WAN_TRT_CONFIG``, otherwise ``config.yaml`` in the working
            directory if there is one. Its relative paths are relative to its own folder.
        overrides: from the command line, by dotted key (``perf.time_budget``); ``None`` means not given.
        environ: environment variables; the process's own by default.
        option_prefix: how the caller's options begin, so that errors name them (``--wan-`` in pytest).

    Raises:
        ConfigError: for an unreadable file, an unknown key or variable, or a value that is not allowed.
    """
    environ = os.environ if environ is None else environ
    file = _find_file(config_file, environ)
    given: dict[str, _Given] = {}
    if file is not None:
        given |= _from_yaml(file)
    given |= _from_environment(environ)
    given |= _from_options(overrides or {}, option_prefix)
    settings = _validate(given)
    sources = {key: given[key].source if key in given else DEFAULT for key in KEYS}
    return Loaded(settings, sources, file)


def checkpoints(texts: Sequence[str], source: str) -> str | dict[str, str]:
    """The setting ``checkpoint`` as text: the one folder or hub id of all models, or ``MODEL=FOLDER`` for each.

    Args:
        source: where it was given, for the error.

    Raises:
        ConfigError: when one of several names no model, or two name the same.
    """
    found = [(text, _OF_MODEL.fullmatch(text)) for text in texts]
    if len(found) == 1 and found[0][1] is None:
        return texts[0]
    by_model: dict[str, str] = {}
    for text, named in found:
        if named is None:
            raise ConfigError(
                f"{source}: {text!r} is no MODEL=FOLDER or MODEL=ID, and a checkpoint of all models goes with no other"
            )
        if named["model"] in by_model:
            raise ConfigError(f"{source}: the checkpoint of {named['model']} is given twice")
        by_model[named["model"]] = named["place"]
    return by_model


def of_suites(settings: Settings) -> Settings:
    """The settings as the suites have them: without TF32 unless it is given, here or by a case, so that a case which
    does not ask for it compares float32 with float32; and, since each case names its backend, not with that which a
    machine's equipment would choose."""
    own: dict[str, Any] = {}
    if settings.perf.allow_tf32 is None:
        own["perf.allow_tf32"] = False
    if settings.backend == AUTO:
        own["backend"] = ON_ANY_MACHINE
    return with_values(settings, own) if own else settings


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with some replaced, by dotted key.

    Raises:
        ConfigError: for a key or a value that there is not.
    """
    unknown = next((key for key in values if key not in KEYS), None)
    if unknown is not None:
        raise ConfigError(f"unknown setting {unknown!r}; {_allowed(unknown)}")
    given = {key: _Given(attrgetter(key)(settings), DEFAULT) for key in KEYS}
    return _validate(given | {key: _Given(value, "given") for key, value in values.items()})


def _find_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config_file is None and CONFIG_VARIABLE in environ:
        named = environ[CONFIG_VARIABLE]
        if not named:
            return None
        config_file = Path(named)
        if not config_file.is_file():
            raise ConfigError(f"{CONFIG_VARIABLE}: no file {config_file}")
    if config_file is not None:
        if not config_file.is_file():
            raise ConfigError(f"{config_file}: no such settings file")
        return config_file
    default = Path(CONFIG_FILE)
    return default if default.is_file() else None


def _from_yaml(file: Path) -> dict[str, _Given]:
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from error
    given: dict[str, _Given] = {}
    if node is not None:
        _read_mapping(node, "", file, given)
    return given


def _read_mapping(node: yaml.Node, section: str, file: Path, given: dict[str, _Given]) -> None:
    if not isinstance(node, yaml.MappingNode):
        if section and _scalar(node) is None:
            return  # a section whose every line is commented out
        what = section or "the file"
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: {what} must be a mapping of settings")
    seen: set[str] = set()
    for name_node, value_node in node.value:
        where = f"{file}:{name_node.start_mark.line + 1}"
        name = str(name_node.value)
        key = f"{section}.{name}" if section else name
        if key in seen:
            raise ConfigError(f"{where}: {key}: given twice")
        seen.add(key)
        if key in SECTIONS:
            _read_mapping(value_node, key, file, given)
        elif key not in KEYS:
            raise ConfigError(f"{where}: {key}: unknown setting; {_allowed(key)}; {_other_file()}")
        else:
            value = _construct(value_node, where, key, file)
            if value is not None:  # null stands for the default
                given[key] = _Given(_resolve_path(key, value, file.parent), where)


def _scalar(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node) if isinstance(node, yaml.ScalarNode) else node


def _construct(node: yaml.Node, where: str, key: str, file: Path) -> Any:
    if isinstance(node, yaml.MappingNode):  # of which YAML's loader would keep the last of each name
        seen: set[str] = set()
        for name_node, _ in node.value:
            if (name := str(name_node.value)) in seen:
                raise ConfigError(f"{file}:{name_node.start_mark.line + 1}: {key}.{name}: given twice")
            seen.add(name)
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {key}: not a plain YAML value: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable.startswith(TEST_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if key not in KEYS:
            raise ConfigError(f"{variable}: unknown setting {key!r}; {_allowed(key, _variable)}")
        if not text:
            continue  # CI systems pass unset inputs as empty variables
        value = _parse(text, KEYS[key])
        if key == "checkpoint" and value is not None:
            value = checkpoints(text.split(",") if _OF_MODEL.fullmatch(text) else [text], variable)
        given[key] = _Given(_resolve_path(key, value, Path()), variable)
    return given


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")


def _from_options(overrides: Mapping[str, Any], prefix: str) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for key, value in overrides.items():
        option = prefix + key.removeprefix("pipeline.").removeprefix("tensorrt.").replace(".", "-").replace(
            "_", "-"
        )
        if key not in KEYS:
            raise ConfigError(f"{option}: unknown setting {key!r}; {_allowed(key)}")
        if value is None:
            continue
        if isinstance(value, str):
            value = _parse(value, KEYS[key])
        given[key] = _Given(_resolve_path(key, value, Path()), option)
    return given


def _parse(text: str, field: FieldInfo) -> Any:
    """A variable's text as the setting's type; pydantic turns it into numbers and truth values itself."""
    if get_origin(field.annotation) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if type(None) in get_args(field.annotation) and text.lower() in ("null", "none"):
        return None
    return text


def _resolve_path(key: str, value: Any, base: Path) -> Any:
    if isinstance(value, Mapping):
        return {name: _resolve_path(key, each, base) for name, each in value.items()}
    annotation = KEYS[key].annotation
    if not isinstance(value, (str, Path)) or not (annotation is Path or Path in get_args(annotation)):
        return value
    path = (base / Path(value).expanduser()).absolute()
    may_be_id = str in get_args(annotation) and not path.is_dir()
    return str(value) if may_be_id and HUB_ID.fullmatch(str(value)) else path


def _validate(given: Mapping[str, _Given]) -> Settings:
    tree: dict[str, Any] = {}
    for key, item in given.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = item.value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, given) for problem in error.errors())) from error
    folders = {key: getattr(settings, key).absolute() for key in ("cache", "baselines", "report")}
    return settings.model_copy(update=folders)


def _explain(problem: Any, given: Mapping[str, _Given]) -> str:
    key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if key in given:
        return f"{given[key].source}: {key}: {given[key].value!r} is not allowed: {message}"
    sources = [  # a rule over several settings: those that its message names
        item.source
        for name, item in given.items()
        if name.startswith(f"{key}.") and name.rpartition(".")[2] in message
    ]
    return f"{', '.join(sources) or DEFAULT}: {key}: {message}"


def _allowed(key: str, spell: Callable[[str], str] = str) -> str:
    """What may stand where ``key`` stands: the nearest names first, else the whole section."""
    if near := difflib.get_close_matches(key, KEYS, n=3, cutoff=0.75):
        return f"did you mean {' or '.join(spell(name) for name in near)}?"
    section = key.rpartition(".")[0]
    if section in SECTIONS:
        return f"allowed: {', '.join(spell(name) for name in KEYS if name.startswith(f'{section}.'))}"
    names = dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in KEYS)
    return f"allowed: {', '.join(spell(name) for name in names)}"


def _other_file() -> str:
    return f"if this is not a file of wan-trt, name another in {CONFIG_VARIABLE} (empty reads none)"
