"""A GPU's stream without a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class FakeStream:
    """As :class:`~wan_trt_core.backends.tensorrt.cuda.CudaStream`; notes in ``order`` what it is asked."""

    handle = 7

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.order: list[str] = []

    def turn(self) -> AbstractContextManager[None]:
        return self.on_device()

    def on_device(self) -> AbstractContextManager[None]:
        return nullcontext()

    def after_caller(self) -> None:
        self.order.append("after")

    def before_caller(self) -> None:
        self.order.append("before")
