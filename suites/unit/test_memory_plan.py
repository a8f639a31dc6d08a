"""The plan of a pipeline's memory: bytes counted from shapes alone, held against what was measured, and what fits."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from fabricated_memory import record_of
from torch import nn
from torch.nn import functional

from wan_trt_core.backends.base import BackendUnavailable, EngineBackend
from wan_trt_core.backends.registry import backend_names, get_backend, runs_on
from wan_trt_core.cli.videos import check_memory
from wan_trt_core.comparison.memory import beside_plan
from wan_trt_core.config import Settings
from wan_trt_core.gates.formatting import GIB
from wan_trt_core.measure.memory_events import Amounts, Held, MemoryRecord
from wan_trt_core.memory.analysis import analyse
from wan_trt_core.memory.measured import LEAN_SCRATCH, STREAMED_SCRATCH
from wan_trt_core.memory.options import OPTIONS, call_seconds
from wan_trt_core.memory.plan import Setting, plan
from wan_trt_core.memory.prediction import (
    Choice,
    Prediction,
    Workload,
    choice_of,
    memory_settings,
    predict,
    unplanned,
    workload,
)
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.components import get_component
from wan_trt_core.models.footprint import (
    INT8,
    encode_footprint,
    graph_footprint,
    live_bytes,
    stock_footprint,
)
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.models.random_weights import UMT5_XXL
from wan_trt_core.pipeline.engines import check_precision, check_tiles
from wan_trt_core.records import Metric
from wan_trt_core.report.memory_plan_report import headline, plan_json, plan_markdown, sizes_table

ROOT = Path(__file__).parents[2]
HALF = Choice(dit="fp16", text_encoder="bf16")


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@cache
def model_of(name: str = "tiny-wan") -> ResolvedModel:
    """One for all tests: what was counted of it is not counted again."""
    return resolve(name)


PREDICTION = "wan_trt_core.memory.prediction"


def tiny(backend: str = "tensorrt", device: str = "cuda", **more: Any) -> Workload:
    model = model_of()
    return Workload(model.checkpoint, model.profile().opt, backend, device, **more)


# ---- bytes from shapes ------------------------------------------------------------------------------------------


def test_what_was_counted_is_kept_but_holds_no_checkpoint() -> None:
    """Nor the weights that it has loaded: a text encoder of 11 GB stayed on the GPU after a plan."""
    model = resolve("tiny-wan")
    sizes = model.profile().min
    found = stock_footprint(model.checkpoint, "text_encoder", "fp32", sizes)
    assert stock_footprint(model.checkpoint, "text_encoder", "fp32", sizes) is found
    module = weakref.ref(model.checkpoint.load("text_encoder"))
    assert module() is not None
    del model
    gc.collect()
    assert module() is None


def test_what_is_alive_at_once_is_counted_and_weights_and_views_are_not() -> None:
    layer = nn.Linear(100, 100, bias=False, device="meta")

    def chain(keep: bool) -> torch.Tensor:
        """Three tensors of 4000 bytes, one after the other; the result is a view of the last one's half."""
        first = layer(meta(10, 100))
        second = layer(first).view(100, 10)
        if not keep:
            del first
        return layer(second.view(10, 100))[:5]

    assert live_bytes(lambda: chain(keep=False), layer) == (8000, 2000)
    assert live_bytes(lambda: chain(keep=True), layer) == (12000, 2000)
    given = meta(10, 100)
    assert live_bytes(lambda: given + layer(given), layer)[0] == 8000


def test_attention_writes_no_scores_and_convolutions_over_frames_copy_what_they_touch() -> None:
    query = meta(1, 2, 1000, 8)
    size = query.nbytes
    attend = lambda: functional.scaled_dot_product_attention(query, query, value=query)  # noqa: E731
    assert live_bytes(attend, nn.Identity()) == (size, size)
    conv = nn.Conv3d(1, 2, 1, device="meta")
    frames = meta(1, 1, 2, 8, 8)
    alone, copied = (live_bytes(lambda: conv(frames), conv, convolved_on=on)[0] for on in (None, "cuda"))
    assert copied - alone == 3 * frames.nbytes


@pytest.mark.parametrize(
    ("channels", "kernel", "written"),
    [(8, 3, True), (16, 3, False), (8, 1, False)],  # 16 x 6 x 258 rows are more than SMALL
)
def test_small_convolutions_over_frames_write_a_matrix_on_a_cpu(
    channels: int, kernel: int, written: bool
) -> None:
    """229, 47 and 8 MiB were added by such convolutions on two cores of an EPYC, their results among them."""
    conv = nn.Conv3d(channels, 8, kernel, device="meta")
    frames = meta(1, channels, 6, 258, 258)
    alone, counted = (live_bytes(lambda: conv(frames), conv, convolved_on=on)[0] for on in (None, "cpu"))
    assert counted - alone == (4 * 4 * 256 * 256 * 27 * channels if written else 0)


@pytest.mark.parametrize(
    ("part", "precision"),
    [("transformer", "fp16"), ("vae", "fp32"), ("text_encoder", "bf16"), ("text_encoder", "fp16")],
)
def test_weights_that_are_not_loaded_are_as_large_as_those_that_are(part: str, precision: str) -> None:
    model = model_of()
    loaded = model.checkpoint.load(part, precision)
    size = sum(parameter.nbytes for parameter in loaded.parameters())
    assert stock_footprint(model.checkpoint, part, precision, model.profile().opt).weights == size


@pytest.mark.parametrize("component", ["dit", "vae_decoder_first", "vae_decoder_next", "text_encoder"])
def test_a_graph_is_as_large_without_weights_as_with_them(component: str) -> None:
    model = model_of()
    graph = get_component(component).graph(model.checkpoint, "fp32")
    size = sum(parameter.nbytes for parameter in graph.parameters())
    found = graph_footprint(model.checkpoint, component, "fp32", model.profile().opt)
    assert found.weights == size
    assert found.working > found.outputs > 0


def test_the_text_encoder_of_a_model_without_one_is_the_published() -> None:
    """5.68 billion parameters."""
    model = model_of("wan2.1-t2v-1.3b")
    video = model.profile().opt
    sizes = {
        precision: stock_footprint(model.checkpoint, "text_encoder", precision, video).weights
        for precision in ("bf16", INT8)
    }
    assert sizes["bf16"] == pytest.approx(2 * 5.68e9, rel=0.001)
    assert sizes[INT8] == pytest.approx(sizes["bf16"] / 2, rel=0.01)
    assert UMT5_XXL["d_model"] == model.checkpoint.config("transformer")["text_dim"]


def test_a_longer_video_adds_its_frames_to_the_decode_and_no_more() -> None:
    """It is counted over a few latent frames only."""
    checkpoint = model_of().checkpoint
    short, long = (
        stock_footprint(checkpoint, "vae", "fp16", Sizes(64, 64, frames, 16)).working for frames in (9, 81)
    )
    assert long - short == 72 * 3 * 64 * 64 * 2


def test_a_run_tells_the_settings_that_are_not_as_by_default() -> None:
    given = {"pipeline": {"vae_lean": True}, "tensorrt": {"max_graphs": 2}, "perf": {"warmup": 7}}
    assert memory_settings(Settings.model_validate(given)) == {
        "pipeline.vae_lean": True,
        "tensorrt.max_graphs": 2,
    }
    assert memory_settings(Settings()) == {}


# ---- against measurements ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "measured"),
    [("tensorrt", 20.92e9), ("torch", 15.64e9)],
)
def test_the_peaks_of_the_1_3b_on_an_h200_are_predicted(backend: str, measured: float) -> None:
    """As docs/performance.md has them: 480p, 17 frames, random weights and so no text encoder."""
    model = model_of("wan2.1-t2v-1.3b")
    work = Workload(model.checkpoint, model.profile("480p-17f").opt, backend, "cuda", text_encoder=False)
    predicted = predict(work, Choice(dit="fp16"))
    assert predicted.peak == pytest.approx(measured, rel=0.1)
    assert predicted.peak_stage == "decode"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["480p-17f", "480p-81f"])
def test_a_plain_run_of_someone_else_is_predicted_to_a_tenth(profile: str) -> None:
    """The 1.3B at 480p in PyTorch, in GiB: text encoder 10.6, VAE 0.5, DiT 5.3 and at most 26.3; see docs/memory.md,
    whose table has the plan's numbers."""
    model = model_of("wan2.1-t2v-1.3b")
    work = Workload(model.checkpoint, model.profile(profile).opt, "torch", "cuda")
    found = predict(work, Choice(text_encoder="bf16"))
    sizes = {term.owner: term.size / GIB for term in found.stages["decode"]}
    weights = [sizes[f"{name} weights"] for name in ("text encoder", "vae", "transformer")]
    assert [round(each, 1) for each in weights] == [10.6, 0.5, 5.3]
    assert found.peak / GIB == pytest.approx(26.3, rel=0.1) and found.peak_stage == "decode"
    tensors = sum(weights) + sizes["vae at work, its caches and the video"]
    page = (ROOT / "docs" / "memory.md").read_text()
    column = ["480p-17f", "480p-81f"].index(profile) + 3
    for row, said in (("tensors at the peak, in the decode", tensors), ("peak", found.peak / GIB)):
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {row} | "))
        assert line.split("|")[column].strip() == f"{said:.2f}"


def test_what_pytorch_holds_of_a_decode_on_an_h200_is_counted_to_a_hundredth() -> None:
    """480p, 81 frames: 9.92 GB were allocated at most."""
    model = model_of("wan2.1-t2v-1.3b")
    found = stock_footprint(
        model.checkpoint, "vae", "fp32", model.profile("480p-81f").opt, convolved_on="cuda"
    )
    assert found.weights + found.working == pytest.approx(9.9202e9, rel=0.01)


VARIANTS = ("tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b", "tiny-wan2.2-ti2v-5b")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-wan", *VARIANTS])
def test_the_peak_of_stock_pytorch_on_this_cpu_is_predicted(model: str) -> None:
    """Measured really, in processes of their own (half a minute); engines are held against the plan by the suite.

    Twice: of the smallest models' process a tenth differs from run to run, which is what malloc keeps.
    """
    given = ("--backend", "torch", "torch", "--model", model)
    run = [sys.executable, str(ROOT / "benchmarks" / "memory_plan.py"), *given]
    answer = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    off = [abs(float(row.split("|")[-3].strip(" %"))) for row in answer.stdout.splitlines()[-2:]]
    assert min(off) <= 10, answer.stdout


def test_the_suite_sets_the_measured_peak_beside_the_plans() -> None:
    model = model_of()
    case = SimpleNamespace(backend="torch", precision="fp32")
    target: Any = SimpleNamespace(case=case, model=model, profile=model.profile(), device="cpu")
    planned = predict(tiny("torch", "cpu", process=10**9), Choice()).peak
    for ratio in (1.0, 1.2, None):
        value = None if ratio is None else ratio * planned
        metrics = {"resident_set_peak": Metric(value=value, unit="B", better="lower")}
        found = beside_plan(target, Settings(), 10**9, metrics)
        assert found["planned_peak"].value == planned > 10**9
        assert found["peak_over_plan"].value == (ratio and pytest.approx(ratio))


# ---- prediction --------------------------------------------------------------------------------------------------


def test_terms_come_from_shapes_or_engines_or_measurements() -> None:
    facts = {"weights": 111, "scratch": 222}
    built = replace(tiny(), built=lambda component, precision, choice: facts if component != "dit" else None)
    apart = Choice(dit="fp16", share_scratch=False)
    shapes, engine = (predict(work, apart).stages["decode"] for work in (tiny(), built))
    assert {term.source for term in shapes} == {"shapes", "measured"}
    found = {term.owner: (term.size, term.source) for term in engine}
    assert found["scratch of the vae engines"] == (222, "engine")
    assert found["vae_decoder_next engine weights"] == (111, "engine")
    assert found["dit engine weights"][1] == "shapes"


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_what_was_measured_of_tensorrt_alone_is_not_said_to_be_of_others(backend: str) -> None:
    """Their weights too, unless the cache has that engine; but not what PyTorch runs beside engines."""
    found = plan(tiny(backend), HALF)
    rows = {row["owner"]: row["source"] for row in plan_json(found, {})["stages"]["decode"]}
    assert {rows.pop("text encoder weights"), rows.pop("the video")} == {"shapes"}
    assert len(rows) == 7 and set(rows.values()) == {"not measured"}, rows
    assert any(f"No memory of {backend} was measured" in note for note in found.notes)
    page = plan_markdown("a title", found, {})
    assert "| CUDA's own | 801.1 MiB | not measured |" in page
    built = replace(tiny(backend), built=lambda component, precision, choice: {"weights": 111})
    terms = predict(built, HALF).stages["load"]
    assert {term.source for term in terms if "engine" in term.owner} == {"engine"}
    for usual in (tiny(), tiny("onnxruntime", "cpu"), tiny("torch")):
        assert "not measured" not in {t.source for t in predict(usual, HALF).stages["decode"]}


def test_the_plan_says_that_building_needs_more() -> None:
    """It knows no such stage, and the suites build before a budget holds."""
    for work, told in ((tiny(), True), (tiny("onnxruntime-cuda"), True), (tiny("torch"), False)):
        notes = " ".join(plan(work, HALF).notes)
        assert ("Building an engine needs more than running it" in notes) is told


def test_the_dit_in_fp32_on_tensorrt_is_a_guess_with_a_hint_at_fp16() -> None:
    """Its attention is not fused, and nobody ran it: 174 of 209 GiB of the 1.3B at 81 frames."""
    found, half = (plan(tiny(), Choice(dit=precision)) for precision in ("fp32", "fp16"))
    (source,) = (t.source for t in found.asked.stages["denoise"] if t.owner == "scratch of the dit engine")
    assert source == "not measured"
    head = plan_markdown("a title", found, {}).split("**")[1]
    assert head.startswith("Peak ") and "--precision dit=fp16,vae=fp32" in head
    assert plan_json(found, {})["hint"] in head
    built = replace(tiny(), built=lambda component, precision, choice: {"scratch": 10**9})
    for other in (
        half,
        plan(built, Choice()),
        plan(tiny("torch"), Choice()),
        plan(tiny("onnxruntime"), Choice()),
    ):
        assert other.hint == ""
        assert "--precision" not in plan_markdown("a title", other, {}).split("**")[1]


def test_scratch_of_an_engine_for_whole_frames_says_nothing_of_tiles() -> None:
    work = replace(tiny(), built=lambda component, precision, choice: {"weights": 111, "scratch": 222})
    tiled = predict(work, Choice(vae_tile=64)).stages["decode"]
    assert {t.source for t in tiled if t.owner == "scratch of the vae engines"} == {"shapes"}


def test_scratch_that_is_lent_is_as_large_as_any_engine_needs_it() -> None:
    needs = {"dit": 10**9, "vae_decoder_next": 10**8, "vae_decoder_first": 10**7}
    work = replace(tiny(), built=lambda component, precision, choice: {"scratch": needs.get(component)})

    def lent(choice: Choice) -> list[int]:
        return [t.size for t in predict(work, choice).stages["decode"] if t.owner.startswith("scratch")]

    assert lent(Choice()) == [10**9]
    assert lent(Choice(vae_frames_per_step=2)) == [10**9]  # of the engine that was built for them
    assert lent(Choice(offload=True)) == [10**8]
    assert sorted(lent(Choice(share_scratch=False))) == [10**7, 10**8, 10**9]
    assert sorted(lent(Choice(share_scratch=False, offload=True))) == [10**7, 10**8]


def test_engines_have_scratch_memory_of_their_own_from_their_first_work_on() -> None:
    """An engine asks for it when it runs, and has it until it is gone."""
    names = ("vae_encoder_first", "vae_encoder_next", "dit", "dit_2", "vae_decoder_first", "vae_decoder_next")
    sizes = dict(zip(names, (1, 2, 3, 3, 5, 6), strict=True))

    def built(component: str, precision: str, choice: Choice) -> dict[str, int]:
        return {"scratch": sizes[component] * 10**9} if component in sizes else {}

    def held(name: str, choice: Choice) -> dict[str, int]:
        model = model_of(name)
        work = Workload(model.checkpoint, model.profile().opt, "tensorrt", "cuda", built=built)
        return {
            stage: sum(t.size for t in terms if t.owner.startswith("scratch")) // 10**9
            for stage, terms in predict(work, choice).stages.items()
            if stage in ("image_encode", "denoise", "decode")
        }

    i2v, a14b, _ = VARIANTS
    own = Choice(share_scratch=False)
    assert held(i2v, own) == {"image_encode": 3, "denoise": 3 + 3, "decode": 3 + 3 + 11}
    assert held(a14b, own) == {"denoise": 3 + 3, "decode": 3 + 3 + 11}
    assert held(i2v, replace(own, offload=True)) == {"image_encode": 3, "denoise": 3, "decode": 11}
    assert held(a14b, replace(own, offload=True)) == {"denoise": 3, "decode": 11}, "one expert at a time"
    assert held(i2v, Choice()) == {"image_encode": 2, "denoise": 3, "decode": 6}


def test_scratch_memory_of_both_engines_of_a_decode_is_what_was_measured() -> None:
    """480p, 81 frames, on an H200: 11.64 GB of their own, 8.60 of them lent where it is."""
    folder = ROOT / "baselines" / "cuda-nvidia-h200-132sm-139gib" / "wan2.1-t2v-1.3b"
    case = json.loads((folder / "memory.json").read_text())["cases"]["wan-1.3b-vae-decoder-81f-own-scratch"]
    model = model_of("wan2.1-t2v-1.3b")
    work = Workload(model.checkpoint, model.profile("480p-81f").opt, "tensorrt", "cuda", text_encoder=False)
    terms = decode_terms(work, Choice(offload=True, share_scratch=False))
    scratch = sum(size for owner, size in terms.items() if owner.startswith("scratch"))
    assert scratch == pytest.approx(case["metrics"]["engine_own_scratch"]["value"], rel=0.1)


def recorded(found: Prediction) -> MemoryRecord:
    """A run that held exactly what was predicted, at work in the denoising and in the decode."""
    stages, places = [], {"engine weights": "device", "CUDA's own": "device"}
    loads = [
        f"load {t.owner.removesuffix(' weights')}" for t in found.stages["load"] if t.owner.startswith("dit")
    ]
    labels = [("load", each) for each in loads] + [("denoise", "denoise 1"), ("decode", "decode 1")]
    for stage, label in labels:
        held: dict[str, dict[str, int]] = {"allocator": {}, "device": {}}
        for term in found.stages[cast("Any", stage)]:
            place = next((each for name, each in places.items() if term.owner.endswith(name)), "allocator")
            owner = "engines' shared scratch" if term.owner.startswith("scratch") else term.owner
            held[place][owner] = term.size
        inside, outside = (sum(held[place].values()) for place in ("allocator", "device"))
        amounts = Amounts(resident_set=0, allocated=inside, reserved=inside, device_used=inside + outside)
        stages.append((label, amounts, amounts, cast("Held", held)))
    return record_of(
        stages,
        start=Amounts(resident_set=0, allocated=0, reserved=0, device_used=0),
        backend="tensorrt",
        settings={},
    )


@pytest.mark.parametrize(
    ("weights", "dit", "vae"),
    [
        (10**10, 10**9, 10**8),  # the denoising is the peak
        (10**9, 10**9, 10**10),  # the decode, whose engine has more scratch memory than streaming needs
        (10**10, 5 * 10**9, 6 * 10**9),  # the decode, and streaming needs more
    ],
)
@pytest.mark.parametrize("name", ["tiny-wan", "tiny-wan2.2-t2v-a14b"])
def test_the_plan_and_the_advice_agree_on_what_streaming_saves(
    name: str, weights: int, dit: int, vae: int
) -> None:
    """Scratch memory that is lent grows with what is streamed: of the largest of two experts."""

    def built(component: str, precision: str, choice: Choice) -> dict[str, int]:
        return {"weights": weights, "scratch": dit} if "dit" in component else {"scratch": vae}

    model = model_of(name)
    work = Workload(
        model.checkpoint, model.profile().opt, "tensorrt", "cuda", text_encoder=False, built=built
    )
    asked, streamed = (
        predict(work, replace(HALF, weight_streaming_budget_gib=budget)) for budget in (None, 0.0)
    )
    half = predict(work, replace(HALF, weight_streaming_budget_gib=weights / 2 / GIB))
    scratch = {t.owner: t.size for t in streamed.stages["denoise"]}["scratch of the dit engine"]
    assert scratch == dit + round(STREAMED_SCRATCH * weights)
    assert asked.of("denoise") - half.of("denoise") == pytest.approx(
        len(work.dits) * weights / 2 - STREAMED_SCRATCH * weights / 2, abs=2
    )
    (advice,) = (each for each in analyse(recorded(asked)).advice if each.what.startswith("stream"))
    assert advice.saves == pytest.approx(asked.peak - streamed.peak, abs=2)


def decode_terms(work: Workload, choice: Choice) -> dict[str, int]:
    return {term.owner: term.size for term in predict(work, choice).stages["decode"]}


def test_another_form_of_the_decoder_is_another_engine() -> None:
    built = {(False, 1): 10**9, (False, 2): 2 * 10**9}
    work = replace(
        tiny(),
        built=lambda component, precision, choice: {
            "scratch": built.get((choice.vae_lean, choice.vae_frames_per_step))
        },
    )
    scratch = "scratch of the vae engines"
    assert decode_terms(work, Choice())[scratch] == 10**9
    assert decode_terms(work, Choice(vae_frames_per_step=2))[scratch] == 2 * 10**9
    lean, usual = (decode_terms(tiny(), Choice(vae_lean=each, share_scratch=False)) for each in (True, False))
    assert decode_terms(work, Choice(vae_lean=True))[scratch] == lean[scratch]  # that one is not built
    assert lean[scratch] == pytest.approx(LEAN_SCRATCH * usual[scratch], rel=1e-6)
    assert 2 * lean["caches of the vae, two sets"] == usual["caches of the vae, two sets"]


def test_every_shape_of_tiles_has_buffers_of_its_own() -> None:
    work, buffers = tiny(), "buffers of the vae engines"
    video = replace(work.video, height=160, width=160)  # tiles of 64 every 48: 64, 64, 64 and 16
    whole, small = (
        decode_terms(replace(work, video=replace(video, height=height, width=width)), Choice())[buffers]
        for height, width in ((64, 64), (16, 16))
    )
    mixed = decode_terms(replace(work, video=replace(video, height=64, width=16)), Choice())[buffers]
    tiled = decode_terms(replace(work, video=video), Choice(vae_tile=64))[buffers]
    assert tiled == whole + 2 * mixed + small
    # of a video as high as a tile the second row is 16 high, as diffusers cuts it
    flat = decode_terms(replace(work, video=replace(video, height=64)), Choice(vae_tile=64))[buffers]
    assert flat == tiled


def test_a_tiled_decode_leaves_no_room_for_copies_of_its_frames() -> None:
    """They leave a GPU one by one (``pipeline/video_processor.py``)."""
    work = tiny()
    video = replace(work.video, height=128, width=128)  # tiles of 64 every 48: 64, 64 and 32
    small = replace(work, video=replace(video, height=64, width=64))
    terms = decode_terms(replace(work, video=video), Choice(vae_tile=64))
    assert terms["copies of a frame behind the decode"] == 2 * terms["the video"] / video.frames
    tile = terms["the video"] / 4
    # in the second row: the edges of the one above, of a tile of its own, the one to the left, and 3 to blend
    assert terms["a tile and edges of others"] == pytest.approx(tile + (2.5 + 1 + 1 + 3) * tile / 4, rel=1e-3)
    behind = {"copies of a frame behind the decode", "a tile and edges of others"}
    assert not behind & {*decode_terms(small, Choice(vae_tile=64)), *decode_terms(work, Choice())}


@pytest.mark.parametrize("backend", ["tensorrt", "torch"])
def test_a_stage_holds_what_it_needs_and_with_offload_nothing_else(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PREDICTION + ".fits_beside", lambda stages: (len(stages) - 1) * (False,))

    def held(choice: Choice) -> dict[str, set[str]]:
        stages = predict(tiny(backend), choice).stages
        return {
            stage: {t.owner.split()[0] for t in terms if "weights" in t.owner}
            for stage, terms in stages.items()
        }

    parts = {
        "tensorrt": ({"dit"}, {"vae_decoder_first", "vae_decoder_next"}),
        "torch": ({"transformer"}, {"vae"}),
    }
    denoise, decode = parts[backend]
    assert all(weights == {"text", *denoise, *decode} for weights in held(Choice()).values())
    apart = held(Choice(offload=True))
    assert (apart["text_encode"], apart["denoise"], apart["decode"]) == ({"text"}, denoise, decode)
    assert len(apart["load"]) == 1
    assert "text" not in held(Choice(text_encoder_device="cpu"))["text_encode"]


def test_with_offload_engines_come_early_where_that_makes_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the text encoder works on the CPU the device has room for the DiT, and beside the DiT for the decoder where
    that needs more at work; the peak is what it is without."""
    choice = Choice(offload=True, text_encoder_device="cpu")

    def owners(work: Workload, stage: Any) -> set[str]:
        terms = predict(work, choice).stages[stage]
        return {term.owner.split()[0] for term in terms if term.owner.endswith("engine weights")}

    decoder = {"vae_decoder_first", "vae_decoder_next"}
    large = replace(tiny(), video=Sizes(512, 512, 17, 16))
    assert (owners(large, "text_encode"), owners(large, "denoise"), owners(large, "decode")) == (
        {"dit"}, {"dit", *decoder}, decoder
    )  # fmt: skip
    peak = predict(large, choice).peak
    with monkeypatch.context() as alone:
        alone.setattr(PREDICTION + ".fits_beside", lambda stages: (len(stages) - 1) * (False,))
        assert owners(large, "text_encode") == set() and owners(large, "denoise") == {"dit"}
        assert predict(large, choice).peak == peak
    modules = replace(large, backend="torch")
    assert not any("transformer" in term.owner for term in predict(modules, choice).stages["text_encode"])


def test_the_text_encoder_on_an_engine_is_in_the_plan() -> None:
    """In its own precision, in its own turn, and not streamed to and fro for each step; no option moves it."""
    whole, half = (Choice(text_encoder=each, text_encoder_engine=True) for each in ("fp32", "fp16"))

    def weights(choice: Choice, stage: Any = "text_encode") -> dict[str, int]:
        terms = predict(tiny(), choice).stages[stage]
        return {t.owner: t.size for t in terms if t.owner.startswith("text") and "weights" in t.owner}

    assert weights(half).keys() == weights(half, "decode").keys() == {"text_encoder engine weights"}
    assert sum(weights(half).values()) < sum(weights(whole).values())
    offloaded = replace(half, offload=True)
    assert weights(offloaded) == weights(half) and not weights(offloaded, "denoise")
    assert not any("text_encoder" in option.name for option in OPTIONS if option.where(tiny(), half))
    streamed = replace(half, weight_streaming_budget_gib=0.0)
    assert set(weights(streamed).values()) == {0}
    (option,) = (option for option in OPTIONS if option.name.startswith("tensorrt.weight_streaming"))
    in_pytorch = replace(streamed, text_encoder_engine=False)
    assert option.seconds(tiny(), streamed) == option.seconds(tiny(), in_pytorch) > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_beside_engines_the_modules_that_they_replace_hold_no_weights(device: str) -> None:
    """Of the text encoder too, where an engine does its work."""

    def held(backend: str, choice: Choice) -> set[str]:
        terms = predict(tiny(backend, device), choice).stages["decode"]
        return {term.owner.removesuffix(" weights") for term in terms if term.owner.endswith(" weights")}

    engines = {f"{name} engine" for name in ("dit", "vae_decoder_first", "vae_decoder_next")}
    assert held("onnxruntime", Choice()) == {"text encoder", *engines}
    assert held("onnxruntime", Choice(text_encoder_engine=True)) == {"text_encoder engine", *engines}
    assert held("torch", Choice()) == {"text encoder", "transformer", "vae"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_holds_all_its_parts_and_with_offload_one_at_a_time(name: str) -> None:
    model = model_of(name)
    parts = {part: model.checkpoint.load(part) for part in model.checkpoint.parts}
    sizes = {part: sum(weight.nbytes for weight in module.parameters()) for part, module in parts.items()}
    work = workload(model, model.profile(), "torch", "cuda", Settings())
    held, apart = (
        {
            stage: {t.owner.removesuffix(" weights"): t.size for t in terms if t.owner.endswith("weights")}
            for stage, terms in predict(work, Choice(offload=offload)).stages.items()
        }
        for offload in (False, True)
    )
    whole = {part.replace("image_encoder", "image encoder"): size for part, size in sizes.items()}
    assert ("image_encode" in held) is model.checkpoint.begins_with_image
    assert all(each == whole for each in held.values())
    assert all(len(each) == 1 for stage, each in apart.items() if stage != "text_encode")
    assert set(apart["denoise"]) <= {"transformer", "transformer_2"}


def test_engines_of_a_variant_are_in_its_plan() -> None:
    """Both experts' of the A14B, and of the image's video the encoder's; what they share is held once."""

    def owners(name: str, stage: Any, choice: Choice = Choice()) -> set[str]:  # noqa: B008
        model = model_of(name)
        work = workload(model, model.profile(), "tensorrt", "cuda", Settings())
        return {term.owner for term in predict(work, choice).stages[stage]}

    i2v, a14b, _ = VARIANTS
    assert {"dit engine weights", "dit_2 engine weights"} <= owners(a14b, "decode")
    assert {"scratch of the dit engine", "scratch of the dit_2 engine"} <= owners(
        a14b, "decode", Choice(share_scratch=False)
    )
    assert {"vae_encoder_next engine weights", "the image as a video"} <= owners(i2v, "image_encode")
    assert "vae_encoder_next engine weights" not in owners(a14b, "decode")


def test_an_encode_is_counted_over_a_few_frames_only() -> None:
    checkpoint = model_of(VARIANTS[0]).checkpoint
    short, long = (encode_footprint(checkpoint, "fp32", Sizes(64, 64, frames, 16)) for frames in (9, 81))
    assert short == long and short.working > 9 * 3 * 64 * 64 * 4


def test_an_image_with_a_timestep_a_token_is_refused_by_name() -> None:
    checkpoint: Any = SimpleNamespace(begins_with_image=True, timestep_by_frame=True)
    assert unplanned(checkpoint) == "an image to begin with and a timestep a token"
    assert not any(unplanned(model_of(name).checkpoint) for name in VARIANTS)


def test_where_nothing_is_predicted_the_log_says_that_nothing_is_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint: Any = SimpleNamespace(begins_with_image=True, timestep_by_frame=True)
    nothing: Any = None
    model: Any = SimpleNamespace(checkpoint=checkpoint)
    check_memory(nothing, model, nothing, nothing, "fp16", "tensorrt")
    (line,) = caplog.messages
    assert line.endswith("the prediction does not know an image to begin with and a timestep a token")


def test_every_option_saves_somewhere() -> None:
    """An option that lowers no stage of any pipeline would be a row for nothing."""
    large = Choice(share_scratch=False, vae_frames_per_step=2)
    video = Sizes(512, 512, 17, 16)
    useful = {
        option.name
        for backend in ("tensorrt", "torch")
        for option in OPTIONS
        if option.where(work := replace(tiny(backend), video=video), large)
        and any(
            predict(work, replace(large, **dict(option.change))).of(stage) < predict(work, large).of(stage)
            for stage in predict(work, large).stages
        )
    }
    assert useful == {option.name for option in OPTIONS}


def asked_for(option: str) -> tuple[str, Any]:
    """The key and the value of an option as it is named, ``pipeline.offload=true``."""
    key, _, value = option.partition("=")
    return key, json.loads(value) if re.fullmatch(r"true|[\d.]+", value) else value


def refusal(backend: str, settings: Settings) -> str:
    """Why a backend does not run with some settings, or not here; empty where it does."""
    try:
        get_backend(backend).require(settings)
    except BackendUnavailable as error:
        return str(error)
    return ""


@pytest.mark.parametrize("model", ["tiny-wan", "tiny-wan2.2-ti2v-5b"])
@pytest.mark.parametrize("backend", [name for name in backend_names() if runs_on(name) != "cpu"])
def test_every_option_that_is_offered_is_accepted_by_its_backend(
    model: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small and in a large video, by the checks that a run makes before any work."""
    monkeypatch.setattr("wan_trt_core.backends.torch_compile.find_compiler", lambda: "a compiler")
    plain, runs = {"device": "cpu", "backend": backend}, get_backend(backend)
    checkpoint, small = model_of(model).checkpoint, model_of(model).profile().opt
    seen = set()
    for video in (small, replace(small, height=512, width=512)):
        work = Workload(checkpoint, video, backend, "cuda")
        for option in plan(work, Choice(share_scratch=False, vae_frames_per_step=2)).single:
            key, value = asked_for(option.name)
            seen.add(key)
            section, _, name = key.partition(".")
            if name:
                settings = Settings.model_validate({**plain, section: {name: value}})
                assert refusal(backend, settings) == refusal(backend, Settings.model_validate(plain))
                assert section != "tensorrt" or backend == "tensorrt", f"{backend} knows nothing of {key}"
                if isinstance(runs, EngineBackend):
                    check_tiles(video.spatial, settings)
            elif isinstance(runs, EngineBackend) and key == "dit":
                check_precision(runs, key, value)
    assert {"dit", "text_encoder"} <= seen and ("pipeline.offload" in seen) == (backend != "torch-compile")
    notes = plan_json(plan(tiny(backend), HALF), {})["notes"]
    assert any("compiled" in note for note in notes) == (backend == "torch-compile")
    assert all(note in plan_markdown("a title", plan(tiny(backend), HALF), {}) for note in notes)


@pytest.mark.parametrize(("backend", "offered"), [("tensorrt", False), ("torch", True)])
def test_a_vae_in_half_precision_is_offered_where_it_only_rounds(backend: str, offered: bool) -> None:
    """Its engines are under the floor of the parity suite, see WHOLE_ONLY."""
    found = plan(tiny(backend), Choice())
    assert ("vae=fp16" in {setting.name for setting in found.single}) is offered


def test_settings_and_precisions_are_a_choice() -> None:
    settings = Settings.model_validate({"tensorrt": {"weight_streaming_budget_gib": 2.0}})
    found = choice_of(settings, {"dit": "fp16", "vae": "fp32", "text_encoder": "int8"})
    assert found == Choice(dit="fp16", text_encoder="int8", weight_streaming_budget_gib=2.0)
    assert choice_of(Settings(), "fp16") == Choice(dit="fp16", vae="fp16")


PRICES = {
    "pipeline.vae_tile=256": ("vae-decoder-81f-tiled", "vae-decoder-81f"),
    "pipeline.vae_lean=true": ("vae-decoder-81f-lean", "vae-decoder-81f"),
    "pipeline.vae_frames_per_step=1": ("vae-decoder-81f", "vae-decoder-81f-two-latents"),
    "pipeline.offload=true": ("pipeline-17f-offload", "pipeline-17f"),
    "pipeline.text_encoder_device=cpu": ("pipeline-17f-encoder-cpu", "pipeline-17f-encoder"),
    "text_encoder=int8": ("pipeline-17f-encoder-int8", "pipeline-17f-encoder"),
}
"""The cases of an H200 whose times tell what a setting adds to a video: with it, and without."""


@pytest.mark.parametrize("name", PRICES)
def test_a_price_is_what_was_measured(name: str) -> None:
    """Within a tenth of what the stored baselines have: who measures anew changes the numbers too."""
    path = ROOT / "baselines" / "cuda-nvidia-h200-132sm-139gib" / "wan2.1-t2v-1.3b" / "perf.json"
    cases = json.loads(path.read_text())["cases"]
    times = [cases[f"wan-1.3b-{case}"]["metrics"]["candidate_time"]["value"] for case in PRICES[name]]
    model = model_of("wan2.1-t2v-1.3b")
    video = model.profile("480p-81f" if "81f" in PRICES[name][0] else "480p-17f").opt
    work = Workload(model.checkpoint, video, "tensorrt", "cuda", "encoder" in name)
    option = next(each for each in OPTIONS if each.name == name and each.where(work, HALF))
    assert option.seconds(work, replace(HALF, **dict(option.change))) == pytest.approx(
        times[0] - times[1], rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "layers", "profile", "case"),
    [
        ("wan2.1-t2v-1.3b", None, "480p-17f", "wan-1.3b-dit-17f"),
        ("wan2.1-t2v-1.3b", None, "480p-81f", "wan-1.3b-dit-81f"),
        ("wan2.1-t2v-14b", 10, "480p-81f", "wan-14b-dit-81f-10-layers"),
        ("wan2.2-ti2v-5b", None, "704p-121f", "wan-2.2-5b-dit-121f"),
    ],
)
def test_a_call_behind_which_streaming_hides_takes_what_was_measured(
    name: str, layers: int | None, profile: str, case: str
) -> None:
    path = ROOT / "baselines" / "cuda-nvidia-h200-132sm-139gib" / name / "perf.json"
    measured = json.loads(path.read_text())["cases"][case]["metrics"]["candidate_time"]["value"]
    model = resolve(name, layers=layers) if layers else model_of(name)
    work = Workload(model.checkpoint, model.profile(profile).opt, "tensorrt", "cuda", text_encoder=False)
    assert call_seconds(work) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("profile", "shown"), [("480p-81f", 0.023), ("480p-17f", 0.113 - 0.057)])
def test_streaming_costs_what_a_call_cannot_hide(profile: str, shown: float) -> None:
    """A call of the 1.3B at 81 frames takes 468 ms and its weights 113: 7.5 to 23 ms showed. At 17 it takes 57."""
    model = model_of("wan2.1-t2v-1.3b")
    work = Workload(model.checkpoint, model.profile(profile).opt, "tensorrt", "cuda", calls=100)
    (option,) = (each for each in OPTIONS if each.name.startswith("tensorrt.weight_streaming"))
    seconds = option.seconds(work, replace(HALF, weight_streaming_budget_gib=0.0))
    assert seconds == pytest.approx(100 * shown, rel=0.1)
    half = replace(HALF, weight_streaming_budget_gib=1.5)
    assert 0 <= option.seconds(work, half) < seconds


def on_the_host(precision: str) -> Setting:
    single = plan(tiny(), Choice(dit="fp16", text_encoder=precision)).single
    (found,) = (each for each in single if each.name == "pipeline.text_encoder_device=cpu")
    return found


@pytest.mark.parametrize(("precision", "loss"), [("fp32", 1), ("bf16", 2), ("fp16", 2), ("int8", 2)])
def test_a_text_encoder_elsewhere_makes_another_video_but_for_rounding(precision: str, loss: int) -> None:
    """In BF16 a CPU rounds otherwise: 29.8 dB from the GPU's video, which was measured of that alone."""
    found = on_the_host(precision)
    assert found.loss == loss
    assert ("29.8 dB" in found.options[0].price) == (precision == "bf16")


def test_the_products_of_int8_are_those_of_bf16() -> None:
    """Its layers multiply in the precision that is stored (``models/int8.py``), the published one's BF16."""
    seconds = {precision: on_the_host(precision).seconds for precision in ("fp32", "bf16", "int8")}
    assert seconds["int8"] == seconds["bf16"] < seconds["fp32"]


def test_what_streaming_cost_the_1_3b_is_said_to_be_of_it() -> None:
    (option,) = (each for each in OPTIONS if each.name.startswith("tensorrt.weight_streaming"))
    assert "of the 1.3B's at 81 frames" in option.price


# ---- what fits ---------------------------------------------------------------------------------------------------


def test_what_fits_as_it_is_needs_nothing() -> None:
    found = plan(tiny(), HALF, 4 * GIB)
    assert [setting.options for setting in found.fitting] == [()]
    assert found.missing == 0
    assert "fits into 4 GiB" in headline(found)


def test_the_cheapest_that_fits_is_named_and_nothing_superfluous_is_in_it() -> None:
    peak = predict(tiny(), Choice()).peak
    found = plan(tiny(), Choice(), peak - 1)
    costs = [(setting.loss, setting.seconds) for setting in found.fitting]
    assert costs == sorted(costs) and costs[0][0] == 0
    for setting in found.fitting:
        assert setting.prediction.peak < peak and setting.options
        assert not any(set(other.options) < set(setting.options) for other in found.fitting)
    assert f"Cheapest that fits: {found.fitting[0].name}" in headline(found)
    assert "misses" in headline(found)


def test_a_budget_that_cannot_be_met_is_missed_by_so_much() -> None:
    found = plan(tiny(), HALF, GIB // 2)
    assert not found.fitting
    assert found.missing == found.smallest.prediction.peak - GIB // 2 > 0
    assert "nothing fits into 512 MiB" in headline(found) and found.smallest.name in headline(found)
    assert plan_json(found, {})["missing"] == found.missing
    work = tiny()
    assert re.search(r"\| a name \| 1\.\d \| −0\.\d \| ✓ \|", sizes_table([("a name", work)], HALF, (0, 4)))


def test_the_report_adds_up() -> None:
    found = plan(tiny("torch"), HALF)
    stages = plan_json(found, {})["stages"]
    assert sum(term["bytes"] for term in stages[found.asked.peak_stage]) == found.asked.peak
    page = plan_markdown("Memory of tiny-wan", found, {"a case": GIB})
    assert "## Options, each by itself" in page and "| a case | 1 GiB |" in page
    assert "Settings that fit" not in page
    for budget, told in ((found.asked.peak, ", tight |"), (4 * GIB, "MiB | the same video |")):
        assert told in plan_markdown("a title", plan(tiny("torch"), HALF, budget), {})


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_the_command_says(tmp_path: Path) -> None:
    """Of the 1.3B: a fifth of a minute; all of it takes one."""
    given = ["--table", "--model", "wan2.1-t2v-1.3b", "--precision", "dit=fp16,vae=fp32,text_encoder=bf16"]
    command = [sys.executable, "-m", "wan_trt_core.cli", "memory", "plan", *given]
    said = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
    ).stdout
    page = (ROOT / "docs" / "memory.md").read_text()
    rows = [line for line in said.splitlines() if line.strip()]
    assert len(rows) > 5
    for line in rows:
        assert line in page, f"docs/memory.md does not say: {line}"
