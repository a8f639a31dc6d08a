"""Engines in the place of a pipeline's modules: they answer to what ``WanPipeline`` asks of the originals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from wan_trt_core.backends.base import Engine
from wan_trt_core.models.component import Tensors
from wan_trt_core.models.components.dit import TEXT_LENGTH_WITH_IMAGE
from wan_trt_core.models.graphs.dit import ReadOnce, equal_within_frames
from wan_trt_core.pipeline.streaming import StreamingDecoder, StreamingEncoder
from wan_trt_core.pipeline.tiling import TiledDecoder

Prepare = Callable[[Tensors], Tensors]
"""What :meth:`~wan_trt_core.models.component.Component.prepare` returns."""


class UnsupportedCall(ValueError):
    """The pipeline asks for something that the engine cannot do; the message says what, and what can be."""


class EngineFailed(UnsupportedCall):
    """The engine could do what is asked for, and failed; its error is the cause."""


class Part(nn.Module):
    """A module without weights that tells the pipeline where and in which dtype it works.

    Its one parameter is empty: the hooks of diffusers' offload look for the first one's device, and move it.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        self.config = config
        self._dtype = dtype
        self._device = device

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that do its work whenever it works."""
        return ()

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

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The one."""
        return (self._engine,)


class EngineTransformer(_EnginePart):
    """In the place of ``WanTransformer3DModel``, with the engine of ``dit`` or ``dit_2``: batch 1."""

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
        """The predicted flow (1, channels, frames, height/8, width/8), from what diffusers' own forward receives.

        Raises:
            UnsupportedCall: for what :func:`require_supported` names.
            EngineError: as the engine's ``run``.
        """
        call = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
        }
        if encoder_hidden_states_image is not None:
            call["encoder_hidden_states_image"] = encoder_hidden_states_image
        takes = {name: tensor.shape for name, tensor in self._engine.inputs.items()}
        require_supported(takes, call, attention_kwargs)
        sample = self._engine.run(self._prepare(call))["sample"]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class LatentMode:
    """In the place of the distribution that ``AutoencoderKLWan.encode`` returns: its mode, which is its mean.

    No pipeline of Wan asks for more. Whatever else is asked for is that of ``whole``.

    Args:
        latents: (1, 16, latent frames, height/8, width/8), not normalised.
        whole: makes the distribution itself; without it there is nothing else.
    """

    def __init__(
        self, latents: Tensor, whole: Callable[[], DiagonalGaussianDistribution] | None = None
    ) -> None:
        self.mean = latents
        self.whole = whole

    def mode(self) -> Tensor:
        """The latents."""
        return self.mean

    def __getattr__(self, name: str) -> Any:
        if name == "whole" or self.whole is None:
            raise AttributeError(
                f"{name!r}: of the VAE's distribution engines compute the mode; encode with diffusers' own VAE"
            )
        return getattr(self.whole(), name)


class EngineVAE(Part):
    """In the place of ``AutoencoderKLWan``.

    Args:
        decoder: the two engines of the VAE decoder, over whole frames or in tiles.
        prepare: the ``prepare`` of their components.
        config: the original's configuration.
        encoder: gives the two engines of the VAE encoder; it is called when something is encoded.
    """

    def __init__(
        self,
        decoder: StreamingDecoder | TiledDecoder,
        prepare: Prepare,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        encoder: Callable[[], StreamingEncoder] | None = None,
    ) -> None:
        super().__init__(config, dtype, device)
        self._decoder, self._encoder = decoder, encoder
        self._prepare = prepare

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that decode."""
        return self._decoder.engines

    @property
    def decoder(self) -> StreamingDecoder | TiledDecoder:
        """What does the work of decoding."""
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

    def encode(self, x: Tensor, return_dict: bool = True) -> tuple[LatentMode] | AutoencoderKLOutput:
        """The latents of a video (1, 3, frames, height, width) in [-1, 1], the frames 4k+1.

        Raises:
            UnsupportedCall: for another batch size than 1, and where there are no engines that encode.
            ValueError: as :meth:`StreamingEncoder.encode`.
            EngineError: as the engines' ``run``.
        """
        require_batch_1("x", x)
        if self._encoder is None:
            raise UnsupportedCall("the engines decode; encode with the checkpoint's own VAE")
        mode = LatentMode(self._encoder().encode(x))  # which rounds to what its engines compute in
        return AutoencoderKLOutput(latent_dist=mode) if return_dict else (mode,)


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


_equal_within_frames = ReadOnce(equal_within_frames)
"""With guidance the next call of the step has the very tensor, and need not wait for the first."""


def require_supported(
    takes: Mapping[str, tuple[int | str, ...]],
    call: Tensors,
    attention_kwargs: dict[str, Any] | None = None,
) -> None:
    """Raise unless an engine of ``dit`` can take this call of the transformer, whatever the video's size.

    Args:
        takes: the engine's inputs by name, each with its axes.
        call: the tensors that diffusers' own forward receives. With a timestep a token the device is waited for, once a
            step.

    Raises:
        UnsupportedCall: for attention arguments, another batch size, states of an image or of a prompt in a number that
            the engine is not of, or timesteps that differ between the tokens of a frame.
    """
    if attention_kwargs:
        raise UnsupportedCall(
            f"attention_kwargs ({', '.join(attention_kwargs)}) cannot change an engine that is built"
        )
    require_batch_1("hidden_states", call["hidden_states"])
    for name, of in (("encoder_hidden_states_image", "image"), ("encoder_hidden_states", "prompt")):
        fixed = [axis if isinstance(axis, int) else None for axis in takes.get(name, ())]
        given = list(call[name].shape) if name in call else []
        if len(fixed) != len(given) or any(
            axis not in (None, size) for axis, size in zip(fixed, given, strict=True)
        ):
            raise UnsupportedCall(
                f"{name} has shape {tuple(given) or 'none'}: the engine is of {of} states"
                f" {tuple(takes.get(name, ())) or 'none'}"
            )
    states = tuple(call["encoder_hidden_states"].shape)
    if "encoder_hidden_states_image" in call and states[1] != TEXT_LENGTH_WITH_IMAGE:
        raise UnsupportedCall(
            f"encoder_hidden_states has shape {states}: beside an image's, diffusers takes the last"
            f" {TEXT_LENGTH_WITH_IMAGE} for the prompt's"
        )
    timestep, frames = call["timestep"], call["hidden_states"].shape[2]
    if timestep.dim() != 1 and len(takes["modulation"]) != 4:
        raise UnsupportedCall(
            f"timestep has shape {tuple(timestep.shape)}: a timestep a token is Wan 2.2 TI2V-5B's; expected (1,)"
        )
    if timestep.dim() != 1 and not _equal_within_frames(timestep, frames):
        raise UnsupportedCall(
            "the tokens of one frame have different timesteps: the engine takes one a latent frame"
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
