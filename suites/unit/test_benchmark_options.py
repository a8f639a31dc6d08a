"""The scripts in ``benchmarks/`` answer what is asked wrongly with one line, before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import REPOSITORY, load_script

CASES = ("--cases", str(REPOSITORY / "suites" / "cases.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, with the default settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("BACKEND", "MODEL", "PROFILE"):
        monkeypatch.delenv(f"WAN_TRT_{name}", raising=False)


@pytest.mark.parametrize(
    ("script", "given", "told"),
    [
        ("attention_sums", "--size banana", "--size is banana, not HEIGHTxWIDTHxFRAMES"),
        ("attention_sums", "--size 130x128x17", "height must be a positive multiple of 16"),
        ("attention_sums", "--model nothing", "no model 'nothing'"),
        ("memory_plan", "--size 128x128", "--size is 128x128, not HEIGHTxWIDTHxFRAMES"),
        ("memory_plan", "--size 130x128x17", "height must be a positive multiple of 16"),
        ("memory_plan", "--backend torch banana", "no backend 'banana'"),
        ("memory_plan", "--profile nope", "no profile 'nope'"),
        ("memory_plan", "--precision dit=fp16", "precision names dit, but not"),
        ("accelerated", "--backend banana", "no backend 'banana'"),
        ("accelerated", "--profile nope", "no profile 'nope'"),
        ("accelerated", "--steps 0", "--steps is 0, at least 1 is needed"),
        ("accelerated", "--precision dit=fp16", "precision names dit, but not"),
        ("accelerated", "--height 65", "height must be a positive multiple of 16"),
        ("memory_events", "--rounds 1", "--rounds: an interval needs three"),
        ("memory_events", "--backend banana", "no backend 'banana'"),
        ("memory_events", "--backend torch-compile", "--backend: torch-compile has no engines"),
        (
            "kernel_limits",
            "folder --cases none.yaml",
            "none.yaml: no such case file; name one with --cases FILE",
        ),
    ],
)
def test_wrong_options_are_wrong_usage(
    script: str, given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_script(f"benchmarks/{script}.py").main(given.split())
    answer = capsys.readouterr()
    assert ended.value.code == 2
    assert "error: " in answer.err.splitlines()[-1] and told in answer.err.splitlines()[-1]
    assert not answer.out


@pytest.mark.parametrize("script", ["kernel_limits", "memory_predictions", "memory_prices"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_baselines_has_no_table(
    script: str, exists: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cpu-none-1c-1gib"
    if exists:
        folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        load_script(f"benchmarks/{script}.py").main([str(folder), *CASES])
    answer = capsys.readouterr()
    assert (ended.value.code, answer.out) == (1, "")
    assert answer.err.startswith(f"{folder}: no ") and answer.err.count("\n") == 1


def test_a_cpus_baselines_have_no_kernels_of_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    folder = min((REPOSITORY / "baselines").glob("cpu-*"))
    with pytest.raises(SystemExit) as ended:
        load_script("benchmarks/kernel_limits.py").main([str(folder), *CASES])
    assert (ended.value.code, "no kernels" in capsys.readouterr().err) == (1, True)
