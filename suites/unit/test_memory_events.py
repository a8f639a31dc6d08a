"""Memory events: recorded on a device that is made up, written whatever happens, read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_device import MIB, FakeDevice, FakeNvml
from host_memory import touch

from wan_trt_core.backends.base import EngineError
from wan_trt_core.backends.tensorrt.runtime import allocate
from wan_trt_core.measure import memory_recorder
from wan_trt_core.measure.device_memory import DeviceLost, DeviceMemory
from wan_trt_core.measure.memory_events import (
    AGAIN,
    FILE_NAME,
    Amounts,
    MemoryRecord,
    Place,
    Stage,
    run_folder,
)
from wan_trt_core.measure.memory_recorder import (
    Holdings,
    Look,
    MemoryRecorder,
    Meter,
    Told,
    amounts,
    bytes_asked,
    bytes_free,
)
from wan_trt_core.records import RecordError, write_json


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def recorder(device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryRecorder:
    """Of a device; a millisecond passes between two looks at the clock."""
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 60)  # what a fake device does takes no time
    meter = Meter(DeviceMemory(device, FakeNvml(device), object()))
    clock = count()
    return MemoryRecorder(
        tmp_path / "run" / FILE_NAME,
        meter,
        hardware_key="cuda-test",
        run={"model": "tiny-wan"},
        clock=lambda: next(clock) / 1000,
    )


def recorded(recorder: MemoryRecorder) -> MemoryRecord:
    return MemoryRecord.read(recorder.path)


def own(
    recorder: MemoryRecorder, held: dict[Place, dict[str, int]], graphs: Mapping[str, int] | None = None
) -> None:
    """Of what these hold whenever they are asked."""

    def ask() -> Told:
        then = {place: dict(owners) for place, owners in held.items()}, dict(graphs or {})
        return lambda: then

    recorder.own(ask)


def run_of(device: FakeDevice, recorder: MemoryRecorder) -> None:
    """Load 100 MiB of weights, 2 steps that need 40 and 50 for a while, unload."""
    weights = {"dit engine weights": 0}
    graphs = {"dit engine": 0, "vae_decoder_next engine": 0}
    own(recorder, {"allocator": weights}, graphs)
    with recorder.stage("load", "dit engine"):
        device.take(100 * MIB)
        weights["dit engine weights"] = 100 * MIB
    with recorder.stage("text_encode"):
        for index, size in ((1, 40), (2, 50)):
            recorder.begin("denoise", index=index)
            device.take(size * MIB)
            device.drop(size * MIB)
            graphs["dit engine"] += 1
    with recorder.stage("unload", "dit engine"):
        device.drop(100 * MIB)
        graphs["dit engine"] = 0
        weights["dit engine weights"] = 0


def test_every_stage_has_before_peak_after_and_owners(device: FakeDevice, recorder: MemoryRecorder) -> None:
    with recorder:
        run_of(device, recorder)
    record = recorded(recorder)
    assert [event.label for event in record.events] == [
        "load dit engine",
        "text encode",
        "denoise 1",
        "denoise 2",
        "unload dit engine",
    ]
    tensors = [
        tuple(amounts.of("allocated") // MIB for amounts in (event.before, event.peak, event.after))
        for event in record.events
    ]
    assert tensors == [(0, 100, 100), (100, 100, 100), (100, 140, 100), (100, 150, 100), (100, 100, 0)]
    assert record.events[3].after.reserved == 150 * MIB, "what was dropped stays cached"
    assert record.events[3].after.device_used == 650 * MIB
    assert record.events[2].held == {"allocator": {"dit engine weights": 100 * MIB}}
    assert record.events[4].held == {"allocator": {}}
    assert [event.graphs for event in record.events] == [{}, {}, {"dit engine": 1}, {"dit engine": 2}, {}]
    assert all(event.peak.resident_set > MIB for event in record.events)
    assert all(event.end <= after.start for event, after in pairwise(record.events))
    assert (record.failure, record.book, record.run) == (None, "device_used", {"model": "tiny-wan"})


def test_a_stage_within_another_belongs_to_it(recorder: MemoryRecorder) -> None:
    with recorder, recorder.stage("load", "dit engine"), recorder.stage("load", "transformer"):
        pass
    with recorder.stage("unload", "dit engine"):
        pass  # after the recording nothing is
    assert [event.label for event in recorded(recorder).events] == ["load dit engine"]


@pytest.mark.parametrize("moment", [False, True])
def test_a_stage_that_interrupts_another(
    device: FakeDevice, recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch, moment: bool
) -> None:
    """What waits has an event more if it had run for longer than a moment; else that is counted to what interrupts."""
    with recorder:
        recorder.begin("decode", index=1)
        recorder.begin("decode", index=2)
        device.take(10 * MIB)
        device.drop(10 * MIB)
        with monkeypatch.context() as short:
            if not moment:
                short.setattr(memory_recorder, "MOMENT", 0)
            with recorder.interrupting("unload", "dit engine"):
                device.empty_cache()
        device.take(30 * MIB)
        recorder.begin("decode", index=3)
        recorder.end()
        with recorder.interrupting("unload", "vae"):
            pass
    with recorder.interrupting("unload", "dit engine"):
        pass  # after the recording nothing is
    peaks = [
        (event.label, event.peak.of("allocated") // MIB)
        for event in recorded(recorder).events
        if event.stage != "other"
    ]
    interrupted = [("unload dit engine", 10)] if moment else [("decode 2", 10), ("unload dit engine", 0)]
    assert peaks == [
        ("decode 1", 0),
        *interrupted,
        *(("decode 2", 30), ("decode 3", 30), ("unload vae", 30)),
    ]


def test_a_failure_within_a_stage_that_interrupts_another(recorder: MemoryRecorder) -> None:
    def run() -> None:
        with recorder, recorder.stage("denoise"), recorder.interrupting("onload", "dit engine"):
            raise OutOfMemoryError("out of memory")

    with pytest.raises(OutOfMemoryError):
        run()
    record = recorded(recorder)
    assert record.failure is not None and record.failure.stage == "onload dit engine"
    assert [event.label for event in record.events] == ["onload dit engine"]


def test_what_runs_between_stages_is_an_event_if_it_lasts(
    device: FakeDevice, recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spike there is nobody else's, and a spike of a moment is not lost either."""

    def spike(size: int) -> None:
        device.take(size * MIB)
        device.drop(size * MIB)

    with recorder:
        with recorder.stage("load", "vae"):
            pass
        spike(300)
        with recorder.stage("load", "transformer"):
            pass
        monkeypatch.setattr(memory_recorder, "MOMENT", 0)
        spike(700)
    peaks = [(event.label, event.peak.of("allocated") // MIB) for event in recorded(recorder).events]
    assert peaks == [("load vae", 0), ("load transformer", 300), ("other", 700)]


def test_what_is_gone_at_the_end_of_a_stage_counts_where_it_was_noted(recorder: MemoryRecorder) -> None:
    """And in what is told of a failure, whose frames hold it yet."""
    caches = {"vae_decoder_next engine caches": 0, "dit engine weights": 7}
    own(recorder, {"allocator": caches})

    def run() -> None:
        with recorder:
            recorder.note()  # of no stage
            for size in (5, 3):
                recorder.begin("decode")
                caches["vae_decoder_next engine caches"] = size
                recorder.note()
                caches["vae_decoder_next engine caches"] = 0
            raise ValueError

    with pytest.raises(ValueError):
        run()
    record = recorded(recorder)
    assert record.failure is not None
    held = [record.failure.held, *(event.held for event in record.events)]
    assert [each["allocator"].get("vae_decoder_next engine caches") for each in held] == [3, 5, 3]
    assert {each["allocator"]["dit engine weights"] for each in held} == {7}


def test_a_step_ends_with_notes_alone(recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made sense of where the file is written, which is between two kinds of stage: steps are short."""
    told: list[str] = []
    begun = ""

    def tell() -> Holdings:
        told.append(begun)
        return {}, {}

    def sense(look: Look) -> tuple[Amounts, Amounts]:
        told.append(begun)
        return amounts(look)

    monkeypatch.setattr(memory_recorder, "amounts", sense)
    recorder.own(lambda: tell)
    with recorder:
        stages: dict[Stage, int] = {"denoise": 4, "decode": 3}
        for stage, steps in stages.items():
            for index in range(1, steps + 1):
                begun = f"{stage} {index}"
                recorder.begin(stage, index=index)
        begun = "end"
    assert [*dict.fromkeys(told)] == ["", "denoise 1", "decode 1", "end"]
    assert len(recorded(recorder).events) == 7


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "kind", "asked"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …"),
            "out_of_memory",
            5 << 29,
        ),
        (MemoryError(), "out_of_memory", None),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
        (ValueError("a shape"), "failed", None),
    ],
)
def test_what_ends_a_run_is_told_with_who_held_what(
    device: FakeDevice, recorder: MemoryRecorder, error: BaseException, kind: str, asked: int | None
) -> None:
    def run() -> None:
        own(recorder, {"allocator": {"dit engine weights": 100 * MIB}})
        with recorder, recorder.stage("text_encode"):
            recorder.begin("denoise", index=1)
            device.take(100 * MIB)
            raise error

    with pytest.raises(type(error)):
        run()
    record = recorded(recorder)
    assert list(json.loads(recorder.path.read_text()))[-1] == "failure"
    assert record.events[-1].label == "denoise 1"
    assert record.events[-1].after.allocated == 100 * MIB
    assert record.failure is not None
    assert (record.failure.kind, record.failure.stage, record.failure.asked) == (kind, "denoise 1", asked)
    assert record.failure.message.startswith(type(error).__name__)
    assert record.failure.amounts.allocated == 100 * MIB
    assert record.failure.held == {"allocator": {"dit engine weights": 100 * MIB}}


def test_unloading_after_a_failure_does_not_hide_it(device: FakeDevice, recorder: MemoryRecorder) -> None:
    def run() -> None:
        with recorder:
            try:
                with recorder.stage("load", "vae"):
                    raise OutOfMemoryError("out of memory")
            finally:
                with recorder.stage("unload", "dit engine"):
                    pass

    with pytest.raises(OutOfMemoryError):
        run()
    record = recorded(recorder)
    assert record.failure is not None and record.failure.stage == "load vae"
    assert [event.label for event in record.events] == ["load vae", "unload dit engine"]


def test_a_process_that_is_killed_leaves_what_it_had(device: FakeDevice, recorder: MemoryRecorder) -> None:
    """Nothing runs after SIGKILL: what counts is what lies there while the stage runs."""
    with recorder:
        with recorder.stage("load", "dit engine"):
            record = recorded(recorder)
            assert record.failure is not None
            assert (record.failure.kind, record.failure.stage) == ("cut_short", "load dit engine")
        with recorder.stage("text_encode"):
            record = recorded(recorder)
            assert record.failure is not None and record.failure.stage == "text encode"
            assert [event.label for event in record.events] == ["load dit engine"]
    assert recorded(recorder).failure is None


def test_a_device_that_vanishes_does_not_hide_the_error(device: FakeDevice, recorder: MemoryRecorder) -> None:
    def gone() -> dict[str, int]:
        raise RuntimeError("CUDA error: device lost")

    def run() -> None:
        with recorder, recorder.stage("text_encode"):
            device.take(40 * MIB)
            device.drop(30 * MIB)
            recorder.begin("denoise", index=1)
            device.memory_stats_as_nested_dict = gone  # type: ignore[method-assign]
            raise OutOfMemoryError("unspecified launch failure")

    with pytest.raises(OutOfMemoryError, match="launch failure"):
        run()
    record = recorded(recorder)
    assert record.failure is not None and record.failure.stage == "denoise 1"
    peaks = [event.peak.of("allocated") // MIB for event in record.events]
    assert peaks == [40, 10], "what is not told is taken for unchanged, not for the most of the stage before"


def test_a_device_that_the_driver_tells_no_more_of_keeps_what_it_told_last(
    device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events name the failure, the run goes on and its file is written; nothing reads as empty."""
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(memory_recorder, "MOMENT", float("inf"))
    nvml = FakeNvml(device)
    meter = Meter(DeviceMemory(device, nvml, object()))
    recorder = MemoryRecorder(tmp_path / FILE_NAME, meter, hardware_key="cuda-test", run={})
    with recorder:
        with recorder.stage("load", "dit engine"):
            device.outside += 100 * MIB
        with recorder.stage("denoise"):
            nvml.silent = True
            wait_for(lambda: bool(meter.lost))  # the thread that samples
        with recorder.stage("decode"):
            device.take(40 * MIB)
        assert meter._thread is not None and meter._thread.is_alive()
        nvml.silent = False
        with recorder.stage("write"):
            pass
    record = recorded(recorder)
    events = record.events
    assert [event.after.device_used for event in events] == [600 * MIB, 600 * MIB, 600 * MIB, 640 * MIB]
    assert [event.after.allocated for event in events] == [0, 0, 40 * MIB, 40 * MIB]
    why = "DeviceLost: the driver does not answer: NVMLError: not supported"
    assert [event.lost for event in events] == ["", why, why, ""]
    assert (
        "what was told last stands for 2 of the stages, from denoise on: " + why
        in record.methods["device_used"]
    )
    assert record.failure is None


def test_a_device_that_was_lost_before_the_recording_is_no_device(device: FakeDevice, tmp_path: Path) -> None:
    nvml = FakeNvml(device)
    meter = Meter(DeviceMemory(device, nvml, object()))
    nvml.silent = True
    with pytest.raises(DeviceLost), MemoryRecorder(tmp_path / FILE_NAME, meter, hardware_key="a", run={}):
        pytest.fail("nothing was ever told")


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recorder = MemoryRecorder(tmp_path / "file" / FILE_NAME, Meter(), hardware_key="cpu-test", run={})
    with pytest.raises(OSError), recorder:
        pytest.fail("the run began")


def test_a_recording_that_cannot_begin_leaves_nothing_open(
    device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the thread that samples nor the kernel's book."""
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 0.001)
    (tmp_path / "file").touch()
    meter = Meter(DeviceMemory(device, FakeNvml(device), object()))
    recorder = MemoryRecorder(tmp_path / "file" / FILE_NAME, meter, hardware_key="cuda-test", run={})
    with pytest.raises(OSError), recorder:
        pytest.fail("the run began")
    assert meter._thread is not None and not meter._thread.is_alive()
    if meter._book is not None:
        with pytest.raises(ValueError, match="closed"):
            meter._book.read()


def test_every_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    parent, at = (
        tmp_path / "new" / "report",
        datetime(2026, 11, 22, 1, 49, 56, tzinfo=timezone(timedelta(hours=1))),
    )
    names = [run_folder(parent, "video", at).name for _ in range(3)]
    assert names == [f"video-20261122T004956Z{number}" for number in ("", "-2", "-3")]
    assert sorted(folder.name for folder in parent.iterdir() if folder.is_dir()) == sorted(names)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        run_folder(tmp_path / "file", "video", at)


@pytest.mark.parametrize("method", ["kernel", "sampled"])
def test_the_resident_set_is_watched_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 0.001)
    proc = {} if method == "kernel" else {"proc": tmp_path}  # an empty folder is no /proc
    with Meter(**proc) as meter:
        if method == "kernel" and "resident_set" in meter.methods:
            pytest.skip("the kernel's high-water mark cannot be set back here")
        now, _ = amounts(meter.look())
        block = touch(64)
        if method == "sampled":
            wait_for(lambda: meter._resident > now.resident_set + 50 * MIB)
        del block
        _, peak = amounts(meter.look())
        assert peak.resident_set > now.resident_set + 50 * MIB
        _, later = amounts(meter.look())
        assert later.resident_set < now.resident_set + 50 * MIB, "each look begins anew"
    assert ("resident_set" in meter.methods) == (method == "sampled")
    assert now.device_used is None


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(10**8):
        if condition():
            return
    pytest.fail("nothing was sampled")


def test_use_outside_of_pytorch_is_sampled_between_looks(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 0.001)
    with Meter(DeviceMemory(device, FakeNvml(device), object())) as meter:
        device.outside += 4000 * MIB
        wait_for(lambda: meter._used > 4000 * MIB)
        device.outside -= 4000 * MIB
        now, peak = amounts(meter.look())
    assert (now.device_used, peak.device_used) == (500 * MIB, 4500 * MIB)
    assert "sampled every 1 ms" in meter.methods["device_used"]


def test_between_steps_the_driver_is_asked_only_where_pytorch_reserves_anew(
    device: FakeDevice, recorder: MemoryRecorder
) -> None:
    asked: list[str] = []
    of_process, begun = device.of_process, ""
    device.of_process = lambda: (asked.append(begun), of_process())[1]  # type: ignore[method-assign]
    with recorder:
        recorder.begin("text_encode")
        for index in range(1, 7):
            begun = f"step {index}"
            recorder.begin("denoise", index=index)
            device.take(40 * MIB)
            device.drop(40 * MIB)
        device.outside += 100 * MIB
        begun = "decode"
        recorder.begin("decode")
        begun = "end"
    steps = [event for event in recorded(recorder).events if event.stage == "denoise"]
    assert [event.after.device_used for event in steps] == [540 * MIB] * 5 + [640 * MIB]
    assert [event.after.reserved for event in steps] == [40 * MIB] * 6
    assert set(asked) - {""} == {"step 1", "step 2", "decode", "end"}, "step 1 is another stage, and reserved"


def test_the_driver_is_asked_where_pytorch_reserved_more_for_a_while(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample from then would stand for what is held now."""
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 60)
    with Meter(DeviceMemory(device, FakeNvml(device), object())) as meter:
        device.take(40 * MIB)
        device.drop(40 * MIB)
        device.empty_cache()
        device.outside += 100 * MIB
        now, peak = amounts(meter.look(step=True))
    assert (now.reserved, peak.reserved, now.device_used) == (0, 40 * MIB, 600 * MIB)


def test_a_sample_stands_for_the_drivers_book_at_the_next_step(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_recorder, "SAMPLE_SECONDS", 0.001)
    with Meter(DeviceMemory(device, FakeNvml(device), object())) as meter:
        meter.look()
        device.outside += 4000 * MIB
        wait_for(lambda: meter._used > 4000 * MIB)
        now, peak = amounts(meter.look(step=True))
    assert (now.device_used, peak.device_used) == (4500 * MIB, 4500 * MIB)


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", 20 * MIB),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes. Error",
            8 * 10**9,
        ),
        ("Unable to allocate 7.28 TiB for an array with shape (1000000,)", round(7.28 * 2**40)),
        ("Failed to allocate memory for requested buffer of size 1048576", MIB),
        (
            "out of memory: a buffer of dit_fp16 of 1.50 GiB was asked for, 1.00 of 8.00 GiB are free on X",
            1536 * MIB,
        ),
        ("Requested amount of GPU memory (8589934592 bytes) could not be allocated", 8192 * MIB),
        ("tried to allocate some", None),
    ],
)
def test_bytes_asked(message: str, asked: int | None) -> None:
    assert bytes_asked(message) == asked


@pytest.mark.parametrize(
    ("message", "free"),
    [
        (
            "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.25 GiB is free.",
            1280,
        ),
        ("scratch memory of 2.00 GiB was asked for, 1.50 of 8.00 GiB are free on X", 1536),
        ("you tried to allocate 8000000000 bytes. Error", None),
    ],
)
def test_bytes_free(message: str, free: int | None) -> None:
    assert bytes_free(message) == (None if free is None else free * MIB)


def test_what_an_engine_could_not_have_is_read_from_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of the backend, whatever they become."""

    def none(*_: Any, device: Any, **__: Any) -> Any:
        if device == "meta":
            return SimpleNamespace(nbytes=2**31)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", none)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**30, 2**33))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    for what in ("scratch memory", "a buffer of vae_decoder_next_fp32"):
        with pytest.raises(EngineError) as told:
            allocate((2**31,), torch.uint8, torch.device("cuda"), what)
        message = f"EngineError: {told.value}"
        assert (bytes_asked(message), bytes_free(message)) == (2**31, 2**30), message


class TestReading:
    @pytest.fixture
    def data(self, device: FakeDevice, recorder: MemoryRecorder) -> Iterator[dict[str, Any]]:
        with recorder:
            run_of(device, recorder)
        yield json.loads(recorder.path.read_text())

    def refused(self, path: Path, data: Any) -> str:
        write_json(path, data)
        with pytest.raises(RecordError, match=re.escape(str(path))) as error:
            MemoryRecord.read(path)
        assert str(error.value).endswith(AGAIN), "what to do"
        return str(error.value)

    def test_truncated(self, data: Any, recorder: MemoryRecorder) -> None:
        recorder.path.write_text(recorder.path.read_text()[:-40])
        with pytest.raises(RecordError, match=r"memory_events\.json: not a readable file of memory events"):
            MemoryRecord.read(recorder.path)

    @pytest.mark.parametrize("foreign", [[], {"schema_version": 1, "cases": []}, {"format": "other"}, 3])
    def test_foreign(self, tmp_path: Path, foreign: Any) -> None:
        assert "no file of memory events" in self.refused(tmp_path / "a.json", foreign)

    def test_unknown_schema(self, data: Any, tmp_path: Path) -> None:
        told = self.refused(tmp_path / "a.json", data | {"schema_version": 1})
        assert "schema_version 1, this version reads 2; read it with the version that wrote it, or" in told

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda data: data.update(extra=1), "extra: Extra inputs"),
            (lambda data: data["events"][2]["peak"].pop("resident_set"), "events.2.peak.resident_set: Field"),
            (lambda data: data["events"][2]["peak"].update(allocated=-1), "events.2.peak.allocated: "),
            (lambda data: data["events"][2]["peak"].update(allocated=10**400), "events.2.peak.allocated: "),
            (lambda data: data["events"][2]["held"].update(host={"x": 2**63}), "events.2.held.host.x: "),
            (lambda data: data["events"][2]["peak"].update(allocated="12"), "events.2.peak.allocated: "),
            (lambda data: data["events"][-1].update(end=float("nan")), "events.4.end: "),
            (lambda data: data.update(started="yesterday"), "started: Invalid isoformat string: 'yesterday'"),
            (lambda data: data["run"].update(settings="yes"), "run.settings: "),
            (lambda data: data["run"].update(settings=[]), "run.settings: "),
            (lambda data: data["run"].update(height=0), "run.height: "),
            (lambda data: data["run"].update(width=10**400), "run.width: "),
            (lambda data: data["run"].update(num_frames=True), "run.num_frames: "),
            (lambda data: data["run"].update(guidance_scale="high"), "run.guidance_scale: "),
            (lambda data: data["run"].update(model=[]), "run.model: "),
            (lambda data: data["run"].update(engines={"dit": "large"}), "run.engines.dit: "),
            (lambda data: data["run"].update(backend=None), "run.backend: "),
            (lambda data: data["events"][2].update(stage="dream"), "events.2.stage: "),
            (lambda data: data["events"][2].update(graphs={"dit engine": 0}), "events.2.graphs.dit engine: "),
            (
                lambda data: data["events"][2]["peak"].update(reserved=0),
                "events.2: the peak of denoise 1 is less than what was held before or after it",
            ),
            (lambda data: data["events"][2].update(end=0), "events.2: denoise 1 ends at 0.0 s, before it begins"),
            (
                lambda data: data["events"][2]["after"].update(device_used=None),
                "events.2.after: allocated, reserved and device_used are all there or none is",
            ),
            (
                lambda data: data["events"].insert(0, data["events"].pop()),
                "events: events out of order: load dit engine begins at",
            ),
            (
                lambda data: data["events"][3].update(index=4),
                "events: events out of order: denoise 4 follows denoise 1",
            ),
            (
                lambda data: data["events"][3].update(index=2) or data["events"][2].update(index=2),
                "events: events out of order: denoise 2 follows text encode",
            ),
            (
                lambda data: [
                    data["events"][at].update(stage="denoise", index=index) for at, index in enumerate((1, 2, 2), 1)
                ],
                "events: events out of order: denoise 2 follows denoise 2",
            ),
            (
                lambda data: data["events"][3].update(index=1),
                "events: events out of order: denoise 1 follows denoise 1",
            ),
            (
                lambda data: data["events"][2].update(stage="decode"),
                "events: events out of order: denoise 2 follows decode 1",
            ),
            (
                lambda data: data["events"][3].update(stage="text_encode", index=None)
                or data["events"][1].update(stage="postprocess"),
                "events: events out of order: denoise 1 follows postprocess",
            ),
            (
                lambda data: data["events"][3]["before"].update(allocated=0),
                "events: events out of order: denoise 2 begins with other amounts than denoise 1, which stands before"
                " it, ends with",
            ),
            (
                lambda data: data["events"].__delitem__(0) or data["events"].__delitem__(2),
                "events: events out of order: unload dit engine begins with other amounts than denoise 1",
            ),
        ],
    )  # fmt: skip
    def test_a_wrong_key_is_named(self, data: Any, tmp_path: Path, change: Any, told: str) -> None:
        change(data)
        assert f": {told}" in self.refused(tmp_path / "a.json", data)
