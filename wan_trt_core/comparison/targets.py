"""What a case compares: the reference arm, the candidate arm, and the tensors that both start from.

An arm covers exactly what diffusers' own call does: it starts from the tensors that this call receives and stops
at its output. What the candidate adds (modulation, RoPE tables, casts, copies) is inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from torch import Tensor, nn

from wan_trt_core.backends.base import BackendUnavailable, Engine, EngineBackend, ModuleBackend, Progress
from wan_trt_core.backends.onnxruntime import OnnxRuntimeEngine
from wan_trt_core.backends.registry import device_of, get_backend
from wan_trt_core.backends.tensorrt.runtime import TensorRtEngine
from wan_trt_core.backends.torch_compile import BACKEND as TORCH_COMPILE
from wan_trt_core.cases import Case, Prompt
from wan_trt_core.comparison.blocks import NOISE, Divergence, limits, trace
from wan_trt_core.comparison.conditions import without_tf32
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.operations import Operation, first_operation, modules_of, nodes_of
from wan_trt_core.config import PipelineSettings
from wan_trt_core.gates.verdict import Reason
from wan_trt_core.models.catalogue import GenerationDefaults
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Component, Tensors
from wan_trt_core.models.components import ComponentError, get_component
from wan_trt_core.models.profiles import POINTS, Point
from wan_trt_core.models.prompts import PROMPT
from wan_trt_core.pipeline.assembly import (
    TEXT_ENCODER,
    in_tiles,
    on_engines,
    placed,
    replaced_precisions,
    text_precision,
)
from wan_trt_core.pipeline.engines import (
    VAE_DECODER,
    VAE_ENCODER,
    built_engine,
    components_run,
    exported_model,
    form_of,
    precision_of,
    served,
)
from wan_trt_core.pipeline.generate import OnStep, generate, tell_what_is_cut
from wan_trt_core.pipeline.tiling import tiled

ArmName = Literal["candidate", "reference"]

_RUNS_ON_CPU = ("onnxruntime",)
"""Backends whose engine is an ONNX file that any CPU runs node by node."""


@dataclass(frozen=True)
class Graph:
    """The files of a component's graph.

    Attributes:
        onnx: as it was exported.
        engine: as ONNX Runtime optimised it for the CPU; None for the engines of other backends.
    """

    onnx: Path
    engine: Path | None

    @property
    def runs(self) -> Path:
        """What a CPU runs node by node: the engine where it is such a file."""
        return self.engine or self.onnx

    def modules(self) -> dict[str, str]:
        """The PyTorch module of every node of the engine, by the node's name; a fused one is where its result is."""
        exported = nodes_of(self.onnx)
        modules = modules_of(exported)
        nodes = nodes_of(self.engine) if self.engine else exported
        return {node.name: modules.get(node.output[0], "") for node in nodes}


@dataclass(frozen=True)
class Outputs:
    """What an arm returned: named tensors, a video, or the latents after each denoising step beside it.

    Attributes:
        video: (frames, height, width, 3) float32 in [0, 1].
        latents: one tensor (1, 16, frames, height, width) a denoising step.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    video: Any = None
    latents: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        call: from call tensors to outputs.
        once: work done once a prompt or run and not in each call, to be timed apart.
        forbidden: PyTorch modules that this arm must not run, by name: a candidate that falls back to the
            reference would compare the reference with itself. Loaded when watched for, so that they take no memory
            where the candidate runs alone.
        pipe: the pipeline that ``call`` runs, where it runs one.
    """

    call: Callable[[Any], Outputs]
    once: Callable[[], object] | None = None
    forbidden: Callable[[], Mapping[str, nn.Module]] = dict
    pipe: Any = None

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """The names of forbidden modules that run meanwhile."""
        ran: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *_: ran.append(name)

        with ExitStack() as hooks:
            for name, module in self.forbidden().items():
                hooks.callback(module.register_forward_pre_hook(note(name)).remove)
            yield ran


class Target(ABC):
    """The two arms of one case. Engines are exported, built and loaded when first needed.

    Attributes:
        fps: frames a second of a video output.
        parity_points: points of the profile at which both arms are compared.
    """

    fps: float = 16.0
    parity_points: tuple[Point, ...] = ("opt",)

    def __init__(self, case: Case, context: Context) -> None:
        self.case, self.context = case, context
        self.model = context.model(case)
        self.device = device_of(context.settings, case.backend)
        self.steps = case.steps or self.model.generation.num_inference_steps
        self.profile = self.model.profile(case.profile)
        self.components = components_run(case.component, self.model.checkpoint)
        self._built = self.components

    @property
    @abstractmethod
    def reference(self) -> Arm:
        """Stock diffusers."""

    @property
    @abstractmethod
    def candidate(self) -> Arm:
        """The case's backend."""

    def arm(self, name: ArmName) -> Arm:
        """The arm of that name, loaded."""
        return self.candidate if name == "candidate" else self.reference

    @abstractmethod
    def inputs(self, point: Point = "opt") -> Any:
        """What one call starts from, at the profile's ``min``, ``opt`` (the size it is tuned for) or ``max``."""

    @contextmanager
    def beside(self, name: str) -> Iterator[Arm]:
        """What ``perf.also`` names, as an arm: stock diffusers compiled, or the candidate without CUDA graphs.

        The compiled modules share the reference's weights and have its precision; without graphs the very engines of
        the candidate run, so both cost no further weights on the GPU.

        Raises:
            BackendUnavailable: when it cannot run on this machine, or the candidate has no CUDA graphs to do without.
        """
        if name == "no-cuda-graphs":
            # of the backends that a case times so only this one has them, see Case.beside
            if self.case.backend == "tensorrt" and not self.context.settings.tensorrt.cuda_graphs:
                raise BackendUnavailable(
                    "tensorrt.cuda_graphs is false: the candidate runs without CUDA graphs as it is"
                )
            yield self._without_graphs()
            return
        case = self.case.model_copy(update={"backend": name, "precision": self.case.stock_precision})
        settings = self.context.settings
        stock = PipelineSettings(
            vae_tile=settings.pipeline.vae_tile
        )  # as in the reference: all else is the candidate's
        context = self.context.beside(settings.model_copy(update={"device": self.device, "pipeline": stock}))
        try:
            yield type(self)(case, context).candidate
        finally:
            context.close()

    def compiled(self) -> dict[str, str]:
        """What ``torch-compile`` compiles of each part that this target runs (see ``TorchCompileBackend.scope``)."""
        parts = {get_component(name).part: self.reference_precision(name) for name in self.components}
        return {
            part: TORCH_COMPILE.scope(
                self.model.checkpoint.load(part, precision, self.device), self.context.settings
            )
            for part, precision in parts.items()
        }

    def parity_inputs(self) -> Iterator[tuple[str, Any]]:
        """What both arms are compared on, each by its name: the inputs of every point."""
        for point in self.parity_points:
            yield point, self.inputs(point)

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on, for the record."""
        engines = {name: engine.memory() for name, engine in self._loaded().items()}
        checkpoint = self.model.checkpoint
        given = self.context.settings.checkpoint_of(self.case.model)
        return {
            **({"random_weights": checkpoint.source} if checkpoint.random else {}),
            **({"checkpoint": str(given)} if given is not None else {}),
            **({"settings": own} if (own := self.case.own_settings) else {}),
            "reference": f"diffusers eager, {self._reference_precisions()}",
            "backend_versions": get_backend(self.case.backend).versions(),
            "engines": engines,
        }

    def problems(self) -> dict[Reason, str]:
        """What voids every measurement of this target: engines that are not what was meant to be built."""
        found = [problem for engine in self._loaded().values() for problem in engine.problems]
        return {Reason.ENGINE_NOT_AS_PLANNED: "; ".join(found)} if found else {}

    def divergences(self) -> dict[str, Divergence]:
        """Every component of the case with each block's output beside the reference's."""
        if not isinstance(get_backend(self.case.backend), EngineBackend):
            return {}
        return {name: self._divergence(name) for name in self.components}

    def component(self, name: str) -> Component:
        """A component of the case, in the form that its settings give it."""
        return form_of(name, self.profile, self.case.backend, self.context.settings)

    def operation(self, name: str, block: str) -> Operation | None:
        """The first operation in a block of a component that computes what PyTorch does not, on the reference's inputs
        of that block at the profile's min; None where all agree. It is looked for in :meth:`looked_into`."""
        component, checkpoint = self.component(name), self.model.checkpoint
        precision, blocks = self.precision(name), component.blocks(checkpoint)
        graph = self.graph(name, block_outputs=True)
        reference = component.reference_blocks(checkpoint, self.reference_precision(name))
        call = self.placed(
            component.in_full(checkpoint, component.call_tensors(checkpoint, self.profile.min))
        )
        with without_tf32():  # which a CPU does not have
            return first_operation(
                graph.runs,
                block,
                blocks[: blocks.index(block)],
                component.prepare(checkpoint, precision)(call) | reference(call),
                lambda: reference(call),
                limits(precision),
                modules_of(nodes_of(graph.onnx)),
            )

    def graph(self, name: str, *, block_outputs: bool = False) -> Graph:
        """The files of a component's graph."""
        case, settings = self.case, self.context.settings
        made = (name, self.model, self.profile, self.precision(name), case.backend, settings)
        onnx = exported_model(*made, block_outputs=block_outputs).path
        if case.backend not in _RUNS_ON_CPU:
            return Graph(onnx, None)
        engine = built_engine(*made, block_outputs=block_outputs)
        return Graph(onnx, engine.folder / onnx.name)

    def graphs(self) -> dict[str, tuple[OnnxRuntimeEngine, Graph]]:
        """The loaded engines that are ONNX files which a CPU runs, by component, with their files."""
        return {
            name: (engine, self.graph(name))
            for name, engine in self._loaded().items()
            if isinstance(engine, OnnxRuntimeEngine) and self.case.backend in _RUNS_ON_CPU
        }

    def tensorrt_engines(self) -> dict[str, tuple[TensorRtEngine, Graph]]:
        """The loaded engines for TensorRT, by component, with the graphs that they were built from."""
        return {
            name: (engine, self.graph(name))
            for name, engine in self._loaded().items()
            if isinstance(engine, TensorRtEngine)
        }

    def looked_into(self) -> str:
        """The graph that :meth:`operation` looks into: an engine of another backend than ONNX Runtime's for CPUs
        shows only its outputs."""
        if self.case.backend in _RUNS_ON_CPU:
            return "the graph that ONNX Runtime runs"
        return f"the ONNX graph, run on the CPU; what {self.case.backend} made of it cannot be looked into"

    def precision(self, component: str) -> str:
        """Precision of a component in the candidate."""
        return precision_of(self.case.precision, component)

    def reference_precision(self, component: str) -> str:
        """Precision of a component in the reference."""
        return precision_of(self.case.stock_precision, component)

    def engine(self, component: str, *, block_outputs: bool = False) -> Engine:
        """The loaded engine of a component."""
        return self.context.engines.load(
            component,
            self.model,
            self.profile,
            self.precision(component),
            self.case.backend,
            block_outputs=block_outputs,
        )

    def placed(self, tensors: Tensors) -> Tensors:
        """The tensors on the device that both arms run on."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def build(self, progress: Progress | None = None) -> None:
        """Export and build the engines that are not in the cache, and load none: before either arm takes memory of the
        device.

        Raises:
            BackendUnavailable: when the backend cannot run here; and as ``pipeline.engines.built_engine``.
        """
        backend, settings = get_backend(self.case.backend), self.context.settings
        backend.require(settings)
        if isinstance(backend, EngineBackend):
            made = (self.model, self.profile, self.case.precision, backend.name)
            self.context.engines.build_all(self._built, *made, progress=progress)

    def engine_bytes(self) -> dict[str, int]:
        """What the engines hold now, by owner (``engine_weights`` …): together and, of several, each by its name
        (``dit.engine_weights``). Scratch memory is lent to one engine at a time, so together they hold the largest.
        ``engine_caches`` are both sets of caches between which the streaming VAE changes."""
        together: dict[str, int] = {}
        each: dict[str, int] = {}
        for component, engine in self._loaded().items():
            for owner, size in engine.memory().items():
                name = f"engine_{owner}"
                known = together.get(name, 0)
                together[name] = max(known, size) if owner == "scratch" else known + size
                each[f"{component}.{name}"] = size
        return together | self._cache_bytes() | (each if len(self.components) > 1 else {})

    def stock_modules(self) -> dict[str, nn.Module]:
        """What runs of diffusers' own modules where an engine of this target does not, by part.

        Raises:
            ComponentError: where a component's ``inside`` is no submodule of its part.
        """
        return dict(map(self._stock_module, map(get_component, self.components)))

    def _stock_module(self, component: Component) -> tuple[str, nn.Module]:
        part, inside = component.part, component.inside
        module = self.model.checkpoint.load(part, self.reference_precision(component.name), self.device)
        try:
            return part, module.get_submodule(inside)
        except AttributeError as error:
            raise ComponentError(
                f"{component.name}: the {part} has no submodule {inside!r}, which it names as `inside`; name one that"
                f" runs in each call, within one of {', '.join(name for name, _ in module.named_children())}"
            ) from error

    def wrapped_checkpoint(self) -> Checkpoint | None:
        """For a backend that runs PyTorch modules: the checkpoint with its modules wrapped."""
        backend = get_backend(self.case.backend)
        backend.require(self.context.settings)
        if not isinstance(backend, ModuleBackend):
            return None
        checkpoint = self.model.checkpoint
        if self.context.settings.pipeline.offload:
            checkpoint = checkpoint.apart()  # the reference's stay where they are
        return _wrapped(checkpoint, lambda module: backend.wrap(module, self.context.settings))

    def _without_graphs(self) -> Arm:
        """The candidate, CUDA graphs switched off for each call: it takes turns with the one that has them."""
        candidate, engines = self.candidate, tuple(self._loaded().values())

        def call(inputs: Any) -> Outputs:
            with ExitStack() as off:
                for engine in engines:
                    off.enter_context(engine.without_graphs())
                return candidate.call(inputs)

        return replace(candidate, call=call)

    def _loaded(self) -> dict[str, Engine]:
        if not isinstance(get_backend(self.case.backend), EngineBackend):
            return {}
        return {name: self.engine(name) for name in self.components}

    def _cache_bytes(self) -> dict[str, int]:
        streamed = next((pair for pair in (VAE_DECODER, VAE_ENCODER) if {*pair} <= {*self.components}), None)
        if not self._loaded() or streamed is None:
            return {}
        following = self.component(streamed[1])
        sizes = following.sizes(served(following.name, self.profile, self.context.settings).opt)
        _, *caches = following.inputs(self.model.checkpoint)  # what it takes beside them comes first
        dtype = self.precision(following.name)
        held = sum(cache.nbytes(sizes, dtype) for cache in caches)
        return {"engine_caches": 2 * held}

    def _reference_precisions(self) -> str:
        return ", ".join(f"{name} {self.reference_precision(name)}" for name in self.components)

    def _divergence(self, name: str) -> Divergence:
        component, checkpoint = self.component(name), self.model.checkpoint
        if not (blocks := component.blocks(checkpoint)):
            return Divergence((), NOISE[self.precision(name)], None)  # no engine has to be built to say so
        prepare = component.prepare(checkpoint, self.precision(name))
        engine = self.engine(name, block_outputs=True)
        return trace(
            component.reference_blocks(checkpoint, self.reference_precision(name)),
            lambda call: engine.run(prepare(call)),
            self.placed(component.call_tensors(checkpoint, self.profile.opt)),
            blocks,
            self.precision(name),
        )


class ComponentTarget(Target):
    """One component: diffusers' own forward against what prepares the engine's inputs, and the engine."""

    parity_points = POINTS

    @cached_property
    def reference(self) -> Arm:
        component = self._component
        run = component.reference(self.model.checkpoint, self.reference_precision(component.name))
        watched = Arm(lambda call: Outputs(run(call)), forbidden=self.stock_modules)
        seen = False

        def call(tensors: Tensors) -> Outputs:
            nonlocal seen
            if seen:
                return watched.call(tensors)
            with watched.watched() as ran:
                outputs = watched.call(tensors)
            if component.part not in ran:
                raise ComponentError(
                    f"{component.name}: its reference never runs {component.inside} of the {component.part}, so that a"
                    " fall back to it in the candidate would not be seen; let `reference` call what"
                    f" checkpoint.load({component.part!r}, …) gives, and `inside` name what runs in each of its calls"
                )
            self._require_declared(component, outputs)
            seen = True
            return outputs

        return Arm(call)

    @cached_property
    def candidate(self) -> Arm:
        component, precision = self._component, self.precision(self._component.name)
        wrapped = self.wrapped_checkpoint()
        if wrapped is not None:
            run = component.reference(wrapped, precision)
            return Arm(lambda call: Outputs(run(call)))
        prepare, engine = component.prepare(self.model.checkpoint, precision), self.engine(component.name)
        return Arm(
            lambda call: Outputs(engine.run(prepare(component.of_another_step(call)))),
            once=component.once(prepare, self.inputs()),
            forbidden=self.stock_modules,
        )

    def inputs(self, point: Point = "opt") -> Any:
        """At max of the prompt too: an engine is built for as much of it as there can be."""
        component, checkpoint = self._component, self.model.checkpoint
        tensors = component.call_tensors(checkpoint, self.profile.at(point), seed=POINTS.index(point))
        return self.placed(component.in_full(checkpoint, tensors) if point == "max" else tensors)

    @property
    def _component(self) -> Component:
        return self.component(self.case.component)

    def _require_declared(self, component: Component, outputs: Outputs) -> None:
        """Raise unless the reference gives exactly the declared outputs: one that it forgets would be compared with
        nothing."""
        given = sorted(outputs.tensors)
        declared = sorted(spec.name for spec in component.outputs(self.model.checkpoint))
        if given != declared:
            raise ComponentError(
                f"{component.name}: its reference gives {{{', '.join(given)}}} and the component declares"
                f" {{{', '.join(declared)}}}; let `reference` return each of its `outputs`, by that name, and no other"
            )


class VaeTarget(Target):
    """A whole video through one half of the VAE: diffusers' own call against the two streaming engines."""

    @cached_property
    def reference(self) -> Arm:
        return self._stock(self.model.checkpoint, self.reference_precision(self.components[0]))

    @cached_property
    def candidate(self) -> Arm:
        wrapped = self.wrapped_checkpoint()
        if wrapped is not None:
            return self._stock(wrapped, self.precision(self.components[0]))
        streamed = self.streamed()
        return Arm(lambda given: Outputs(streamed(given)), forbidden=self.stock_modules)

    @abstractmethod
    def streamed(self) -> Callable[[Tensor], Tensors]:
        """What the engines compute together."""

    @abstractmethod
    def stock(self, vae: Any, given: Tensor) -> Tensors:
        """The same by diffusers."""

    def _stock(self, checkpoint: Checkpoint, precision: str) -> Arm:
        vae: Any = checkpoint.load("vae", precision, self.device)
        tile = self.context.settings.pipeline.vae_tile
        if tile is not None:
            vae = tiled(vae, tile)
        return Arm(lambda given: Outputs(self.stock(vae, given.to(vae.dtype))))


class VaeDecoderTarget(VaeTarget):
    """``AutoencoderKLWan.decode``."""

    def inputs(self, point: Point = "opt") -> Any:
        """Latents (1, 16, frames, height, width), de-normalised as ``decode`` takes them."""
        from wan_trt_core.models.graphs.vae_reference import random_latents

        video = self.profile.at(point)
        shape = (video.latent_frames, video.latent_height, video.latent_width)
        return random_latents(self.model.checkpoint.config("vae"), *shape, seed=0).to(self.device)

    def streamed(self) -> Callable[[Tensor], Tensors]:
        made = (self.model, self.profile, self.case.precision, self.case.backend)
        decoder = self.context.engines.vae_decoder(*made)
        return lambda latents: {"sample": decoder.decode(latents)}

    def stock(self, vae: Any, given: Tensor) -> Tensors:
        return {"sample": vae.decode(given, return_dict=False)[0]}


class VaeEncoderTarget(VaeTarget):
    """The mode of what ``AutoencoderKLWan.encode`` returns."""

    def inputs(self, point: Point = "opt") -> Any:
        """A video (1, 3, frames, height, width) in [-1, 1]."""
        from wan_trt_core.models.graphs.vae_reference import random_video

        video = self.profile.at(point)
        shape = (video.frames, video.height, video.width)
        return random_video(self.model.checkpoint.config("vae"), *shape, seed=0).to(self.device)

    def streamed(self) -> Callable[[Tensor], Tensors]:
        made = (self.model, self.profile, self.case.precision, self.case.backend)
        encoder = self.context.engines.vae_encoder(*made)
        return lambda video: {"latents": encoder.encode(video)}

    def stock(self, vae: Any, given: Tensor) -> Tensors:
        return {"latents": vae.encode(given).latent_dist.mode()}


@dataclass(frozen=True)
class Asked:
    """The video that both arms of a pipeline are asked for; ``image`` is what one from an image begins with, and
    ``keep_latents`` says whether its outputs have the latents of each step."""

    generation: GenerationDefaults
    prompt: Prompt
    image: Image | None = None
    keep_latents: bool = True


class PipelineTarget(Target):
    """Prompt to video: stock ``WanPipeline`` against the same pipeline with engines in it.

    Args:
        asked: the video; one of the case's steps and the profile's sizes unless given.
        on_step: for progress, called after each denoising step of either arm.
    """

    def __init__(
        self, case: Case, context: Context, asked: Asked | None = None, on_step: OnStep | None = None
    ) -> None:
        super().__init__(case, context)
        if asked is not None and asked.image is not None:
            self.model = self.model.making(from_image=True)
        self.fps = float(self.model.generation.fps)
        if self.model.checkpoint.begins_with_image:
            self._built += VAE_ENCODER  # loaded when the image comes: a build is no part of that
        self._asked, self._on_step = asked, on_step

    @cached_property
    def reference(self) -> Arm:
        pipe = self.model.checkpoint.pipeline(self._dtypes(), self.device)
        for asked in self.case.prompts or ():
            tell_what_is_cut(
                self.model.checkpoint,
                self.model.generation.max_sequence_length,
                asked.prompt,
                asked.negative_prompt,
            )
        return self._arm(in_tiles(pipe, self.context.settings))

    @cached_property
    def candidate(self) -> Arm:
        settings = self.context.settings
        dtypes = {**self._dtypes(), TEXT_ENCODER: text_precision(self.case.precision)}
        wrapped = self.wrapped_checkpoint()
        if wrapped is not None:
            return self._arm(placed(wrapped, dtypes, self.device, settings))
        made = (self.model, self.profile, self.case.precision, self.case.backend, self.context.engines)
        return self._arm(on_engines(*made, settings, self.device, dtypes), self.stock_modules)

    def inputs(self, point: Point = "opt") -> Asked:
        """The video that is asked for, else that of ``PROMPT``; the same seed gives both arms the same noise."""
        if self._asked is not None:
            return self._with_image(self._asked)
        generation = self.model.generation.of_size(self.profile.at(point))
        generation = replace(generation, num_inference_steps=self.steps)
        return self._with_image(Asked(generation, Prompt(id=point, prompt=PROMPT)))

    def parity_inputs(self) -> Iterator[tuple[str, Asked]]:
        """The case's prompts, each by its id."""
        if not self.case.prompts:
            yield from super().parity_inputs()
        for prompt in self.case.prompts:
            yield prompt.id, replace(self.inputs(), prompt=prompt)

    def facts(self) -> dict[str, Any]:
        asked = self.inputs()
        return {
            **super().facts(),
            "generation": asdict(asked.generation),
            "prompts": [prompt.model_dump() for prompt in self.case.prompts or (asked.prompt,)],
        }

    def _arm(self, pipe: Any, forbidden: Callable[[], Mapping[str, nn.Module]] = dict) -> Arm:
        def call(asked: Asked) -> Outputs:
            generated = generate(
                pipe,
                asked.prompt.prompt,
                asked.generation,
                asked.prompt.seed,
                negative_prompt=asked.prompt.negative_prompt,
                image=asked.image,
                keep_latents=asked.keep_latents,
                on_step=self._on_step,
            )
            return Outputs(video=generated.frames, latents=generated.latents)

        return Arm(call, forbidden=forbidden, pipe=pipe)

    def _dtypes(self) -> dict[str, str]:
        """Of the reference's modules; its text encoder is in float32 unless the case says another for the reference."""
        own = text_precision(self.case.reference_precision or "fp32")
        return {**replaced_precisions(self.case.stock_precision), TEXT_ENCODER: own}

    def _with_image(self, asked: Asked) -> Asked:
        """With a smooth image of random colours, where one is needed and none given."""
        if asked.image is not None or not self.model.checkpoint.begins_with_image:
            return asked
        from PIL.Image import fromarray

        from wan_trt_core.models.graphs.vae_reference import random_video

        size = asked.generation.height, asked.generation.width
        (colours,) = random_video(self.model.checkpoint.config("vae"), 1, *size, seed=0)[:, :, 0]
        return replace(asked, image=fromarray(((colours + 1) * 127.5).byte().permute(1, 2, 0).numpy()))


def _wrapped(checkpoint: Checkpoint, wrap: Callable[[nn.Module], nn.Module]) -> Checkpoint:
    """The checkpoint with its modules wrapped by a module backend (compiled, say), each once; weights are shared."""
    twin = copy(checkpoint)
    made: dict[int, tuple[nn.Module, nn.Module]] = {}

    def load(part: str, dtype: str = "fp32", device: Any = "cpu") -> nn.Module:
        module = checkpoint.load(part, dtype, device)
        if id(module) not in made:
            made[id(module)] = (module, wrap(module))  # the module is kept: its id must not be given away
        return made[id(module)][1]

    twin.load = load  # type: ignore[method-assign]
    return twin


def target_of(case: Case, context: Context) -> Target:
    """The target of a case: a component, or one of the composites."""
    special: dict[str, type[Target]] = {
        "vae_decoder": VaeDecoderTarget,
        "vae_encoder": VaeEncoderTarget,
        "pipeline": PipelineTarget,
    }
    return special.get(case.component, ComponentTarget)(case, context)
