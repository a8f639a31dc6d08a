"""A video's way off the GPU, in a pipeline on engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor


class StagedVideoProcessor(VideoProcessor):  # type: ignore[misc]
    """In the place of diffusers' own, which copies a video off the GPU into memory that is not page-locked, and there
    once more. Here each frame goes through one page-locked buffer into the array that is returned.

    The array itself is ordinary memory. Page-locked it could not be swapped out for as long as its owner holds it, and
    PyTorch, which rounds such memory up to a power of two, would keep it afterwards: 512 MiB for 81 frames of 480x832.

    Args:
        own: the one that it stands for, with the same configuration.
    """

    def __init__(self, own: VideoProcessor) -> None:
        self.__dict__.update(vars(own))  # its configuration, and methods that a user put on it
        self.own = own

    def postprocess_video(self, video: Tensor, output_type: str = "np", **kwargs: Any) -> Any:
        """As diffusers', value for value; on a CPU, and for other output types than ``np``, it is diffusers'.

        Args:
            video: (batch, 3, frames, height, width) in [-1, 1].

        Returns:
            (batch, frames, height, width, 3) float32 in [0, 1], for ``np``.
        """
        if not video.is_cuda or output_type != "np" or kwargs:
            return super().postprocess_video(video, output_type, **kwargs)
        batch, channels, count, height, width = video.shape
        frames = np.empty((batch, count, height, width, channels), np.float32)
        buffer = torch.empty((batch, height, width, channels), dtype=torch.float32, pin_memory=True)
        for index in range(count):
            frame = self.postprocess(video[:, :, index], output_type="pt")
            # as it shall lie in the array already on the GPU: else PyTorch would copy through memory of its own
            buffer.copy_(frame.permute(0, 2, 3, 1).float().contiguous())  # and wait for it
            frames[:, index] = buffer.numpy()
        return frames


def staged(processor: Any) -> Any:
    """What takes a pipeline's frames off the GPU in the place of diffusers' processor; any other is left alone."""
    return StagedVideoProcessor(processor) if type(processor) is VideoProcessor else processor
