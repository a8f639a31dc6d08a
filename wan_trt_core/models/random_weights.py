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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.checkpoint import PARTS, Checkpoint, CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Configs = Mapping[str, Mapping[str, Any]]
"""Configurations of ``transformer``, ``vae`` and ``scheduler``; what is left out is as diffusers has it."""

HEAD_DIM = 128
"""Channels of an attention head in every Wan 2.1 transformer."""

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


class RandomCheckpoint(Checkpoint):
    """In the place of a checkpoint: modules of the given configurations with seeded random weights.

    There is no text encoder (5.7 billion parameters that no number depends on): prompts become random states, see
    :func:`~wan_trt_core.models.prompts.random_states`.

    Args:
        configs: of each part and the scheduler.
        remedy: how to get real weights, for errors.
        layers: the transformer has only its first so many.

    Raises:
        CheckpointError: when the model has fewer layers.
    """

    random = True
    parts = ("transformer", "vae")

    def __init__(self, configs: Configs, remedy: str, *, layers: int | None = None, seed: int = 0) -> None:
        self._modules = {}
        self._configs = configs
        self._seed = seed
        self.remedy = remedy
        total = self.config("transformer")["num_layers"]
        if layers is not None:
            if not 1 <= layers <= total:
                raise CheckpointError(f"layers is {layers}; the model has {total}")
            self._configs = {**configs, "transformer": {**configs["transformer"], "num_layers": layers}}
        self._source = "seeded random" + (f", {layers} of {total} layers" if layers else "")

    def __repr__(self) -> str:
        return f"RandomCheckpoint({self._source!r})"

    @property
    def source(self) -> str:
        return self._source

    def config(self, part: str) -> dict[str, Any]:
        if part == "scheduler":
            return dict(self._configs[part])
        parameters = inspect.signature(self._kind(part).__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.name != "self"}
        return {**defaults, **self._configs[part]}

    def generation(self) -> dict[str, Any]:
        return {}

    def weights_sha256(self, part: str) -> str:
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
        raise self._no("tokenizer")

    def scheduler(self) -> Any:
        import diffusers

        config = self.config("scheduler")
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def _inspect(self, part: str) -> dict[str, Any]:
        parameters = dict(self._empty(part).named_parameters())
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

        module: Any = self._empty(part)
        in_fp32 = set(module._keep_in_fp32_modules or ())  # what from_pretrained keeps, by its own rule
        for path, layer in module.named_modules():
            fan_in = _fan_in(layer)
            for name, shaped in layer.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                centre, spread = _range(full, shaped, fan_in)
                noise = uniform(f"{self._seed}:{part}.{full}", shaped.shape, _maker(device))
                kept = torch.float32 if in_fp32 & set(full.split(".")) else dtype
                value = (noise * spread + centre).to(kept).to(device)
                layer.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        if part == "transformer":  # the one module with buffers: RoPE's frequencies, computed and not stored
            config = module.config
            sizes = (config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
            module.rope = type(module.rope)(*sizes).to(device)
        stock: nn.Module = module.eval()
        return stock

    def _empty(self, part: str) -> nn.Module:
        """The module without memory for its weights."""
        import torch

        with torch.device("meta"):
            module: nn.Module = self._kind(part)(**self.config(part))
        return module

    def _kind(self, part: str) -> Any:
        if part not in self.parts:
            raise self._no(part)
        import diffusers

        return getattr(diffusers, PARTS[part])

    def _no(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"a model with random weights has no {what}: its prompts become random states. {self.remedy}"
        )


def uniform(name: str, shape: torch.Size, device: torch.device | str) -> Tensor:
    """Float32 values in [-1, 1) from a name: the same bits on every device.

    Two rounds of a 32-bit integer hash (multiply and xor-shift) over the index, with 64 bits of the name's own hash.
    All products stay below 2^63, and 24 bits fit into a float exactly.
    """
    import torch

    digest = hashlib.sha256(name.encode()).digest()
    bits = torch.arange(shape.numel(), dtype=torch.int64, device=device)
    for part, shift, factor in ((digest[:4], 16, 0x21F0AAAD), (digest[4:8], 15, 0x735A2D97)):
        bits.bitwise_xor_(int.from_bytes(part))
        bits.bitwise_xor_(bits >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
    bits.bitwise_xor_(bits >> 15)
    return (bits >> 8).sub_(2**23).float().mul_(2.0**-23).reshape(shape)


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
