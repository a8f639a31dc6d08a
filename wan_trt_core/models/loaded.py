"""A pipeline's own modules, as they are in memory, in the place of a checkpoint's folder.

Engines are made of these weights and of no others. Where they are those of a folder in diffusers format, rounded to
the dtype in memory, they are read from there in the precision that an engine wants, and engines that were built from
that folder before serve them too. Everything else (random weights, a LoRA that was fused, a fine-tuned module) is
told apart by a hash over the tensors themselves.

Reading a folder of a 14B model takes minutes, a hash over its tensors in memory seconds. What was compared once is
therefore noted: under the hash in memory and the path, sizes and times of the folder's files, the hash of these.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.hashing import note_of, read_note, stamp, write_note
from wan_trt_core.models.checkpoint import (
    OF_TRANSFORMERS,
    PARTS,
    Checkpoint,
    CheckpointError,
    kept_in,
    located,
    torch_dtype,
)
from wan_trt_core.models.hub import open_checkpoint

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline
    from torch import Tensor, nn

_DTYPE = ("dtype", "torch_dtype")
"""By which transformers notes in a configuration what the weights are in."""

logger = logging.getLogger(__name__)


class LoadedCheckpoint(Checkpoint):
    """The modules of a pipeline in the place of a checkpoint. They are read, and never changed or moved.

    Args:
        pipe: stock; its text encoder may be missing, and prompts then become random states wherever one is needed.
        notes: folder in which it is noted what was compared; without one it is compared again every time.
    """

    def __init__(self, pipe: WanPipeline, notes: Path | None = None) -> None:
        names = [part for part in PARTS if getattr(pipe, part, None) is not None]
        self.parts = tuple(part for part in names if part != "text_encoder" or pipe.tokenizer is not None)
        self._pipe = {part: getattr(pipe, part) for part in self.parts}
        self._tokenizer, self._scheduler = pipe.tokenizer, pipe.scheduler
        self._config = dict(pipe.config)
        self._named = pipe.config.get("_name_or_path")
        self._notes = notes
        self._origins: dict[str, Checkpoint | None] = {}
        self._own: dict[str, str] = {}
        found = next(self._folders("transformer"), None)
        self._generation = found.generation() if found else {}
        super().__init__(found.folder if found else Path("weights in memory"))

    def __repr__(self) -> str:
        return f"LoadedCheckpoint({str(self.folder)!r})"

    def origin(self, part: str) -> Checkpoint | None:
        """The folder whose weights and configuration are those of a part in memory; None where there is no such
        folder."""
        if part not in self._origins:
            same = (found for found in self._folders(part) if self._is_of(found, part))
            self._origins[part] = next(same, None)
            where = (
                f"of {found.folder}" if (found := self._origins[part]) else "in memory, of no known folder"
            )
            logger.info("%s: engines are made of the weights %s", part, where)
        return self._origins[part]

    def config(self, part: str) -> dict[str, Any]:
        return _config_of(self._scheduler if part == "scheduler" else self._pipe[part])

    def pipeline_config(self) -> dict[str, Any]:
        return self._config

    def generation(self) -> dict[str, Any]:
        return self._generation

    def weights_sha256(self, part: str, notes: Path | None = None) -> str:
        """Of the folder that the weights are from, as :meth:`Checkpoint.weights_sha256`; else over the tensors."""
        if part not in self._hashes:
            origin = self.origin(part)
            self._hashes[part] = origin.weights_sha256(part, notes) if origin else self._own_sha256(part)
        return self._hashes[part]

    def require_unchanged(self, part: str) -> None:
        """Raise when the weights are no longer those that :meth:`weights_sha256` is of, under which engines are kept.

        Raises:
            CheckpointError: naming the part.
        """
        if part in self._own and _sha256(self._pipe[part]) != self._own[part]:
            raise CheckpointError(
                f"{part}: its weights have changed since engines were made; accelerate it again"
            )

    def load(self, part: str, dtype: str = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """As :meth:`Checkpoint.load`: the module in memory itself where it is what is asked for, and lies there."""
        module: Any = self._pipe.get(part)
        as_asked = part in self._pipe and _is_as_loaded(module, torch_dtype(dtype))
        if as_asked and located(module.device) == located(device):
            in_memory: nn.Module = module
            return in_memory
        return super().load(part, dtype, device)

    def time_path(self, part: str, dtype: str = "fp32") -> nn.Module:
        """As :meth:`Checkpoint.time_path`: the module in memory itself, wherever it lies, where it is what is asked
        for."""
        module: Any = self._pipe[part]
        if _is_as_loaded(module, torch_dtype(dtype)):
            in_memory: nn.Module = module
            return in_memory
        origin = self.origin(part)
        if origin is not None:
            return origin.time_path(part, dtype)
        found = super().time_path(part, dtype)
        found.rope = module.rope  # no weight, and whoever made these may have changed it too
        return found

    def tokenizer(self) -> Any:
        return self._tokenizer

    def prompt_encoder(self) -> Any:
        """The text encoder, which may be quantised or anywhere, from and to host memory."""
        return _on_host(self._pipe["text_encoder"])

    def scheduler(self) -> Any:
        return type(self._scheduler).from_config(self._scheduler.config)

    def _load(self, part: str, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        origin = self.origin(part)
        if origin is not None:
            return origin.fresh(part, str(dtype).removeprefix("torch."), device)
        module: Any = copy.deepcopy(self._pipe[part]).requires_grad_(False)
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(device, kept_in(module, name, dtype))
        stock: nn.Module = module.to(device).eval()
        return stock

    def _values(self, part: str, module: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
        in_memory = self._pipe[part].state_dict()
        return {name: in_memory[name] for name in names}

    def _is_of(self, folder: Checkpoint, part: str) -> bool:
        """Whether a module is that of a folder: every value is compared, unless that is noted."""
        note = self._note(folder, part)
        if note is not None and (noted := read_note(note)) is not None:
            folder._hashes[part] = noted
            return True
        same = _same(self._pipe[part], folder, part)
        if same and note is not None:
            write_note(note, folder.weights_sha256(part, self._notes))
        return same

    def _note(self, folder: Checkpoint, part: str) -> Path | None:
        if self._notes is None:
            return None
        return note_of(self._notes, self._own_sha256(part), *map(stamp, folder.files(part)))

    def _own_sha256(self, part: str) -> str:
        if part not in self._own:
            self._own[part] = _sha256(self._pipe[part])
        return self._own[part]

    def _folders(self, part: str) -> Iterator[Checkpoint]:
        """Whatever the module or the pipeline remembers of where it was loaded from, as far as it is there."""
        named = getattr(self._pipe[part].config, "_name_or_path", None) or ""
        parent = str(Path(named).parent) if Path(named).name == part else ""
        for place in dict.fromkeys(filter(None, (parent, named, self._named))):
            try:
                yield open_checkpoint(place, download=False)
            except CheckpointError:
                continue


def _same(module: Any, checkpoint: Checkpoint, part: str) -> bool:
    """Whether a module has a folder's configuration and, rounded to the module's dtypes, its weights."""
    from safetensors import safe_open

    config, stored = _config_of(module), checkpoint.config(part)
    if part in OF_TRANSFORMERS:  # which completes and renames what is stored
        stored = type(module.config).from_dict(stored).to_dict()
    config, stored = _as_json(config), _as_json(stored)
    if any(config.get(name) != value for name, value in stored.items()):
        return False
    state: dict[str, Tensor] = module.state_dict()
    names: set[str] = set()
    for file in checkpoint.weight_files(part):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                names.add(name)
                if name not in state or not _equal(tensors.get_tensor(name), state[name]):
                    return False
    return not set(state) - names - set(getattr(module, "_tied_weights_keys", None) or ())


def _equal(stored: Tensor, in_memory: Tensor) -> bool:
    import torch

    return torch.equal(stored.to(in_memory.device, in_memory.dtype), in_memory)


def _sha256(module: Any) -> str:
    """Hash over a module's configuration and tensors (hex)."""
    import torch

    def of_tensor(named: tuple[str, Tensor]) -> bytes:
        name, tensor = named
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    config = json.dumps(_as_json(_config_of(module)), sort_keys=True)
    with ThreadPoolExecutor() as pool:  # hashing is done outside of the interpreter's lock
        digests = pool.map(of_tensor, sorted(module.state_dict().items()))
        return hashlib.sha256(b"in memory" + config.encode() + b"".join(digests)).hexdigest()


def _config_of(module: Any) -> dict[str, Any]:
    """The configuration of a module of diffusers or of transformers, or of a scheduler."""
    config: dict[str, Any] = (
        module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    )
    return config


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what is noted in it of where the weights are from and what they are rounded to, in
    JSON's types."""
    plain = {name: value for name, value in config.items() if not name.startswith("_") and name not in _DTYPE}
    as_json: dict[str, Any] = json.loads(json.dumps(plain))
    return as_json


def _is_as_loaded(module: Any, dtype: torch.dtype) -> bool:
    return all(
        parameter.dtype == kept_in(module, name, dtype) for name, parameter in module.named_parameters()
    )


def _on_host(encoder: Any) -> nn.Module:
    """The text encoder as exports call it: from and to host memory, wherever it lies, in float32."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    class OnHost(torch.nn.Module):
        @torch.no_grad()
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            device = encoder.device
            states = encoder(input_ids.to(device), attention_mask.to(device)).last_hidden_state
            return BaseModelOutput(last_hidden_state=states.float().cpu())

    return OnHost()
