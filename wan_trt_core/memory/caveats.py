"""What a prediction does not count, and what to ask instead, in sentences for who reads it."""

from __future__ import annotations

from collections.abc import Iterator

from wan_trt_core.memory.prediction import Choice, Prediction, Workload


def caveats(work: Workload) -> Iterator[str]:
    """What the prediction for a workload leaves out."""
    if work.backend == "torch-compile":
        yield (
            "This is the memory of PyTorch's own modules: the buffers of compiled ones, and what compiling them needs,"
            " are not counted."
        )
    if work.known("shapes") == "not measured":
        yield (
            f"No memory of {work.backend} was measured: its engines are taken to need what TensorRT's do, in every row"
            " that is known from 'not measured'. Record a run (wan-trt run --profile-memory) before relying on it."
        )
    if work.engines and work.device == "cuda":
        yield (
            "Building an engine needs more than running it, and is no stage of this: of tiny-wan 1.549 GiB were"
            " recorded where 0.96 are planned. Build beforehand (wan-trt build), with nothing else on the GPU."
        )


def hint(work: Workload, choice: Choice, asked: Prediction) -> str:
    """What would be the better question; empty where there is none."""
    guessed = any(
        term.owner.startswith("scratch of the dit") and term.source == "not measured"
        for terms in asked.stages.values()
        for term in terms
    )
    if not (guessed and work.backend == "tensorrt" and choice.dit == "fp32"):
        return ""
    return (
        "The DiT's scratch memory in FP32 was never measured on TensorRT, and is counted with its attention's scores"
        " written out: for FP16 ask with --precision dit=fp16,vae=fp32."
    )
