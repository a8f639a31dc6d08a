"""The engines of a user's own pipeline, which :func:`~wan_trt_core.accelerating.accelerate` puts in and :func:`restore`
takes out again."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from wan_trt_core.backends.base import Engine
from wan_trt_core.causes import causes
from wan_trt_core.measure.memory_recorder import out_of_memory
from wan_trt_core.models.catalogue import resolve_loaded
from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.components import get_component
from wan_trt_core.models.loaded import LoadedCheckpoint
from wan_trt_core.models.profiles import TEMPORAL, ShapeProfile, Sizes
from wan_trt_core.models.vae_caches import spatial_scale
from wan_trt_core.pipeline.assembly import TEXT_ENCODER, in_order, offloading, staying
from wan_trt_core.pipeline.engines import NOTES, VAE_DECODER, VAE_ENCODER, EngineStore, cached_facts
from wan_trt_core.pipeline.offload import offload, overlap, take_off
from wan_trt_core.pipeline.parts import (
    EngineFailed,
    EngineTextEncoder,
    EngineTransformer,
    EngineVAE,
    LatentMode,
    Part,
    UnsupportedCall,
    require_batch_1,
    require_supported,
)
from wan_trt_core.pipeline.scheduler_step import plan_steps, unplan_steps
from wan_trt_core.pipeline.stages import TRANSFORMERS
from wan_trt_core.pipeline.streaming import StreamingEncoder
from wan_trt_core.pipeline.swap import replaceable
from wan_trt_core.pipeline.told_prompts import tell_prompts, untell_prompts
from wan_trt_core.pipeline.video_processor import StagedVideoProcessor, staged
from wan_trt_core.progress import Report, progress

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from wan_trt_core.config import Settings

ENGINES_OF: Mapping[str, tuple[str, ...]] = {
    "transformer": ("dit",),
    "transformer_2": ("dit_2",),
    "vae": VAE_DECODER,
    TEXT_ENCODER: (TEXT_ENCODER,),
}
"""The components whose engines take the place of each module, of the text encoder where that is asked for. Where a
video begins with an image, the VAE's encoder is one of them too."""

EnginePart = EngineTransformer | EngineVAE | EngineTextEncoder
"""What serves in the place of one of diffusers' modules, for the sizes of one profile."""

NO_TEXT = 1
"""Tokens of a prompt where none matters: the size of a video that is only decoded or encoded."""

logger = logging.getLogger(__name__)


def restore(pipe: WanPipeline) -> WanPipeline:
    """Put diffusers' own modules back where they were, its video processor and the scheduler's own step; release the
    engines. Does nothing where there are none. After ``pipe.enable_model_cpu_offload()`` diffusers' modules are
    offloaded too.

    Returns:
        ``pipe`` itself.
    """
    accelerated = False
    for name in ENGINES_OF:
        if isinstance(part := getattr(pipe, name, None), _Accelerated):
            setattr(pipe, name, part.acceleration.stock[name])
            part.acceleration.close()
            accelerated = True
    if isinstance(processor := getattr(pipe, "video_processor", None), StagedVideoProcessor):
        pipe.video_processor = processor.own
    unplan_steps(pipe.scheduler)
    untell_prompts(pipe)
    if accelerated:
        pipe.maybe_free_model_hooks()  # which puts them on what is there now, where there are any
    return pipe


def originals(pipe: WanPipeline) -> dict[str, nn.Module]:
    """What runs of diffusers' own modules when an accelerated pipeline falls back to PyTorch: of each part a module,
    and the VAE's encoder.

    For a comparison, which is void where one of them runs: the ``forbidden`` of its candidate
    (:class:`~wan_trt_core.comparison.targets.Arm`).

    Raises:
        ValueError: for a pipeline that is not accelerated.
    """
    found = list(replaceable(pipe).values())
    if not all(isinstance(part, _Accelerated) for part in found):
        raise ValueError("the pipeline is not accelerated: every module that runs is diffusers' own")
    acceleration: Acceleration = found[0].acceleration
    inside = {
        name: (name, components[0]) for name, components in ENGINES_OF.items() if name in acceleration.stock
    }
    inside["vae (encoder)"] = ("vae", VAE_ENCODER[0])
    return {
        key: acceleration.stock[name].get_submodule(get_component(component).inside)
        for key, (name, component) in inside.items()
    }


class Acceleration:
    """The engines of one accelerated pipeline: which of them serves a video, and what does where none can.

    Attributes:
        pipe: the user's.
        stock: diffusers' own modules by part; in host memory until one has to run.
        model: what engines are made of, and the profiles that it has.
        precision: of the engines of each part.
        device: where engines run.
        spatial: pixels that a latent covers in height and in width.
        encodes: the pipeline encodes an image to begin its video with.
    """

    _report: Report
    """That of the progress bars which are shown now."""

    def __init__(
        self,
        pipe: WanPipeline,
        settings: Settings,
        backend: str,
        precision: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self.stock: dict[str, Any] = {name: getattr(pipe, name) for name in precision}
        self.device = device
        self.spatial = spatial_scale(pipe.vae.config)
        self.encodes = isinstance(pipe, WanImageToVideoPipeline)
        self._checkpoint = LoadedCheckpoint(pipe, notes=settings.cache / NOTES)
        self.model = resolve_loaded(self._checkpoint)
        self.pipe, self.settings = pipe, settings
        self.backend, self.precision = backend, precision
        modules: dict[str, Any] = {
            name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)
        }
        self._homes = {
            name: (part, part.device) for name, part in modules.items() if not hasattr(part, "_hf_hook")
        }
        self._store = EngineStore(settings, lambda job, fraction: self._report(job, fraction))
        self._prepare = {
            name: get_component(ENGINES_OF[name][0]).prepare(self._checkpoint, precision[name])
            for name in self.stock
        }
        self._served: dict[str, dict[ShapeProfile, EnginePart | None]] = {name: {} for name in self.stock}
        self._choices: dict[tuple[str, Sizes], EnginePart | str] = {}
        self._serving: dict[str, EnginePart | str] = {}
        self._encoders: dict[ShapeProfile, StreamingEncoder | str] = {}
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Diffusers' modules are in host memory meanwhile and afterwards; where they were, when the block fails."""
        try:
            for module in self.stock.values():
                module.to("cpu")
            yield
        except BaseException:
            self.close()
            raise

    def put_in(self) -> None:
        """Replace the pipeline's modules, and move what stays in PyTorch to where the settings want it."""
        stay = staying(self.settings)
        offloads = offloading(self.settings, self.device)
        for name, (module, _) in self._homes.items():
            if name not in self.stock:
                module.to("cpu" if offloads or name in stay else self.device)
        if offloads:
            offload(self.pipe, self._store.turns, self.device, stay=stay, leave=self.stock)
            for name in self.stock:  # on the device where PyTorch has to run
                self._store.turns.join(name, partial(self._to_host, name))
        for name, module in self.stock.items():
            dtype = torch_dtype(self.precision[name])
            setattr(self.pipe, name, _accelerated(name)(self, name, module.config, dtype, self.device))
        self.pipe.video_processor = staged(self.pipe.video_processor)
        plan_steps(self.pipe.scheduler)
        tell_prompts(self.pipe)
        first = {name: next(iter(served.values()), None) for name, served in self._served.items()}
        self._serve({name: part for name, part in first.items() if part is not None})

    def close(self) -> None:
        """Release the engines, and move every module back to where it was. May be called again."""
        self._store.close()
        for module, device in self._homes.values():
            take_off(module)
            if not hasattr(module, "_hf_hook"):  # one that is offloaded since is moved by its hook
                module.to(device)

    def lacks(self, profile: ShapeProfile) -> bool:
        """Whether the cache lacks an engine of a profile, by its manifests alone."""
        made = (self.model, profile)
        return any(
            cached_facts(component, *made, precision, self.backend, self.settings) is None
            for components, precision in self._components()
            for component in components
        )

    def build(self, profile: ShapeProfile) -> None:
        """Export and build all that the cache lacks for a profile, before the first engine is loaded; what stays in
        PyTorch leaves the device for it until :meth:`put_in`."""
        made = (self.model, profile)
        with self._at_work():
            for components, precision in self._components():
                self._store.build_all(components, *made, precision, self.backend, missing=self._make_room)

    def _components(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Of each part the components whose engines take its place, and their precision."""
        for name, precision in self.precision.items():
            encoders = VAE_ENCODER if name == "vae" and self.encodes else ()
            yield (*ENGINES_OF[name], *encoders), precision

    def load(self, name: str, profile: ShapeProfile) -> EnginePart:
        """The part that serves a profile from now on; exports and builds what the cache lacks."""
        made, precision = (self.model, profile), self.precision[name]
        common: dict[str, Any] = {
            "prepare": self._prepare[name],
            "config": self.stock[name].config,
            "dtype": torch_dtype(precision),
            "device": self.device,
        }
        part: EnginePart
        with self._making(name) as engines:
            if name == "vae":
                decoder = self._store.vae_decoder(*made, precision, self.backend)
                engines += decoder.engines
                if self.encodes and profile not in self._encoders:
                    self._encoders[profile] = encoder = self._store.vae_encoder(
                        *made, precision, self.backend
                    )
                    engines += encoder.engines
                part = EngineVAE(decoder, **common, encoder=partial(self._encoder, profile))
            else:
                (component,) = ENGINES_OF[name]
                engine = self._store.load(component, *made, precision, self.backend)
                engines.append(engine)
                kind = EngineTextEncoder if name == TEXT_ENCODER else EngineTransformer
                part = kind(engine, **common)
        self._served[name][profile] = part
        return part

    def part(self, name: str, video: Sizes) -> Any:
        """The part that serves a video of this size. The first video of a size decides for all.

        Raises:
            UnsupportedCall: when none does and PyTorch has to; the message says why.
        """
        choice = self._chosen(name, video)
        found = {name: choice}
        if name in TRANSFORMERS:  # a build of minutes is not for the middle or the end of a video
            for other in self.stock.keys() - {TEXT_ENCODER, name}:
                size = replace(video, text_length=NO_TEXT) if other == "vae" else video
                found[other] = self._chosen(other, size)
        self._serve(found)
        if isinstance(choice, str):
            raise UnsupportedCall(choice)
        return choice

    def call(self, name: str, video: Sizes, on_engine: Callable[[Any], Any], *, encodes: bool = False) -> Any:
        """What the part that serves a video answers. Where its engine fails it serves no video of this size any more:
        one that has begun shall not end there.

        Args:
            on_engine: the call of the part.
            encodes: it is that of the VAE's encoder, whose engines are others than the decoder's.

        Raises:
            UnsupportedCall: as :meth:`part`.
            EngineFailed: from the engine's error.
        """
        part = self.part(name, video)
        try:
            return on_engine(part)
        except UnsupportedCall:
            raise
        except Exception as error:  # whatever it was, as in _choose
            logger.debug("an engine of the %s failed", name, exc_info=True)
            _let_go(error)
            whose = "encoder's engine" if encodes else "engine"
            why = f"the {whose} for {_told(name, video)} failed ({type(error).__name__}: {error})"
            if encodes:
                self._encoders.update(dict.fromkeys(self._encoders, why))
            else:
                self._choices[name, video] = why
            raise EngineFailed(why) from error

    def takes(self, name: str) -> Mapping[str, tuple[int | str, ...]]:
        """The inputs of a transformer's engine, each with its axes."""
        return {spec.name: spec.axes for spec in get_component(ENGINES_OF[name][0]).inputs(self._checkpoint)}

    @contextmanager
    def in_pytorch(self, name: str, why: UnsupportedCall) -> Iterator[Any]:
        """Diffusers' own module, on the device, which runs in the block. One line of the log a video says that it does,
        and why. After an engine that failed it has that one's room, and an error of its own is from the engine's."""
        if (name, str(why)) not in self._told:
            self._told.add((name, str(why)))
            logger.warning("diffusers' own %s runs instead of an engine: %s", name, why)
        try:
            if isinstance(why, EngineFailed):
                self._release(name)
            if offloading(self.settings, self.device):
                self._store.turns.take(name)
            yield self._on_device(name)
        except Exception as error:
            if isinstance(why, EngineFailed):
                raise error from why.__cause__
            raise

    def begin(self) -> None:
        """A new video: what was told of the last one is told again."""
        self._told.clear()

    def _chosen(self, name: str, video: Sizes) -> EnginePart | str:
        if (name, video) not in self._choices:
            self._choices[name, video] = self._choose(name, video)
        return self._choices[name, video]

    def _serve(self, parts: Mapping[str, EnginePart | str]) -> None:
        """Know which parts serve the video of now: where they are offloaded, their engines come one during another."""
        if offloading(self.settings, self.device) and not parts.items() <= self._serving.items():
            self._serving.update(parts)
            overlap(*(self._serving.get(name, part) for name, part in in_order(self.pipe).items()))

    def _on_device(self, name: str) -> Any:
        """Diffusers' own module where the engines run; in the room of those in its place, where there is none beside
        them."""
        module = self.stock[name]
        try:
            return module.to(self.device)
        except Exception as error:
            module.to("cpu")  # what of it came
            if not out_of_memory(error):
                raise
        logger.warning("no room for diffusers' own %s beside its engines, which are released", name)
        self._release(name)
        return module.to(self.device)

    def _release(self, name: str) -> None:
        """Close the engines in the place of a module. A video that they serve has them loaded again."""
        parts = [part for part in self._served[name].values() if part is not None]
        self._served[name] = dict.fromkeys(self._served[name])
        self._choices = {
            key: choice for key, choice in self._choices.items() if key[0] != name or isinstance(choice, str)
        }
        engines = [engine for part in parts for engine in part.engines]
        if name == "vae":
            made = [encoder for encoder in self._encoders.values() if not isinstance(encoder, str)]
            engines += [engine for encoder in made for engine in encoder.engines]
            self._encoders = {key: found for key, found in self._encoders.items() if isinstance(found, str)}
        self._store.release(engines)

    def _to_host(self, name: str) -> None:
        self.stock[name].to("cpu")

    def _make_room(self) -> None:
        for module, _ in self._homes.values():
            module.to("cpu")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Engines are built and loaded in the block, a later one where the first are: each thread has a current GPU of
        its own."""
        gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with gpu, torch.no_grad(), progress() as self._report:
            yield

    @contextmanager
    def _making(self, name: str) -> Iterator[list[Engine]]:
        """The engines of a part are made in the block, which notes them in the list: their problems are then told."""
        self.stock[name].to("cpu")  # from where exports read it
        engines: list[Engine] = []
        with self._at_work():
            yield engines
        for problem in (problem for engine in engines for problem in engine.problems):
            logger.warning("the %s's engine is not as planned: %s", name, problem)

    def _encoder(self, profile: ShapeProfile) -> StreamingEncoder:
        """The engines that encode for a profile. The first time decides for all.

        Raises:
            UnsupportedCall: when they could not be made.
        """
        if profile not in self._encoders:
            self._encoders[profile] = self._made_encoder(profile)
        encoder = self._encoders[profile]
        if isinstance(encoder, str):
            raise UnsupportedCall(encoder)
        return encoder

    def _made_encoder(self, profile: ShapeProfile) -> StreamingEncoder | str:
        try:
            self._checkpoint.require_unchanged("vae")
            with self._making("vae") as engines:
                made = (self.model, profile, self.precision["vae"], self.backend)
                encoder = self._store.vae_encoder(*made)
                engines += encoder.engines
        except Exception as error:  # as in _choose
            logger.debug("no engine that encodes", exc_info=True)
            return (
                f"the encoder's engine for {profile.name} could not be made ({type(error).__name__}: {error})"
            )
        return encoder

    def _choose(self, name: str, video: Sizes) -> EnginePart | str:
        serving = next((each for each in self._served[name] if covers(name, self._range(each), video)), None)
        if serving is not None and (part := self._served[name][serving]) is not None:
            return part
        try:
            self._checkpoint.require_unchanged(name)
            return self.load(name, serving or self._profile(name, video))
        except UnsupportedCall as why:
            return str(why)
        except Exception as error:  # of whichever stage: the video goes on in PyTorch, whatever it was
            logger.debug("no engine of the %s", name, exc_info=True)
            return f"the engine for {_told(name, video)} could not be made ({type(error).__name__}: {error})"

    def _profile(self, name: str, video: Sizes) -> ShapeProfile:
        """What to build for a video that no engine serves.

        Raises:
            UnsupportedCall: when the settings say that nothing is.
        """
        missing, rule = f"no engine for {_told(name, video)}", self.settings.on_missing_shape
        if not self._served[name] or rule == "build":
            logger.warning("%s: building the %s's for this size", missing, name)
            return ShapeProfile(f"{video.height}x{video.width}-{video.frames}f", video, video, video)
        if rule == "torch":
            raise UnsupportedCall(f"{missing} (on_missing_shape is torch)")
        containing = [known for known in self.model.profiles.values() if covers(name, known, video)]
        if not containing:
            raise UnsupportedCall(
                f"{missing}, and none of the profiles {', '.join(self.model.profiles) or '(none)'} contains it"
                " (on_missing_shape is nearest)"
            )
        nearest = min(containing, key=lambda known: abs(_volume(known.opt) - _volume(video)))
        logger.warning("%s: the %s's of the profile %s are used", missing, name, nearest.name)
        return nearest

    def _range(self, profile: ShapeProfile) -> ShapeProfile:
        """What the engine of a profile serves: its opt alone, where the settings build TensorRT's so."""
        if self.backend != "tensorrt" or "range" in self.settings.tensorrt.profiles:
            return profile
        return profile.opt_alone()


class _Accelerated(Part):
    """In the place of a module of diffusers: an engine of :class:`Acceleration`, or the module itself."""

    part = ""
    """Its name in the pipeline."""

    def __init__(
        self, acceleration: Acceleration, part: str, config: Any, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(config, dtype, device)
        self.acceleration, self.part = acceleration, part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"{error}: engines are in the place of the pipeline's {self.part}; wan_trt_core.restore(pipe) puts"
                " diffusers' own back"
            ) from None

    def __deepcopy__(self, memo: object) -> Any:
        """Refused: of engines, and of what they hold on a GPU, there are no copies."""
        raise TypeError(
            f"the pipeline's {self.part} stands for engines, which cannot be copied: wan_trt_core.restore(pipe) first,"
            " and accelerate the copies that need it"
        )


class AcceleratedTransformer(_Accelerated):
    """In the place of ``WanTransformer3DModel``."""

    @contextmanager
    def cache_context(self, name: str, step_index: int | None = None, **_: object) -> Iterator[None]:
        """Nothing is cached between calls. The first call of the first step is a new video; image to video, which tells
        no step, begins with :meth:`AcceleratedVAE.encode`."""
        if step_index == 0 and name == "cond":
            self.acceleration.begin()
        yield

    @torch.no_grad()
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """The predicted flow, as diffusers' own forward; see :class:`EngineTransformer`."""
        states = {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states}
        if encoder_hidden_states_image is not None:
            states["encoder_hidden_states_image"] = encoder_hidden_states_image
        acceleration = self.acceleration
        try:
            require_supported(
                acceleration.takes(self.part), {**states, "timestep": timestep}, attention_kwargs
            )
            video = video_of(hidden_states, encoder_hidden_states.shape[1], acceleration.spatial)
            (sample,) = acceleration.call(
                self.part, video, lambda part: part(**states, timestep=timestep, return_dict=False)
            )
        except UnsupportedCall as why:
            with acceleration.in_pytorch(self.part, why) as stock:
                rounded = {name: tensor.to(stock.dtype) for name, tensor in states.items()}
                sample = stock(
                    **rounded, timestep=timestep, return_dict=False, attention_kwargs=attention_kwargs
                )[0].to(hidden_states.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class AcceleratedTextEncoder(_Accelerated):
    """In the place of ``UMT5EncoderModel``."""

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """The prompt's states, as transformers' own forward; see :class:`EngineTextEncoder`."""
        acceleration = self.acceleration
        try:
            require_batch_1("input_ids", input_ids)
            video = _video_of_text(input_ids.shape[1], acceleration.spatial)
            states: BaseModelOutput = acceleration.call(
                self.part, video, lambda part: part(input_ids, attention_mask)
            )
        except UnsupportedCall as why:
            with acceleration.in_pytorch(self.part, why) as stock:
                states = stock(input_ids, attention_mask)
        return states


class AcceleratedVAE(_Accelerated):
    """In the place of ``AutoencoderKLWan``."""

    @torch.no_grad()
    def decode(self, z: Tensor, return_dict: bool = True) -> tuple[Tensor] | DecoderOutput:
        """The video of de-normalised latents, as diffusers' own decode; see :class:`EngineVAE`."""
        acceleration = self.acceleration
        try:
            require_batch_1("z", z)
            video = video_of(z, NO_TEXT, acceleration.spatial)
            (sample,) = acceleration.call(self.part, video, lambda part: part.decode(z, return_dict=False))
        except UnsupportedCall as why:
            with acceleration.in_pytorch(self.part, why) as stock:
                sample = stock.decode(z.to(stock.dtype), return_dict=False)[0].to(self.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    def encode(self, x: Tensor, return_dict: bool = True) -> tuple[Any] | AutoencoderKLOutput:
        """The latents of a video, as diffusers' own encode; see :class:`LatentMode`."""
        acceleration = self.acceleration
        if acceleration.encodes:  # which it does once a video, before all else
            acceleration.begin()
        try:
            require_batch_1("x", x)
            video = _video_of_pixels(x, acceleration.spatial)
            (found,) = acceleration.call(
                self.part, video, lambda part: part.encode(x, return_dict=False), encodes=True
            )
        except UnsupportedCall as why:
            found = self._distribution(x, why)
        else:
            asked_for = UnsupportedCall("more of the VAE's distribution is asked for than its mode")
            found = LatentMode(found.mean, whole=partial(self._distribution, x, asked_for))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    @torch.no_grad()
    def _distribution(self, x: Tensor, why: UnsupportedCall) -> Any:
        """Diffusers' own."""
        with self.acceleration.in_pytorch(self.part, why) as stock:
            return stock.encode(x.to(stock.dtype), return_dict=False)[0]


def covers(part: str, profile: ShapeProfile, video: Sizes) -> bool:
    """Whether the engines of a part serve a video, when they are built for a profile."""
    sizes = get_component(ENGINES_OF[part][0]).sizes
    least, most = sizes(profile.min), sizes(profile.max)
    return all(least[axis] <= size <= most[axis] for axis, size in sizes(video).items())


def video_of(latents: Tensor, text_length: int, spatial: int) -> Sizes:
    """The size of the video that latents (batch, channels, frames, height/spatial, width/spatial) are of.

    Raises:
        UnsupportedCall: when it is none that an engine can have.
    """
    _, _, frames, height, width = latents.shape
    return _sizes(spatial * height, spatial * width, TEMPORAL * (frames - 1) + 1, text_length, spatial)


def _video_of_pixels(video: Tensor, spatial: int) -> Sizes:
    _, _, frames, height, width = video.shape
    return _sizes(height, width, frames, NO_TEXT, spatial)


def _video_of_text(length: int, spatial: int) -> Sizes:
    """One of which only the prompt matters: the smallest that there is."""
    return Sizes(2 * spatial, 2 * spatial, 1, length, spatial)


def _accelerated(part: str) -> type[_Accelerated]:
    """What stands in the place of a part of the pipeline."""
    others: Mapping[str, type[_Accelerated]] = {"vae": AcceleratedVAE, TEXT_ENCODER: AcceleratedTextEncoder}
    return others.get(part, AcceleratedTransformer)


def _sizes(*given: int) -> Sizes:
    try:
        return Sizes(*given)
    except ValueError as error:
        raise UnsupportedCall(str(error)) from error


def _told(part: str, video: Sizes) -> str:
    """As far as the part sees it."""
    size, text = (
        f"{video.height}x{video.width}, {video.frames} frames",
        f"prompts of {video.text_length} tokens",
    )
    return {"vae": size, TEXT_ENCODER: text}.get(part, f"{size}, {text}")


def _let_go(error: BaseException) -> None:
    """Drop the tensors in the frames that an error came through, which it keeps, and in those of what it came from."""
    for each in causes(error):
        traceback.clear_frames(each.__traceback__)


def _volume(video: Sizes) -> int:
    return video.height * video.width * video.latent_frames
