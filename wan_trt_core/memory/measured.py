"""Numbers that neither shapes nor events tell, each with where it is from."""

from __future__ import annotations

# ---- measured: one NVIDIA H200, TensorRT 10.6, Wan 2.1 1.3B at 480x832 (docs/memory.md, docs/performance.md) ------

DECODE_SECONDS = 1.5 / (480 * 832 * 81)
"""Of the VAE decode in float32 on engines, one latent frame a step, for each pixel of a video."""
TILE_PIXEL = 1.28
"""What a pixel of a tile takes over one of a whole frame: 3.17 s of a decode whose tiles are 1.66 times the frames."""
LEAN_TIME = 1.026
"""What the lean decoder takes over the usual one: 1539 ms for 1500."""
LEAN_SCRATCH = 0.9
"""The scratch memory of the lean decoder's engines over the usual ones': 7.68 GB for 8.60."""
SINGLE_TIME = 1.053
"""What one latent frame a step takes over two: 1500 ms for 1425."""
SINGLE_SCRATCH = 0.5
"""Scratch memory of the decoder's engines with one latent frame a step over that with two: 7.4 GiB of it went where 8.0
are left."""
STREAMED_SCRATCH = 0.3
"""Scratch memory that a DiT's engine needs more for each byte of weights that it streams: 0.83 GB for 2.8."""
STREAM_SHOWN = 0.2
"""Of the bus' time what a call shows at least, whose work takes longer: 7.5, 17 and 23 ms of 113 in three runs."""

ONE_GRAPH = 8.4e6
"""Bytes of the device that one CUDA graph at a time saved the VAE decode at 81 frames: 17.876 GB came to 17.868."""
ONE_GRAPH_TIME = 1.028
"""What the decode takes then: 1542 ms for 1500."""
SLICES = 0
"""Bytes that attention in slices saved tiny-wan in PyTorch, where a fused kernel does it: 0.87 GB with and without."""
SLICES_TIME = 1.33
"""What tiny-wan's pipeline takes then: 120.3 ms for 90.48."""

HOST_BF16_FLOPS = 3.4e12
"""Operations a second of a CPU in bfloat16: 3.39 s for two prompts of 512 tokens, on 14 threads of a Xeon that
multiplies in it. On 24 it was 2.6 s."""
INT8_SECONDS = 0.07
"""That two prompts take longer with the text encoder in INT8, on the GPU."""

# ---- assumed, to put prices in an order --------------------------------------------------------------------

BUS = 25e9
"""Bytes a second from pinned host memory: 16 lanes of PCIe 4 have 32e9 on paper."""
HOST_FLOPS = 0.5e12
"""Operations a second of a CPU in float32."""

PROMPT = 512
"""Tokens of a prompt as published, where a run does not tell."""


def shown_of_streaming(on_the_bus: float, call: float) -> float:
    """Seconds that a call takes more, whose weights are so long on the bus and whose own work hides most of it."""
    return max(STREAM_SHOWN * on_the_bus, on_the_bus - call)


def decode_seconds(height: int, width: int, frames: int) -> float:
    """What the VAE decode of a video takes: float32, on engines, one latent frame a step."""
    return DECODE_SECONDS * height * width * frames


def lean_seconds(height: int, width: int, frames: int) -> float:
    """What the lean decoder takes more."""
    return (LEAN_TIME - 1) * decode_seconds(height, width, frames)


def single_seconds(height: int, width: int, frames: int) -> float:
    """What one latent frame a step takes more than two."""
    return (1 - 1 / SINGLE_TIME) * decode_seconds(height, width, frames)


def encode_seconds(parameters: float, tokens: int, *, in_bf16: bool) -> float:
    """What two prompts take on the host: two operations for each parameter and token.

    Args:
        tokens: of a prompt, padded.
        in_bf16: the products are, as an encoder's in INT8 are too.
    """
    return 2 * 2 * parameters * tokens / (HOST_BF16_FLOPS if in_bf16 else HOST_FLOPS)
