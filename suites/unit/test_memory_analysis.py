"""What memory events come to: an injected leak and an injected spike are found and attributed, savings are modelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fabricated_memory import (
    ALL,
    CONTEXT,
    FAILURE,
    START,
    VAE,
    on_device,
    on_engines,
    on_host,
    record_of,
    stock,
    weights,
)
from fake_device import MIB

from wan_trt_core.measure.memory_events import Amounts, Failure, Held, MemoryRecord
from wan_trt_core.memory.advice import Advice
from wan_trt_core.memory.analysis import Growth, NothingRecorded, analyse
from wan_trt_core.memory.measured import (
    ONE_GRAPH,
    ONE_GRAPH_TIME,
    SLICES,
    SLICES_TIME,
    STREAM_SHOWN,
    shown_of_streaming,
)
from wan_trt_core.report.charts import memory_timeline
from wan_trt_core.report.memory_report import memory_html, memory_markdown, write_memory_report


def by_name(record: MemoryRecord) -> dict[str, Advice]:
    return {advice.what.split(",")[0].split(" (")[0]: advice for advice in analyse(record).advice}


def growth(record: MemoryRecord) -> dict[tuple[str, str], Growth]:
    return {(each.per, each.book): each for each in analyse(record).growth}


# ---- peak, loading, growth ------------------------------------------------------------------------------------


def test_the_holders_of_the_peak_add_up_to_it() -> None:
    found = analyse(stock(decode=1900, cached=50))
    assert (found.book, found.peak_stage, found.peak) == (
        "device_used",
        "decode 1",
        (1900 + 50 + CONTEXT) * MIB,
    )
    assert sum(holder.size for holder in found.holders) == found.peak
    assert [(holder.name.split(" (")[0], holder.size // MIB, holder.known) for holder in found.holders] == [
        ("text_encoder weights", 1000, True),
        ("transformer weights", 500, True),
        ("not attributed", CONTEXT, False),
        ("tensors of no known owner", 300, False),
        ("vae weights", 100, True),
        ("kept by PyTorch's allocator without a tensor in it", 50, False),
    ]
    assert found.fragmentation is not None
    assert (found.fragmentation.stage, found.fragmentation.unused) == ("decode 1", 50 * MIB)


def test_on_a_host_the_process_itself_is_an_owner() -> None:
    held: Held = {"host": weights(vae=100)}
    record = record_of([("load vae", on_host(950), on_host(920), held)], start=on_host(START))
    found = analyse(record)
    assert (found.book, found.peak, found.fragmentation) == ("resident_set", 950 * MIB, None)
    assert {holder.name.split(" (")[0]: holder.size // MIB for holder in found.holders} == {
        "the process before anything was loaded": START,
        "vae weights": 100,
        "not attributed": 50,
    }


def test_a_peak_at_the_begin_of_an_unloading_is_held_by_those_before() -> None:
    """Between stages something else was taken, as the video's file is written before the engines are closed."""
    held: Held = {"host": weights(vae=100)}
    stages = [("load vae", on_host(900), on_host(900), held), ("unload vae", on_host(800), on_host(800), {})]
    record = record_of(stages, start=on_host(START))
    unload = record.events[1].model_copy(update={"before": on_host(950), "peak": on_host(950)})
    found = analyse(record.model_copy(update={"events": (record.events[0], unload)}))
    assert found.peak_stage == "unload vae"
    assert "vae weights" in {holder.name for holder in found.holders}


def test_engine_weights_lie_outside_the_allocator() -> None:
    held: Held = {
        "device": weights(**{"dit engine": 300}),
        "allocator": {"engines' shared scratch": 40 * MIB},
    }
    record = record_of(
        [("load dit engine", on_device(60, 0, 310), on_device(60, 0, 310), held)], start=on_device(0)
    )
    sizes = {holder.name.split(" (")[0]: holder.size // MIB for holder in analyse(record).holders}
    assert sizes["tensors of no known owner"] == 20
    assert sizes["not attributed"] == CONTEXT + 10


def test_the_share_of_loading() -> None:
    found = analyse(stock())
    assert [(load.name, load.added // MIB, load.share, load.seconds) for load in found.loads] == [
        ("text_encoder", 1000, 0.625, 2.0),
        ("transformer", 500, 0.3125, 2.0),
        ("vae", 100, 0.0625, 2.0),
    ]
    assert found.loading == 1600 * MIB


def test_an_injected_leak_is_found_with_its_size() -> None:
    steps = growth(stock(steps=[1600 + 8 * step for step in range(6)]))["denoising step", "allocated"]
    assert (steps.slope, steps.low, steps.high) == (8 * MIB, 8 * MIB, 8 * MIB)
    assert steps.grows
    assert "Grows by 8 MiB a denoising step in PyTorch's tensors" in memory_markdown(
        stock(steps=[1600 + 8 * step for step in range(6)])
    )


@pytest.mark.parametrize(
    "steps", [[1600] * 6, [1600] + [1650] * 9, [1600, 1604, 1599, 1602, 1600, 1603, 1598, 1601]]
)
def test_no_growth_where_nothing_leaks(steps: list[int]) -> None:
    """Flat, with one step up, and noise."""
    assert not growth(stock(steps=steps))["denoising step", "allocated"].grows


def test_what_levels_off_is_no_growth() -> None:
    """As the resident set of a real run of 20 steps, in KiB, whose interval is above 0: arenas fill up."""
    added = [0, 796, 1436, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 160, 0, 0, 0, 0, 0, 0]
    held = [on_host(START).resident_set + 1024 * sum(added[: step + 1]) for step in range(20)]
    stages = [
        (f"denoise {step}", Amounts(resident_set=at), Amounts(resident_set=at), {})
        for step, at in enumerate(held, 1)
    ]
    record = record_of(stages, start=on_host(START))
    steps = growth(record)["denoising step", "resident_set"]
    assert (steps.rose, steps.grows) == (True, False)
    assert "| levels off |" in memory_markdown(record)
    more = [
        (label, Amounts(resident_set=at.resident_set + 2**17 * step), at, held)
        for step, (label, at, _, held) in enumerate(stages)
    ]
    leaking = [(label, at, at, held) for label, at, _, held in more]
    assert growth(record_of(leaking, start=on_host(START)))["denoising step", "resident_set"].grows


def test_growth_is_of_whom_it_is() -> None:
    """An engine that says that its buffers grow; without it, nobody's tensors."""
    told = [
        {"allocator": {"dit engine buffers": (10 + 8 * step) * MIB, "dit engine scratch": 90 * MIB}}
        for step in range(6)
    ]
    stages = [
        (f"denoise {step + 1}", on_device(100 + 8 * step), on_device(100 + 8 * step), held)
        for step, held in enumerate(told)
    ]
    found = growth(record_of(stages, start=on_device(100)))
    assert {each.who for each in found.values()} == {"dit engine buffers"}
    graphs = [on_device(100 + 8 * step, 0, 20 * step) for step in range(6)]
    beside = growth(
        record_of([(f"denoise {i}", at, at, {}) for i, at in enumerate(graphs, 1)], start=on_device(100))
    )
    assert beside["denoising step", "allocated"].who.startswith("tensors of no known owner")
    assert beside["denoising step", "device_used"].who.startswith("not attributed (CUDA context")
    untold = growth(stock(steps=[1600 + 8 * step for step in range(6)]))
    assert untold["denoising step", "allocated"].who.startswith("tensors of no known owner")


def test_a_moment_is_of_whom_it_is() -> None:
    takers = {moment.stage: moment.who for moment in analyse(on_engines(graphs=800)).moments}
    assert takers["load dit engine"] == "dit engine weights"
    assert takers["decode 1"] == "engines' shared scratch", "900 of it, 830 of caches and video"
    assert analyse(on_engines(graphs=950)).moments[0].who.startswith("not attributed (CUDA context")


def test_what_a_stage_ended_without_is_nobodys_rise_after_it() -> None:
    """Caches are told of the stage that had them; at its end there were 100 MiB of other tensors, and 60 come."""
    caches: Held = {"allocator": {f"{VAE} caches": 700 * MIB}}
    buffers: Held = {"allocator": {f"{VAE} buffers": 60 * MIB}}
    stages = [
        ("decode 1", on_device(800), on_device(100, 700), caches),
        ("postprocess", on_device(170, 700), on_device(170, 700), buffers),
    ]
    moments = {each.stage: each for each in analyse(record_of(stages, start=on_device(0))).moments}
    assert moments["decode 1"].who == f"{VAE} caches"
    assert (moments["postprocess"].above, moments["postprocess"].who) == (70 * MIB, f"{VAE} buffers")


def test_too_few_points_have_no_interval() -> None:
    steps = growth(stock(steps=[1600, 1608, 1616, 1624]))["denoising step", "allocated"]
    assert (steps.slope, steps.low, steps.grows) == (8 * MIB, None, False)
    assert "too few points" in memory_markdown(stock(steps=[1600, 1608]))


def test_growth_of_the_decode_is_by_frame_of_the_video() -> None:
    """The first latent frame is one frame, every other four."""
    stages = [
        (f"decode {index}", on_host(at), on_host(at), {})
        for index, at in ((1, 801), (2, 805), (3, 809), (4, 813), (5, 817))
    ]
    frames = growth(record_of(stages, start=on_host(START)))["decoded frame", "resident_set"]
    assert (frames.slope, frames.grows) == (MIB, True)


def test_a_step_that_was_interrupted_counts_once() -> None:
    """It has an event before what comes in between, and one after it: what is held at its end counts."""
    steps = [(1, 1700), (1, 1608), (2, 1616), (3, 1624), (4, 1632), (5, 1640)]
    stages = [(f"denoise {index}", on_device(at), on_device(at), {}) for index, at in steps]
    stages.insert(1, ("unload text_encoder", on_device(1700), on_device(1600), {}))
    found = growth(record_of(stages, start=on_device(1600)))["denoising step", "allocated"]
    assert (found.points, found.slope, found.grows) == (5, 8 * MIB, True)
    record = on_engines()
    twice = [event for event in record.events for _ in range(1 + (event.label == "denoise 1"))]
    interrupted = record.model_copy(update={"events": tuple(twice)})
    name = "stream the weights of dit engine"
    assert by_name(interrupted)[name].seconds == by_name(record)[name].seconds


def test_an_injected_spike_is_the_biggest_moment_and_attributed() -> None:
    record = stock(denoise=1700, decode=1800)
    events = list(record.events)
    spiked = next(index for index, event in enumerate(events) if event.label == "denoise 3")
    events[spiked] = events[spiked].model_copy(update={"peak": on_device(9000)})
    found = analyse(record.model_copy(update={"events": tuple(events)}))
    assert (found.moments[0].stage, found.moments[0].above // MIB) == ("denoise 3", 7400)
    assert found.peak_stage == "denoise 3"
    assert found.holders[0].name.startswith("tensors of no known owner")
    assert found.holders[0].size == 7400 * MIB


# ---- advice -----------------------------------------------------------------------------------------------------


def test_weights_only_save_where_the_peak_is_not_theirs() -> None:
    """The decode peaks at 1900: without the text encoder it is 900 and the text encode, at 1650, leads."""
    advice = by_name(stock(denoise=1700, decode=1900))
    encoder = advice["hold text_encoder only for text encode"]
    assert (encoder.saves, encoder.seconds) == ((1900 - 1650) * MIB, 2.0)
    assert "2 s" in encoder.costs
    transformer = advice["hold transformer only for denoise"]
    assert transformer.saves == (1900 - 1700) * MIB, "the denoising, which needs it, leads then"
    assert not any(name.startswith("hold vae") for name in advice), "the decode needs it"
    # text encode 1650 - 600, denoising 1700 - 1100, decode 1900 - 1500, loading of the vae 1600 - 1500
    together = advice["all of these: hold every component only for its own stage"]
    assert (together.saves, together.seconds) == ((1900 - 1050) * MIB, 6.0)


def test_the_text_encoder_on_the_cpu_and_in_int8() -> None:
    advice = by_name(stock())
    assert advice["run the text encoder on the CPU"].saves == 1000 * MIB
    assert advice["text_encoder in INT8"].saves == 500 * MIB
    assert advice["transformer in half precision"].saves == 250 * MIB
    assert "text_encoder in half precision" not in advice, "it is already"


def test_what_the_plan_has_a_price_of_the_advice_ranks_by_it() -> None:
    """An H200's host took 3.39 s for two prompts with 5.68e9 parameters in BF16; INT8 took the GPU 0.07 s more."""
    parameters = 1000 * MIB / 2
    advice = by_name(stock())
    host, int8 = advice["run the text encoder on the CPU"], advice["text_encoder in INT8"]
    assert host.seconds == pytest.approx(3.39 * parameters / 5.68e9, rel=0.02)
    assert f"{host.seconds:.2g} s a video" in host.costs
    assert int8.seconds == 0.07 and "0.07 s a video" in int8.costs
    order = [each.what for each in analyse(stock()).advice]
    assert (
        order.index(int8.what)
        < order.index(host.what)
        < order.index(advice["transformer in half precision"].what)
    )
    short = by_name(stock(max_sequence_length=128))["run the text encoder on the CPU"]
    assert host.seconds is not None and short.seconds == pytest.approx(host.seconds / 4)
    record = stock()
    by_precision = {
        precision: by_name(record.model_copy(update={"precisions": {"text_encoder weights": precision}}))[
            "run the text encoder on the CPU"
        ].seconds
        for precision in ("fp32", "float32", "bfloat16", "int8", "strange")
    }
    assert by_precision["bfloat16"] == host.seconds and by_precision["int8"] == 2 * host.seconds
    assert by_precision["fp32"] == by_precision["float32"] == pytest.approx(host.seconds / 2 * 3.4 / 0.5)
    assert by_precision["strange"] is None, "of an unknown size no parameters are known"


def test_on_a_host_int8_has_no_price() -> None:
    """It was measured on a GPU."""
    held: Held = {"host": weights(text_encoder=1000)}
    record = record_of(
        [
            ("load text_encoder", on_host(START + 1000), on_host(START + 1000), held),
            ("text_encode", on_host(START + 1100), on_host(START + 1000), held),
        ],
        start=on_host(START),
        precisions={"text_encoder weights": "bf16"},
    )
    int8 = by_name(record)["text_encoder in INT8"]
    assert (int8.saves, int8.seconds) == (500 * MIB, None)


def test_unloading_at_the_end_lowers_no_saving() -> None:
    """It begins with all that was held before, of which its own events tell nothing at their end."""
    run = on_engines()
    held, after = run.events[-1].held, run.events[-1].after
    rest: Held = {"device": weights(**{"vae_decoder_next engine": 50}), "allocator": held["allocator"]}
    without = after.model_copy(update={"device_used": after.of("device_used") - 400 * MIB})
    unloads = record_of(
        [
            ("unload dit engine", after, without, rest),
            ("unload vae_decoder_next engine", without, on_device(0), {}),
        ],
        start=after,
    ).events
    last = run.events[-1].end
    late = [each.model_copy(update={"start": last + each.start, "end": last + each.end}) for each in unloads]
    closed = by_name(run.model_copy(update={"events": (*run.events, *late)}))
    savings = {name: advice.saves for name, advice in by_name(run).items()}
    assert {name: advice.saves for name, advice in closed.items()} == savings
    assert savings["hold dit engine only for denoise"] == 400 * MIB


def test_a_text_encoder_in_int8_is_not_advised_to_be() -> None:
    record = stock()
    precisions = {**record.precisions, "text_encoder weights": "int8"}
    assert not {"text_encoder in INT8", "text_encoder in half precision"} & set(
        by_name(record.model_copy(update={"precisions": precisions}))
    )


def test_what_the_allocator_keeps() -> None:
    name = "let PyTorch's allocator give back what holds no tensor"
    assert by_name(stock(cached=150))[name].saves == 150 * MIB
    assert name not in by_name(stock(cached=0))


def test_modules_that_engines_replace_are_let_go_of_first() -> None:
    held: Held = {"host": weights(transformer=400) | weights(**{"dit engine": 390})}
    record = record_of(
        [
            ("load transformer", on_host(1200), on_host(1200), {"host": weights(transformer=400)}),
            ("load dit engine", on_host(1590), on_host(1590), held),
            ("denoise 1", on_host(1650), on_host(1600), held),
        ],
        start=on_host(START),
    )
    first = analyse(record).advice[0]
    assert first.what == "let go of transformer: engines do its work"
    assert (first.saves, first.seconds) == (400 * MIB, 0.0)


def test_a_module_that_was_loaded_for_an_export_is_let_go_of() -> None:
    """That is part of the building: no stage of its own tells it, only who holds what."""
    left: Held = {"host": weights(transformer=400)}
    held: Held = {"host": weights(transformer=400) | weights(**{"dit engine": 390})}
    record = record_of(
        [
            ("build dit engine", on_host(1300), on_host(1200), left),
            ("load dit engine", on_host(1590), on_host(1590), held),
            ("denoise 1", on_host(1650), on_host(1600), held),
        ],
        start=on_host(START),
    )
    advice = by_name(record)
    assert advice["let go of transformer: engines do its work"].saves == (1650 - 1300) * MIB, (
        "the building needs it"
    )
    assert "hold dit engine only for denoise" not in advice


def test_half_precision_is_advised_where_it_keeps_the_video() -> None:
    """Of the engines the DiT's only: a VAE's in half precision is under the floor of the parity suite."""
    names = ("dit engine", "vae_decoder_next engine")
    held: Held = {"device": weights(**dict.fromkeys(names, 400))}
    stages = [(f"load {name}", on_device(0, 0, 900), on_device(0, 0, 900), held) for name in names]
    for word in ("fp32", "float32"):  # the second is that of a module in older files
        precisions = {f"{name} weights": word for name in names}
        advice = by_name(record_of(stages, start=on_device(0), precisions=precisions))
        assert [name for name in advice if "half" in name] == ["dit engine in half precision"]


def test_building_is_told_from_running() -> None:
    stages = [
        ("build dit engine", on_host(3000), on_host(900), {}),
        ("load dit engine", on_host(1000), on_host(1000), {}),
    ]
    first = analyse(record_of(stages, start=on_host(START))).advice[0]
    assert (first.what.split(" (")[0], first.saves) == ("build engines beforehand", 2000 * MIB)


def test_tiles_are_modelled_by_their_area_and_leave_the_video() -> None:
    """Of 400 MiB above the beginning of the decode 96 are the video: a sixteenth of the rest remains."""
    size = {"height": 1024, "width": 1024, "num_frames": 8}
    video = 3 * 1024 * 1024 * 8 * 4 // MIB
    advice = by_name(stock(denoise=1600, decode=2000, **size))["decode in tiles of 256 pixels"]
    assert advice.saves == (400 - video) * 15 // 16 * MIB
    assert advice.seconds is None and "1.72 times the pixels" in advice.costs
    half = by_name(stock(denoise=1600, decode=2000, height=128, width=128, num_frames=8))
    assert half["decode in tiles of 64 pixels"].saves == pytest.approx(300 * MIB, rel=0.01)
    flat = by_name(stock(denoise=1600, decode=2000, height=256, width=1024, num_frames=8))
    assert "1.64 times the pixels" in flat["decode in tiles of 256 pixels"].costs  # its second row is 64 high
    kept = by_name(stock(denoise=1600, decode=2000, after=2000, **size))["decode in tiles of 256 pixels"]
    assert kept.saves == advice.saves, "the allocator keeps of the decode what there was"
    unknown = by_name(stock(denoise=1600, decode=2000))
    assert not [name for name in unknown if "tiles" in name], "of a video of unknown size"


@pytest.mark.parametrize(("size", "tile"), [(128, None), (240, None), (256, 128), (512, 256)])
def test_on_a_host_tiles_are_advised_from_the_size_on_at_which_they_save(size: int, tile: int | None) -> None:
    """Of a smaller video malloc keeps more of the tiles than they save."""
    peak, after = on_host(START + 600), on_host(START + 300)
    record = record_of(
        [
            ("load vae", on_host(START + 100), on_host(START + 100), {"host": weights(vae=100)}),
            ("decode 1", peak, after, {"host": weights(vae=100)}),
        ],
        start=on_host(START),
        height=size,
        width=size,
        num_frames=5,
    )
    found = analyse(record)
    assert not [name for name in found.idle if "tiles" in name]
    advised = [name for name in by_name(record) if "tiles" in name]
    assert advised == ([f"decode in tiles of {tile} pixels"] if tile else [])


def test_tiles_of_engines_keep_an_eighth_of_caches_and_scratch() -> None:
    """Caches 800 - 100, scratch 1000 - 125; the allocator keeps that much less afterwards."""
    tiles = by_name(on_engines())["decode in tiles of 256 pixels"]
    assert tiles.saves == (700 + 875) * MIB
    covered = (256 + 256 + 128) * (5 * 256 + 64) / (512 * 1024)  # every 192 pixels one begins
    assert tiles.seconds == pytest.approx(512 * 1024 * 5 * 1.5 / (480 * 832 * 81) * (1.28 * covered - 1))


def test_caches_are_as_large_as_their_engine_says() -> None:
    """Not all that nobody claims."""
    advice = by_name(on_engines(caches=600))
    assert advice["decode in tiles of 256 pixels"].saves == (525 + 875) * MIB
    assert advice["the lean decoder"].saves == (300 + 100) * MIB


def test_scratch_of_another_engine_stays_under_tiles() -> None:
    """The DiT had 100 MiB of what is shared: less than that it does not become."""
    tiles = by_name(on_engines(height=2048, width=4096, num_frames=1))["decode in tiles of 256 pixels"]
    share, video = 1 / 128, 3 * 2048 * 4096 * 4 // MIB
    assert tiles.saves == pytest.approx(((1 - share) * (830 - video) + 900) * MIB, abs=1)


def test_the_lean_decoder_halves_caches_and_takes_a_tenth_of_scratch() -> None:
    lean = by_name(on_engines())["the lean decoder"]
    assert lean.saves == (400 + 100) * MIB
    assert lean.seconds == pytest.approx(512 * 1024 * 5 * 1.5 / (480 * 832 * 81) * 0.026)
    assert by_name(on_engines(vae="fp16"))["the lean decoder"].saves == 100 * MIB, (
        "the caches are halves already"
    )
    assert (
        "the events do not tell" in lean.what
        and "the events do not tell" not in by_name(on_engines(settings={}))["the lean decoder"].what
    )


def test_one_latent_frame_a_step_halves_the_scratch_of_two() -> None:
    single = by_name(on_engines(settings={"pipeline.vae_frames_per_step": 2}))["one latent frame a step"]
    assert single.saves == 500 * MIB
    of_an_h200 = (1.500 - 1.425) * (512 * 1024 * 5) / (480 * 832 * 81)  # s, in the same proportion
    assert single.seconds == pytest.approx(of_an_h200, rel=0.02), "as the plan has it"
    assert "one latent frame a step" not in by_name(on_engines(settings={}))


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"pipeline.vae_tile": 256}, "decode in tiles of 256 pixels"),
        ({"pipeline.vae_lean": True}, "the lean decoder"),
        ({"tensorrt.weight_streaming_budget_gib": 0.0}, "stream the weights of dit engine"),
    ],
)
def test_what_is_set_already_is_not_advised(settings: dict[str, object], gone: str) -> None:
    assert gone in by_name(on_engines(settings={}))
    assert gone not in by_name(on_engines(settings=settings))


def test_a_text_encoder_that_is_on_the_cpu_is_not_sent_there() -> None:
    """Not even among what would save next to nothing."""
    name, settings = "run the text encoder on the CPU", {"pipeline.text_encoder_device": "cpu"}
    for run, there in (({}, True), ({"settings": {}}, True), ({"settings": settings}, False)):
        found = analyse(stock(**run))
        assert (name in {*found.idle, *(advice.what for advice in found.advice)}) == there


def test_engines_that_decode_no_tiles_are_not_advised_to() -> None:
    names = by_name(on_engines(model="wan2.2-ti2v-5b"))
    assert "the lean decoder" in names and not [name for name in names if "tiles" in name]


def test_scratch_memory_that_is_not_shared() -> None:
    shared = by_name(on_engines(own_scratch=(200, 1000)))["share scratch memory between engines"]
    assert (shared.saves, shared.seconds) == (200 * MIB, 0.0)
    assert "share scratch memory between engines" not in by_name(on_engines())


def test_weights_are_streamed_in_every_call() -> None:
    streamed = by_name(on_engines())["stream the weights of dit engine"]
    assert streamed.saves == 400 * MIB
    on_the_bus = 2 * 2 * 400 * MIB / 25e9  # two steps, each with and without the prompt
    assert streamed.seconds == pytest.approx(STREAM_SHOWN * on_the_bus), (
        "a call of half a second hides the rest"
    )
    assert "stream the weights of dit engine" not in by_name(on_engines(backend="onnxruntime"))


@pytest.mark.parametrize(
    ("steps", "hidden"),
    [((1.0, 0.02), 0.01), ((1.0, 0.0), 0.0), ((1.0,), 0.0), ((1.0, 0.02, 0.01, 0.5), 0.01)],
)
def test_streaming_costs_what_the_calls_of_the_run_cannot_hide(
    steps: tuple[float, ...], hidden: float
) -> None:
    """As in the plan. The first step captures graphs, so it tells nothing of the others; where the host hands work over
    ahead of the GPU, less is hidden and never more."""
    record = on_engines()
    (first, *_) = (event for event in record.events if event.stage == "denoise")
    denoising = tuple(
        first.model_copy(update={"index": index, "end": first.start + seconds})
        for index, seconds in enumerate(steps, start=1)
    )
    others = tuple(event for event in record.events if event.stage != "denoise")
    at = next(at for at, event in enumerate(others) if event.stage == "decode")
    events = (*others[:at], *denoising, *others[at:])
    streamed = by_name(record.model_copy(update={"events": events}))["stream the weights of dit engine"]
    on_the_bus = 400 * MIB / 25e9
    assert streamed.seconds == pytest.approx(2 * len(steps) * shown_of_streaming(on_the_bus, hidden))
    assert streamed.seconds == pytest.approx(2 * len(steps) * (on_the_bus - hidden))


def test_streaming_needs_scratch_memory_where_the_denoising_is_the_peak() -> None:
    record = on_engines()
    denoising = tuple(event for event in record.events if event.stage not in ("decode", "postprocess"))
    streamed = by_name(record.model_copy(update={"events": denoising}))["stream the weights of dit engine"]
    assert streamed.saves == 280 * MIB


def test_what_no_event_tells_is_named_with_what_was_measured() -> None:
    """With what is at stake, and after all that is modelled."""
    found = analyse(on_engines(graphs=100)).advice
    assert [each.what.split(" (")[0] for each in found if not each.modelled] == ["keep fewer CUDA graphs"]
    assert (found[-1].saves, found[-1].seconds) == (100 * MIB, None)
    text = memory_markdown(on_engines(graphs=100))
    assert "not modelled: 8.011 MiB on an H200, of 100 MiB at stake here" in text and "2.8% longer" in text
    assert "not modelled: nothing on an H200, of 500 MiB" in memory_markdown(stock(denoise=2400))
    slices = by_name(stock(denoise=2400))["attention in slices"]
    assert (slices.saves, slices.modelled) == ((2400 - 1900) * MIB, False), "the decode leads then"
    assert analyse(stock(denoise=2400)).advice[-1] == slices, "though it may be more than others save"
    assert "attention in slices" not in by_name(
        stock(denoise=2400, settings={"pipeline.attention_slicing": 64})
    )
    assert "attention in slices" not in by_name(on_engines())


def test_what_was_measured_of_graphs_and_slices_is_what_the_baselines_say() -> None:
    """Both save less than a hundredth, and take so much longer."""
    folder = Path(__file__).parents[2] / "baselines" / "cuda-nvidia-h200-132sm-139gib"

    def baseline(model: str, suite: str, case: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / model / f"{suite}.json").read_text())["cases"][case]
        return found

    def value(model: str, suite: str, case: str, metric: str) -> float:
        return float(baseline(model, suite, case)["metrics"][metric]["value"])

    decode, model = "wan-1.3b-vae-decoder-81f", "wan2.1-t2v-1.3b"
    usual, one = (value(model, "memory", f"{decode}{end}", "device_used") for end in ("", "-one-graph"))
    assert usual - one == pytest.approx(ONE_GRAPH, abs=0.01 * usual)
    usual, one = (value(model, "perf", f"{decode}{end}", "candidate_time") for end in ("", "-one-graph"))
    assert one / usual == pytest.approx(ONE_GRAPH_TIME, rel=0.01)
    sliced = "tiny-wan-pipeline-sliced"
    stock = baseline("tiny-wan", "memory", sliced)["observed"]["metrics"]["reference_device_used"]["value"]
    used = value("tiny-wan", "memory", sliced, "device_used")
    assert stock - used == pytest.approx(SLICES, abs=0.01 * stock)
    times = [value("tiny-wan", "perf", sliced, f"{arm}_time") for arm in ("reference", "candidate")]
    assert times[1] / times[0] == pytest.approx(SLICES_TIME, rel=0.05)


def test_known_costs_come_before_unknown_ones_and_little_is_only_named() -> None:
    found = analyse(stock(cached=10))
    known = [advice.seconds is not None for advice in found.advice]
    assert known == sorted(known, reverse=True) and any(known) and not all(known)
    rates = [advice.saves / advice.seconds for advice in found.advice if advice.seconds]
    assert rates == sorted(rates, reverse=True)
    assert [name.split(" (")[0] for name in found.idle] == [
        "let PyTorch's allocator give back what holds no tensor"
    ]


# ---- a run that ran out of memory -------------------------------------------------------------------------------


def out_of(asked: int, message: str, held: Amounts, stage: str = "decode 1") -> Failure:
    """What ended a run that asked for so many MiB."""
    facts = {"asked": asked * MIB, "message": message, "amounts": held}
    return FAILURE.model_copy(update={**facts, "stage": stage})


PYTORCH = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate {} MiB. GPU 0 has a total capacity of 3 GiB"
)


def test_savings_are_off_what_would_have_been_needed() -> None:
    """2400 MiB were held of the device, 2048 asked for. By what was reached the text encode led from 1650 on."""
    asked = PYTORCH.format(2048)
    run = stock(failure=out_of(2048, f"{asked} of which 1200.00 MiB is free.", on_device(1900)))
    found, advice = analyse(run), by_name(run)
    assert (found.peak, found.needed) == ((1900 + CONTEXT) * MIB, (1900 + CONTEXT + 2048) * MIB)
    encoder = advice["hold text_encoder only for text encode"]
    assert encoder.saves == 1000 * MIB and encoder.fits, "of the 848 that were lacking"
    half = advice["transformer in half precision"]
    assert half.saves == 250 * MIB and half.fits is False
    size = {"height": 1024, "width": 1024, "num_frames": 8}
    tiles = by_name(stock(**size, failure=run.failure))["decode in tiles of 256 pixels"]
    video = 3 * 1024 * 1024 * 8 * 4 // MIB
    assert tiles.saves == (300 + 2048 - video) * MIB * 15 // 16, "what was asked for is of the decode"


def test_where_nothing_tells_what_was_free_what_was_reached_is_sure() -> None:
    """Whoever saves less than was asked for may fit or not."""
    run = stock(failure=out_of(500, PYTORCH.format(500), on_device(1900)))
    advice = by_name(run)
    assert advice["run the text encoder on the CPU"].fits is True
    assert advice["transformer in half precision"].fits is None
    text = memory_markdown(run)
    assert "**Peak 2.344 GiB of the device, in decode 1, and 2.832 GiB were needed.**" in text
    table = text.split("## Recommendations")[1].split("##")[0].splitlines()
    assert table[2].split("|")[3].strip() == "room for what was asked"
    said = {line.split("|")[1].split(". ", 1)[1].strip(): line.split("|")[3].strip() for line in table[4:-1]}
    assert said["run the text encoder on the CPU"] == "yes"
    assert said["transformer in half precision"] == "not shown"


def test_a_run_that_came_to_its_end_needed_what_it_had() -> None:
    found = analyse(stock())
    assert found.needed is None and all(advice.fits is None for advice in found.advice)
    assert "room for what was asked" not in memory_markdown(stock())


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (FAILURE.model_copy(update={"kind": "interrupted"}), "nothing was asked for"),
        (FAILURE.model_copy(update={"asked": None}), "nobody tells how much"),
        (out_of(100, PYTORCH.format(100), on_device(1000)), "others held what this run had before"),
        (out_of(9000, "you tried to allocate 9 bytes: DefaultCPUAllocator", on_device(1900)), "of the host"),
        (out_of(9000, "MemoryError: Unable to allocate 9 B for an array", on_device(1900)), "of the host"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_more_of_the_book_that_decides_savings_are_off_the_peak(failure: Failure, why: str) -> None:
    found, plain = analyse(stock(failure=failure)), analyse(stock())
    assert found.needed is None and found.advice == plain.advice, why


def test_what_was_asked_for_between_stages_counts() -> None:
    run = stock(failure=out_of(2048, PYTORCH.format(2048), on_device(1600), stage=""))
    found = analyse(run)
    assert found.needed == (1600 + CONTEXT + 2048) * MIB
    assert by_name(run)["hold transformer only for denoise"].saves == 500 * MIB


def test_on_a_host_too() -> None:
    held = {"host": weights(text_encoder=300, vae=100)}
    record = record_of(
        [
            ("load text_encoder", on_host(START + 300), on_host(START + 300), {"host": weights(text_encoder=300)}),
            ("load vae", on_host(START + 400), on_host(START + 400), held),
            ("text_encode", on_host(START + 450), on_host(START + 400), held),
            ("decode 1", on_host(START + 500), on_host(START + 480), held),
        ],
        start=on_host(START),
        failure=out_of(250, "you tried to allocate 262144000 bytes: DefaultCPUAllocator", on_host(START + 480)),
    )  # fmt: skip
    assert analyse(record).needed == (START + 730) * MIB
    encoder = by_name(record)["hold text_encoder only for text encode"]
    assert encoder.saves == (730 - 450) * MIB and encoder.fits


@pytest.mark.parametrize("shared", [True, False])
def test_scratch_memory_that_was_asked_for_is_the_decoder_s(shared: bool) -> None:
    """It is asked for in place of the DiT's, which is let go of before. Half of the caches, a tenth of the scratch."""
    held: Held = {"allocator": {"engines' shared scratch": 100 * MIB, f"{VAE} caches": 800 * MIB}}
    said = (
        "EngineError: out of memory: scratch memory of 0.98 GiB was asked for, 0.50 of 4.00 GiB are free on X"
    )
    began = on_device(110, 0, 450)
    run = record_of(
        [
            ("load dit engine", on_device(0, 0, 400), on_device(0, 0, 400), {}),
            (f"load {VAE}", on_device(0, 0, 450), on_device(0, 0, 450), {}),
            ("denoise 1", began, began, {"allocator": {"engines' shared scratch": 100 * MIB}}),
            ("decode 1", on_device(910, 0, 450), on_device(810, 0, 450), held),
        ],
        start=on_device(0),
        precisions={f"{VAE} weights": "fp32"},
        failure=out_of(1000, said, on_device(810, 0, 450)),
        settings={} if shared else {"tensorrt.share_scratch": False},
        backend="tensorrt", height=512, width=1024, num_frames=5,
    )  # fmt: skip
    assert analyse(run).needed == (810 + 1000 + 450 + CONTEXT) * MIB
    lean = by_name(run)["the lean decoder"]
    assert lean.saves == (400 + (100 if shared else 0)) * MIB
    assert lean.fits is shared, "0.50 GiB were free beside what was held"


# ---- reports ----------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_asked_and_who_held_what() -> None:
    text = memory_markdown(stock(failure=FAILURE))
    assert "The run did not come to its end: out of memory in decode 1, which asked for 2 GiB" in text
    section = text.split("## Held when it ended")[1].split("##")[0]
    assert "| all of the device | 2.344 GiB |" in section
    assert "| text_encoder weights | 1000 MiB |" in section


def test_like_steps_are_one_row_of_the_timeline() -> None:
    text = memory_markdown(stock())
    assert "| denoise 1 to 6 | 7.000 | 6.000 | 2.051 GiB | 2.148 GiB | 2.051 GiB |" in text
    assert "a \\| model" in text


def test_the_timeline_is_drawn_over_seconds_with_the_kinds_of_stage_named() -> None:
    """Loads take two seconds each, all else one."""
    chart = memory_timeline(stock(steps=(1600, 1650), denoise=1700, decode=1900))
    assert chart.index == "seconds since the start"
    assert chart.times == (0, 2, 2, 4, 4, 6, 6, 7, 7, 8, 8, 9, 9, 10)
    held = [0, 1000, 1000, 1500, 1500, 1600, 1600, 1600, 1600, 1600, 1600, 1650, 1650, 1600]
    peaks = [1000, 1000, 1500, 1500, 1600, 1600, 1650, 1650, 1700, 1700, 1700, 1700, 1900, 1900]
    assert {name: [size * 1024 - CONTEXT for size in sizes] for name, sizes in chart.series.items()} == {
        "held": pytest.approx(held),
        "peak of the stage": pytest.approx(peaks),
    }
    assert chart.spans == {
        "load": [(0, 6)],
        "text encode": [(6, 7)],
        "denoise": [(7, 9)],
        "decode": [(9, 10)],
    }
    assert not chart.marks
    assert (
        "the most at 9 s; " in chart.description and "denoise: 2 s between 7 s and 9 s" in chart.description
    )


def test_a_stage_that_goes_on_after_another_has_two_spans() -> None:
    held = on_device(100)
    stages = [(label, held, held, ALL) for label in ("denoise 1", "onload vae", "denoise 1", "denoise 2")]
    chart = memory_timeline(record_of(stages, start=held))
    assert chart.spans == {"denoise": [(0, 1), (2, 4)], "onload": [(1, 2)]}
    assert "denoise: 3 s between 0 s and 4 s" in chart.description


def test_the_timeline_marks_where_a_run_ended_before_its_time() -> None:
    chart = memory_timeline(stock(failure=FAILURE))
    assert chart.marks == {"ended in decode 1": 14}
    assert chart.description.endswith("; ended in decode 1: at 14 s.")
    between = FAILURE.model_copy(update={"stage": ""})
    assert memory_timeline(stock(failure=between)).marks == {"ended early": 14}


def test_html_has_the_same_tables_and_the_drawn_timeline(tmp_path: Path) -> None:
    page = memory_html(stock(failure=FAILURE))
    assert "<svg" in page and "peak of the stage" in page
    for title in ("Owners of the peak", "Loading", "Recommendations", "Held when it ended", "Timeline"):
        assert f"<caption>{title}" in page, title
    write_memory_report(stock(), tmp_path / "new" / "a.html")
    write_memory_report(stock(), tmp_path / "new" / "a.md")
    assert (tmp_path / "new" / "a.html").read_text().lstrip().startswith("<!DOCTYPE html>")
    assert (tmp_path / "new" / "a.md").read_text().startswith("# Memory of a run")


@pytest.mark.parametrize(
    ("stage", "amounts", "told"),
    [
        ("", on_host(700), "**Ended at its beginning, with 700 MiB of the host.**"),
        ("load dit", on_device(100), "**Ended in load dit, with 600 MiB of the device.**"),
    ],
)
def test_a_run_that_was_killed_in_its_first_stage_has_a_short_report(
    stage: str, amounts: Amounts, told: str, tmp_path: Path
) -> None:
    message = "the process was gone before it wrote more"
    failure = Failure(kind="cut_short", stage=stage, message=message, amounts=amounts, held=ALL)
    record = record_of([], start=on_host(0), failure=failure)
    text = memory_markdown(record)
    assert told in text and "The run did not come to its end: cut short" in text and message in text
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## Held when it ended",
        "## Run",
    ]
    assert "| text_encoder weights | 1000 MiB |" in text
    assert told.strip("*") in memory_html(record).replace("</p>", ".") and "<svg" not in memory_html(record)


def test_nothing_recorded_is_an_error() -> None:
    with pytest.raises(NothingRecorded, match="hold no stage, so there is nothing to analyse"):
        analyse(record_of([], start=on_host(0)))
