"""Engines in the place of a pipeline's modules: they answer to what ``WanPipeline`` asks of the originals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from wan_trt_core.backends.base import Engine
from wan_trt_core.models.component import Tensors
from wan_trt_core.pipeline.streaming import StreamingDecoder
from wan_trt_core.pipeline.tiling import TiledDecoder

Prepare = Callable[[Tensors], Tensors]
"""What :meth:`~wan_trt_core.models.component.Component.prepare` returns."""


class UnsupportedCall(ValueError):
    """The pipeline asks for something that the engine cannot do; the message says what, and what can be."""


class Part(nn.Module):
    """A module without parameters that tells the pipeline where and in which dtype it works."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self._dtype = dtype
        self._device = device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to which the pipeline casts what it hands over."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the pipeline must put its tensors."""
        return self._device


class _EnginePart(Part):
    """A part that one engine does the work of.

    Args:
        engine: of the part's component.
        prepare: the component's ``prepare``.
        config: the original's configuration.
    """

    def __init__(
        self, engine: Engine, prepare: Prepare, config: Any, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(config, dtype, device)
        self._engine = engine
        self._prepare = prepare


class EngineTransformer(_EnginePart):
    """In the place of ``WanTransformer3DModel``, with the engine of ``dit``: text to video, batch 1."""

    @contextmanager
    def cache_context(self, name: str, **_: object) -> Iterator[None]:
        """Nothing is cached between the calls with and without the prompt."""
        yield

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """The predicted flow (1, 16, frames, height/8, width/8), from what diffusers' own forward receives.

        Raises:
            UnsupportedCall: for an image, attention arguments, another batch size, or a timestep a token.
            EngineError: as the engine's ``run``.
        """
        require_supported(hidden_states, timestep, encoder_hidden_states_image, attention_kwargs)
        call = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
        }
        sample = self._engine.run(self._prepare(call))["sample"]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class EngineVAE(Part):
    """In the place of ``AutoencoderKLWan``, for decoding.

    Args:
        decoder: the two engines of the VAE decoder, over whole frames or in tiles.
        prepare: the ``prepare`` of their components.
        config: the original's configuration.
    """

    def __init__(
        self,
        decoder: StreamingDecoder | TiledDecoder,
        prepare: Prepare,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, dtype, device)
        self._decoder = decoder
        self._prepare = prepare

    @property
    def decoder(self) -> StreamingDecoder | TiledDecoder:
        """What does the work."""
        return self._decoder

    def decode(self, z: Tensor, return_dict: bool = True) -> tuple[Tensor] | DecoderOutput:
        """The video (1, 3, frames, height, width) in [-1, 1] of de-normalised latents.

        Raises:
            UnsupportedCall: for another batch size than 1.
            EngineError: as the engines' ``run``.
        """
        require_batch_1("z", z)
        sample = self._decoder.decode(self._prepare({"latents": z})["latents"])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Not available.

        Raises:
            UnsupportedCall: always.
        """
        raise UnsupportedCall("the engines decode; encode with the checkpoint's own VAE")


class EngineTextEncoder(_EnginePart):
    """In the place of ``UMT5EncoderModel``, with the engine of ``text_encoder``: one prompt a call."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """The prompt's states (1, text length, dim).

        Raises:
            UnsupportedCall: for several prompts at once.
            EngineError: as the engine's ``run``.
        """
        require_batch_1("input_ids", input_ids)
        inputs = self._prepare({"input_ids": input_ids, "attention_mask": attention_mask})
        return BaseModelOutput(last_hidden_state=self._engine.run(inputs)["last_hidden_state"])


def require_supported(
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states_image: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> None:
    """Raise unless an engine of ``dit`` can take this call of the transformer, whatever the video's size.

    Raises:
        UnsupportedCall: as :meth:`EngineTransformer.forward`.
    """
    if encoder_hidden_states_image is not None:
        raise UnsupportedCall("the engine is text-to-video's: it takes no encoder_hidden_states_image")
    if attention_kwargs:
        raise UnsupportedCall(
            f"attention_kwargs ({', '.join(attention_kwargs)}) cannot change an engine that is built"
        )
    require_batch_1("hidden_states", hidden_states)
    if timestep.dim() != 1:
        raise UnsupportedCall(
            f"timestep has shape {tuple(timestep.shape)}: a timestep a token is Wan 2.2's; expected (1,)"
        )


def require_batch_1(name: str, tensor: Tensor) -> None:
    """Raise unless the batch size is 1.

    Raises:
        UnsupportedCall: naming the tensor.
    """
    if tensor.shape[0] != 1:
        raise UnsupportedCall(
            f"{name} has batch size {tensor.shape[0]}: the engines take 1 (one prompt, one video each)"
        )
