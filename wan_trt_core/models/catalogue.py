"""The models known by name, their shape profiles, and the settings videos are generated with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from wan_trt_core.config import HUB_ID
from wan_trt_core.models import installed
from wan_trt_core.models.checkpoint import EMBEDDED, Checkpoint, CheckpointError
from wan_trt_core.models.hub import open_checkpoint
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.models.random_weights import (
    CLIP_VIT_H,
    HEAD_DIM,
    UMT5_XXL,
    VAE_22,
    Configs,
    RandomCheckpoint,
    wan21_configs,
    with_image,
    with_timestep_a_token,
    with_two_experts,
)
from wan_trt_core.models.vae_caches import spatial_scale


class CatalogueError(ValueError):
    """No such model or profile, or layers of a model that is stored whole; the message says what there is."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How a video is generated unless told otherwise; the names are those of ``WanPipeline.__call__``.

    ``height`` and ``width`` are in pixels; ``max_sequence_length`` is the padded length of the prompt in
    tokens, ``guidance_scale_2`` that of the second of two experts, which has the first's unless given. A checkpoint's
    ``generation.json`` may replace any of them.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    max_sequence_length: int = 512
    fps: int = 16
    guidance_scale_2: float | None = None

    def of_size(self, video: Sizes) -> GenerationDefaults:
        """The same for a video of another size."""
        return replace(self, height=video.height, width=video.width, num_frames=video.frames)


@dataclass(frozen=True)
class ResolvedModel:
    """A model ready for use: its checkpoint, validated, and what may be asked of it."""

    name: str
    checkpoint: Checkpoint
    profiles: Mapping[str, ShapeProfile]
    generation: GenerationDefaults

    @property
    def spatial(self) -> int:
        """Pixels that a latent covers in height and in width."""
        return spatial_scale(self.checkpoint.config("vae"))

    @property
    def two_experts(self) -> bool:
        """A second transformer takes over at the boundary (Wan 2.2 A14B)."""
        return "transformer_2" in self.checkpoint.parts

    def making(self, *, from_image: bool) -> ResolvedModel:
        """See :meth:`~wan_trt_core.models.checkpoint.Checkpoint.making`."""
        return replace(self, checkpoint=self.checkpoint.making(from_image=from_image))

    def profile(self, name: str | None = None) -> ShapeProfile:
        """The profile of that name; the model's first without a name.

        Raises:
            CatalogueError: when the model has none of that name.
        """
        if name is None:
            return next(iter(self.profiles.values()))
        if name not in self.profiles:
            there = (
                ", ".join(self.profiles) or "none: its transformer has the size of no model of the catalogue"
            )
            raise CatalogueError(f"{self.name} has no profile {name!r}; there are {there}")
        return self.profiles[name]

    def own_profile(self, name: str | None = None) -> ShapeProfile:
        """The profile of that name; without a name the first that serves the model's own video, else the first.

        Raises:
            CatalogueError: when the model has none of that name.
        """
        return (None if name else self.profile_serving(self.generation)) or self.profile(name)

    def profile_serving(self, video: GenerationDefaults) -> ShapeProfile | None:
        """The first profile whose engines serve a video of this size; None where none does."""
        size = video.height, video.width, video.num_frames
        return next((each for each in self.profiles.values() if not any(each.outside(*size))), None)


@dataclass(frozen=True)
class _Entry:
    """``profiles`` hold height, width and frames at min, opt and max. ``hub`` is the id of the weights on the hub.

    ``configs`` are those of the model with random weights; one without has its own.
    """

    profiles: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]]
    configs: Configs | None = None
    hub: str | None = None
    generation: GenerationDefaults = GenerationDefaults()

    @property
    def size(self) -> tuple[int, int, int]:
        """See :func:`_size`."""
        of_random = self.configs or {"transformer": Checkpoint(EMBEDDED).config("transformer")}
        return _size(of_random["transformer"])

    @property
    def experts(self) -> bool:
        """Whether there are two transformers."""
        return "transformer_2" in (self.configs or ())


def _size(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Layers, width and channels in of a transformer: a model of the catalogue is known again by them, and by whether
    there are two."""
    dim = transformer["num_attention_heads"] * transformer.get("attention_head_dim", HEAD_DIM)
    return transformer["num_layers"], dim, transformer.get("in_channels", 16)


_480P_17F = ((256, 256, 5), (480, 832, 17), (832, 832, 21))
_480P_81F = ((256, 256, 33), (480, 832, 81), (832, 832, 81))
_720P_81F = ((480, 832, 33), (720, 1280, 81), (1280, 1280, 81))
_704P_17F = ((256, 256, 5), (704, 1280, 17), (1280, 1280, 21))
_704P_121F = ((256, 256, 33), (704, 1280, 121), (1280, 1280, 121))
_14B = wan21_configs(5120, 40, 13824)
_5B = wan21_configs(3072, 30, 14336)

# the variants, small enough for every test: two layers of two heads
_OF_TINY: Configs = {
    **wan21_configs(64, 2, 128),
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "ffn_dim": 128, "text_dim": 32,
        "freq_dim": 32,
    },
    "vae": {"base_dim": 8},
    "text_encoder": {
        **UMT5_XXL, "vocab_size": 32, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
    },
}  # fmt: skip
_TINY_CLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_TINY_VAE_22 = {**VAE_22, "base_dim": 8, "decoder_base_dim": 8}


def _tiny(configs: Configs) -> _Entry:
    video = GenerationDefaults(64, 96, 9, num_inference_steps=4)
    return _Entry({"64p-9f": ((64, 64, 5), (64, 96, 9), (96, 96, 9))}, configs, generation=video)


_ENTRIES: Mapping[str, _Entry] = {
    "tiny-wan": _Entry({"128p-17f": ((64, 64, 5), (128, 128, 17), (160, 160, 21))}),
    "wan2.1-t2v-1.3b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F},
        wan21_configs(1536, 30, 8960),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    ),
    "wan2.1-t2v-14b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F, "720p-81f": _720P_81F},
        _14B,
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    ),
    "wan2.1-i2v-14b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F},
        with_image(_14B, CLIP_VIT_H),
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    ),
    "wan2.2-t2v-a14b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F, "720p-81f": _720P_81F},
        with_two_experts(_14B, 0.875),
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        GenerationDefaults(num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0),
    ),
    "wan2.2-ti2v-5b": _Entry(
        {"704p-121f": _704P_121F, "704p-17f": _704P_17F},
        with_timestep_a_token(_5B, VAE_22),
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        GenerationDefaults(height=704, width=1280, num_frames=121, fps=24),
    ),
    "tiny-wan2.1-i2v": _tiny(with_image(_OF_TINY, _TINY_CLIP)),
    "tiny-wan2.2-t2v-a14b": _tiny(with_two_experts(_OF_TINY, 0.875)),
    "tiny-wan2.2-ti2v-5b": _tiny(with_timestep_a_token(_OF_TINY, _TINY_VAE_22)),
}


def model_names() -> tuple[str, ...]:
    """The names in the catalogue."""
    return tuple(_ENTRIES)


def profile_names(model: str) -> tuple[str, ...]:
    """The shape profiles of a model of the catalogue, the default one first."""
    return tuple(_ENTRIES[model].profiles)


def installed_names() -> tuple[str, ...]:
    """The names of the models that other installed packages bring, see :mod:`wan_trt_core.models.installed`."""
    return tuple(name for name in installed.names(installed.MODELS) if name not in _ENTRIES)


def resolve(
    model: str,
    checkpoint: Path | str | None = None,
    *,
    layers: int | None = None,
    text_encoder: bool = False,
    download: bool = True,
) -> ResolvedModel:
    """The model of a catalogue name, of a name that another installed package brings, of a folder in diffusers format,
    or of an id on the hub.

    Nothing is downloaded but the model of an id. A named model whose weights are not installed gets, without a
    checkpoint, seeded random ones at its true shapes.

    Args:
        model: a name from :func:`model_names`, or what ``checkpoint`` may be.
        checkpoint: folder or hub id of a named model's weights (``tiny-wan`` is installed with the package), see
            :func:`~wan_trt_core.models.hub.open_checkpoint`.
        layers: of a model with random weights, the transformer's first so many layers only.
        text_encoder: random weights are to have one, which they have not otherwise; a checkpoint has its own.
        download: whether a model of the hub that is not in its cache may be downloaded.

    Raises:
        CatalogueError: when there is no such model, the package that brings it fails, or layers are asked of one that
            is stored whole.
        CheckpointError: when there is no usable checkpoint, it is of another family than the named model, or the model
            has fewer layers.
    """
    entry = _ENTRIES.get(model)
    if model in installed_names():
        return _resolve_installed(model, checkpoint, layers, text_encoder)
    if entry is not None and entry.configs is not None and checkpoint is None:
        on_hub = f"{entry.hub} (downloaded into the hub's cache), or --wan-checkpoint " if entry.hub else ""
        remedy = f"For real weights give --wan-checkpoint {on_hub}FOLDER"
        seeded = RandomCheckpoint(entry.configs, remedy, layers=layers, text_encoder=text_encoder)
        return _resolved(model, seeded, entry)
    if layers is not None:
        raise CatalogueError(
            f"layers is {layers}, and {model} is stored whole: only a model of the catalogue with random weights"
            " (no --wan-checkpoint) can have fewer layers"
        )
    if entry is not None:
        opened = open_checkpoint(checkpoint or EMBEDDED, download=download)
        _require(opened, _other_family(model, entry, opened))
        return _resolved(model, opened, entry)
    place = Path(checkpoint or model).expanduser()
    if checkpoint is None and not place.is_dir() and not HUB_ID.fullmatch(model):
        raise CatalogueError(
            f"no model {model!r}: neither a folder nor one of {', '.join((*_ENTRIES, *installed_names()))}, nor the id"
            " of a model on the hub (owner/name)"
        )
    opened = open_checkpoint(place, download=download)
    return _resolved(place.absolute().name, opened, _entry_like(opened))


def _resolve_installed(
    model: str, checkpoint: Path | str | None, layers: int | None, text_encoder: bool
) -> ResolvedModel:
    if layers is not None or text_encoder:
        raise CatalogueError(
            f"{model} is brought by another package: only a model of the catalogue can have `layers` or `text_encoder`"
        )
    try:
        found = installed.load(installed.MODELS, model)(checkpoint)
    except installed.InstalledError as error:
        raise CatalogueError(str(error)) from error
    if not isinstance(found, ResolvedModel):
        raise CatalogueError(
            f"the entry point {model!r} of {installed.MODELS} returned {found!r}, expected a ResolvedModel"
        )
    return found


def require_size(model: str, checkpoint: Checkpoint) -> None:
    """Raise unless a checkpoint that is given for a model of the catalogue has its layers and width.

    :func:`resolve` takes any size, so that the cases of a model can run on a cut-down one of it.

    Raises:
        CheckpointError: naming both sizes.
    """
    if entry := _ENTRIES.get(model):
        _require(checkpoint, _other_size(model, entry, checkpoint))


def misfit(model: str, checkpoint: Checkpoint, *, any_size: bool) -> str:
    """In what a checkpoint differs from a model of the catalogue that it is given for, in words; empty where it fits,
    and for models that are none of the catalogue.

    Args:
        checkpoint: its configurations are all that is read of it.
        any_size: whether it may have other layers and another width, as :func:`resolve` allows.
    """
    if (entry := _ENTRIES.get(model)) is None:
        return ""
    other_size = "" if any_size else _other_size(model, entry, checkpoint)
    return _other_family(model, entry, checkpoint) or other_size


def _require(checkpoint: Checkpoint, other: str) -> None:
    """Raise where a checkpoint is another model.

    Raises:
        CheckpointError: saying in what it differs.
    """
    if other:
        place = checkpoint.folder
        raise CheckpointError(f"{place}: {other}; name no other model for it: --wan-model {place}")


def _other_family(model: str, entry: _Entry, checkpoint: Checkpoint) -> str:
    """In what a checkpoint is none of a named model's kind, of whatever size."""
    found, wanted = (
        f"{channels} channels into {'two transformers' if two else 'one transformer'}"
        for channels, two in (
            (_size(checkpoint.config("transformer"))[2], "transformer_2" in checkpoint.parts),
            (entry.size[2], entry.experts),
        )
    )
    return f"a model of another family than {model}: {found}, not {wanted}" if found != wanted else ""


def _other_size(model: str, entry: _Entry, checkpoint: Checkpoint) -> str:
    found, wanted = (
        f"{layers} layers of width {width}"
        for layers, width, _ in (_size(checkpoint.config("transformer")), entry.size)
    )
    return f"another size than {model}: {found}, not {wanted}" if found != wanted else ""


def resolve_loaded(checkpoint: Checkpoint) -> ResolvedModel:
    """The model of a checkpoint that is open already. It has profiles only where its transformer has the size of a
    model of the catalogue, whose profiles they are."""
    return _resolved(checkpoint.folder.name, checkpoint, _entry_of(checkpoint) or _Entry({}))


def _resolved(name: str, checkpoint: Checkpoint, entry: _Entry) -> ResolvedModel:
    generation = _generation(checkpoint, entry.generation)
    of_model = generation.max_sequence_length, spatial_scale(checkpoint.config("vae"))
    profiles = {
        profile: ShapeProfile(profile, *(Sizes(*point, *of_model) for point in points))
        for profile, points in entry.profiles.items()
    }
    return ResolvedModel(name, checkpoint, profiles, generation)


def _entry_of(checkpoint: Checkpoint) -> _Entry | None:
    """The entry whose transformer, or two of them, has the size of this checkpoint's."""
    kind = _size(checkpoint.config("transformer")), "transformer_2" in checkpoint.parts
    return next((entry for entry in _ENTRIES.values() if (entry.size, entry.experts) == kind), None)


def _entry_like(checkpoint: Checkpoint) -> _Entry:
    """The entry of a checkpoint, else one around its own video size."""
    video = _generation(checkpoint, GenerationDefaults())
    opt = (video.height, video.width, video.num_frames)
    return _entry_of(checkpoint) or _Entry({f"{video.height}p-{video.num_frames}f": (opt, opt, opt)})


def _generation(checkpoint: Checkpoint, defaults: GenerationDefaults) -> GenerationDefaults:
    stored = checkpoint.generation()
    names = {field.name: field.type for field in fields(GenerationDefaults)}
    values: dict[str, float | int] = {}
    for key, value in stored.items():
        if key not in names:
            continue  # the training script may note more about its videos than the pipeline needs
        whole = names[key] == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value <= 0:
            raise CheckpointError(
                f"{checkpoint.folder / 'generation.json'}: {key} is {value!r}, expected a positive"
                f" {'integer' if whole else 'number'}"
            )
        values[key] = value
    return replace(defaults, **values)  # type: ignore[arg-type]
