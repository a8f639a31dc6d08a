"""The models known by name, their shape profiles, and the settings videos are generated with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from wan_trt_core.config import HUB_ID
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError
from wan_trt_core.models.hub import open_checkpoint
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.models.random_weights import RandomCheckpoint, wan21_configs
from wan_trt_core.models.vae_caches import spatial_scale


class CatalogueError(ValueError):
    """No such model or profile, or layers of a model that is stored whole; the message says what there is."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How a video is generated unless told otherwise; the names are those of ``WanPipeline.__call__``.

    ``height`` and ``width`` are in pixels; ``max_sequence_length`` is the padded length of the prompt in
    tokens. A checkpoint's ``generation.json`` may replace any of them.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    max_sequence_length: int = 512
    fps: int = 16


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


@dataclass(frozen=True)
class _Entry:
    """``profiles`` hold height, width and frames at min, opt and max. ``hub`` is the id of the weights on the hub.

    ``layers``, ``dim`` and ``ffn_dim`` are the transformer's.
    """

    profiles: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]]
    layers: int
    dim: int
    ffn_dim: int = 0
    hub: str | None = None


_480P_17F = ((256, 256, 5), (480, 832, 17), (832, 832, 21))
_480P_81F = ((256, 256, 33), (480, 832, 81), (832, 832, 81))
_720P_81F = ((480, 832, 33), (720, 1280, 81), (1280, 1280, 81))

_ENTRIES: Mapping[str, _Entry] = {
    "tiny-wan": _Entry({"128p-17f": ((64, 64, 5), (128, 128, 17), (160, 160, 21))}, layers=8, dim=128),
    "wan2.1-t2v-1.3b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F},
        layers=30,
        dim=1536,
        ffn_dim=8960,
        hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    ),
    "wan2.1-t2v-14b": _Entry(
        {"480p-17f": _480P_17F, "480p-81f": _480P_81F, "720p-81f": _720P_81F},
        layers=40,
        dim=5120,
        ffn_dim=13824,
        hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    ),
}

EMBEDDED = Path(__file__).parent / "tiny_wan"
"""The checkpoint that is installed with the package."""


def model_names() -> tuple[str, ...]:
    """The names in the catalogue."""
    return tuple(_ENTRIES)


def profile_names(model: str) -> tuple[str, ...]:
    """The shape profiles of a model of the catalogue, the default one first."""
    return tuple(_ENTRIES[model].profiles)


def resolve(
    model: str, checkpoint: Path | str | None = None, *, layers: int | None = None, download: bool = True
) -> ResolvedModel:
    """The model of a catalogue name, of a folder in diffusers format, or of an id on the hub.

    Nothing is downloaded but the model of an id. A named model whose weights are not installed gets, without a
    checkpoint, seeded random ones at its true shapes.

    Args:
        model: a name from :func:`model_names`, or what ``checkpoint`` may be.
        checkpoint: folder or hub id of a named model's weights (``tiny-wan`` is installed with the package), see
            :func:`~wan_trt_core.models.hub.open_checkpoint`.
        layers: of a model with random weights, the transformer's first so many layers only.
        download: whether a model of the hub that is not in its cache may be downloaded.

    Raises:
        CatalogueError: when there is no such model, or layers are asked of one that is stored whole.
        CheckpointError: when there is no usable checkpoint, or the model has fewer layers.
    """
    entry = _ENTRIES.get(model)
    if entry is not None and entry.hub is not None and checkpoint is None:
        remedy = (
            f"For real weights give --wan-checkpoint {entry.hub} (downloaded into the hub's cache), or"
            " --wan-checkpoint FOLDER"
        )
        configs = wan21_configs(entry.dim, entry.layers, entry.ffn_dim)
        return _resolved(model, RandomCheckpoint(configs, remedy, layers=layers), entry)
    if layers is not None:
        raise CatalogueError(
            f"layers is {layers}, and {model} is stored whole: only a model of the catalogue with random weights"
            " (no --wan-checkpoint) can have fewer layers"
        )
    if entry is not None:
        return _resolved(model, open_checkpoint(checkpoint or EMBEDDED, download=download), entry)
    place = Path(checkpoint or model).expanduser()
    if checkpoint is None and not place.is_dir() and not HUB_ID.fullmatch(model):
        raise CatalogueError(
            f"no model {model!r}: neither a folder nor one of {', '.join(_ENTRIES)}, nor the id of a model on the"
            " hub (owner/name)"
        )
    opened = open_checkpoint(place, download=download)
    return _resolved(place.absolute().name, opened, _entry_like(opened))


def resolve_loaded(checkpoint: Checkpoint) -> ResolvedModel:
    """The model of a checkpoint that is open already. It has profiles only where its transformer has the size of a
    model of the catalogue, whose profiles they are."""
    return _resolved(checkpoint.folder.name, checkpoint, _entry_of(checkpoint) or _Entry({}, 0, 0))


def _resolved(name: str, checkpoint: Checkpoint, entry: _Entry) -> ResolvedModel:
    generation = _generation(checkpoint)
    of_model = generation.max_sequence_length, spatial_scale(checkpoint.config("vae"))
    profiles = {
        profile: ShapeProfile(profile, *(Sizes(*point, *of_model) for point in points))
        for profile, points in entry.profiles.items()
    }
    return ResolvedModel(name, checkpoint, profiles, generation)


def _entry_of(checkpoint: Checkpoint) -> _Entry | None:
    """The entry whose transformer has the size of this checkpoint's."""
    config = checkpoint.config("transformer")
    size = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
    return next((entry for entry in _ENTRIES.values() if (entry.layers, entry.dim) == size), None)


def _entry_like(checkpoint: Checkpoint) -> _Entry:
    """The entry of a checkpoint, else one around its own video size."""
    video = _generation(checkpoint)
    opt = (video.height, video.width, video.num_frames)
    around = {f"{video.height}p-{video.num_frames}f": (opt, opt, opt)}
    return _entry_of(checkpoint) or _Entry(around, layers=0, dim=0)


def _generation(checkpoint: Checkpoint) -> GenerationDefaults:
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
    return replace(GenerationDefaults(), **values)  # type: ignore[arg-type]
