"""A prompt as the pipeline prepares it: tokenised, padded, encoded."""

from __future__ import annotations

import hashlib
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

    The states of padding are zeros, whatever the encoder gave them. A model with random weights, or without a text
    encoder, has random ones. A prompt is encoded once: the checkpoint keeps its states, some MB in the place of an
    encoder of gigabytes, and gives them for another length with more padding or less, which is no more than rounding
    away from what the encoder would give.
    """
    if checkpoint.random or "text_encoder" not in checkpoint.parts:
        return random_states(prompt, text_length, checkpoint.config("transformer")["text_dim"])
    from torch.nn import functional

    known = checkpoint.encoded
    if (prompt, text_length) in known:
        return known[prompt, text_length][0].clone()
    for (other, length), (kept, count) in known.items():
        if other == prompt and count < length and count <= text_length:  # so that neither is cut
            padding = (0, 0, 0, max(0, text_length - length))
            return functional.pad(kept, padding)[:, :text_length].clone()
    tokens = tokenize(checkpoint, prompt, text_length)
    mask, encoder = tokens["attention_mask"], checkpoint.prompt_encoder()
    states: Tensor = encoder(tokens["input_ids"], mask).last_hidden_state * mask[..., None]
    known[prompt, text_length] = states, int(mask.sum())
    return states.clone()


def random_states(prompt: str, text_length: int, text_dim: int) -> Tensor:
    """In the place of an encoded prompt: normals (1, text_length, text_dim) float32, seeded by the prompt.

    As many states as the prompt has words, and one for its end; the rest is padding: zeros.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
    states = torch.randn((1, text_length, text_dim), generator=torch.Generator().manual_seed(seed))
    states[:, len(prompt.split()) + 1 :] = 0
    return states
