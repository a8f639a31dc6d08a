"""What commands that generate videos ask for, and the checks of it that come before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.models.checkpoint import DTYPES
from wan_trt_core.pipeline.precisions import ENGINES_ON_GPU, ON_CPU, ON_GPU, usual_precision

if TYPE_CHECKING:
    from PIL.Image import Image

    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel
    from wan_trt_core.models.profiles import ShapeProfile, Sizes

ImageOption = Annotated[
    Path | None,
    typer.Option("--image", help="What the video begins with, of an image-to-video model.", exists=True),
]
NegativePromptOption = Annotated[str, typer.Option("--negative-prompt", help="What it should not show.")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
GuidanceOption = Annotated[
    float | None, typer.Option("--guidance", min=0, help="Guidance scale; 1 turns guidance off.")
]
Guidance2Option = Annotated[
    float | None,
    typer.Option("--guidance-2", min=0, help="That of the second expert (Wan 2.2 A14B), if not the first's."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the noise.")]
_PIXELS = "Pixels, a multiple of 16; of 32 for the 5B."
HeightOption = Annotated[int | None, typer.Option("--height", help=_PIXELS)]
WidthOption = Annotated[int | None, typer.Option("--width", help=_PIXELS)]
FramesOption = Annotated[int | None, typer.Option("--frames", help="Frames, 4k+1.")]


def _precision_help(on_gpu: Mapping[str, str]) -> str:
    usual = ", ".join(map("=".join, on_gpu.items()))
    return (
        f"One of {', '.join(DTYPES)}, or by component: dit=fp16,vae=fp32. By default {ON_CPU} on a CPU, and on a GPU"
        f" {usual}."
    )


PartsPrecisionOption = Annotated[str | None, typer.Option("--precision", help=_precision_help(ON_GPU))]
EnginesPrecisionOption = Annotated[
    str | None, typer.Option("--precision", help=_precision_help(ENGINES_ON_GPU))
]


def with_options(
    generation: GenerationDefaults,
    steps: int | None,
    guidance: float | None,
    height: int | None,
    width: int | None,
    frames: int | None,
    guidance_2: float | None,
) -> GenerationDefaults:
    """The settings with what the options give in their place."""
    asked = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "height": height,
        "width": width,
        "num_frames": frames,
        "guidance_scale_2": guidance_2,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(generation, **given)


def profile_for(model: ResolvedModel, name: str | None, generation: GenerationDefaults) -> ShapeProfile:
    """The profile of that name, else the model's first whose engines serve a video of this size.

    Raises:
        CatalogueError: for a name that the model does not have.
        GenerationError: as :func:`check_size`; where no profile serves it, of the first.
    """
    serving = model.profile_serving(generation) if name is None else None
    profile = serving or model.profile(name)
    check_size(profile, generation)
    return profile


def check_size(profile: ShapeProfile, generation: GenerationDefaults) -> None:
    """Raise unless the engines of the profile serve a video of this size.

    Raises:
        GenerationError: naming the option and the range.
    """
    from wan_trt_core.pipeline.generate import GenerationError

    asked = generation.height, generation.width, generation.num_frames
    for name, value, least, most in profile.outside(*asked):
        raise GenerationError(
            f"--{name}: {value} is outside the profile {profile.name} ({least} to {most}); name another --profile"
        )


def check_memory(
    settings: Settings,
    model: ResolvedModel,
    shapes: ShapeProfile,
    generation: GenerationDefaults,
    precision: str | Mapping[str, str],
    backend: str,
    *,
    text_encoder_engine: bool = False,
) -> None:
    """Raise where the GPU has clearly less free memory than is predicted (``wan-trt memory plan``).

    Raises:
        GenerationError: with what is needed, and the settings that fit.
    """
    import torch

    from wan_trt_core.memory.plan import lacking
    from wan_trt_core.memory.prediction import choice_of, unplanned, workload
    from wan_trt_core.memory.room import tell_unchecked
    from wan_trt_core.models.profiles import Sizes
    from wan_trt_core.pipeline.assembly import TEXT_ENCODER
    from wan_trt_core.pipeline.engines import precision_of
    from wan_trt_core.pipeline.generate import GenerationError

    if unknown := unplanned(model.checkpoint):
        tell_unchecked(unknown)
        return
    free, _ = torch.cuda.mem_get_info()
    asked = generation.height, generation.width, generation.num_frames, generation.max_sequence_length
    work = replace(workload(model, shapes, backend, "cuda", settings), video=Sizes(*asked, model.spatial))
    choice = choice_of(settings, precision)
    if text_encoder_engine:
        own = precision_of(precision, TEXT_ENCODER)
        choice = replace(choice, text_encoder=own, text_encoder_engine=True)
    if told := lacking(work, choice, free):
        raise GenerationError(told)


def open_image(path: Path) -> Image:
    """An image file in RGB.

    Raises:
        typer.BadParameter: when it is none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise typer.BadParameter(
            f"{path}: no image that can be read: {error}", param_hint="--image"
        ) from error


def sized(video: Sizes, text: str, option: str = "--size") -> Sizes:
    """``video`` in another size, ``480x832x81``: height, width, frames.

    Raises:
        ValueError: naming the option, when it is no such size, or no video has it.
    """
    try:
        height, width, frames = (int(part) for part in text.split("x"))
        return replace(video, height=height, width=width, frames=frames)
    except ValueError as error:
        raise ValueError(f"{option} is {text}, not HEIGHTxWIDTHxFRAMES of a video: {error}") from error


def precision_for(
    text: str | None, device: str, *, text_encoder_engine: bool = False
) -> str | dict[str, str]:
    """What ``--precision`` gives, else what is usual on a device (``cpu`` or ``cuda``).

    Raises:
        typer.BadParameter: as :func:`parse_precision`.
    """
    if text is None:
        return usual_precision(device, text_encoder_engine=text_encoder_engine)
    return parse_precision(text)


def parse_precision(
    text: str,
    option: str = "--precision",
    of: Sequence[str] = ("dit", "vae_decoder_first", "vae_decoder_next"),
) -> str | dict[str, str]:
    """``fp16``, or ``dit=fp16,vae=fp32`` by component.

    Args:
        of: components that need one; by default those of every video.

    Raises:
        typer.BadParameter: naming the option, where a component has none, or there is no such component.
        ComponentError: where a component has none, and another has no such precision.
    """
    if "=" not in text:
        return text
    from wan_trt_core.models.components import component_names
    from wan_trt_core.pipeline.engines import precision_of

    pairs = (part.partition("=")[::2] for part in text.split(","))
    precision = {name.strip(): value.strip() for name, value in pairs}
    known = ("vae", *component_names())
    if unknown := [name for name in precision if name not in known]:
        raise typer.BadParameter(
            f"no component {unknown[0]!r}; there are {', '.join(known)}", param_hint=option
        )
    try:
        for component in of:
            precision_of(precision, component)
    except ValueError as error:
        _require_precisions(precision, of)  # a misspelt one before one that is only missing
        raise typer.BadParameter(str(error), param_hint=option) from error
    return precision


def _require_precisions(precision: Mapping[str, str], of: Sequence[str]) -> None:
    """Raise unless each of these components that has a precision knows it."""
    from wan_trt_core.models.components import get_component, require_precision
    from wan_trt_core.pipeline.engines import precision_of

    for component in of:
        try:
            own = precision_of(precision, component)
        except ValueError:
            continue
        require_precision(get_component(component), own)
