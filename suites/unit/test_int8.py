"""Weights in eight bits: a quarter of the memory, and outputs that differ by the rounding alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError
from wan_trt_core.models.int8 import Int8Embedding, Int8Linear
from wan_trt_core.models.prompts import PROMPT, tokenize
from wan_trt_core.pipeline.assembly import text_precision

CALL_LENGTH = 16


def held(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def test_text_encoder_of_tiny_wan(tiny_wan_folder: Path) -> None:
    checkpoint = Checkpoint.open(tiny_wan_folder)
    exact: Any = checkpoint.load("text_encoder")
    int8: Any = checkpoint.load("text_encoder", "int8")
    assert checkpoint.load("text_encoder") is exact and checkpoint.load("text_encoder", "int8") is int8
    assert held(int8) < 0.3 * held(exact)
    assert (exact.dtype, int8.dtype) == (torch.float32, torch.float32)
    call = tokenize(checkpoint, PROMPT, CALL_LENGTH)
    expected, found = (model(**call).last_hidden_state for model in (exact, int8))
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.02
    assert not any(type(layer) in (nn.Linear, nn.Embedding) for layer in int8.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_rounds_to_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 8).to(dtype)
    with torch.no_grad():
        layer.weight[0] = 0  # a row without a largest value
        layer.weight[1] *= 1000  # a large row costs the others nothing
    int8 = Int8Linear(layer)
    restored = int8.weight.float() * int8.scale
    assert bool(((restored - layer.weight.float()).abs() <= 0.5001 * int8.scale).all())
    hidden = torch.randn(3, 64, dtype=dtype)
    product = int8(hidden)
    assert product.dtype == dtype
    expected = nn.functional.linear(hidden.float(), restored, layer.bias.float())
    torch.testing.assert_close(product.float(), expected, rtol=0.02, atol=0.02)


def test_shared_weights_are_shared_still() -> None:
    from wan_trt_core.models.int8 import with_int8_weights

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Embedding(4, 8)
            self.other = nn.Embedding(4, 8)
            self.other.weight = self.one.weight

    tied: Any = with_int8_weights(Tied())
    assert isinstance(tied.one, Int8Embedding) and tied.one is tied.other


def test_only_the_text_encoder(tiny_wan_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no dtype 'int8'"):
        Checkpoint.open(tiny_wan_folder).load("vae", "int8")
    assert text_precision({"dit": "fp16", "vae": "fp32", "text_encoder": "int8"}) == "int8"
    assert text_precision({"dit": "fp16"}) == text_precision("fp16") == "fp32"
