"""Parse and build ONNX models with TensorRT-RTX, which needs no GPU for it: a script for ``test_tensorrt_parser``.

Its API is TensorRT 11's and its parser the same, so the backend's own builder runs on it unchanged. What it builds is
for another kind of GPU and is thrown away. The models come as JSON on standard input.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorrt_rtx_bindings as rtx

PHASES: list[tuple[str, float]] = []


class Builder(rtx.Builder):
    """Builds for a GPU that is named, since there is none to ask."""

    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
        return config


def tensorrt() -> ModuleType:
    """TensorRT-RTX under TensorRT's name."""
    module = ModuleType("tensorrt")
    module.__dict__.update({name: getattr(rtx, name) for name in dir(rtx) if not name.startswith("__")})
    module.__dict__.update(__version__=f"RTX {rtx.__version__}", Builder=Builder)
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    return module


def main() -> None:
    sys.modules["tensorrt"] = tensorrt()
    from wan_trt_core.backends.base import EngineError, OnnxModel
    from wan_trt_core.backends.tensorrt import builder
    from wan_trt_core.config import load_settings

    builder._inspect = lambda *_: ((), None)  # type: ignore[assignment]  # the plan is for another GPU, and does not load
    settings = load_settings(environ={}, overrides={"tensorrt.timing_cache": False}).settings
    for data in json.load(sys.stdin):
        model = OnnxModel(**{**data, "path": Path(data["path"])})
        folder = Path(tempfile.mkdtemp())
        PHASES.clear()
        try:
            builder.build_plan(model, folder, settings, folder / "timing", lambda *told: PHASES.append(told))
        except EngineError as error:
            print(json.dumps({"model": model.path.name, "error": str(error)}))
            continue
        fractions = [fraction for _, fraction in PHASES]
        plan = folder / f"{model.component}_{model.precision}.trt"
        told = {"plan": plan.stat().st_size, "phases": len(PHASES), "rising": fractions == sorted(fractions)}
        print(json.dumps({"model": model.path.name, **told}))


if __name__ == "__main__":
    main()
