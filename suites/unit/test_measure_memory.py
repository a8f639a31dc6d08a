"""Resident set, peaks and growth, on this process."""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
from fake_device import MIB
from host_memory import touch

from wan_trt_core.cases import Limit
from wan_trt_core.gates.memory import judge_growth
from wan_trt_core.gates.verdict import Reason, Verdict
from wan_trt_core.measure.memory import (
    growth,
    growth_metric,
    held_memory,
    kernel_book,
    peak_metrics,
    peak_resident_set,
    resident_set,
    resident_sets,
)
from wan_trt_core.measure.memory import (
    memory_by_run as series_by_run,
)

LIMIT = Limit(max=64 * 1024, reason="allocator noise")


def memory_by_run(call: Callable[[], object], runs: int, **more: Any) -> tuple[int, ...]:
    """The series of the resident set, or of what ``read`` says."""
    read = more.pop("read", resident_set)
    return series_by_run(call, runs, read={"growth": read}, **more)["growth"]


def test_peak_sees_what_a_call_frees_again() -> None:
    peak = peak_resident_set(lambda: touch(100))
    assert 95 * MIB < peak.peak - peak.before < 130 * MIB
    assert abs(peak.after - peak.before) < 20 * MIB


def test_peak_is_not_that_of_an_earlier_call() -> None:
    peak_resident_set(lambda: touch(150))
    assert peak_resident_set(lambda: touch(10)).peak < resident_set() + 60 * MIB


def test_peak_is_sampled_where_the_kernel_cannot_reset_its_mark(tmp_path: Path) -> None:
    def hold() -> None:
        data = touch(100)
        for _ in range(30):
            bytes(data[: 4 * MIB])

    peak = peak_resident_set(hold, proc=tmp_path / "no-proc")
    assert peak.method == "sampled"
    assert peak.peak - peak.before > 80 * MIB
    assert "sampled" in peak_metrics(peak)["resident_set_added"].detail


def test_kernel_that_ignores_the_reset_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n")
    assert peak_resident_set(lambda: None, proc=tmp_path).method == "sampled"


def test_the_kernel_s_book_is_read_whatever_stands_before_it(tmp_path: Path) -> None:
    """A user of a thousand groups has a long line there."""
    (tmp_path / "clear_refs").touch()
    groups = " ".join(str(group) for group in range(10_000, 11_000))
    (tmp_path / "status").write_text(f"Groups:\t{groups}\nVmHWM:\t  2000 kB\nVmRSS:\t  1990 kB\n")
    with kernel_book(tmp_path) as book:
        assert book is not None and book.read() == (1990 * 1024, 2000 * 1024)
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_what_the_kernel_told_is_read_when_there_is_time(tmp_path: Path) -> None:
    """Each look begins anew, and keeps both lines, however much memory there is, and no more."""
    (tmp_path / "clear_refs").touch()
    most = 2**63 // 1024
    status = tmp_path / "status"
    status.write_text(f"Name:\tVmHWM:\nVmHWM:\t{most:8} kB\nVmRSS:\t{most - 1:8} kB\n" + "Threads:\t1\n" * 99)
    with kernel_book(tmp_path) as book:
        assert book is not None
        (tmp_path / "clear_refs").write_text("")
        told = book.look()
        assert (tmp_path / "clear_refs").read_text() == "5"
    status.write_text("")
    assert resident_sets(told) == (2**63 - 1024, 2**63)
    assert len(told) < 100


def test_the_kernel_s_book_stays_open_and_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("Name:\ta\nVmHWM:\t  2000 kB\nVmRSS:\t  1990 kB\n")
    with kernel_book(tmp_path) as book:
        assert book is not None
        with (tmp_path / "status").open("r+") as status:
            status.write("Name:\ta\nVmHWM:\t  4000 kB\nVmRSS:\t  3990 kB\n")
        assert book.read() == (3990 * 1024, 4000 * 1024)
    with pytest.raises(ValueError, match="closed"):
        book.read()


def test_held_memory_is_anonymous_or_mapped(tmp_path: Path) -> None:
    """Swapped out or not, and a file by its length, whatever of it is in memory."""
    (tmp_path / "status").write_text(
        "VmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t  800 kB\nVmSwap:\t   20 kB\n"
    )
    (tmp_path / "maps").write_text(
        "55d0c0000000-55d0c0003000 r--p 00000000 fe:00 1234   /opt/a library\n"
        "7f3500000000-7f3500100000 rw-p 00000000 00:00 0 \n"
        "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0      [stack]\n"
        "7f3600000000-7f3600001000 rw-s 00000000 00:01 77     /memfd:shared (deleted)\n"
    )
    assert held_memory(tmp_path) == (100 + 20 + 12 + 4) * 1024


def test_held_memory_is_the_resident_set_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  900 kB\n")  # as gVisor's
    (tmp_path / "maps").touch()
    assert held_memory(tmp_path) == pytest.approx(resident_set(), abs=8 * MIB)
    assert held_memory(tmp_path / "none") == pytest.approx(resident_set(), abs=8 * MIB)


def test_peak_metrics() -> None:
    peak = peak_resident_set(lambda: touch(20))
    metrics = peak_metrics(peak)
    assert metrics["resident_set_peak"].value == peak.peak
    assert metrics["resident_set_added"].value == peak.peak - peak.before
    assert metrics["resident_set_peak"].unit == "B"


def test_injected_leak_grows_and_fails() -> None:
    kept: list[mmap] = []
    held = memory_by_run(lambda: kept.append(touch(1)), 20, warmup=2)
    assert growth(held) == pytest.approx(MIB, rel=0.1)
    check = judge_growth("growth", LIMIT, growth_metric(held))
    assert (check.verdict, check.reason) == (Verdict.FAIL, Reason.GROWTH)


def test_call_that_frees_what_it_takes_passes() -> None:
    held = memory_by_run(lambda: touch(8), 20, warmup=3)
    check = judge_growth("growth", LIMIT, growth_metric(held))
    assert (check.verdict, check.reason) == (Verdict.PASS, Reason.NO_GROWTH)


def test_growth_is_the_slope_a_run() -> None:
    assert growth([10.0 * run for run in range(20)]) == 10.0
    assert growth([5.0] * 20) == 0.0


def test_growth_ignores_outliers_and_one_step() -> None:
    spike = [0.0] * 20
    spike[7] = 1e9
    assert growth(spike) == 0.0
    for before in range(1, 20):
        assert growth([0.0] * before + [1e6] * (20 - before)) == 0.0


def test_growth_finds_a_leak_under_noise() -> None:
    noise = [0, 4096, -4096, 8192, 0, -8192, 4096, 0, 0, -4096] * 2
    assert growth([20_000 * run + wobble for run, wobble in enumerate(noise)]) == pytest.approx(
        20_000, rel=0.1
    )


def test_growth_needs_three_runs() -> None:
    with pytest.raises(ValueError, match="three"):
        growth([1.0, 2.0])
    with pytest.raises(ValueError, match="three"):
        memory_by_run(lambda: None, 2, warmup=0)


def test_runs_are_counted_and_settled() -> None:
    log: list[str] = []
    held = memory_by_run(
        lambda: log.append("run"), 3, warmup=2, read=lambda: len(log), settle=lambda: log.append("settle")
    )
    assert log == ["run"] * 2 + ["run", "settle"] * 3
    assert held == (4, 6, 8)
