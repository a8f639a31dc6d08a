"""What keeps a pipeline from running on engines: found before any work, and told by the module's name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn
from transformers import UMT5EncoderModel

PARTS: dict[str, type] = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
}
"""The modules that engines replace, and the only class each may have. ``transformer_2`` may be missing, and the text
encoder is replaced only where that is asked for."""

_SHARDED = frozenset({"FullyShardedDataParallel", "FSDPModule"})
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


class IncompatiblePipeline(ValueError):
    """A pipeline cannot run on engines as it is; the message names each module, what is in the way and a remedy."""


def require_compatible(pipe: Any, *, text_encoder: bool = False) -> None:
    """Check what can be checked before anything is exported.

    Args:
        text_encoder: engines are to replace that too.

    Raises:
        IncompatiblePipeline: with everything that is in the way.
    """
    problems = tuple(_problems(pipe, PARTS.keys() - (() if text_encoder else {"text_encoder"})))
    if problems:
        raise IncompatiblePipeline("the pipeline cannot run on engines: " + "; ".join(problems))


def _problems(pipe: Any, parts: Collection[str]) -> Iterator[str]:
    if not isinstance(pipe, WanPipeline | WanImageToVideoPipeline):
        yield (
            f"it is a {type(pipe).__name__}, and engines are for WanPipeline and WanImageToVideoPipeline: the other"
            " pipelines are not supported"
        )
        return
    for name, kind in PARTS.items():
        module = getattr(pipe, name)
        if name not in parts or (module is None and name == "transformer_2"):
            continue
        yield from (f"{name}: {problem}" for problem in _problems_of(module, kind))
    if "text_encoder" in parts and pipe.tokenizer is None:
        yield "text_encoder: the pipeline has no tokenizer, whose tokens an engine is compared with"
    if pipe.transformer_2 is not None and pipe.config.boundary_ratio is None:
        yield "transformer_2: without a boundary_ratio nothing runs it; set that, or leave this transformer out"


def _problems_of(module: Any, kind: type) -> Iterator[str]:
    if module is None:
        yield "the pipeline has none"
        return
    if any(_SHARDED & {base.__name__ for base in type(part).__mro__} for part in module.modules()):
        yield "sharded by FSDP; engines are built from a whole module: load it without"
        return
    if not isinstance(module, kind):
        yield (
            f"a {type(module).__name__} in the place of diffusers' {kind.__name__}; give the pipeline the module"
            " itself, neither compiled nor wrapped"
        )
        return
    if adapter := _adapter(module):
        yield (
            f"{adapter}; pipe.fuse_lora() and pipe.unload_lora_weights() put LoRA adapters into the weights, from"
            " which engines are then built"
        )
        return
    looks: tuple[Callable[[Any], str | None], ...] = (_weights, _hook, _variant, _processor)
    yield from filter(None, (look(module) for look in looks))


def _weights(module: nn.Module) -> str | None:
    for name, weight in module.named_parameters():
        if weight.is_meta:
            return f"{name} is not in memory (device meta: offloaded); load the whole module"
        if weight.dtype not in _FLOATING or type(weight) is not nn.Parameter:
            return (
                f"{name} is quantised ({type(weight).__name__} in {str(weight.dtype).removeprefix('torch.')});"
                " engines are built from floating-point weights: load it without quantization_config"
            )
    return None


def _hook(module: nn.Module) -> str | None:
    for name, part in module.named_modules():
        where = f" of {name}" if name else ""
        if hasattr(part, "_hf_hook"):
            return (
                f"accelerate's {type(part._hf_hook).__name__}{where} (CPU offload or a device map) would move"
                " weights that engines do not have; pipe.remove_all_hooks() first, and pipe.enable_model_cpu_offload()"
                " afterwards for what stays in PyTorch"
            )
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", None)
        if hooks:
            return (
                f"diffusers' hook {', '.join(hooks)}{where} (group offload, layerwise casting or a cache) would not"
                " run; disable it"
            )
        if part._forward_hooks or part._forward_pre_hooks:
            return f"a forward hook{where} would not run; remove it"
    return None


def _adapter(module: Any) -> str | None:
    if getattr(module, "peft_config", None):
        return f"adapters are attached ({', '.join(module.peft_config)})"
    for name, part in module.named_modules():
        if type(part).__module__.partition(".")[0] == "peft":
            return f"an adapter is attached ({name}: {type(part).__name__})"
    return None


def _variant(module: Any) -> str | None:
    """What the configuration or the state of a module asks for and engines do not do."""
    config = module.config
    if getattr(config, "pos_embed_seq_len", None):
        return "a transformer from first and last frame, which is not supported yet"
    if getattr(module, "use_tiling", False):
        return (
            "tiling is on, and engines tile by the setting pipeline.vae_tile; pipe.vae.disable_tiling() first"
        )
    return None


def _processor(module: Any) -> str | None:
    for name, processor in getattr(module, "attn_processors", {}).items():
        if type(processor) is not WanAttnProcessor:
            return (
                f"{name} is a {type(processor).__name__}: engines compute the attention of"
                f" {WanAttnProcessor.__name__}; set that"
            )
    return None
