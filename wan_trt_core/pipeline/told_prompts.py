"""A pipeline on engines says what of a prompt does not count, where diffusers cuts without a word."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

from wan_trt_core.pipeline.generate import tell_cut

if TYPE_CHECKING:
    from diffusers import WanPipeline


class _Told:
    """In the place of a pipeline's ``encode_prompt``, which it calls.

    Attributes:
        before: what the pipeline had in its place, other than its class's own.
    """

    def __init__(self, pipe: WanPipeline) -> None:
        self._own: Callable[..., Any] = pipe.encode_prompt
        self._tokenizer = pipe.tokenizer
        self.before = vars(pipe).get("encode_prompt")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = signature(self._own).bind(*args, **kwargs)
        asked.apply_defaults()
        for name in ("prompt", "negative_prompt"):
            given = asked.arguments.get(name)
            for text in [given] if isinstance(given, str) else given or ():
                tell_cut(self._tokenizer, asked.arguments["max_sequence_length"], name, text)
        return self._own(*args, **kwargs)


def tell_prompts(pipe: WanPipeline) -> None:
    """From now on one line of the log says what is cut of each prompt of more tokens than ``max_sequence_length``; of a
    tokenizer that does not know where its tokens lie in the text nothing does."""
    if getattr(pipe.tokenizer, "is_fast", False):
        pipe.encode_prompt = _Told(pipe)


def untell_prompts(pipe: WanPipeline) -> None:
    """As it was before :func:`tell_prompts`."""
    told = vars(pipe).get("encode_prompt")
    if isinstance(told, _Told):
        del pipe.encode_prompt
        if told.before is not None:
            pipe.encode_prompt = told.before
