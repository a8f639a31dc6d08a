"""What is installed, from its metadata: nothing is imported."""

from __future__ import annotations

from importlib import metadata

ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")
"""The builds of the one package ``onnxruntime``: the second overwrites files of the first."""

TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
"""TensorRT's own, and for a major version of CUDA that which holds its libraries."""


def distribution_versions(*names: str) -> dict[str, str]:
    """Versions of the installed distributions among ``names``."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
