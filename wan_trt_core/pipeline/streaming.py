"""The two halves of the VAE over a whole video, step by step, in memory that does not depend on its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from wan_trt_core.backends.base import Engine, EngineError

_ALIGNMENT = 512
"""Bytes to which the address of every tensor is aligned, as PyTorch's allocator does."""

LATENTS = "latents"
SAMPLE = "sample"
"""What the engines take and return beside their caches: the latents and the video."""


class _Streaming:
    """Two engines that do a video together: one its first step, the other every next one.

    The caches lie in two sets of buffers that change places at every step: one is read, the other written. The engine
    of every next step is told how much they are (:meth:`~wan_trt_core.backends.base.Engine.keep`).

    Raises:
        EngineError: when the caches that one leaves are not those that the other takes.
    """

    in_one_piece = True
    """Whether the second set of caches lies in one piece of memory, on a GPU."""

    half: ClassVar[str]
    takes: ClassVar[str]
    gives: ClassVar[str]

    def __init__(self, first: Engine, following: Engine) -> None:
        self._first = first
        self._next = following
        self._taken = tuple(name for name in following.inputs if name != self.takes)
        self._left = self._cache_outputs(following)
        self._left_by_first = self._cache_outputs(first)
        for taken, left, left_by_first in zip(self._taken, self._left, self._left_by_first, strict=True):
            expected = following.inputs[taken]
            for engine, output in ((following, left), (first, left_by_first)):
                found = engine.outputs[output]
                if (found.dtype, found.shape) != (expected.dtype, expected.shape):
                    raise EngineError(
                        f"the VAE {self.half}'s engines do not fit: the next step takes {taken!r} as"
                        f" {expected.dtype} {expected.shape}, but {output!r} is {found.dtype} {found.shape}"
                    )

    @property
    def dtype(self) -> torch.dtype:
        """What the engines compute in."""
        dtype: torch.dtype = getattr(torch, self._next.inputs[self.takes].dtype)
        return dtype

    @property
    def engines(self) -> tuple[Engine, Engine]:
        """The engine of the first step, and that of every next one."""
        return self._first, self._next

    def _steps(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """What the engines give for each chunk. Every tensor is the caller's to keep."""
        outputs = self._first.run({self.takes: chunks[0].to(self.dtype)})
        taken = {name: outputs[left] for name, left in zip(self._taken, self._left_by_first, strict=True)}
        try:
            self._next.keep(_bytes(taken))
            # before what is given is taken up: the video would be cut from the piece that the last one's caches left
            spare = self._spare(taken) if len(chunks) > 1 else {}
            self._next.keep(_bytes(taken) + _bytes(spare))
            yield outputs.pop(self.gives)
            del outputs
            for chunk in chunks[1:]:
                yield self._step(chunk.to(self.dtype), taken, spare)
                taken, spare = spare, taken
        finally:
            self._next.keep(0)

    def _spare(self, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        """The second set of caches. On a CPU each by itself: what is freed there goes back to the system."""
        if self.in_one_piece and next(iter(taken.values())).device.type != "cpu":
            return _side_by_side(taken)
        return {name: torch.empty_like(cache) for name, cache in taken.items()}

    def _step(self, chunk: Tensor, taken: dict[str, Tensor], spare: dict[str, Tensor]) -> Tensor:
        written = {left: spare[name] for name, left in zip(self._taken, self._left, strict=True)}
        return self._next.run_into({self.takes: chunk, **taken}, written)[self.gives]

    def _joined(self, steps: Iterator[Tensor], total: int) -> Tensor:
        """All steps side by side in time, in one tensor that is made when the first is there."""
        whole: Tensor | None = None
        done = 0
        for frames in steps:
            if whole is None:
                shape = list(frames.shape)
                shape[2] = total
                whole = torch.empty(shape, dtype=frames.dtype, device=frames.device)
            whole[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]
        if whole is None or done != total:
            raise EngineError(f"the VAE {self.half}'s engines returned {done} frames, expected {total}")
        return whole

    def _cache_outputs(self, engine: Engine) -> tuple[str, ...]:
        """The caches that a step leaves: the outputs after what it gives, before those of the blocks."""
        count = len(self._taken)
        names = tuple(name for name in engine.outputs if name != self.gives)[:count]
        if len(names) < count or self.gives not in engine.outputs:
            raise EngineError(
                f"a VAE {self.half}'s engine returns {', '.join(engine.outputs)};"
                f" expected {self.gives} and {count} caches"
            )
        return names


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _side_by_side(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Empty tensors of the same kinds in one piece of memory.

    PyTorch's allocator keeps what is freed, in the pieces in which it was asked for. A cache's own would be too small
    for the copies of the video that are made behind the decode: 0.8 GB more for 81 frames of 480x832, on an H200.
    """
    starts, end = {}, 0
    for name, tensor in tensors.items():
        starts[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    some = next(iter(tensors.values()))
    room = torch.empty(end, dtype=torch.uint8, device=some.device)
    return {
        name: room[starts[name] : starts[name] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for name, tensor in tensors.items()
    }


class StreamingDecoder(_Streaming):
    """The whole of ``AutoencoderKLWan.decode`` as two engines: the first latent frame, and every next one.

    Args:
        first: engine of ``vae_decoder_first``: latents to a frame and caches.
        following: engine of ``vae_decoder_next``: latents and caches to four frames and caches.

    Raises:
        EngineError: when the caches that one leaves are not those that the other takes.
    """

    half = "decoder"
    takes, gives = LATENTS, SAMPLE

    @property
    def latents_per_step(self) -> int:
        """Latent frames that every step but the first decodes."""
        return int(self._next.inputs[LATENTS].shape[2])

    def decode_steps(self, latents: Tensor) -> Iterator[Tensor]:
        """The video in order: first one frame, then four for each latent frame of a step. Every tensor is the caller's
        to keep.

        Args:
            latents: (1, 16, latent frames, height/8, width/8), de-normalised as ``AutoencoderKLWan.decode``
                takes them.

        Yields:
            (1, 3, 1 or 4, height, width) in [-1, 1], in the engines' dtype.

        Raises:
            ValueError: when the latents have another rank or batch, or no frames; or so many that no whole number of
                steps decodes them.
        """
        steps, left = divmod(self._check(latents) - 1, self.latents_per_step)
        if left:
            raise ValueError(
                f"{latents.shape[2]} latent frames are the first and {latents.shape[2] - 1} more, which steps of"
                f" {self.latents_per_step} do not decode: set pipeline.vae_frames_per_step to 1"
            )
        yield from self._steps(latents.split([1, *steps * [self.latents_per_step]], dim=2))

    def decode(self, latents: Tensor) -> Tensor:
        """The whole video: (1, 3, frames, height, width) in [-1, 1].

        Raises:
            ValueError: as :meth:`decode_steps`.
        """
        total = 1 + 4 * (self._check(latents) - 1)
        return self._joined(self.decode_steps(latents), total)

    @staticmethod
    def _check(latents: Tensor) -> int:
        if latents.dim() != 5 or latents.shape[0] != 1 or latents.shape[2] < 1:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, expected (1, channels, latent frames, height/8,"
                " width/8) with at least one frame"
            )
        return latents.shape[2]


class StreamingEncoder(_Streaming):
    """The mode of ``AutoencoderKLWan.encode`` as two engines: the first frame, and every next four.

    Args:
        first: engine of ``vae_encoder_first``: a frame to a latent frame and caches.
        following: engine of ``vae_encoder_next``: four frames and caches to a latent frame and caches.

    Raises:
        EngineError: when the caches that one leaves are not those that the other takes.
    """

    half = "encoder"
    takes, gives = SAMPLE, LATENTS

    def encode_steps(self, video: Tensor) -> Iterator[Tensor]:
        """The latent frames in order, one at each step. Every tensor is the caller's to keep.

        Args:
            video: (1, 3, frames, height, width) in [-1, 1], the frames 4k+1.

        Yields:
            (1, 16, 1, height/8, width/8), not normalised, in the engines' dtype.

        Raises:
            ValueError: when the video has another rank, batch or number of frames. Diffusers leaves out without a
                word what is over 4k+1.
        """
        latent_frames = self._check(video)
        yield from self._steps(video.split([1, *(latent_frames - 1) * [4]], dim=2))

    def encode(self, video: Tensor) -> Tensor:
        """All latents: (1, 16, latent frames, height/8, width/8), not normalised.

        Raises:
            ValueError: as :meth:`encode_steps`.
        """
        return self._joined(self.encode_steps(video), self._check(video))

    @staticmethod
    def _check(video: Tensor) -> int:
        if video.dim() != 5 or video.shape[0] != 1 or video.shape[2] % 4 != 1:
            raise ValueError(
                f"the video has shape {tuple(video.shape)}, expected (1, channels, frames, height, width) with 4k+1"
                " frames (1, 5, 9, …)"
            )
        return 1 + video.shape[2] // 4
