"""Whether a graph runs its blocks in a plain loop in which each does the same: then one of them stands for all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from wan_trt_core.export.errors import BlocksDifferError


def require_plain_loop(whole: nn.Module, few: nn.Module, name: str, inputs: Sequence[Tensor]) -> None:
    """Raise unless ``few`` says of ``whole`` what each of its blocks does.

    Both run once on tensors without values, which takes milliseconds a block, and every operation is noted with
    whatever decides its result but the values of weights.

    Args:
        few: the same graph with its first blocks only.
        name: of the ``ModuleList`` of blocks.
        inputs: of ``forward``; only their shapes and dtypes matter.

    Raises:
        BlocksDifferError: when something runs between two blocks, what runs around them depends on how many there are,
            or one of the others does not do what the last of the few does.
    """
    noted, of_few = _noted(whole, name, inputs), _noted(few, name, inputs)
    if (noted.before, noted.behind) != (of_few.before, of_few.behind):
        raise BlocksDifferError(f"what runs before or behind {name} depends on how many there are")
    last = len(of_few.blocks) - 1
    for index, done in enumerate(noted.blocks[last:], last):
        if done != noted.blocks[last]:
            raise BlocksDifferError(f"{name}.{index} does not do what {name}.{last} does")


@dataclass
class _Operations:
    before: list[Any]
    blocks: list[list[Any]]
    behind: list[Any]


def _noted(graph: nn.Module, name: str, inputs: Sequence[Tensor]) -> _Operations:
    blocks: Any = graph.get_submodule(name)
    with ExitStack() as stack, torch.no_grad():
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        listener = _Listener(graph, name)
        for index, block in enumerate(blocks):
            begin, end = partial(listener.begin, index), partial(listener.end, index)
            stack.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(end).remove)
        given = [fake.from_tensor(tensor) for tensor in inputs]
        listener.know(given, "input")
        with listener:
            graph(*given)
    if listener.ran != list(range(len(blocks))):
        raise BlocksDifferError(f"{name} run in the order {listener.ran}")
    before, *parts, behind = listener.parts
    return _Operations(before, parts[::2], behind)


class _Listener(TorchDispatchMode):
    """Notes each operation: before the blocks, in each, between two (which must be none) and behind them.

    A tensor is noted as a weight by its name in the block; as one that was given or made, by the order in the block or
    around the blocks; else as the very tensor that it is.
    """

    def __init__(self, graph: nn.Module, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self._count = name, len(graph.get_submodule(name))  # type: ignore[arg-type]
        self.parts: list[list[Any]] = [[]]
        self.ran: list[int] = []
        self._weights: dict[int, list[str]] = {}
        for held in (graph.named_parameters, graph.named_buffers):
            for key, tensor in held(remove_duplicate=False):
                self._weights.setdefault(id(tensor), []).append(key)
        self._alive: list[Tensor] = []  # no other tensor gets the id of one that is gone
        self._around: dict[int, Any] = {}
        self._inside: dict[int, Any] | None = None  # a block
        self._taken: list[Any] = []
        self._given: list[Any] = []
        self._prefix = "none"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.parts[-1].append((str(func), tree_map(self._label, (args, kwargs))))
        made = func(*args, **kwargs)
        self.know(tree_leaves(made), "made", len(self.parts[-1]))
        return made

    def begin(self, index: int, block: nn.Module, args: Any, kwargs: Any) -> None:
        """A block begins: what it takes is told by what the block before took and gave."""
        if self.ran and self.parts[-1]:
            raise BlocksDifferError(
                f"something runs between {self._name}.{self.ran[-1]} and {self._name}.{index}"
            )
        taken, relations = tree_leaves((args, kwargs)), list[Any]()
        for leaf, earlier in zip_longest(taken, self._taken):
            if not isinstance(leaf, Tensor):
                relations.append(leaf)
            elif any(leaf is tensor for tensor in self._given):
                relations.append("given by the one before")
            else:
                relations.append("as the one before" if leaf is earlier else "its own")
        self.ran.append(index)
        self.parts.append([relations])
        self._inside, self._taken, self._prefix = {}, taken, f"{self._name}.{index}."
        self.know(taken, "taken")

    def end(self, index: int, block: nn.Module, args: Any, given: Any) -> None:
        """A block ends: what it gives is known behind it as of the last block, the one before …"""
        self._given = tree_leaves(given)
        self.parts[-1].append([self._label(leaf) for leaf in self._given])
        self.parts.append([])
        self._inside, self._prefix = None, "none"
        self.know(self._given, "given", index - self._count)

    def know(self, leaves: Sequence[Any], *label: Any) -> None:
        """Note tensors by this label and their place from now on."""
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._alive.append(leaf)
                known = self._around if self._inside is None else self._inside
                known.setdefault(id(leaf), (*label, place))

    def _label(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        about = tuple(value.shape), value.dtype
        if names := self._weights.get(id(value)):
            own = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
            return "weight", (own or names)[0], *about
        itself = ("itself", id(value))
        return (self._inside or {}).get(id(value), self._around.get(id(value), itself)), *about
