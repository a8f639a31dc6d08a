"""A component of one's own, from PyTorch to an engine, without the cache and the suites.

    python examples/custom_component/run.py

`text_projection.py` beside this file is the component. docs/adding-a-component.md puts it into the package, where the
command line, the cache and the suites find it by its name.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from text_projection import COMPONENT

from wan_trt_core.backends.onnxruntime import BACKEND
from wan_trt_core.config import load_settings
from wan_trt_core.export.exporter import export_component
from wan_trt_core.measure.quality import tensor_metrics
from wan_trt_core.models.catalogue import resolve


def main() -> None:
    """Take the component of the model that the settings name to an engine, and compare at the profile's three sizes."""
    settings = load_settings().settings
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    profile, checkpoint = model.profile(), model.checkpoint
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx = export_component(COMPONENT, model, profile, "fp32", Path(folder), settings)
        (built := Path(folder, "engine")).mkdir()
        BACKEND.build(onnx, built, settings)
        engine = BACKEND.load(built, settings)
        prepare, reference = COMPONENT.prepare(checkpoint, "fp32"), COMPONENT.reference(checkpoint, "fp32")
        for video in (profile.min, profile.opt, profile.max):
            call = COMPONENT.call_tensors(checkpoint, video)
            found, expected = engine.run(prepare(call)), reference(call)
            psnr = tensor_metrics(expected["projected"], found["projected"])["psnr_db"]
            print(f"{video.width}x{video.height}, {video.frames} frames: {psnr.value:.1f} dB to diffusers")
        engine.close()


if __name__ == "__main__":
    main()
