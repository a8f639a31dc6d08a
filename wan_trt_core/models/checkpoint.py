"""A checkpoint: a folder in diffusers format, validated before anything is loaded from it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from wan_trt_core.hashing import files_sha256
from wan_trt_core.models.profiles import TEMPORAL

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline
    from torch import Tensor, nn

EMBEDDED = Path(__file__).parent / "tiny_wan"
"""The folder of the checkpoint that is installed with the package."""

PARTS: Mapping[str, str] = {
    "transformer": "WanTransformer3DModel",
    "transformer_2": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "image_encoder": "CLIPVisionModel",
}
"""The parts with weights, and the only class each may have."""

OPTIONAL = ("transformer_2", "image_encoder")
"""Parts that only some of the models have."""

OF_TRANSFORMERS = ("text_encoder", "image_encoder")
"""Parts whose class is of transformers; the others' are of diffusers."""

TEXT_TO_VIDEO, IMAGE_TO_VIDEO = PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""The pipelines that a checkpoint may be of."""

WEIGHTS: Mapping[str, str] = {
    part: "model.safetensors" if part in OF_TRANSFORMERS else "diffusion_pytorch_model.safetensors"
    for part in PARTS
}

_OF_A_TRANSFORMER = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "text_dim")
SIZES: Mapping[str, tuple[str, ...]] = {
    "transformer": _OF_A_TRANSFORMER,
    "transformer_2": _OF_A_TRANSFORMER,
    "vae": ("z_dim", "base_dim", "num_res_blocks"),
    "text_encoder": ("num_layers", "d_model"),
    "image_encoder": ("image_size", "patch_size"),
}
"""Keys of each part's ``config.json`` that the components are laid out by: positive integers."""

LISTS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("patch_size",),
    "transformer_2": ("patch_size",),
    "vae": ("dim_mult", "temperal_downsample", "latents_mean", "latents_std"),
    "text_encoder": (),
    "image_encoder": (),
}
"""The same for lists."""

TIME_PATH = frozenset({"time_embedder", "time_proj", "scale_shift_table"})
"""What of a transformer makes the modulation of its blocks from a timestep: these names are in its parameters'."""

INDEX = "model_index.json"
"""The file that makes a folder one in diffusers format: the pipeline, and the class of each part."""

_AGAIN = "copy or download the checkpoint again"

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Suffixes of weights that run code when they are loaded. They are never read."""

DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precision words of case files to PyTorch's names; either may be given to :meth:`Checkpoint.load`."""

INT8 = "int8"
"""The precision word of weights that are stored in eight bits and computed with in floating point."""

_BYTES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


class CheckpointError(ValueError):
    """A folder is no checkpoint that can be used; the message names the file, the cause and what to do."""


def torch_dtype(precision: str, part: str = "") -> torch.dtype:
    """PyTorch's dtype for a precision word (``fp32``, ``fp16``, ``bf16``) or for its own name.

    Args:
        part: that is to have it, for the error.

    Raises:
        CheckpointError: for anything else.
    """
    import torch

    name = DTYPES.get(precision, precision)
    if name not in DTYPES.values():
        known = (*DTYPES, *([INT8] if _in_int8(part, INT8) else ()))
        raise CheckpointError(f"no dtype {precision!r}; use one of {', '.join(known)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _in_int8(part: str, precision: str) -> bool:
    """Whether a part is wanted in eight bits, which the text encoder alone can be."""
    return (part, precision) == ("text_encoder", INT8)


def located(device: torch.device | str) -> torch.device:
    """The device with its number: ``cuda`` is the current one, as tensors name it (``cuda:0``)."""
    import torch

    found = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


class Checkpoint:
    """A validated Wan checkpoint. Get one from :meth:`open`.

    That of another architecture is a subclass with an ``architecture``, ``classes`` and ``parts`` of its own, made of a
    folder: ``LtxCheckpoint(folder)``. It has no pipeline on engines.

    Attributes:
        architecture: of models with the same components.
        classes: that of each part which such a checkpoint may have, of diffusers or (:data:`OF_TRANSFORMERS`) of
            transformers.
        folder: the folder in diffusers format, absolute.
        parts: those with weights, by the order of :data:`PARTS`.
        random: the weights were never trained, so that outputs say nothing about quality.
        encoded: states of prompts by text and length, each with the number that is no padding; see
            :func:`~wan_trt_core.models.prompts.encode_prompt`.
    """

    architecture: ClassVar[str] = "wan"
    classes: ClassVar[Mapping[str, str]] = PARTS
    parts: tuple[str, ...] = tuple(part for part in PARTS if part not in OPTIONAL)
    random: ClassVar[bool] = False
    _from_image: bool | None = None
    """What :meth:`making` was asked for; otherwise its folder says it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[tuple[str, str, str], nn.Module] = {}
        self._hashes: dict[str, str] = {}
        self.encoded: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Validate a folder and return its checkpoint. Reads JSON and safetensors headers, no weights.

        Raises:
            CheckpointError: when the folder is missing, no Wan text-to-video or image-to-video pipeline, lacks a
                file, or holds weights that are truncated, corrupt or pickled.
        """
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise CheckpointError(
                f"no checkpoint at {path}: there is no such folder. Give the folder of a Wan model in"
                " diffusers format with --wan-checkpoint, or its id on the hub (owner/name)"
            )
        checkpoint = cls(path)
        checkpoint.parts = check_index(path)
        checkpoint._validate()
        return checkpoint

    @classmethod
    def described(cls, folder: Path | str) -> Checkpoint:
        """As :meth:`open`, of a folder that need not hold more than the index and the configurations of the parts.

        Raises:
            CheckpointError: when one of these is missing or wrong.
        """
        checkpoint = cls(Path(folder).absolute())
        checkpoint.parts = check_index(checkpoint.folder)
        for part in checkpoint.parts:
            checkpoint._validate_config(part)
        return checkpoint

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        return str(self.folder)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of one of :data:`PARTS`, or of ``scheduler``.

        Raises:
            CheckpointError: for an unknown part, or when the file is missing or no JSON object.
        """
        if part != "scheduler":
            self._require(part)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return _read_json(self.folder / part / name)

    def pipeline_config(self) -> dict[str, Any]:
        """``model_index.json``: the pipeline's class, and what it is configured with beside its parts
        (``boundary_ratio``, ``expand_timesteps``).

        Raises:
            CheckpointError: when it cannot be read, or is that of another architecture.
        """
        if self.architecture != Checkpoint.architecture:
            raise CheckpointError(
                f"{self.source}: whole videos are of Wan alone, and this is one of {self.architecture}, whose"
                " components are exported, built and compared one by one"
            )
        return _read_json(self.folder / INDEX)

    @property
    def timestep_by_frame(self) -> bool:
        """Its pipeline gives every token a timestep, all those of a latent frame the same (Wan 2.2 TI2V-5B)."""
        return bool(self.pipeline_config().get("expand_timesteps"))

    @property
    def begins_with_image(self) -> bool:
        """Its pipeline makes a video from an image."""
        if self._from_image is not None:
            return self._from_image
        return bool(self.pipeline_config().get("_class_name") == IMAGE_TO_VIDEO)

    def making(self, *, from_image: bool) -> Self:
        """The same checkpoint as a pipeline for videos that begin with an image, or for those from text alone. TI2V-5B
        makes both with the same parts; every other is as it is."""
        if not self.timestep_by_frame:
            return self
        twin = copy.copy(self)
        twin._from_image = from_image
        return twin

    def generation(self) -> dict[str, Any]:
        """``generation.json``: the settings the checkpoint was made for. Empty where there is none."""
        path = self.folder / "generation.json"
        return _read_json(path) if path.exists() else {}

    def weight_files(self, part: str) -> tuple[Path, ...]:
        """The safetensors files of a part: one, or the shards that its index lists.

        Raises:
            CheckpointError: for an unknown part, or when there are none, one is missing, or the weights are pickled.
        """
        self._require(part)
        folder = self.folder / part
        single = folder / WEIGHTS[part]
        if single.exists():
            return (single,)
        index = folder / f"{WEIGHTS[part]}.index.json"
        if index.exists():
            return _shards(index)
        pickled = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLED)
        if pickled:
            raise CheckpointError(
                f"{folder / pickled[0]}: pickled weights run code when loaded and are refused; convert them"
                " with save_pretrained(…, safe_serialization=True)"
            )
        raise CheckpointError(f"{single}: missing, and there is no {index.name} beside it; {_AGAIN}")

    def weights_sha256(self, part: str, notes: Path | None = None) -> str:
        """Hash over a part's configuration and weights (hex), computed once.

        Args:
            notes: folder that keeps it for later processes, see :func:`~wan_trt_core.hashing.files_sha256`.
        """
        if part not in self._hashes:
            self._hashes[part] = files_sha256(self.files(part), notes)
        return self._hashes[part]

    def files(self, part: str) -> tuple[Path, ...]:
        """A part's configuration and weights."""
        return (self.folder / part / "config.json", *self.weight_files(part))

    def load(self, part: str, dtype: str = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """The stock module of a part: eval mode, no gradients, cached by part, dtype and device.

        In ``int8`` the text encoder alone, its weights as :mod:`wan_trt_core.models.int8` keeps them.

        What diffusers and transformers keep in float32 in a half-precision model stays so. The module is
        shared by all callers: never change it.

        Raises:
            CheckpointError: for an unknown part or dtype, or when the weights do not fit the configuration.
        """
        self._require(part)
        key = (part, dtype if _in_int8(part, dtype) else str(torch_dtype(dtype, part)), str(located(device)))
        if key not in self._modules:
            self._modules[key] = self.fresh(part, dtype, device)
        return self._modules[key]

    def fresh(self, part: str, dtype: str = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """As :meth:`load`, but a new module at every call, of which nothing is kept.

        Raises:
            CheckpointError: as :meth:`load`.
        """
        self._require(part)
        if not _in_int8(part, dtype):
            return self._load(part, torch_dtype(dtype, part), device)
        from wan_trt_core.models.int8 import with_int8_weights

        return with_int8_weights(self._load(part, self._stored(part), "cpu")).to(device)

    @contextmanager
    def passing(self, part: str, device: torch.device | str) -> Iterator[None]:
        """What is loaded of a part on a device meanwhile is not kept for later callers of :meth:`load`."""
        import torch

        kept, kind = {*self._modules}, torch.device(device).type
        try:
            yield
        finally:
            self._modules = {
                key: module
                for key, module in self._modules.items()
                if key in kept or (key[0], torch.device(key[2]).type) != (part, kind)
            }

    def release(self, part: str) -> None:
        """Keep no module of a part any longer: it lives on where others hold it."""
        self._modules = {key: module for key, module in self._modules.items() if key[0] != part}

    def apart(self) -> Self:
        """The same checkpoint with modules of its own, which its owner may change."""
        twin = copy.copy(self)
        twin._modules = {}
        return twin

    def empty(self, part: str) -> nn.Module:
        """The stock module of a part without memory for its weights (PyTorch's device ``meta``), in float32.

        Raises:
            CheckpointError: where there is no such part, or diffusers cannot make it of its configuration.
        """
        import torch

        config, kind = self.config(part), self._class_of(part)
        with _explained(Path(self.source, part)), torch.device("meta"):
            module: nn.Module = (
                kind(kind.config_class(**config)) if part in OF_TRANSFORMERS else kind.from_config(config)
            )
        return module.eval().requires_grad_(False)

    def time_path(self, part: str, dtype: str = "fp32") -> nn.Module:
        """A transformer in host memory of which only the time path (:data:`TIME_PATH`) and the rotation have values:
        those of :meth:`load`. All its other weights are on ``meta``, and nothing of it is kept.

        Raises:
            CheckpointError: as :meth:`load`.
        """
        module: Any = self.empty(part)
        shapes = {
            name: parameter.shape
            for name, parameter in module.named_parameters()
            if TIME_PATH & {*name.split(".")}
        }
        found = self._values(part, module, shapes.keys())
        unfit = [name for name, shape in shapes.items() if name not in found or found[name].shape != shape]
        if unfit:
            raise CheckpointError(
                f"{Path(self.source, part)}: the weights do not fit config.json: {len(unfit)} are missing or of"
                f" another shape, such as {sorted(unfit)[0]}; {_AGAIN}"
            )
        kept = {
            name: value.to("cpu", kept_in(module, name, torch_dtype(dtype))) for name, value in found.items()
        }
        module.load_state_dict(kept, strict=False, assign=True)
        module.rope = rope_of(module)
        time_path: nn.Module = module
        return time_path

    def tokenizer(self) -> Any:
        """The tokenizer, by the class that ``model_index.json`` and its own files name.

        Raises:
            CheckpointError: when its files are missing or damaged.
        """
        from transformers import AutoTokenizer

        folder = self.folder / "tokenizer"
        with _explained(folder):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def prompt_encoder(self) -> Any:
        """The text encoder that encodes the prompts of exports and comparisons, in float32 on the CPU: the one that is
        loaded so, else another of which nothing is kept."""
        known = self._modules.get(("text_encoder", str(torch_dtype("fp32")), "cpu"))
        return known or self.fresh("text_encoder")

    def image_processor(self) -> Any:
        """What makes the image encoder's input of an image.

        Raises:
            CheckpointError: when its files are missing or damaged.
        """
        from transformers import CLIPImageProcessor

        folder = self.folder / "image_processor"
        with _explained(folder):
            return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    def scheduler(self) -> Any:
        """A new scheduler of the class that ``model_index.json`` names.

        Raises:
            CheckpointError: when diffusers has no such class, or its configuration cannot be read.
        """
        import diffusers

        index = self.folder / INDEX
        name = _class_name(self.pipeline_config(), "scheduler")
        kind = getattr(diffusers, str(name), None)
        if kind is None:
            raise CheckpointError(
                f"{index}: scheduler is {name}, which diffusers {diffusers.__version__} does not have; use a"
                " version that has it, or name another scheduler"
            )
        folder = self.folder / "scheduler"
        with _explained(folder):
            return kind.from_pretrained(folder, local_files_only=True)

    def pipeline(
        self,
        dtypes: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
        on_host: Collection[str] = (),
        replaced: Collection[str] = (),
    ) -> WanPipeline:
        """A new stock pipeline (one of :data:`PIPELINES`) over the cached modules; without a text encoder where there
        is none.

        Args:
            dtypes: precision by part; a part that is not named is loaded in ``fp32``.
            device: where the modules go.
            on_host: parts that stay in host memory.
            replaced: parts that engines will take the place of: they have a configuration and no weights, see
                :meth:`empty`.

        Raises:
            CheckpointError: for an unknown part or dtype.
        """
        import diffusers

        dtypes, config = dtypes or {}, self.pipeline_config()
        unknown = set(dtypes) - set(PARTS)
        if unknown:
            raise CheckpointError(
                f"no part {sorted(unknown)[0]!r} with weights; there are {', '.join(PARTS)}"
            )
        modules: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
        modules |= {
            part: self.empty(part)
            if part in replaced
            else self.load(part, dtypes.get(part, "fp32"), "cpu" if part in on_host else device)
            for part in self.parts
        }
        if "text_encoder" in self.parts:
            modules["tokenizer"] = self.tokenizer()
        if "image_encoder" in self.parts:
            modules["image_processor"] = self.image_processor()
        given = {name: config[name] for name in ("boundary_ratio", "expand_timesteps") if name in config}
        name = config["_class_name"]
        if self._from_image is not None:
            name = IMAGE_TO_VIDEO if self._from_image else TEXT_TO_VIDEO
        pipeline: WanPipeline = getattr(diffusers, name)(scheduler=self.scheduler(), **modules, **given)
        return pipeline

    def inspect(self) -> dict[str, Any]:
        """What the checkpoint holds; no weights are loaded.

        Returns:
            for each part its class, parameters (count), bytes, dtypes (parameters by dtype) and tensors
            (name to dtype and shape).
        """
        return {part: {"class": self.classes[part], **self._inspect(part)} for part in self.parts}

    def _class_of(self, part: str) -> Any:
        """The class itself that :attr:`classes` names."""
        import diffusers
        import transformers

        return getattr(transformers if part in OF_TRANSFORMERS else diffusers, self.classes[part])

    def _require(self, part: str) -> None:
        known = self.classes if self.random else self.parts  # of random weights its own error says more
        if part not in known:
            raise CheckpointError(
                f"{self.source}: no part {part!r} with weights; there are {', '.join(known)}"
            )

    def _inspect(self, part: str) -> dict[str, Any]:
        tensors: dict[str, dict[str, Any]] = {}
        dtypes: dict[str, int] = {}
        size = 0
        for file in self.weight_files(part):
            for name, dtype, shape in _header(file):
                count = math.prod(shape)
                tensors[name] = {"dtype": dtype, "shape": list(shape)}
                dtypes[dtype] = dtypes.get(dtype, 0) + count
                size += count * _BYTES.get(dtype, 1)
        return {
            "parameters": sum(dtypes.values()),
            "bytes": size,
            "dtypes": dtypes,
            "tensors": dict(sorted(tensors.items())),
        }

    def _stored(self, part: str) -> torch.dtype:
        """The dtype that most of a part's weights are stored in."""
        stored: dict[str, int] = self._inspect(part)["dtypes"]
        return torch_dtype({"F16": "fp16", "BF16": "bf16"}.get(max(stored, key=stored.__getitem__), "fp32"))

    def _values(self, part: str, module: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
        """Those of some parameters of a part that ``module`` is, as far as there are any, as they are stored. Nothing
        else is read."""
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for file in self.weight_files(part):
            with _explained(file.parent), safe_open(file, framework="pt") as tensors:
                stored = {*tensors.keys()}
                found |= {name: tensors.get_tensor(name) for name in names if name in stored}
        return found

    def _load(self, part: str, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        folder = self.folder / part
        # straight to the device: the largest part by far would lie in host memory first, and be copied from there
        there = {"device_map": located(device)} if part in OF_TRANSFORMERS else {}
        with _explained(folder), _no_progress_bars():
            module, info = self._class_of(part).from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **there,
            )
        problems = {kind: info.get(kind) for kind in ("missing_keys", "mismatched_keys") if info.get(kind)}
        if problems:
            kind, names = next(iter(problems.items()))
            raise CheckpointError(
                f"{folder}: the weights do not fit config.json: {len(names)} {kind.replace('_', ' ')},"
                f" such as {sorted(map(str, names))[0]}; {_AGAIN}"
            )
        stock: nn.Module = module.eval().requires_grad_(False).to(device)
        return stock

    def _validate(self) -> None:
        processor = ("image_processor",) if "image_encoder" in self.parts else ()
        for part in (*self.parts, "scheduler", "tokenizer", *processor):
            if not (self.folder / part).is_dir():
                raise CheckpointError(f"{self.folder / part}: missing, and a Wan pipeline needs it; {_AGAIN}")
        self.config("scheduler")
        for part in self.parts:
            self._validate_config(part)
            for file in self.weight_files(part):
                _header(file)

    def _validate_config(self, part: str) -> None:
        path, config = self.folder / part / "config.json", self.config(part)
        for key in SIZES[part]:
            value = config.get(key)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise CheckpointError(f"{path}: {key} is {value!r}, expected a positive integer; {_AGAIN}")
        for key in LISTS[part]:
            if not isinstance(config.get(key), list):
                raise CheckpointError(f"{path}: {key} is {config.get(key)!r}, expected a list; {_AGAIN}")
        if part == "vae" and (frames := 2 ** sum(map(bool, config["temperal_downsample"]))) != TEMPORAL:
            raise CheckpointError(
                f"{path}: temperal_downsample is {config['temperal_downsample']!r}, {frames} frames a latent frame,"
                f" expected {TEMPORAL}; no other is supported"
            )


def kept_in(module: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter of a model that is loaded in ``dtype``: diffusers keeps some in float32, transformers
    only beside float16."""
    import torch
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel) and dtype != torch.float16:
        return dtype
    return torch.float32 if set(module._keep_in_fp32_modules or ()) & set(name.split(".")) else dtype


def rope_of(transformer: Any) -> nn.Module:
    """The rotation of a transformer made anew on the CPU: its tables are computed, and no weights."""
    config = transformer.config
    rope: nn.Module = type(transformer.rope)(
        config.attention_head_dim, config.patch_size, config.rope_max_seq_len
    )
    return rope


def check_index(folder: Path) -> tuple[str, ...]:
    """Refuse a folder whose ``model_index.json`` is not that of a Wan text-to-video or image-to-video model.

    Returns:
        the parts with weights that it names.

    Raises:
        CheckpointError: as :meth:`Checkpoint.open`; nothing else in the folder is looked at.
    """
    index_path = folder / INDEX
    needed = [part for part in PARTS if part not in OPTIONAL]
    if not index_path.exists():
        raise CheckpointError(
            f"{folder} is no checkpoint in diffusers format: it has no {INDEX}. Give the folder"
            f" that holds it beside {', '.join((*needed, 'tokenizer'))} and scheduler; of the hub's Wan models"
            " those whose names end in -Diffusers have this form"
        )
    index = _read_json(index_path)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(
            f"{index_path}: a {pipeline}, not a {' or a '.join(PIPELINES)}: no other is supported"
        )
    parts = tuple(part for part in PARTS if part in needed or _class_name(index, part) is not None)
    for part in parts:
        if (found := _class_name(index, part)) != PARTS[part]:
            raise CheckpointError(
                f"{index_path}: {part} is {found}, expected {PARTS[part]}; no other is supported"
            )
    if "transformer_2" in parts and not index.get("boundary_ratio"):
        raise CheckpointError(
            f"{index_path}: there is a transformer_2 and no boundary_ratio, which says where it begins; {_AGAIN}"
        )
    return parts


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn whatever diffusers and transformers raise over a folder's files into an error that names it; memory that a
    device does not have is no fault of theirs."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a broken value in a configuration surfaces wherever it is first used
        lines = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {lines[0]}); if its files are damaged, {_AGAIN}"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bar into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}; {_AGAIN}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, expected a JSON object; {_AGAIN}")
    return data


def _class_name(index: Mapping[str, Any], part: str) -> str | None:
    """The class that ``model_index.json`` names for a part, as ``["diffusers", class]``; of one that the model does not
    have it says ``[null, null]`` or nothing."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else None


def _shards(index: Path) -> tuple[Path, ...]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: has no weight_map; {_AGAIN}")
    files = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map names {name!r}, expected a safetensors file beside it"
            )
        if not (index.parent / name).exists():
            raise CheckpointError(f"{index.parent / name}: missing, and {index.name} names it; {_AGAIN}")
        files.append(index.parent / name)
    return tuple(files)


def _header(file: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor. Opening checks the header against the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118
            return [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: truncated or corrupt ({file.stat().st_size} bytes): {error}; copy or download it again"
        ) from error
