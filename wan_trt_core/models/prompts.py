"""A prompt as the pipeline prepares it: tokenised, padded, encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.component import Tensors

PROMPT = "a small red square moves left"
"""The prompt that components are exported, compared and timed with."""


def tokenize(checkpoint: Checkpoint, prompt: str, text_length: int) -> Tensors:
    """``input_ids`` and ``attention_mask``, each (1, text_length) int64, as ``WanPipeline`` makes them."""
    tokens = checkpoint.tokenizer()(
        [prompt],
        padding="max_length",
        max_length=text_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


def encode_prompt(checkpoint: Checkpoint, prompt: str, text_length: int) -> Tensor:
    """``encoder_hidden_states`` (1, text_length, text_dim) float32, as ``WanPipeline`` makes them.

    The states of padding are zeros, whatever the encoder gave them.
    """
    tokens = tokenize(checkpoint, prompt, text_length)
    encoder = checkpoint.load("text_encoder")
    states: Tensor = encoder(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    return states * tokens["attention_mask"][..., None]
