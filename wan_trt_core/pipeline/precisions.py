"""What a model computes in unless told otherwise. Imports nothing, for the help of the commands says it too."""

from __future__ import annotations

from collections.abc import Mapping

ON_CPU = "fp32"
"""Of every component where it runs on a CPU, on which ONNX Runtime computes half precision in float32."""

ON_GPU: Mapping[str, str] = {"dit": "fp16", "vae": "fp32", "text_encoder": "bf16"}
"""By component where they run on a GPU: the transformer in half precision, which has more digits than bfloat16; the VAE
in float32, for TensorRT sums half-precision convolutions in half precision too, which is 49.5 dB from float32
(``docs/performance.md``); the text encoder, in PyTorch, in bfloat16, as it is mostly run. What is not named, as an
image encoder, is in float32."""

ENGINES_ON_GPU: Mapping[str, str] = {**ON_GPU, "text_encoder": "fp32"}
"""The same where the text encoder is an engine too: there is none in bfloat16, whose range only float32 has."""


def usual_precision(device: str, *, text_encoder_engine: bool = False) -> str | dict[str, str]:
    """The precision of a pipeline where nobody gives one: one for all components, or one for each.

    Args:
        device: where it runs, ``cpu`` or ``cuda``: engines and modules alike.
        text_encoder_engine: the text encoder does not run in PyTorch.
    """
    if device == "cpu":
        return ON_CPU
    return dict(ENGINES_ON_GPU if text_encoder_engine else ON_GPU)
