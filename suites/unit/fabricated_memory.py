"""Memory records with chosen numbers: stages on a made-up device or host, and a run of stock modules that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fake_device import MIB

from wan_trt_core.measure.memory_events import Amounts, Event, Failure, Held, MemoryRecord

CONTEXT = 500  # MiB of the device that are in no other book
START = 800  # MiB of the process before anything was loaded


def on_device(allocated: int, cached: int = 0, outside: int = 0) -> Amounts:
    """In MiB; ``outside`` of PyTorch's allocator beside the CUDA context."""
    reserved = allocated + cached
    return Amounts(
        resident_set=START * MIB,
        allocated=allocated * MIB,
        reserved=reserved * MIB,
        device_used=(reserved + outside + CONTEXT) * MIB,
    )


def on_host(resident: int) -> Amounts:
    return Amounts(resident_set=resident * MIB)


def record_of(
    stages: Sequence[tuple[str, Amounts, Amounts, Held]],
    *,
    start: Amounts,
    precisions: Mapping[str, str] | None = None,
    failure: Failure | None = None,
    **run: Any,
) -> MemoryRecord:
    """A record of stages, as ``load vae`` or ``denoise 2``, each with its peak, what was held after it and by whom;
    every one takes a second, a load two."""
    events, before, at = [], start, 0.0
    for label, peak, after, held in stages:
        stage, _, rest = label.partition(" ")
        named: dict[str, Any] = {"index": int(rest)} if rest.isdigit() else {"name": rest}
        end = at + (2.0 if stage == "load" else 1.0)
        times = {"start": at, "end": end}
        amounts = {"before": before, "peak": peak.most(before).most(after), "after": after}
        events.append(Event.model_validate({"stage": stage, **named, **times, **amounts, "held": held}))
        before, at = after, end
    return MemoryRecord(
        started="2026-01-01T00:00:00+00:00",
        command=("wan-trt", "run"),
        hardware_key="cuda-test",
        run={"model": "a | model", "backend": "torch", **run},
        methods={},
        precisions=dict(precisions or {}),
        events=tuple(events),
        failure=failure,
    )


def weights(**names: int) -> dict[str, int]:
    return {f"{name} weights": size * MIB for name, size in names.items()}


ENCODER: Held = {"allocator": weights(text_encoder=1000)}
BOTH: Held = {"allocator": weights(text_encoder=1000, transformer=500)}
ALL: Held = {"allocator": weights(text_encoder=1000, transformer=500, vae=100)}


def stock(
    denoise: int = 1700,
    decode: int = 1900,
    *,
    cached: int = 0,
    steps: Sequence[int] = (1600,) * 6,
    after: int = 0,
    **more: Any,
) -> MemoryRecord:
    """A run of stock modules on a device: peaks of the denoising and of the decode in MiB, what is allocated after
    each step, and what PyTorch has reserved afterwards, if there is another stage."""
    return record_of(
        [
            ("load text_encoder", on_device(1000), on_device(1000), ENCODER),
            ("load transformer", on_device(1500), on_device(1500), BOTH),
            ("load vae", on_device(1600), on_device(1600), ALL),
            ("text_encode", on_device(1650), on_device(1600), ALL),
            *((f"denoise {index}", on_device(denoise), on_device(held), ALL) for index, held in enumerate(steps, 1)),
            ("decode 1", on_device(decode, cached), on_device(1600, cached), ALL),
            *([("postprocess", on_device(1600, after - 1600), on_device(1600, after - 1600), ALL)] if after else []),
        ],
        start=on_device(0),
        precisions={"text_encoder weights": "bf16", "transformer weights": "fp32"},
        **more,
    )  # fmt: skip


FAILURE = Failure(
    kind="out_of_memory",
    stage="decode 1",
    message="OutOfMemoryError: CUDA out of memory",
    asked=2048 * MIB,
    amounts=on_device(1900),
    held=ALL,
)


DIT, VAE = "dit engine", "vae_decoder_next engine"
ENGINES: Held = {"device": weights(**{DIT: 400, VAE: 50})}


def on_engines(
    *,
    caches: int = 0,
    graphs: int = 0,
    own_scratch: tuple[int, int] | None = None,
    vae: str = "fp32",
    **run: Any,
) -> MemoryRecord:
    """A run of engines on a device, in MiB: scratch memory 100 in the denoising and 1000 in the decode, with 800 of
    caches, 30 of the video (512x1024, 5 frames) and 10 of latents. PyTorch's allocator keeps what the decode freed.

    Args:
        caches: of them that the decoder tells of.
        graphs: what CUDA takes more during the decode.
        own_scratch: of the DiT and of the decoder, where none is shared.
    """
    denoising, decoding = {"engines' shared scratch": 100 * MIB}, {"engines' shared scratch": 1000 * MIB}
    if own_scratch:
        denoising = {f"{DIT} own_scratch": own_scratch[0] * MIB}
        decoding = denoising | {f"{VAE} own_scratch": own_scratch[1] * MIB}
    scratch = sum(decoding.values()) // MIB
    if caches:
        decoding[f"{VAE} caches"] = caches * MIB
    began, decode = on_device(110, 0, 450), on_device(scratch + 840, 0, 450 + graphs)
    after = on_device(scratch + 40, 800, 450 + graphs)
    return record_of(
        [
            (f"load {DIT}", on_device(0, 0, 400), on_device(0, 0, 400), {"device": weights(**{DIT: 400})}),
            (f"load {VAE}", on_device(0, 0, 450), on_device(0, 0, 450), ENGINES),
            ("denoise 1", began, began, ENGINES | {"allocator": denoising}),
            ("denoise 2", began, began, ENGINES | {"allocator": denoising}),
            ("decode 1", decode, after, ENGINES | {"allocator": decoding}),
            ("postprocess", after, after, ENGINES | {"allocator": decoding}),
        ],
        start=on_device(0),
        precisions={f"{DIT} weights": "fp16", f"{VAE} weights": vae},
        **{"backend": "tensorrt", "height": 512, "width": 1024, "num_frames": 5, "guidance_scale": 5.0} | run,
    )
