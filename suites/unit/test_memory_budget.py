"""A budget that holds, what does not fit into it, and what unloading leaves behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fabricated import make_case
from fake_device import MIB, TOTAL, FakeDevice, FakeNvml
from host_memory import touch

from wan_trt_core.backends.base import EngineError
from wan_trt_core.cases import Limit, MemoryGate
from wan_trt_core.comparison import memory
from wan_trt_core.comparison.context import Context
from wan_trt_core.config import ConfigError, MemorySettings, Settings, load_settings
from wan_trt_core.gates.judging import judge
from wan_trt_core.gates.memory import BUDGET, KEPT, RELEASE, judge_memory
from wan_trt_core.gates.verdict import Check, Reason, Verdict, decide
from wan_trt_core.measure.ballast import BudgetError, ballast, current_ballast
from wan_trt_core.measure.device_memory import DeviceMemory
from wan_trt_core.records import Measurement, Metric

BYTES = 1 << 33


class Held:
    """A tensor on the fake device."""

    def __init__(self, device: FakeDevice, size: int) -> None:
        self.device, self.size = device, size
        device.take(size)

    def __del__(self) -> None:
        self.device.drop(self.size)


def free(device: FakeDevice) -> int:
    return device.mem_get_info()[0]


def test_no_more_than_the_budget_can_be_had() -> None:
    device = FakeDevice(others=1000 * MIB)
    device.cached = 300 * MIB  # what the allocator only caches is no use to another process
    before = TOTAL - 1500 * MIB
    with ballast(BYTES, device, lambda size: Held(device, size)) as left:
        assert left == free(device)
        assert BYTES - 8 * MIB <= left <= BYTES
    assert free(device) == before
    with pytest.raises(ZeroDivisionError), ballast(BYTES, device, lambda size: Held(device, size)):
        raise ZeroDivisionError
    assert free(device) == before
    with ballast(before, device, lambda size: Held(device, size)) as left:
        assert left == before  # there is nothing to take


def test_what_the_driver_takes_to_map_the_ballast_is_the_budgets_no_more() -> None:
    device = FakeDevice(others=1000 * MIB)
    with ballast(BYTES, device, lambda size: Held(device, size + size // 100)) as left:
        assert BYTES - 8 * MIB <= left <= BYTES


def test_a_budget_that_cannot_be_held() -> None:
    device = FakeDevice(others=1000 * MIB)
    asked = "a memory budget of 15 GiB cannot be given: 14.54 GiB of 16 GiB are free"
    with pytest.raises(BudgetError, match=asked), ballast(15 << 30, device, lambda size: Held(device, size)):
        pass
    with pytest.raises(BudgetError, match="does not hold"), ballast(BYTES, device, lambda size: None):
        pass
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(BudgetError, match="is of a GPU"), current_ballast(BYTES):
            pass


@pytest.mark.parametrize(
    ("text", "size"), [("12GB", 12 * 2**30), ("11.5 GiB", 11.5 * 2**30), ("800MB", 800 * 2**20)]
)
def test_a_budget_has_a_unit(text: str, size: float) -> None:
    settings = load_settings(overrides={"memory.budget": text}, environ={"WAN_TRT_CONFIG": ""}).settings
    assert settings.memory.budget == size
    for wrong in ("12", "GB", "-1GB", "0GB", f"{'9' * 400}GB"):
        with pytest.raises(ConfigError, match=r"memory\.budget"):
            load_settings(overrides={"memory.budget": wrong}, environ={"WAN_TRT_CONFIG": ""})


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened while the ballast was there, and that it went."""
    log: list[str] = []

    @contextmanager
    def fake(budget: int) -> Iterator[int]:
        log.append("ballast")
        yield budget - MIB
        log.append("gone")

    monkeypatch.setattr(memory, "current_ballast", fake)
    target = SimpleNamespace(build=lambda: log.append("build"), device="cpu")
    monkeypatch.setattr(memory, "target_of", lambda *_: target)
    return log


def measured(
    log: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception | None = None
) -> tuple[Measurement, Check]:
    def here(_: object, arm: str, *__: object) -> Measurement:
        log.append(arm)
        if error is not None:
            raise error
        used = Metric(value=1.0, unit="B", better="lower", deterministic=True)
        return Measurement(
            metrics={"resident_set_peak": used, "growth": used.model_copy(update={"value": 0.0})}
        )

    monkeypatch.setattr(memory, "in_fresh_process", here)
    gate = MemoryGate(growth=Limit(max=0, reason="none"), reference=True)
    case = make_case().model_copy(update={"memory": gate})
    settings = Settings(device="cpu", memory=MemorySettings(budget=BYTES))
    measurement = memory.measure(case, Context(settings))
    checks = judge(case, "memory", measurement, None, bands_for_hardware=False, require_bands=False)
    return measurement, decide(checks)


def test_what_fits_passes_and_the_reference_has_no_budget(
    held: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement, check = measured(held, monkeypatch)
    assert held == ["build", "ballast", "candidate", "gone", "reference"]
    assert measurement.facts[BUDGET] == {"bytes": BYTES, "free": BYTES - MIB}
    assert (check.verdict, check.reason) == (Verdict.PASS, Reason.WITHIN_BUDGET)


def test_what_does_not_fit_fails(held: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    error = EngineError(
        "memory of a: the candidate does not fit: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    measurement, check = measured(held, monkeypatch, error)
    gate = make_case().memory
    assert gate is not None and len(judge_memory(gate, measurement)) == 1, "what did not fit was not measured"
    assert held[-2:] == ["candidate", "gone"]
    assert (check.verdict, check.reason) == (Verdict.FAIL, Reason.OVER_BUDGET)
    assert "does not fit into 8 GiB" in check.message and "Tried to allocate 2.00 GiB" in check.message


def test_what_fails_for_another_reason_says_nothing_about_the_budget(
    held: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="process died"):
        measured(held, monkeypatch, EngineError("the candidate's measuring process died"))


@pytest.mark.parametrize(
    ("kept", "outside", "verdicts"),
    [
        (0, 2, {"unreleased": Verdict.PASS, "device_unreleased": Verdict.PASS}),
        (1, 0, {"unreleased": Verdict.FAIL, "device_unreleased": Verdict.PASS}),  # to the byte
        (0, 40, {"unreleased": Verdict.PASS, "device_unreleased": Verdict.FAIL}),
    ],
)
def test_what_unloading_leaves(kept: int, outside: int, verdicts: dict[str, Verdict]) -> None:
    """In MiB: tensors that are kept, and what stays outside of PyTorch's allocator."""
    device = FakeDevice()

    def cycle() -> None:
        device.take(100 * MIB)
        device.drop((100 - kept) * MIB)
        device.outside += outside * MIB

    metrics = memory.measure_release(cycle, DeviceMemory(device, FakeNvml(device), object()))
    assert metrics[RELEASE].value == kept * MIB
    nil = Metric(value=0.0, unit="B", better="lower")
    measurement = Measurement(metrics={**metrics, "growth": nil})
    checks = judge(make_case(), "memory", measurement, None, bands_for_hardware=False, require_bands=False)
    assert {check.metric: check.verdict for check in checks if check.gate == "release"} == verdicts


def test_a_process_that_keeps_what_it_loaded() -> None:
    leaked: list[mmap] = []
    metrics = memory.measure_release(lambda: leaked.append(touch(64)))
    assert (metrics[RELEASE].value or 0) > 60 * MIB
    assert (memory.measure_release(lambda: touch(64))[RELEASE].value or 0) < 8 * MIB


def mapped(path: Path) -> mmap:
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def file_pages() -> int:
    """Bytes of files that are in memory; what else the process holds may be given back meanwhile."""
    (kibibytes,) = re.findall(r"^RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kibibytes) * 1024


def test_pages_of_a_file_that_come_in_are_not_left_behind(tmp_path: Path) -> None:
    """A machine in want of memory drops those of libraries, and the next run reads them again."""
    path = tmp_path / "library"
    path.write_bytes(bytes(16 * MIB))
    pages: list[int] = []
    with mapped(path) as library:
        before = file_pages()
        metrics = memory.measure_release(lambda: pages.append(sum(library[:: 1 << 12])))
        assert file_pages() - before > 12 * MIB, "they did come in"
    assert (metrics[RELEASE].value or 0) < 1 * MIB


def test_a_file_that_stays_mapped_is_left_behind(tmp_path: Path) -> None:
    """As ONNX Runtime's weights: no page of it need be in memory just now."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(16 * MIB))
    kept: list[mmap] = []
    metrics = memory.measure_release(lambda: kept.append(mapped(path)))
    assert (metrics[RELEASE].value or 0) >= 16 * MIB


@pytest.mark.parametrize("keeps", [False, True])
def test_weights_that_the_first_loading_leaves_for_ever_are_caught(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading again finds them there, so that of two cycles the second leaves nothing."""
    kept: list[torch.Tensor] = []

    def load(*_: Any) -> Measurement:
        weights = torch.ones(1 << 19)
        if keeps and not kept:
            kept.extend([weights, weights[:10], weights.view(2, -1)])  # one storage, which counts once
        return Measurement(metrics={"growth": Metric(value=0.0, unit="B", better="lower")})

    monkeypatch.setattr(memory, "_measure_loaded", load)
    monkeypatch.setattr(memory, "_load_and_run", load)
    measurement = memory.measure_here(make_case(), Settings(device="cpu"))
    checks = judge(make_case(), "memory", measurement, None, bands_for_hardware=False, require_bands=False)
    verdicts = {check.metric: check.verdict for check in checks if check.gate == "release"}
    assert verdicts == {RELEASE: Verdict.PASS, KEPT: Verdict.FAIL if keeps else Verdict.PASS}
    assert measurement.metrics[KEPT].value == (4 << 19 if keeps else 0)
