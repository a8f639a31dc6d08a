"""From a component's name to a loaded engine: export, build, load, each only when the cache has no answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import wan_trt_core
from wan_trt_core.backends.base import (
    BackendUnavailable,
    Engine,
    EngineBackend,
    OnnxModel,
    Progress,
)
from wan_trt_core.backends.registry import engine_backend, get_backend
from wan_trt_core.cases import COMPOSITES
from wan_trt_core.config import ConfigError, with_values
from wan_trt_core.distributions import distribution_versions
from wan_trt_core.engine_cache import EngineCache, Entry
from wan_trt_core.models import installed
from wan_trt_core.models.component import Component
from wan_trt_core.models.components import (
    ComponentError,
    component_names,
    get_component,
    require_architecture,
    require_precision,
)
from wan_trt_core.models.components.dit import Dit
from wan_trt_core.models.profiles import POINTS, SPATIAL, tile_profile
from wan_trt_core.models.vae_decoder import VaeDecoder
from wan_trt_core.pipeline.offload import OffloadedEngine, Turns, give_back_cached
from wan_trt_core.pipeline.precisions import ON_CPU, usual_precision
from wan_trt_core.pipeline.streaming import StreamingDecoder, StreamingEncoder
from wan_trt_core.pipeline.tiling import TiledDecoder

if TYPE_CHECKING:
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import ShapeProfile

SOURCES = ("models", "export")
"""Subpackages whose source code decides what is exported: part of an ONNX file's identity."""

EXPORTERS = ("torch", "onnx", "onnxscript", "diffusers", "transformers")
"""Distributions that decide what is exported."""

NOTES = "weights"
"""Folder of the cache that notes what weights were hashed or compared before, so that gigabytes are read once."""

VAE_DECODER = COMPOSITES["vae_decoder"]
"""The components that decode a video together."""

VAE_ENCODER = COMPOSITES["vae_encoder"]
"""The components that encode a video together."""

FP16_ATTENTION_TOKENS = 16_384
"""Up to so many tokens self-attention stays in FP16, which TensorRT 10.6 sums in FP16 too, of values less their mean:
with 13,520 it loses 0.3 % of its answers, and of plain values 2.2 (``docs/attention.md``)."""

_GROUPS = {**dict.fromkeys((*VAE_DECODER, *VAE_ENCODER), "vae"), "dit_2": "dit"}
"""Names by which a precision mapping means several components at once."""

Precision = str | Mapping[str, str]
"""One precision for all components, or one for each: ``{"dit": "fp16", "vae": "fp32"}``."""


@dataclass(frozen=True)
class PipelineEngines:
    """The loaded engines of a whole pipeline, and the checkpoint that they were made of.

    Attributes:
        precision: of each component, by name.
        dit_2: of the second transformer; None where there is one only.
        text_encoder: None where PyTorch encodes the prompt.
        vae_encoder: gives the streaming encoder, which is loaded (exported and built) when it is called for.
        vae_tile: pixels a side of the tiles that the VAE's engines decode; None where they decode whole frames.
    """

    checkpoint: Checkpoint
    precision: Mapping[str, str]
    dit: Engine
    vae_first: Engine
    vae_next: Engine
    dit_2: Engine | None = None
    text_encoder: Engine | None = None
    vae_encoder: Callable[[], StreamingEncoder] | None = None
    vae_tile: int | None = None

    @property
    def decoder(self) -> StreamingDecoder | TiledDecoder:
        """The engines of the VAE decoder over a whole video.

        Raises:
            EngineError: when the two do not fit together.
        """
        return _in_tiles(StreamingDecoder(self.vae_first, self.vae_next), self.vae_tile)


class EngineStore:
    """The engines that are loaded, so that one session loads each of them once. All that are asked for together are
    built before the first is loaded, for a builder leaves out the kernels that it finds no memory for.

    Args:
        settings: those of the session; every engine of the store is built and loaded by them.
        progress: told of every export and build, with what it is for.

    Attributes:
        turns: by which the engines hold the device where the settings offload; the modules beside them join.
    """

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._engines: dict[tuple[Any, ...], Engine] = {}
        self._built: dict[tuple[Any, ...], Entry] = {}
        self.turns = Turns()

    def __enter__(self) -> EngineStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def build(
        self,
        component: str,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: str,
        backend: str,
        *,
        progress: Progress | None = None,
        missing: Callable[[], object] | None = None,
    ) -> None:
        """Export and build the engine of a component unless the cache has it, and load it not yet; see
        :func:`built_engine`. What is loaded already is left alone."""
        made = (component, model, profile, precision, backend)
        key = _key(*made)
        if key not in self._engines and key not in self._built:
            told = progress or self._progress
            self._built[key] = built_engine(*made, self._settings, progress=told, missing=missing)

    def load(
        self,
        component: str,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: str,
        backend: str,
        *,
        block_outputs: bool = False,
        built: Callable[[], object] | None = None,
    ) -> Engine:
        """The engine of a component; see :func:`load_engine`, which is called the first time only."""
        made = (component, model, profile, precision, backend)
        key = _key(*made, block_outputs=block_outputs)
        if key not in self._engines:
            entry = self._built.pop(key, None)

            def load() -> Engine:  # again in each of its turns, where it takes turns
                return load_engine(
                    *made,
                    self._settings,
                    block_outputs=block_outputs,
                    progress=self._progress,
                    built=built,
                    entry=entry if entry and entry.unchanged() else None,
                )

            offloads = self._settings.pipeline.offload
            self._engines[key] = (
                OffloadedEngine(load, self.turns, get_component(component).part) if offloads else load()
            )
        return self._engines[key]

    def vae_decoder(
        self, model: ResolvedModel, profile: ShapeProfile, precision: Precision, backend: str
    ) -> StreamingDecoder | TiledDecoder:
        """The streaming decoder: the engines of the first and of every next latent frame, in tiles where the settings
        say so."""
        decoder = StreamingDecoder(*self._loaded(VAE_DECODER, model, profile, precision, backend).values())
        return _in_tiles(decoder, self._settings.pipeline.vae_tile)

    def vae_encoder(
        self, model: ResolvedModel, profile: ShapeProfile, precision: Precision, backend: str
    ) -> StreamingEncoder:
        """The streaming encoder: the engines of the first frame and of every next four."""
        return StreamingEncoder(*self._loaded(VAE_ENCODER, model, profile, precision, backend).values())

    def build_all(
        self,
        names: Iterable[str],
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: Precision,
        backend: str,
        **told: Any,
    ) -> None:
        """As :meth:`build`, of several components one after the other."""
        for name in names:
            self.build(name, model, profile, precision_of(precision, name), backend, **told)

    def build_pipeline(
        self,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: Precision,
        backend: str,
        *,
        text_encoder: bool = False,
    ) -> None:
        """Build what :meth:`pipeline` loads, and what encodes the image that a video begins with; before anything else
        takes memory of the device."""
        checkpoint = model.checkpoint
        encoders = VAE_ENCODER if checkpoint.begins_with_image else ()
        names = (*_of_pipeline(checkpoint, text_encoder=text_encoder), *encoders)
        self.build_all(names, model, profile, precision, backend)

    def pipeline(
        self,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: Precision,
        backend: str,
        *,
        text_encoder: bool = False,
    ) -> PipelineEngines:
        """The engines from prompt to video: DiT (each of two) and VAE decoder, the text encoder if asked for, and the
        VAE's encoder when a pipeline calls it."""
        names = _of_pipeline(model.checkpoint, text_encoder=text_encoder)
        precisions = {name: precision_of(precision, name) for name in names}
        loaded = self._loaded(names, model, profile, precisions, backend)
        return PipelineEngines(
            checkpoint=model.checkpoint,
            precision=precisions,
            dit=loaded["dit"],
            vae_first=loaded["vae_decoder_first"],
            vae_next=loaded["vae_decoder_next"],
            dit_2=loaded.get("dit_2"),
            text_encoder=loaded.get("text_encoder"),
            vae_encoder=partial(self.vae_encoder, model, profile, precision, backend),
            vae_tile=self._settings.pipeline.vae_tile,
        )

    def release(self, engines: Collection[Engine]) -> None:
        """Release these engines, which are loaded anew when they are next asked for."""
        for key in [key for key, engine in self._engines.items() if engine in engines]:
            self._engines.pop(key).close()

    def close(self) -> None:
        """Release every engine of the store."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._built.clear()

    def _loaded(
        self,
        names: Iterable[str],
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: Precision,
        backend: str,
    ) -> dict[str, Engine]:
        """The engines by component, in the order of the names."""
        names, made = tuple(names), (model, profile)
        self.build_all(names, *made, precision, backend)
        return {name: self.load(name, *made, precision_of(precision, name), backend) for name in names}


def _key(
    component: str, model: ResolvedModel, *made_for: object, block_outputs: bool = False
) -> tuple[Any, ...]:
    """By which a store knows an engine."""
    return (component, model.name, model.checkpoint.source, *made_for, block_outputs)


def _of_pipeline(checkpoint: Checkpoint, *, text_encoder: bool) -> tuple[str, ...]:
    return (*components_run("pipeline", checkpoint), *(("text_encoder",) if text_encoder else ()))


def components_run(component: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The components that a case's ``component`` runs together: itself, or those of a composite that the model has.

    Raises:
        ComponentError: when one is not of the checkpoint's architecture.
    """
    names = COMPOSITES.get(component, (component,))
    for name in names:
        require_architecture(get_component(name), checkpoint)
    if component not in COMPOSITES:
        return (component,)
    return tuple(name for name in names if get_component(name).part in checkpoint.parts)


def precision_of(precision: Precision, component: str) -> str:
    """The precision of one component, where there is one for all or one for each.

    Raises:
        ValueError: when none is given for this component.
    """
    if isinstance(precision, str):
        return precision
    for name in (component, _GROUPS.get(component, component)):
        if name in precision:
            return precision[name]
    group = _GROUPS.get(component)
    raise ValueError(
        f"precision names {', '.join(precision) or 'nothing'}, but not {component}"
        + (f" (nor {group})" if group else "")
        + f"; add {group or component}=PRECISION"
    )


def usual_of_engine(component: str, device: str) -> str:
    """The precision of a component's engine where nobody gives one, as a pipeline on a device (``cpu`` or ``cuda``)
    loads it; float32 of a component that no pipeline loads, as another package's."""
    try:
        return precision_of(usual_precision(device, text_encoder_engine=True), component)
    except ValueError:
        return ON_CPU


def check_precision(runs: EngineBackend, component: str, precision: str) -> None:
    """Raise unless there are engines of a component in a precision, and the backend runs them.

    Raises:
        ComponentError: naming what there is instead.
    """
    require_precision(get_component(component), precision)
    if precision not in runs.precisions:
        raise ComponentError(
            f"{component}: the backend {runs.name} has no engines in {precision}; it has {', '.join(runs.precisions)}"
        )


def check_engines(
    runs: EngineBackend, model: ResolvedModel, precision: Precision, settings: Settings
) -> None:
    """Raise unless a model's pipeline can be on engines, as far as that is known before any is made.

    Raises:
        ComponentError: as :func:`check_precision`.
        ValueError: where a component has no precision.
        ConfigError: as :func:`check_tiles`.
    """
    for name in components_run("pipeline", model.checkpoint):
        check_precision(runs, name, precision_of(precision, name))
    check_tiles(model.spatial, settings)


def check_tiles(spatial: int, settings: Settings) -> None:
    """Raise where the settings want a decode in tiles and a VAE of so many pixels a latent has none on engines.

    Raises:
        ConfigError: naming the setting.
    """
    if settings.pipeline.vae_tile is not None and spatial != SPATIAL:
        raise ConfigError(
            f"pipeline.vae_tile is {settings.pipeline.vae_tile}, and engines do not decode in tiles with a VAE of"
            f" {spatial} x {spatial} pixels a latent: unset it"
        )


def load_engine(
    component: str,
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: str,
    backend: str,
    settings: Settings,
    *,
    block_outputs: bool = False,
    progress: Progress | None = None,
    built: Callable[[], object] | None = None,
    entry: Entry | None = None,
) -> Engine:
    """Export, build and load the engine of a component; what the cache holds is not made again.

    Args:
        component: its name, as ``dit``.
        backend: the name of an engine backend.
        block_outputs: with every block's output, to find where one diverges; another engine than without.
        progress: told of the phases of export and build, with the component's name and precision before them.
        built: called when the engine is on disk, before it is loaded.
        entry: what :func:`built_engine` gave, where its files are still those.

    Raises:
        UnknownBackend, BackendUnavailable: when this backend cannot run here.
        ComponentError, CheckpointError, ExportError, EngineError, CacheError: from the stage that failed.
    """
    runs, settings = engine_backend(backend), of_component(component, settings)
    entry = entry or built_engine(
        component,
        model,
        profile,
        precision,
        backend,
        settings,
        block_outputs=block_outputs,
        progress=progress,
    )
    if built is not None:
        built()
    give_back_cached()
    return runs.load(entry.folder, settings)


def built_engine(
    component: str,
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: str,
    backend: str,
    settings: Settings,
    *,
    block_outputs: bool = False,
    progress: Progress | None = None,
    missing: Callable[[], object] | None = None,
) -> Entry:
    """As :func:`load_engine` up to the engine on disk: the cache's entry, with its manifest.

    Args:
        missing: called where the cache has it not, before it is exported and built.
    """
    runs, settings = engine_backend(backend), of_component(component, settings)
    runs.require(settings)
    check_precision(runs, component, precision)
    asked, profile = profile, served(component, profile, settings)
    cache = EngineCache(settings.cache, settings.engine_lock_timeout)
    made_for = (precision, backend, settings)
    source = onnx_identity(component, model, profile, *made_for, block_outputs=block_outputs)
    identity = engine_identity(runs, source, precision, settings)

    def build(folder: Path) -> dict[str, Any]:
        if missing is not None:
            missing()
        onnx = exported_model(
            component, model, asked, *made_for, block_outputs=block_outputs, progress=progress
        )
        give_back_cached()  # a builder leaves out the kernels that it finds no memory for
        facts = runs.build(onnx, folder, settings, _titled(progress, f"build {component} {precision}"))
        return {**facts, "onnx_sha256": onnx.sha256}

    return cache.get_or_make("engines", identity, build)


def cached_facts(
    component: str,
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: str,
    backend: str,
    settings: Settings,
) -> Mapping[str, Any] | None:
    """What is known of the engine that :func:`load_engine` would load, from its manifest; ``None`` where the cache has
    none, or this backend cannot run here."""
    runs, settings = get_backend(backend), of_component(component, settings)
    if not isinstance(runs, EngineBackend) or not any((settings.cache / "engines").glob("*")):
        return None  # without an engine in the cache the weights need not be hashed
    try:
        runs.require(settings)
    except BackendUnavailable:
        return None
    asked = (component, model, served(component, profile, settings), precision, backend, settings)
    source = onnx_identity(*asked)
    identity = engine_identity(runs, source, precision, settings)
    return EngineCache(settings.cache, settings.engine_lock_timeout).facts("engines", identity)


def engine_identity(
    runs: EngineBackend, source: Mapping[str, Any], precision: str, settings: Settings
) -> dict[str, Any]:
    """Everything that an engine depends on, given that of its ONNX file."""
    return {
        **{name: source[name] for name in ("component", "precision", "profile")},
        "onnx": source,
        "backend": runs.name,
        "options": runs.options(settings, precision),
        "versions": runs.built_by(),
        "device": runs.device(settings),
        **_brought_sources("backend_sources", runs),
    }


def of_component(component: str, settings: Settings) -> Settings:
    """The settings by which the engine of a component is built and loaded. Where they do not say, TF32 is as PyTorch
    has it by default: in convolutions, and not in matrix products. TensorRT's builder is limited where the settings
    limit it for this component.

    Raises:
        ConfigError: when the settings limit the builder for a component that there is not.
    """
    values: dict[str, Any] = {}
    if settings.perf.allow_tf32 is None:
        values["perf.allow_tf32"] = get_component(component).convolutional
    limited = settings.tensorrt.limited_components
    if limited is not None:
        known = {*component_names(), *_GROUPS.values()}
        if unknown := set(limited) - known:
            raise ConfigError(
                f"tensorrt.limited_components names {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
            )
        if not {component, _GROUPS.get(component)} & set(limited):
            values |= {"tensorrt.workspace_gib": None, "tensorrt.max_tactics": None}
    return with_values(settings, values) if values else settings


def form_of(component: str, profile: ShapeProfile, backend: str, settings: Settings) -> Component:
    """The component in the form that the settings give it for a backend's engine of a profile."""
    part = get_component(component)
    if isinstance(part, VaeDecoder):
        part = part.of_steps(settings.pipeline.vae_frames_per_step)
        part = part.in_less_memory() if settings.pipeline.vae_lean else part
    if isinstance(part, Dit) and backend == "tensorrt":
        form = settings.tensorrt.self_attention
        if form == "auto":
            form = "bf16" if part.tokens(profile.max) > FP16_ATTENTION_TOKENS else "centred"
        part = part.with_self_attention(form)
    return part


def exported_model(
    component: str,
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: str,
    backend: str,
    settings: Settings,
    *,
    block_outputs: bool = False,
    progress: Progress | None = None,
) -> OnnxModel:
    """The checked ONNX model of a component for a backend's engine, exported unless the cache holds it.

    Raises:
        ComponentError, CheckpointError, ExportError, CacheError: from the stage that failed.
    """
    tiles = served(component, profile, settings)
    part = form_of(component, tiles, backend, settings)
    if isinstance(part, VaeDecoder) and tiles != profile and not block_outputs:
        part = part.of_tiles()
    profile = tiles
    cache = EngineCache(settings.cache, settings.engine_lock_timeout)
    asked = (component, model, profile, precision, backend, settings)
    identity = onnx_identity(*asked, block_outputs=block_outputs)

    def export(folder: Path) -> dict[str, Any]:
        from wan_trt_core.export.exporter import export_component

        with model.checkpoint.passing(part.part, "cpu"):  # a builder needs the room, and engines do its work
            onnx = export_component(
                part,
                model.checkpoint,
                profile,
                precision,
                folder,
                settings,
                block_outputs=block_outputs,
                progress=progress,
            )
        return {"model": {**asdict(onnx), "path": onnx.path.relative_to(folder).as_posix()}}

    entry = cache.get_or_make("onnx", identity, export)
    return _from_facts(entry)


def served(component: str, profile: ShapeProfile, settings: Settings) -> ShapeProfile:
    """What the engine of a component is built for: the tiles of the profile's videos where the settings tile.

    Raises:
        ConfigError: as :func:`check_tiles`.
    """
    tile = settings.pipeline.vae_tile
    if tile is None or component not in VAE_DECODER:
        return profile
    check_tiles(profile.max.spatial, settings)
    return tile_profile(profile, tile)


def onnx_identity(
    component: str,
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: str,
    backend: str,
    settings: Settings,
    *,
    block_outputs: bool = False,
) -> dict[str, Any]:
    """Everything that an exported ONNX file depends on."""
    part = form_of(component, profile, backend, settings)
    return {
        **part.form(precision),
        "component": component,
        "precision": precision,
        "profile": part.profile_name(profile),
        "sizes": {point: part.sizes_at(profile, point) for point in POINTS},
        "block_outputs": block_outputs,
        "inputs": {spec.name: spec.axes for spec in part.inputs(model.checkpoint)},
        "weights": model.checkpoint.weights_sha256(part.part, settings.cache / NOTES),
        "export": settings.export.model_dump(mode="json"),
        "versions": distribution_versions(*EXPORTERS),
        "sources": sources_sha256(),
        **_brought_sources("component_sources", part),
    }


def _brought_sources(key: str, what: Component | EngineBackend) -> dict[str, str]:
    """Under the key the source code of a component or backend that another package brings, which decides what is
    exported or built; nothing for one of this package."""
    own = type(what).__module__.partition(".")[0] == wan_trt_core.__name__
    return {} if own else {key: installed.sources_sha256(type(what))}


def sources_sha256() -> str:
    """Hash over the source code that decides what is exported (hex)."""
    package = Path(wan_trt_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for name in SOURCES for path in (package / name).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _in_tiles(decoder: StreamingDecoder, tile: int | None) -> StreamingDecoder | TiledDecoder:
    return decoder if tile is None else TiledDecoder(decoder, tile)


def _from_facts(entry: Entry) -> OnnxModel:
    """The model as it was described when it was exported. The manifest's own hash vouches for it."""
    facts = dict(entry.facts["model"])
    shapes = {
        key: {
            name: {point: tuple(shape) for point, shape in points.items()}
            for name, points in facts[key].items()
        }
        for key in ("shapes", "opt_shapes")
    }
    names = {key: tuple(facts[key]) for key in ("inputs", "outputs", "block_outputs", "compared")}
    return OnnxModel(**{**facts, **names, **shapes, "path": entry.folder / facts["path"]})


def _titled(progress: Progress | None, title: str) -> Progress | None:
    return None if progress is None else partial(_report, progress, title)


def _report(progress: Progress, title: str, phase: str, fraction: float) -> None:
    progress(f"{title}: {phase}", fraction)
