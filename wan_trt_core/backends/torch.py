"""The reference: diffusers' own modules, eager."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from wan_trt_core.backends.base import BackendUnavailable, ModuleBackend
from wan_trt_core.distributions import distribution_versions

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.config import Settings


class TorchBackend(ModuleBackend):
    """Eager PyTorch: runs everywhere, and everything else is compared with it."""

    name: ClassVar[str] = "torch"

    def require(self, settings: Settings) -> None:
        """Raise when the settings ask for a GPU that PyTorch does not see.

        Raises:
            BackendUnavailable: with what PyTorch was built for.
        """
        import torch

        if settings.device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                f"device cuda: PyTorch {torch.__version__} sees no CUDA device; set device to cpu"
                " (WAN_TRT_DEVICE=cpu) or install a driver and a CUDA build of torch"
            )

    def versions(self) -> dict[str, str]:
        """Versions of torch and diffusers."""
        return distribution_versions("torch", "diffusers")

    def wrap(self, module: nn.Module, settings: Settings) -> nn.Module:
        """The module itself."""
        return module


BACKEND = TorchBackend()
