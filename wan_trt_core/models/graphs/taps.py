"""Intermediate outputs of a stock module, taken by forward hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from wan_trt_core.models.component import Tensors


@contextmanager
def tapped(module: nn.Module, paths: Mapping[str, str]) -> Iterator[Tensors]:
    """Fills the yielded dictionary with the outputs of submodules, keyed as ``paths`` names them.

    Args:
        paths: name of each output to the path of its submodule.
    """
    taken: Tensors = {}
    with ExitStack() as hooks:
        for name, path in paths.items():

            def take(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                taken[name] = output[0] if isinstance(output, tuple) else output

            hooks.callback(module.get_submodule(path).register_forward_hook(take).remove)
        yield taken
