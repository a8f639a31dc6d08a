"""``benchmarks/kernel_limits.py``: the work of a transformer is counted as PyTorch counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scripts import load_script
from torch.utils.flop_counter import FlopCounterMode

from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.components.dit import COMPONENT as DIT

ROOT = Path(__file__).parents[2]
BASELINES = ROOT / "baselines" / "cuda-nvidia-h200-132sm-139gib"

kernel_limits = load_script("benchmarks/kernel_limits.py")


def test_the_work_is_that_which_pytorch_counts() -> None:
    model = resolve("tiny-wan", None)
    video = model.profile("128p-17f").opt
    run = DIT.reference(model.checkpoint, "fp32")
    call = DIT.call_tensors(model.checkpoint, video)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(call)
    counts = {str(operator): flop for operator, flop in counter.get_flop_counts()["Global"].items()}
    attention = sum(flop for operator, flop in counts.items() if "attention" in operator)
    products = sum(flop for operator, flop in counts.items() if operator.endswith("mm"))
    found = kernel_limits.work(model.checkpoint.config("transformer"), DIT.tokens(video), video.text_length)
    assert found["attention"] == attention > 0
    assert found["products"] == pytest.approx(products, rel=0.02), "all but the timestep's"
    assert found["products"] < products


def test_no_kernel_is_faster_than_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    """And the table has a row for both arms of the cases whose threshold is under 1.5."""
    kernel_limits.main([str(BASELINES), "--cases", str(ROOT / "suites" / "cases.yaml")])
    _, _, *rows = capsys.readouterr().out.splitlines()
    told = [row for row in rows if "%" in row]
    for case in ("wan-1.3b-dit-17f", "wan-1.3b-dit-81f", "wan-14b-dit-17f-10-layers", "wan-2.2-5b-dit-121f"):
        assert [
            arm for arm in ("stock", "TensorRT") if any(f"| {case} | {arm} |" in row for row in told)
        ] == [
            "stock",
            "TensorRT",
        ]
    shares = [int(word.rstrip("%")) for row in told for word in row.split() if word.endswith("%")]
    assert len(shares) == 2 * len(told) and all(20 < share <= 100 for share in shares)
