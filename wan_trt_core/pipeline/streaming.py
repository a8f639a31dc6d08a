"""Decoding a video latent frame by latent frame, in memory that does not depend on its length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wan_trt_core.backends.base import Engine, EngineError

LATENTS = "latents"
SAMPLE = "sample"
"""The input and output of the two engines beside their caches."""


class StreamingDecoder:
    """The whole of ``AutoencoderKLWan.decode`` as two engines: the first latent frame, and every next one.

    The caches lie in two sets of buffers that change places at every step: one is read, the other written.

    Args:
        first: engine of ``vae_decoder_first``: latents to a frame and caches.
        following: engine of ``vae_decoder_next``: latents and caches to four frames and caches.

    Raises:
        EngineError: when the caches that one leaves are not those that the other takes.
    """

    def __init__(self, first: Engine, following: Engine) -> None:
        self._first = first
        self._next = following
        self._taken = tuple(name for name in following.inputs if name != LATENTS)
        self._left = _cache_outputs(following, len(self._taken))
        self._left_by_first = _cache_outputs(first, len(self._taken))
        for taken, left, left_by_first in zip(self._taken, self._left, self._left_by_first, strict=True):
            expected = following.inputs[taken]
            for engine, output in ((following, left), (first, left_by_first)):
                found = engine.outputs[output]
                if (found.dtype, found.shape) != (expected.dtype, expected.shape):
                    raise EngineError(
                        f"the VAE decoder's engines do not fit: the next step takes {taken!r} as"
                        f" {expected.dtype} {expected.shape}, but {output!r} is {found.dtype} {found.shape}"
                    )

    @property
    def dtype(self) -> torch.dtype:
        """What the engines compute in."""
        return _dtype(self._next, LATENTS)

    @property
    def engines(self) -> tuple[Engine, Engine]:
        """The engine of the first latent frame, and that of every next one."""
        return self._first, self._next

    def decode_steps(self, latents: Tensor) -> Iterator[Tensor]:
        """The video in order: first one frame, then four at each step. Every tensor is the caller's to keep.

        Args:
            latents: (1, 16, latent frames, height/8, width/8), de-normalised as ``AutoencoderKLWan.decode``
                takes them.

        Yields:
            (1, 3, 1 or 4, height, width) in [-1, 1], in the engines' dtype.

        Raises:
            ValueError: when the latents have another rank or batch, or no frames.
        """
        frames = self._check(latents)
        outputs = self._first.run({LATENTS: self._frame(latents, 0)})
        taken = {name: outputs[left] for name, left in zip(self._taken, self._left_by_first, strict=True)}
        yield outputs.pop(SAMPLE)
        del outputs
        spare = {name: torch.empty_like(cache) for name, cache in taken.items()} if frames > 1 else {}
        for index in range(1, frames):
            yield self._step(self._frame(latents, index), taken, spare)
            taken, spare = spare, taken

    def decode(self, latents: Tensor) -> Tensor:
        """The whole video: (1, 3, frames, height, width) in [-1, 1].

        Raises:
            ValueError: as :meth:`decode_steps`.
        """
        total = 1 + 4 * (self._check(latents) - 1)
        video: Tensor | None = None
        done = 0
        for frames in self.decode_steps(latents):
            if video is None:
                shape = list(frames.shape)
                shape[2] = total
                video = torch.empty(shape, dtype=frames.dtype, device=frames.device)
            video[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]
        if video is None or done != total:
            raise EngineError(f"the VAE decoder's engines returned {done} frames, expected {total}")
        return video

    def _step(self, frame: Tensor, taken: dict[str, Tensor], spare: dict[str, Tensor]) -> Tensor:
        written = {left: spare[name] for name, left in zip(self._taken, self._left, strict=True)}
        return self._next.run_into({LATENTS: frame, **taken}, written)[SAMPLE]

    def _frame(self, latents: Tensor, index: int) -> Tensor:
        return latents[:, :, index : index + 1].to(self.dtype)

    def _check(self, latents: Tensor) -> int:
        if latents.dim() != 5 or latents.shape[0] != 1 or latents.shape[2] < 1:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, expected (1, channels, latent frames, height/8,"
                " width/8) with at least one frame"
            )
        return latents.shape[2]


def _cache_outputs(engine: Engine, count: int) -> tuple[str, ...]:
    """The caches that a step leaves: the outputs after the sample, before those of the blocks."""
    names = tuple(name for name in engine.outputs if name != SAMPLE)[:count]
    if len(names) < count or SAMPLE not in engine.outputs:
        raise EngineError(
            f"a VAE decoder's engine returns {', '.join(engine.outputs)};"
            f" expected {SAMPLE} and {count} caches"
        )
    return names


def _dtype(engine: Engine, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, engine.inputs[name].dtype)
    return dtype
