"""The options that commands share, and the settings that they come to."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.logs import logging_to

if TYPE_CHECKING:
    from wan_trt_core.config import Loaded, Settings
    from wan_trt_core.models.catalogue import ResolvedModel

logger = logging.getLogger(__name__)

_PANEL = "Settings (defaults: config.yaml, WAN_TRT_*)"
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Catalogue name, checkpoint folder or hub id.", rich_help_panel=_PANEL),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Folder or hub id of a named model's weights; without it those installed, else seeded random ones.",
        rich_help_panel=_PANEL,
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="onnxruntime[-cuda|-tensorrt], tensorrt, torch-compile or torch, or another package's.",
        rich_help_panel=_PANEL,
    ),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Shape profile, as 128p-17f.", rich_help_panel=_PANEL)
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder of ONNX files and engines.", rich_help_panel=_PANEL)
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads.", rich_help_panel=_PANEL)]
_MEMORY = "Less memory, at a price (docs/memory.md; defaults: config.yaml, WAN_TRT_*)"
TextEncoderDeviceOption = Annotated[
    str | None,
    typer.Option(
        "--text-encoder-device", help="auto or cpu; for INT8 see --precision.", rich_help_panel=_MEMORY
    ),
]
OffloadOption = Annotated[
    bool | None,
    typer.Option(
        "--offload/--no-offload",
        help="Hold a component on the GPU only during its own stage.",
        rich_help_panel=_MEMORY,
    ),
]
VaeTileOption = Annotated[
    int | None,
    typer.Option(
        "--vae-tile", help="Decode in tiles of so many pixels a side, as 256.", rich_help_panel=_MEMORY
    ),
]
VaeFramesOption = Annotated[
    int | None,
    typer.Option(
        "--vae-frames-per-step",
        help="Latent frames that the VAE decoder's engine does a step: 1 or 2; engines only.",
        rich_help_panel=_MEMORY,
    ),
]
VaeLeanOption = Annotated[
    bool | None,
    typer.Option(
        "--vae-lean/--no-vae-lean",
        help="Half-precision caches in the VAE decoder's engines, their last block in pairs of frames; engines only.",
        rich_help_panel=_MEMORY,
    ),
]
AttentionSlicingOption = Annotated[
    int | None,
    typer.Option(
        "--attention-slicing",
        help="Queries that attention in PyTorch looks at a time.",
        rich_help_panel=_MEMORY,
    ),
]
WeightStreamingOption = Annotated[
    float | None,
    typer.Option(
        "--weight-streaming-budget-gib",
        help="GiB of weights that a TensorRT engine keeps on the GPU; it is built to stream the rest.",
        rich_help_panel=_MEMORY,
    ),
]
ShareScratchOption = Annotated[
    bool | None,
    typer.Option(
        "--share-scratch/--no-share-scratch",
        help="Lend scratch memory to one TensorRT engine at a time.",
        rich_help_panel=_MEMORY,
    ),
]
MaxGraphsOption = Annotated[
    int | None,
    typer.Option("--max-graphs", help="CUDA graphs that an engine keeps at most.", rich_help_panel=_MEMORY),
]
_SAVINGS = {
    "text_encoder_device": "pipeline.text_encoder_device",
    "offload": "pipeline.offload",
    "vae_tile": "pipeline.vae_tile",
    "vae_frames_per_step": "pipeline.vae_frames_per_step",
    "vae_lean": "pipeline.vae_lean",
    "attention_slicing": "pipeline.attention_slicing",
    "weight_streaming_budget_gib": "tensorrt.weight_streaming_budget_gib",
    "share_scratch": "tensorrt.share_scratch",
    "max_graphs": "tensorrt.max_graphs",
}
"""The setting of each of these parameters of a command."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


class UnwritableFolder(ValueError):
    """A command cannot write where an option says; the message names both."""


@dataclass(frozen=True)
class Common:
    """The options before the command."""

    config: Path | None
    log_level: str | None
    log_file: Path | None


@contextmanager
def settings_of(context: typer.Context, **options: Any) -> Iterator[Loaded]:
    """The settings with the command's options, and logging as they say while the block runs."""
    from wan_trt_core.config import load_settings

    given: Common = context.obj
    overrides = {"log.level": given.log_level, "log.file": given.log_file, **options}
    loaded = load_settings(given.config, overrides)
    with logging_to(loaded.settings.log):
        yield loaded


def as_run(cases: Path | None, baselines: Path | None) -> list[str]:
    """What was named, as a run names it: a message's own command names it then too, see
    :func:`~wan_trt_core.gates.bands.regenerate_command`."""
    named = {"--wan-cases": cases, "--wan-baselines": baselines}
    return [word for option, path in named.items() if path is not None for word in (option, str(path))]


def savings_of(context: typer.Context) -> dict[str, Any]:
    """The settings that the options for less memory give, of a command that has them."""
    given = {key: context.params[name] for name, key in _SAVINGS.items()}
    streamed = context.params["weight_streaming_budget_gib"] is not None
    return {**given, "tensorrt.weight_streaming": True if streamed else None}


def tell_not_taken(context: typer.Context, settings: Settings, *backends: str) -> None:
    """One line of the log for each of these backends that some of the given options for less memory do nothing to, on
    the device that it runs on."""
    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.deciding_settings import DEFAULTS, deciding

    flat = settings.flat()
    given = {
        key: f"--{'no-' if context.params[name] is False else ''}{name.replace('_', '-')}"
        for name, key in _SAVINGS.items()
        if context.params[name] is not None and flat[key] != DEFAULTS[key]
    }
    for backend in backends:
        taken = {*deciding(flat, "pipeline", [backend])}
        if device_of(settings, backend) == "cpu":  # where modules are that are offloaded
            taken.discard("pipeline.offload")
        if lost := [option for key, option in given.items() if key not in taken]:
            logger.warning("%s does nothing with %s", backend, ", ".join(lost))


@contextmanager
def tidied(*folders: Path | None) -> Iterator[list[Path]]:
    """Where the block ends early, of these folders and those above them that were not there before it those that are
    empty are removed, and of those that it adds to the list."""
    above = {each for folder in folders if folder for each in (folder.absolute(), *folder.absolute().parents)}
    new = [each for each in above if not each.exists()]
    try:
        yield new
    except BaseException:
        for folder in sorted(new, reverse=True):  # what is in another comes before it
            with suppress(OSError):  # it is not empty, or was not made
                folder.rmdir()
        raise


def make_folder(folder: Path, option: str, remedy: str = "name another folder") -> None:
    """Make the folder that a command writes into, before any work is spent on what it shall hold.

    Raises:
        UnwritableFolder: when it cannot be written to, naming the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise UnwritableFolder(f"{option}: {folder}: cannot be written to: {why}; {remedy}") from error


def make_cache(loaded: Loaded, *backends: str) -> None:
    """Make the folder of the engine cache, before any work is spent on what it shall hold.

    Args:
        backends: where there are any, only if one of these has engines.

    Raises:
        UnwritableFolder: when it cannot be written to, naming what it comes from.
        UnknownBackend: for a name that there is none of.
    """
    from wan_trt_core.backends.base import EngineBackend
    from wan_trt_core.backends.registry import get_backend
    from wan_trt_core.config import DEFAULT

    if not backends or any(isinstance(get_backend(name), EngineBackend) for name in backends):
        source = loaded.sources["cache"]
        make_folder(
            loaded.settings.cache,
            "cache" if source == DEFAULT else source,
            "name another folder with --cache or WAN_TRT_CACHE",
        )


def model_of(settings: Settings, *, download: bool = True) -> ResolvedModel:
    """The model that a command is for.

    Args:
        download: whether a model of the hub that is not in its cache may be downloaded.

    Raises:
        CatalogueError, CheckpointError: when there is no such model, or the checkpoint is of another family or size.
    """
    from wan_trt_core.models.catalogue import require_size, resolve

    checkpoint = settings.checkpoint_of(settings.model)
    model = resolve(settings.model, checkpoint, download=download)
    if checkpoint is not None:
        require_size(settings.model, model.checkpoint)
    return model
