"""A model without a checkpoint: seeded random weights at the true shapes, for speed and memory.

Every value is a hash of the seed, the parameter's name and the value's index, computed with integers: the weights are
the same on every device and in every process, so that an engine exported on the CPU and its reference on the GPU agree
without a file between them. Nothing here says anything about quality.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.checkpoint import (
    EMBEDDED,
    IMAGE_TO_VIDEO,
    OF_TRANSFORMERS,
    PARTS,
    TEXT_TO_VIDEO,
    Checkpoint,
    CheckpointError,
    kept_in,
    rope_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Configs = Mapping[str, Mapping[str, Any]]
"""Configurations of each part that there is, of ``scheduler``, and of ``pipeline`` where it is no plain text-to-video;
what is left out is as diffusers and transformers have it."""

UMT5_XXL: Mapping[str, Any] = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""The text encoder of every Wan model as published."""

HEAD_DIM = 128
"""Channels of an attention head in every published Wan transformer."""

AT_ONCE = 2**26
"""Values that are computed at a time: the text encoder's embedding has sixteen times as many."""

NORM_SPREAD = 0.1
"""Norm weights are within this of one."""


def wan21_configs(dim: int, layers: int, ffn_dim: int) -> Configs:
    """Wan 2.1 text-to-video as published; diffusers' defaults are its VAE and all that its transformers share."""
    return {
        "transformer": {"num_attention_heads": dim // HEAD_DIM, "num_layers": layers, "ffn_dim": ffn_dim},
        "vae": {},
        "scheduler": {
            "_class_name": "UniPCMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
        },
    }


def with_image(configs: Configs, image_encoder: Mapping[str, Any]) -> Configs:
    """The same for image-to-video as in Wan 2.1: an image encoder whose states the transformer attends to, and beside
    the latents the image's own and a mask of four channels."""
    transformer = configs["transformer"]
    dim = transformer["num_attention_heads"] * transformer.get("attention_head_dim", HEAD_DIM)
    of_image = {"in_channels": 36, "image_dim": image_encoder["hidden_size"], "added_kv_proj_dim": dim}
    return {
        **configs,
        "transformer": {**transformer, **of_image},
        "image_encoder": image_encoder,
        "pipeline": {"_class_name": IMAGE_TO_VIDEO},
    }


def with_two_experts(configs: Configs, boundary_ratio: float) -> Configs:
    """The same with a second transformer of the same shape, which takes over at the boundary, as in Wan 2.2 A14B."""
    return {
        **configs,
        "transformer_2": configs["transformer"],
        "pipeline": {"_class_name": TEXT_TO_VIDEO, "boundary_ratio": boundary_ratio},
    }


def with_timestep_a_token(configs: Configs, vae: Mapping[str, Any]) -> Configs:
    """The same as in Wan 2.2 TI2V-5B: a timestep a token, and the VAE with patches of pixels."""
    channels = {"in_channels": vae["z_dim"], "out_channels": vae["z_dim"]}
    return {
        **configs,
        "transformer": {**configs["transformer"], **channels},
        "vae": vae,
        "scheduler": {**configs["scheduler"], "flow_shift": 5.0},
        "pipeline": {"_class_name": TEXT_TO_VIDEO, "expand_timesteps": True},
    }


CLIP_VIT_H: Mapping[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
"""The image encoder of Wan 2.1."""

VAE_22: Mapping[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}  # fmt: skip
"""The VAE of Wan 2.2 TI2V-5B."""


class RandomCheckpoint(Checkpoint):
    """In the place of a checkpoint: modules of the given configurations with seeded random weights.

    There is no text encoder unless one is asked for (5.7 billion parameters that few numbers depend on): prompts become
    random states, see :func:`~wan_trt_core.models.prompts.random_states`. One that is asked for reads the words that
    tiny-wan's tokenizer knows; its weights are random too, so which they are says nothing.

    Args:
        configs: of each part, the scheduler and the pipeline.
        remedy: how to get real weights, for errors.
        layers: each transformer has only its first so many.
        text_encoder: there is one, of the published size unless ``configs`` has another.

    Raises:
        CheckpointError: when the model has fewer layers.
    """

    random = True

    def __init__(
        self,
        configs: Configs,
        remedy: str,
        *,
        layers: int | None = None,
        text_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        self._modules = {}
        without = {part: config for part, config in configs.items() if part != "text_encoder"}
        self._configs = {"text_encoder": UMT5_XXL, **configs} if text_encoder else without
        self.parts = tuple(part for part in PARTS if part in self._configs)
        self._seed = seed
        self.remedy = remedy
        total = self.config("transformer")["num_layers"]
        if layers is not None:
            if not 1 <= layers <= total:
                raise CheckpointError(f"layers is {layers}; the model has {total}")
            cut = {part: {**configs[part], "num_layers": layers} for part in _transformers(configs)}
            self._configs = {**self._configs, **cut}
        told = ["seeded random"]
        if layers is not None:
            told.append(f"{layers} of {total} layers")
        if text_encoder:
            told.append("text encoder too")
        self._source = ", ".join(told)

    def __repr__(self) -> str:
        return f"RandomCheckpoint({self._source!r})"

    @property
    def source(self) -> str:
        return self._source

    def config(self, part: str) -> dict[str, Any]:
        if part == "scheduler":
            return dict(self._configs[part])
        self._require(part)
        if part not in self.parts:
            raise self._no(part)
        kind = self._class_of(part)
        if part in OF_TRANSFORMERS:
            whole: dict[str, Any] = kind.config_class(**self._configs[part]).to_dict()
            return whole
        parameters = inspect.signature(kind.__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.name != "self"}
        return {**defaults, **self._configs[part]}

    def pipeline_config(self) -> dict[str, Any]:
        return dict(self._configs.get("pipeline", {"_class_name": TEXT_TO_VIDEO}))

    def generation(self) -> dict[str, Any]:
        return {}

    def weights_sha256(self, part: str, notes: Path | None = None) -> str:
        """Hash over what the weights are made from: configuration and seed (hex)."""
        made_from = {"part": part, "config": self.config(part), "seed": self._seed}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def load(self, part: str, dtype: str = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """As :meth:`Checkpoint.load`. Beside a GPU a module on the CPU, which only exports use, is not kept."""
        import torch

        module = super().load(part, dtype, device)
        if _maker(device) != torch.device(device):
            self._modules = {key: kept for key, kept in self._modules.items() if kept is not module}
        return module

    def tokenizer(self) -> Any:
        if "text_encoder" not in self.parts:
            raise self._no("tokenizer")
        return Checkpoint.open(EMBEDDED).tokenizer()

    def image_processor(self) -> Any:
        from transformers import CLIPImageProcessor

        size = self.config("image_encoder")["image_size"]
        return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def scheduler(self) -> Any:
        import diffusers

        config = self.config("scheduler")
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def _inspect(self, part: str) -> dict[str, Any]:
        parameters = dict(self.empty(part).named_parameters())
        count = sum(parameter.numel() for parameter in parameters.values())
        tensors = {name: {"dtype": "F32", "shape": list(value.shape)} for name, value in parameters.items()}
        return {
            "parameters": count,
            "bytes": 4 * count,
            "dtypes": {"F32": count},
            "tensors": dict(sorted(tensors.items())),
        }

    def _load(self, part: str, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        import torch

        module: Any = self.empty(part)
        for full in dict(module.named_parameters()):
            value = self._drawn(part, module, full, _maker(device))
            kept = kept_in(module, full, dtype)  # what from_pretrained keeps, by its own rule
            layer, _, name = full.rpartition(".")
            parameter = torch.nn.Parameter(value.to(kept).to(device), requires_grad=False)
            module.get_submodule(layer).register_parameter(name, parameter)
        if part in _transformers(self._configs):  # buffers are computed and not stored
            module.rope = rope_of(module).to(device)
        elif part == "image_encoder":
            (embeddings,) = (layer for layer in module.modules() if "position_ids" in layer._buffers)
            positions = embeddings.position_ids.shape[-1]
            embeddings.position_ids = torch.arange(positions, device=device).expand((1, -1))
        elif part == "text_encoder":
            module.tie_weights()  # one embedding by two names
        stock: nn.Module = module.eval()
        return stock

    def _values(self, part: str, module: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
        return {name: self._drawn(part, module, name, _maker("cpu")) for name in names}

    def _drawn(self, part: str, module: nn.Module, name: str, device: torch.device) -> Tensor:
        """The values of a parameter in float32; ``module`` tells its shape and its layer."""
        shaped, layer = module.get_parameter(name), module.get_submodule(name.rpartition(".")[0])
        centre, spread = _range(name, shaped, _fan_in(layer))
        return uniform(f"{self._seed}:{part}.{name}", shaped.shape, device) * spread + centre

    def _no(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"a model with random weights has no {what}: its prompts become random states. {self.remedy}"
        )


def _transformers(configs: Configs) -> tuple[str, ...]:
    return tuple(part for part in configs if part.startswith("transformer"))


def uniform(name: str, shape: torch.Size, device: torch.device | str) -> Tensor:
    """Float32 values in [-1, 1) from a name: the same bits on every device.

    Two rounds of a 32-bit integer hash (multiply and xor-shift) over the index, with 64 bits of the name's own hash.
    All products stay below 2^63, and 24 bits fit into a float exactly.
    """
    import torch

    digest = hashlib.sha256(name.encode()).digest()
    values = torch.empty(shape.numel(), device=device)
    for some in values.split(AT_ONCE):
        begin = some.storage_offset()
        bits = torch.arange(begin, begin + len(some), dtype=torch.int64, device=device)
        for part, shift, factor in ((digest[:4], 16, 0x21F0AAAD), (digest[4:8], 15, 0x735A2D97)):
            bits.bitwise_xor_(int.from_bytes(part))
            bits.bitwise_xor_(bits >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
        bits.bitwise_xor_(bits >> 15)
        some.copy_((bits >> 8).sub_(2**23)).mul_(2.0**-23)
    return values.reshape(shape)


def _range(name: str, parameter: Tensor, fan_in: int | None) -> tuple[float, float]:
    """Centre and half width of a parameter's values.

    Layers keep the scale of their inputs, so that every block leaves its mark on the residual stream (a fault in one
    shows in the output) and 40 of them stay far from the range of half precision. A uniform value's deviation is its
    half width over the root of three.
    """
    if fan_in is not None:  # a linear layer or a convolution, its bias too
        return 0.0, math.sqrt(3 / fan_in)
    if name.endswith("scale_shift_table"):
        return 0.0, math.sqrt(3 / parameter.shape[-1])  # as diffusers begins a training
    return (0.0 if name.endswith("bias") else 1.0), NORM_SPREAD


def _fan_in(layer: nn.Module) -> int | None:
    weight: Any = getattr(layer, "weight", None)
    return weight[0].numel() if weight is not None and weight.dim() > 1 else None


def _maker(device: torch.device | str) -> torch.device:
    """Where the values for a device are computed: a GPU, if there is one, in a fraction of the CPU's time."""
    import torch

    wanted = torch.device(device)
    return torch.device("cuda") if wanted.type == "cpu" and torch.cuda.is_available() else wanted
