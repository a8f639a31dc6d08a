"""What changed between two records: kernels and memory, from made-up and from recorded breakdowns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import test_cli
from fabricated import HARDWARE, case_record, entry, make_case, perf_measurement, provenance, run_record

from wan_trt_core.baselines import BaselineEntry, BaselineFile, write_baselines
from wan_trt_core.comparison import explain_case, parity
from wan_trt_core.gates.bands import BaselineMetric, Tolerance
from wan_trt_core.measure.differences import (
    Change,
    kernel_difference,
    memory_difference,
    precision_of_kernel,
    slower_call,
)
from wan_trt_core.measure.kernels import TOP, Kernel, breakdown
from wan_trt_core.records import Measurement, Metric, RunRecord

wan, Wan = test_cli.wan, test_cli.Wan

MHA = "_gemm_mha_v2_0xf32bfef94c565a084b35ddfb635dd213"
HALF = "sm90_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize256x128x32"
SINGLE = "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x128x8"
SOFTMAX = "__myl_ResMaxSubExpSumDivMul_softmax_0x2550198882121582c1dc95062e921e8d"

FUSED = breakdown([Kernel(MHA, 19.0, 60), Kernel(HALF, 28.0, 120), Kernel("__myl_Mul_0x11111111", 8.0, 60)])


def test_the_same_kernels_of_another_build_are_the_same() -> None:
    """TensorRT's names carry a hash of the build."""
    other = breakdown(
        [Kernel(MHA[:-3] + "000", 19.0, 60), Kernel(HALF, 28.0, 120), Kernel("__myl_Mul_0x22222222", 8.0, 60)]
    )
    difference = kernel_difference(FUSED, other)
    assert [change.added for change in difference.kernels] == [0.0, 0.0, 0.0]
    assert difference.describe() == "0 ms slower (55 → 55 ms, 1x)"


def test_attention_that_lost_its_fusion_is_told_first() -> None:
    unfused = breakdown(
        [Kernel(HALF, 50.0, 240), Kernel(SOFTMAX, 30.0, 60), Kernel("__myl_Mul_0x11111111", 8.0, 60)]
    )
    difference = kernel_difference(FUSED, unfused)
    assert difference.describe() == (
        "33 ms slower (55 → 88 ms, 1.6x); most of it in pointwise (+30 ms); attention lost its fusion"
        " (19 → 0 ms, 0x; instead +22 ms of products and 30 ms of softmax)"
    )
    assert "attention is fused now" in kernel_difference(unfused, FUSED).describe()


def test_operators_that_onnx_runtime_no_longer_fuses_are_told() -> None:
    norm, product = (
        "node SimplifiedLayerNormalization blocks.*.attn1",
        Kernel("node Gemm blocks.*.ffn_in", 3.0, 8),
    )
    fused = breakdown([product, Kernel(norm, 0.5, 16)])
    pieces = [Kernel(f"node {op} blocks.*.attn1", 0.4, 16) for op in ("Pow", "ReduceMean", "Sqrt", "Div")]
    difference = kernel_difference(fused, breakdown([product, *pieces]))
    assert difference.describe() == (
        "1.1 ms slower (3.5 → 4.6 ms, 1.31x); most of it in pointwise (+1.1 ms, of which +1.1 ms in"
        " blocks.*.attn1); fused operators are gone: SimplifiedLayerNormalization"
    )


def test_a_cheap_operator_that_a_record_leaves_out_is_not_gone() -> None:
    others = [Kernel(f"node Gemm blocks.*.part_{index}", 3.0, 8) for index in range(TOP + 1)]
    norm = Kernel("node SimplifiedLayerNormalization blocks.*.attn1", 4.0, 16)
    difference = kernel_difference(breakdown([norm, *others]), breakdown(others))
    assert not difference.fusion


def test_a_change_of_precision_is_told() -> None:
    single = breakdown([Kernel(MHA, 19.0, 60), Kernel(SINGLE, 90.0, 120), Kernel("__myl_Mul_0x1", 8.0, 60)])
    difference = kernel_difference(FUSED, single)
    assert difference.precision == "precision changed from fp16 to fp32"
    assert difference.describe().endswith(
        "most of it in products (+62 ms); precision changed from fp16 to fp32"
    )
    assert not kernel_difference(FUSED, FUSED).precision


def test_the_module_is_named_where_the_layers_are_known() -> None:
    layers = {
        "layer products float16 blocks.*.ffn_in": 12.0,
        "layer products float16 blocks.*.ffn_out": 12.0,
        "layer attention float16 blocks.*.attn1": 19.0,
    }

    def of(arm: dict[str, Any], **changed: float) -> dict[str, Any]:
        named = {f"layer {name}": ms for name, ms in changed.items()}
        return {**arm, "layers": [[name, ms, 30] for name, ms in (named or layers).items()]}

    slower = breakdown([Kernel(MHA, 19.0, 60), Kernel(HALF, 38.0, 120), Kernel("__myl_Mul_0x1", 8.0, 60)])
    found = kernel_difference(
        of(FUSED),
        of(slower, **{
            "products float32 blocks.*.ffn_in": 22.0,
            "products float16 blocks.*.ffn_out": 12.0,
            "attention float16 blocks.*.attn1": 19.0,
        }),
    )  # fmt: skip
    assert found.describe() == (
        "10 ms slower (55 → 65 ms, 1.18x); most of it in products (+10 ms, of which +10 ms in blocks.*.ffn_in);"
        " precision changed from float16 to float32 in blocks.*.ffn_in"
    )
    unfused = breakdown([Kernel(HALF, 60.0, 240), Kernel(SOFTMAX, 30.0, 60)])
    apart = {"products float16 blocks.*.ffn_out": 60.0, "pointwise float32 blocks.*.attn1": 30.0}
    assert "attention lost its fusion in blocks.*.attn1 (19 → 0 ms" in (
        kernel_difference(of(FUSED), of(unfused, **apart)).fusion
    )
    assert kernel_difference(of(FUSED), slower).layers == ()  # one record has none


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (HALF, "fp16"),
        (SINGLE, "fp32"),
        ("nvjet_sm90_hsh_192x160_64x4_2x1_v_bz_coopB_bias_TNT", "fp16"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "bf16"),
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn", "fp16"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckcrs_nhwc", "tf32"),
        ("sm89_xmma_gemm_e4m3f32_e4m3f32_f32_tn_n", "fp8"),
        ("void implicit_convolve_sgemm<float, float, 1024, 5>", "fp32"),
        (MHA, None),
    ],
)
def test_precision_by_name(name: str, precision: str | None) -> None:
    assert precision_of_kernel(name) == precision


def test_who_holds_more_memory() -> None:
    before = {"device_used": 9e9, "engine_weights": 2.0**31, "engine_scratch": 2.0**30}
    after = {"device_used": 9e9 + 2**30, "engine_weights": 2.0**31, "engine_scratch": 2.0**31}
    difference = memory_difference(before, after)
    assert difference.describe() == (
        "1 GiB more device_used (8.382 GiB → 9.382 GiB): most of it engine_scratch (+1 GiB)"
    )
    assert memory_difference(after, before).describe().endswith("most of it engine_scratch (-1 GiB)")
    both = (
        {"dit.engine_scratch": 2.0**30, "resident_set_added": 0.0},
        {"dit.engine_scratch": 2.0**31, "resident_set_added": 1e12},
    )
    precise = memory_difference({**before, **both[0]}, {**after, **both[1]})
    assert "most of it dit.engine_scratch" in precise.describe()  # by component; the host is another memory
    many = memory_difference(
        {"device_used": 0.0, "a": 0.0, "b": 0.0}, {"device_used": 9.0, "a": 4.0, "b": 3.0}
    )
    assert many.describe().endswith("the largest part a (+4 B)")
    with pytest.raises(ValueError, match="neither device_used nor resident_set_peak"):
        memory_difference({"device_used": 1.0}, {"resident_set_peak": 1.0})


@pytest.mark.parametrize("grown", [-(2.0**30), 0.0, 2.0, 0.19 * 656 * 2**10])
def test_a_part_that_grew_by_next_to_nothing_is_not_the_cause(grown: float) -> None:
    before = {"resident_set_peak": 2.0**29, "engine_weights": 2.0**23}
    after = {"resident_set_peak": 2.0**29 + 656 * 2**10, "engine_weights": 2.0**23 + grown}
    told = memory_difference(before, after).describe()
    assert told == "656 KiB more resident_set_peak (512 MiB → 512.6 MiB): no known part accounts for it"
    assert memory_difference(after, before).describe().endswith(": no known part accounts for it")


def test_without_parts_or_without_a_change_there_is_no_cause_to_name() -> None:
    total = {"resident_set_peak": 2.0**29}
    grown = {"resident_set_peak": 2.0**29 + 1024}
    assert memory_difference(total, grown).describe() == "1 KiB more resident_set_peak (512 MiB → 512 MiB)"
    moved = memory_difference({**total, "engine_weights": 0.0}, {**total, "engine_weights": 1024.0})
    assert moved.describe() == "0 B more resident_set_peak (512 MiB → 512 MiB)"


@pytest.mark.parametrize(
    ("kernels_ms", "told"),
    [
        (
            10.9,
            "account for 10.9 ms (10%) of that: most of it is outside of the kernels (host, copies, waiting)",
        ),
        (0.0, "account for none of that: it is outside of the kernels (host, copies, waiting)"),
        (-5.0, "account for none of that: it is outside of the kernels (host, copies, waiting)"),
        (
            55.9,
            "account for 55.9 ms (50%) of that: most of it is outside of the kernels (host, copies, waiting)",
        ),
        (56.1, "account for 56.1 ms (50%) of that"),
        (111.0, "account for 111 ms (99%) of that"),
        (130.0, "account for all of that"),
    ],
)
def test_what_share_of_a_slower_call_its_kernels_have(kernels_ms: float, told: str) -> None:
    kernels = Change("all kernels", 28.0, 28.0 + kernels_ms)
    line = slower_call(kernels, 0.030, 0.142)
    assert line == f"a call is 112 ms slower (30 → 142 ms, 4.73x); the kernels {told}"


def test_of_a_call_that_is_no_slower_there_is_no_share() -> None:
    kernels = Change("all kernels", 28.0, 39.0)
    assert slower_call(kernels, 0.142, 0.1448) == slower_call(kernels, 0.142, 0.030) == ""
    assert slower_call(kernels, 0.142, 0.1449).startswith("a call is 2.9 ms slower (142 → 144.9 ms, 1.02x); ")
    assert slower_call(kernels, None, 0.142) == slower_call(kernels, 0.030, None) == ""


def test_the_stage_with_the_most_is_told() -> None:
    before = {"device_used": 9e9, "decode.device_used": 9e9, "denoise.device_used": 5e9, "engine_caches": 0.0}
    after = {"device_used": 9e9 + 2**30, "decode.device_used": 9e9 + 2**30, "denoise.device_used": 5e9}
    difference = memory_difference(before, {**after, "engine_caches": 2.0**30})
    assert difference.describe() == (
        "1 GiB more device_used (8.382 GiB → 9.382 GiB), the most in decode: most of it engine_caches (+1 GiB)"
    )
    assert [(stage.name, stage.added) for stage in difference.stages] == [
        ("decode", 2.0**30),
        ("denoise", 0.0),
    ]
    assert [owner.name for owner in difference.owners] == ["engine_caches"]
    assert memory_difference({"device_used": 1.0}, after).stages == ()  # a record of an older release


def test_a_failing_memory_case_says_who_holds_more_than_its_baseline() -> None:
    def held(**sizes: float) -> dict[str, Metric]:
        return {name: Metric(value=size, unit="B", better="lower") for name, size in sizes.items()}

    tolerance = Tolerance(0.05, 0.0, "r")
    stored = BaselineEntry(
        {
            name: BaselineMetric(size, "B", "lower", tolerance, 1, 0.0, (size,))
            for name, size in {"resident_set_peak": 2.0**30, "engine_weights": 2.0**28}.items()
        }
    )
    grown = held(resident_set_peak=2.0**30 + 2**28, engine_weights=2.0**29, engine_buffers=2.0**40)
    nowhere: Any = None  # nothing runs again
    (line,) = explain_case(make_case(), "memory", nowhere, Measurement(metrics=grown), stored)
    assert line == (
        "memory, against the baseline's: 256 MiB more resident_set_peak (1 GiB → 1.25 GiB):"
        " most of it engine_weights (+256 MiB)"
    )
    assert explain_case(make_case(), "memory", nowhere, Measurement(metrics=grown)) == ()
    assert explain_case(make_case(), "memory", nowhere, Measurement(metrics=grown), BaselineEntry({})) == ()


def record(path: Path, suite: Any, measurement: Measurement) -> Path:
    case = case_record(make_case("dit"), measurement, suite=suite)
    run_record(case).write(path)
    return path


def with_kernels(kernels: dict[str, Any]) -> Measurement:
    return perf_measurement().model_copy(update={"facts": {"kernels": kernels}})


class TestFailingCase:
    STOCK = breakdown([Kernel("aten::mm", 100.0, 120), Kernel("aten::silu", 40.0, 120)])
    STORED: ClassVar[dict[str, Any]] = {
        **FUSED,
        "reference": {"groups_ms": STOCK["groups_ms"], "total_ms": 112.0},
    }

    def explained(self, kernels: dict[str, Any], stored: dict[str, Any] | None) -> tuple[str, ...]:
        nowhere: Any = None  # nothing runs again
        baseline = entry(kernels=stored)
        return explain_case(make_case(), "perf", nowhere, with_kernels(kernels), baseline)

    def test_what_changed_against_the_baseline(self) -> None:
        others = [
            Kernel(f"at::native::{letter * 60}", 1.0 + index, 1) for index, letter in enumerate("abcde")
        ]
        slower = breakdown([Kernel(MHA, 19.0, 60), Kernel(HALF, 35.0, 120), *others])
        first, machine, *kernels = self.explained({**slower, "reference": self.STOCK}, self.STORED)
        assert (
            first == f"kernels, against those of the baseline: {kernel_difference(FUSED, slower).describe()}"
        )
        assert first.startswith("kernels, against those of the baseline: 14 ms slower (55 → 69 ms, 1.25x); ")
        assert machine == "  stock diffusers beside it, so the machine itself: 112 → 140 ms, 1.25x"
        assert kernels == [
            "  -8.000 ms __myl_Mul (8 → 0 ms, 0x)",
            f"  +7.000 ms {HALF[:43]}… (28 → 35 ms, 1.25x)",
            *(
                f"  +{ms}.000 ms {letter * 43}… (0 → {ms} ms)"
                for ms, letter in ((5, "e"), (4, "d"), (3, "c"))
            ),
        ]

    def test_time_outside_of_the_kernels_is_told_first(self) -> None:
        """0.1 s of sleep in the candidate: 100 ms slower, of which the kernels have 1 ms."""
        slower = breakdown([Kernel(MHA, 20.0, 60), Kernel(HALF, 28.0, 120), Kernel("__myl_Mul_0x1", 8.0, 60)])
        facts = {"kernels": {**slower, "reference": self.STOCK}}
        measured = perf_measurement(facts=facts)
        late = measured.metrics["candidate_time"].model_copy(update={"value": 0.16})
        measured = measured.model_copy(update={"metrics": {**measured.metrics, "candidate_time": late}})
        nowhere: Any = None
        stored = entry(kernels=self.STORED)
        call, kernels, *_ = explain_case(make_case(), "perf", nowhere, measured, stored)
        assert call == (
            "a call is 100 ms slower (60 → 160 ms, 2.67x); the kernels account for 1 ms (1%) of that: most of it is"
            " outside of the kernels (host, copies, waiting)"
        )
        assert kernels.startswith("kernels, against those of the baseline: 1 ms slower")
        call, kernels, *_ = explain_case(make_case(), "perf", nowhere, measured, entry())
        assert call.startswith("a call is 60.") and call.endswith(
            "; the kernels account for none of that: it is outside of the kernels (host, copies, waiting)"
        )
        assert "against stock diffusers" in kernels

    def test_layers_say_more_than_kernels(self) -> None:
        name = "layer products float16 blocks.*.attn1.to_q"
        before, now = (
            {"layers": [[name, ms, 30]], "reference": self.STORED["reference"]} for ms in (2.0, 3.0)
        )
        _, _, *changed = self.explained({**FUSED, **now}, {**self.STORED, **before})
        assert changed == ["  +1.000 ms products float16 blocks.*.attn1.to_q (2 → 3 ms, 1.5x)"]

    def test_without_a_stored_profile_against_stock_diffusers(self) -> None:
        for baseline in (entry(), None):
            nowhere: Any = None
            measured = with_kernels({**FUSED, "reference": self.STOCK})
            first, *kernels = explain_case(make_case(), "perf", nowhere, measured, baseline)
            assert first == (
                "kernels, against stock diffusers of this run (no baseline holds any): "
                + kernel_difference(self.STOCK, FUSED).describe()
            )
            assert "85 ms faster (140 → 55 ms, 0.393x)" in first
            assert kernels[0] == "  -100.000 ms aten::mm (100 → 0 ms, 0x)"
            assert not any("machine" in line for line in kernels)

    @pytest.mark.parametrize("kernels", [{}, {"error": "CUPTI said no"}])
    def test_without_kernels_there_is_nothing_to_say(self, kernels: dict[str, Any]) -> None:
        assert self.explained(kernels, self.STORED) == ()


class TestCommands:
    def test_perf(self, wan: Wan, tmp_path: Path) -> None:
        slower = breakdown([Kernel(MHA, 19.0, 60), Kernel(HALF, 35.0, 120)])
        a = record(tmp_path / "a.json", "perf", with_kernels({**FUSED, "reference": slower}))
        b = record(tmp_path / "b.json", "perf", with_kernels({**slower, "reference": slower}))
        code, out, _ = wan("explain", "perf", a, b)
        assert code == 0
        assert out.startswith("dit: 1 ms faster (55 → 54 ms, 0.982x); most of it in pointwise (-8 ms)\n")
        assert out.splitlines()[1] == "  stock diffusers beside it, so the machine itself: 54 → 54 ms, 1x"
        assert "+7.000 ms" in out and "_gemm_mha_v2" in out and "0xf32b" not in out
        code, out, _ = wan("explain", "perf", a, "--json")
        assert json.loads(out)[0]["total"] == {"name": "all kernels", "before": 54.0, "after": 55.0}

    def test_layers_of_the_candidate_alone(self, wan: Wan, tmp_path: Path) -> None:
        """Stock diffusers has none that they could be compared with."""
        layers = [["layer copies float32", 1.5, 9], ["layer attention float16 blocks.*.attn1", 4.5, 30]]
        of_one = with_kernels({**FUSED, "reference": FUSED, "layers": layers})
        path = record(tmp_path / "a.json", "perf", of_one)
        code, out, _ = wan("explain", "perf", path)
        assert code == 0 and "layers of the candidate" in out
        rows = [line.split() for line in out.splitlines() if "float" in line]
        assert [row[-2] for row in rows] == ["30", "9"] and "75.0%" in rows[0]
        code, out, _ = wan("explain", "perf", path, "--json")
        assert json.loads(out)[0]["candidate_layers"] == layers
        code, out, _ = wan("explain", "perf", path, path)
        assert "layers of the candidate" not in out

    def test_perf_of_a_call_that_waits(self, wan: Wan, tmp_path: Path) -> None:
        before, after = (
            with_kernels({**FUSED, "reference": FUSED}),
            with_kernels({**FUSED, "reference": FUSED}),
        )
        late = after.metrics["candidate_time"].model_copy(update={"value": 0.16})
        after = after.model_copy(update={"metrics": {**after.metrics, "candidate_time": late}})
        a, b = record(tmp_path / "a.json", "perf", before), record(tmp_path / "b.json", "perf", after)
        told = "dit: a call is 99.9 ms slower (60.09 → 160 ms, 2.66x)"
        code, out, _ = wan("explain", "perf", a, b)
        assert (code, out.startswith(told)) == (0, True)
        assert "account for none of that" in " ".join(out.split())
        assert "dit: 0 ms slower (55 → 55 ms, 1x)" in out
        code, out, _ = wan("explain", "perf", a, b, "--json")
        assert json.loads(out)[0]["call"].startswith("a call is 99.9 ms slower")
        code, out, _ = wan("explain", "perf", b)  # against stock diffusers of the same run
        assert out.startswith("dit: a call is 60")
        self.store(tmp_path, "dit", entry(kernels=TestFailingCase.STORED))
        code, out, _ = wan("explain", "perf", b, "--baseline")
        assert (code, out.startswith("dit: a call is 100 ms slower (60 → 160 ms, 2.67x)")) == (0, True)
        code, out, _ = wan("explain", "perf", b, a)
        assert (code, out.startswith("dit: 0 ms slower")) == (0, True)

    def test_perf_against_the_baseline(self, wan: Wan, tmp_path: Path) -> None:
        slower = breakdown([Kernel(MHA, 19.0, 60), Kernel(HALF, 35.0, 120)])
        now = record(tmp_path / "now.json", "perf", with_kernels({**slower, "reference": slower}))
        self.store(tmp_path, "dit", entry(kernels=TestFailingCase.STORED))
        code, out, _ = wan("explain", "perf", now, "--baseline")
        assert code == 0
        assert out.splitlines()[:2] == [
            "dit: 1 ms faster (55 → 54 ms, 0.982x); most of it in pointwise (-8 ms)",
            "  stock diffusers beside it, so the machine itself: 112 → 54 ms, 0.482x",
        ]
        assert "+7.000 ms" in out
        code, out, _ = wan("explain", "perf", now, "--baseline", "--json")
        assert json.loads(out)[0]["total"] == {"name": "all kernels", "before": 55.0, "after": 54.0}

    @pytest.mark.parametrize(
        ("case", "stored", "why"),
        [
            (
                "other",
                entry(kernels=TestFailingCase.STORED),
                "perf.json: no baseline of dit; make it with: wan-trt",
            ),
            ("dit", entry(), "perf.json: no kernels in the baseline of dit; make it with: wan-trt"),
            (
                "dit",
                replace(
                    entry(kernels=TestFailingCase.STORED), provenance={**provenance(), "backend": "tensorrt"}
                ),
                "was made with the backend 'tensorrt', this run with 'onnxruntime'",
            ),
            (
                "dit",
                replace(
                    entry(kernels=TestFailingCase.STORED),
                    provenance={**provenance(), "settings": {"threads": 3}},
                ),
                "was made with threads=3, this run with threads=null",
            ),
        ],
    )
    def test_baselines_that_say_nothing(
        self, wan: Wan, tmp_path: Path, case: str, stored: BaselineEntry, why: str
    ) -> None:
        now = record(tmp_path / "now.json", "perf", with_kernels({**FUSED, "reference": FUSED}))
        code, _, err = wan("explain", "perf", now, "--baseline")
        assert (code, f"{HARDWARE}/tiny-wan/perf.json: no baseline of dit" in err) == (3, True)
        self.store(tmp_path, case, stored)
        code, _, err = wan("explain", "perf", now, "--baseline")
        assert (code, why in err) == (3, True)

    def test_a_lacking_baseline_is_made_with_the_case_file_of_the_record(
        self, wan: Wan, tmp_path: Path
    ) -> None:
        now = record(tmp_path / "now.json", "perf", with_kernels({**FUSED, "reference": FUSED}))
        command = ("pytest", "--wan-cases=mine.yaml", "--wan-baselines=other")
        RunRecord.read(now).model_copy(update={"command": command}).write(now)
        _, _, err = wan("explain", "perf", now, "--baseline")
        baselines = tmp_path / "baselines"
        assert err.rstrip().endswith(f"--case dit --cases mine.yaml --baselines {baselines}")

    def test_a_second_record_or_the_baseline(self, wan: Wan, tmp_path: Path) -> None:
        now = record(tmp_path / "now.json", "perf", with_kernels({**FUSED, "reference": FUSED}))
        code, _, err = wan("explain", "perf", now, now, "--baseline")
        assert (code, "a second record or --baseline, not both" in err) == (2, True)

    @staticmethod
    def store(folder: Path, case: str, stored: BaselineEntry) -> None:
        file = BaselineFile(HARDWARE, "tiny-wan", "perf", {case: stored})
        write_baselines(folder / "baselines", file, [case])

    def test_memory(self, wan: Wan, tmp_path: Path) -> None:
        def holding(size: float) -> Measurement:
            values = {"resident_set_peak": 2**30 + size, "engine_weights": size, "growth": 1.0}
            return Measurement(
                metrics={
                    name: Metric(value=value, unit="B", better="lower") for name, value in values.items()
                }
            )

        a, b = (record(tmp_path / f"{mib}.json", "memory", holding(mib * 2.0**20)) for mib in (64, 96))
        code, out, _ = wan("explain", "memory", a, b)
        assert code == 0
        assert out.startswith(
            "dit: 32 MiB more resident_set_peak (1.062 GiB → 1.094 GiB): most of it engine_w"
        )
        assert "growth" not in out

    def test_without_kernels_the_reason_is_told(self, wan: Wan, tmp_path: Path) -> None:
        a = record(tmp_path / "a.json", "perf", with_kernels({"error": "CUPTI said no"}))
        code, _, err = wan("explain", "perf", a)
        assert (code, "no kernels of dit: CUPTI said no" in err) == (3, True)

    def test_records_without_a_common_case(self, wan: Wan, tmp_path: Path) -> None:
        a = record(tmp_path / "a.json", "perf", with_kernels(FUSED))
        code, _, err = wan("explain", "memory", a, a)
        assert (code, "do not both have a case with the suite memory" in err) == (3, True)

    def test_parity_of_an_unknown_case_and_of_one_without_engines(
        self, wan: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cases = tmp_path / "cases.yaml"
        cases.write_text(
            "version: 1\ncases:\n  - {id: one, model: tiny-wan, component: dit, profile: 128p-17f,"
            " precision: fp32, backend: torch, parity: {limits: {psnr_db: {min: 90, reason: a test}}}}\n"
        )
        code, _, err = wan("explain", "parity", "two", "--cases", cases)
        assert code == 2
        assert "there are one" in " ".join(err.replace("│", " ").split())
        found, explanations_of = [], parity.explanations_of
        monkeypatch.setattr(
            parity,
            "explanations_of",
            lambda case, context: found.append(context.settings) or explanations_of(case, context),
        )
        code, out, _ = wan("explain", "parity", "one", "--cases", cases)
        assert (code, out) == (0, "one: torch runs PyTorch's own modules: it has no blocks to compare\n")
        assert found[0].perf.allow_tf32 is False, "as in the suite that the case failed in"


def test_written_records_are_read_back(tmp_path: Path) -> None:
    path = record(tmp_path / "a.json", "perf", with_kernels(FUSED))
    kept = RunRecord.read(path).cases[0].measurement.facts["kernels"]
    assert not any(change.added for change in kernel_difference(kept, FUSED).groups)
