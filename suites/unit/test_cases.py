# ruff: noqa: E501 (one line a mistake is easier to read)
"""The case file: what it means, and that every mistake in it is named with its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from wan_trt_core.cases import Allowed, CaseFile, CaseFileError, load_cases
from wan_trt_core.pytest_plugin.session import allowed_names

ALLOWED = Allowed(
    components=("dit", "text_encoder"),
    backends=("onnxruntime", "tensorrt", "torch"),
    models={"tiny-wan": ("128p-17f",)},
    metrics={"parity": ("psnr_db", "relative_l2", "cosine", "video.cvvdp_jod", "error_over_stock")},
)

HEAD = """\
version: 1
defaults: {model: tiny-wan, profile: 128p-17f, precision: fp32, backend: onnxruntime}
cases:
"""
DIT = "  - id: one\n    component: dit\n"
PARITY = "    parity: {limits: {psnr_db: {min: 90, reason: floor}}}\n"
PERF = "    perf: {parity: {psnr_db: {min: 90, reason: floor}}%s}\n"
MEMORY = "    memory: {growth: {max: 1, reason: r}, %s}\n"
GOOD = HEAD + DIT + PARITY

Load = Callable[[str], CaseFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a case file and load it."""

    def write_and_load(text: str) -> CaseFile:
        path = tmp_path / "cases.yaml"
        path.write_text(text)
        return load_cases(path, ALLOWED)

    return write_and_load


def test_a_case(load: Load) -> None:
    (case,) = load(GOOD).cases
    assert (case.id, case.model, case.component, case.backend) == ("one", "tiny-wan", "dit", "onnxruntime")
    assert case.suites == ("parity",)
    assert case.parity is not None
    assert case.parity.limits["psnr_db"].min == 90


def test_this_repository_s_own_file() -> None:
    whole = load_cases(Path(__file__).parents[1] / "cases.yaml", allowed_names())
    file = whole.for_backend(None)
    components = {
        suite: {case.component for case in file.of_suite(suite)} for suite in ("parity", "perf", "memory")
    }
    assert components["parity"] == {
        "dit", "text_encoder", "vae_decoder", "vae_decoder_first", "vae_decoder_next", "vae_encoder",
        "vae_encoder_first", "vae_encoder_next", "pipeline"
    }  # fmt: skip
    assert components["perf"] == {"dit", "vae_decoder_next", "pipeline"}
    assert components["memory"] == {"dit", "pipeline"}
    assert any(case.precision == {"dit": "fp16", "vae": "fp32"} for case in file.cases)
    assert {case.model for case in file.cases} == {
        "tiny-wan", "tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b", "tiny-wan2.2-ti2v-5b"
    }  # fmt: skip
    on_gpu = [case for case in whole.for_backend("tensorrt").cases if case not in file.cases]
    assert {case.only_backends for case in on_gpu} == {("tensorrt",)}
    assert {case.component for case in on_gpu if case.tf32} == {"vae_decoder", "vae_encoder", "pipeline"}
    assert not [
        case.id for case in on_gpu if case.component == "pipeline" and "no-cuda-graphs" in case.beside
    ], "a pair of whole videos takes half a minute, and every engine has its gain timed in a case of its own"
    for case in on_gpu:  # a band on what is never measured could have no baseline
        lends = case.settings.get("tensorrt.share_scratch", True)
        banded = {name for name in (case.memory.bands if case.memory else ()) if name.endswith("scratch")}
        assert banded <= {"engine_scratch" if lends else "engine_own_scratch"}, case.id


UNDER_THE_GATE = {
    "what the kernels spend against the card's limit (docs/performance.md, What was aimed at)": {
        "wan-1.3b-dit-81f", "wan-14b-dit-17f-10-layers", "wan-14b-dit-81f-10-layers",
    },
    "a transformer so small is products alone on a CPU; its whole video is held to the gate": {
        "tiny-wan-dit-fp32",
    },
}  # fmt: skip
"""All cases with a threshold under 1.5, by why they may: a further one is put here by a person or not at all."""

NO_THRESHOLD = {
    "another size of a model whose shorter videos are held to the gate": {
        "wan-2.2-5b-dit-121f", "wan-2.2-5b-pipeline-121f", "wan-2.2-5b-vae-decoder-121f",
    },
    "the price of an option that gives time for memory, or stock PyTorch beside one": {
        "wan-1.3b-dit-81f-streamed", "wan-1.3b-pipeline-17f-offload", "wan-1.3b-pipeline-17f-encoder-cpu",
        "wan-1.3b-pipeline-81f-12gb", "tiny-wan-vae-decoder-torch", "tiny-wan-vae-decoder-tiled-torch",
        "tiny-wan-pipeline-sliced", "tiny-wan-pipeline-offload-torch",
    },
}  # fmt: skip
"""All cases that promise no speed-up and are held to their baselines alone, likewise."""


@pytest.mark.parametrize(("named", "null"), [(UNDER_THE_GATE, False), (NO_THRESHOLD, True)])
def test_no_other_case_of_this_repository_is_under_the_gate(named: dict[str, set[str]], null: bool) -> None:
    cases = load_cases(Path(__file__).parents[1] / "cases.yaml", allowed_names()).cases
    below = {
        case.id: case.perf
        for case in cases
        if case.perf and case.perf.below_gate and (case.perf.speedup is None) is null
    }
    assert sorted(below) == sorted(name for names in named.values() for name in names)
    unmeasured = [name for name, gate in below.items() if not re.search(r"\d\.\d+x", gate.reason or "")]
    assert not unmeasured, "the reason gives no speed-up that was measured"
    assert all("candidate_time" in gate.bands for gate in below.values())


def test_own_keys_win_over_defaults(load: Load) -> None:
    (case,) = load(HEAD + DIT + "    backend: torch\n    precision: fp16\n" + PARITY).cases
    assert (case.backend, case.precision) == ("torch", "fp16")


def test_gate_defaults_complete_gates_but_give_none(load: Load) -> None:
    head = HEAD.replace(
        "onnxruntime}",
        "onnxruntime, perf: {speedup: 1.2, reason: slow, parity: {psnr_db: {min: 60, reason: r}}}}",
    )
    file = load(head + DIT + "    perf: {}\n  - id: two\n    component: dit\n" + PARITY)
    first, second = file.cases
    assert first.perf is not None
    assert (first.perf.speedup, first.perf.reason, first.perf.below_gate) == (1.2, "slow", True)
    assert second.suites == ("parity",)
    with pytest.raises(CaseFileError, match=r"under the gate of 1\.5: it needs a 'reason' beside it"):
        load(head + DIT + "    perf: {speedup: 1.3}\n")  # another number does not inherit the reason


def test_limits_are_completed_whole(load: Load) -> None:
    head = HEAD.replace("onnxruntime}", "onnxruntime, memory: {growth: {max: 10, reason: r}}}")
    with pytest.raises(CaseFileError, match=r"cases.yaml:6: .*'memory.growth.reason' is missing"):
        load(head + DIT + "    memory: {growth: {max: 99}}\n")


def test_a_default_can_be_left_out(load: Load) -> None:
    bands = "{a: {rel: 0.1, reason: r}, b: {rel: 0.1, reason: r}}"
    growth = "growth: {max: 10, reason: r}"
    head = HEAD.replace("onnxruntime}", f"onnxruntime, memory: {{{growth}, bands: {bands}}}}}")
    (case,) = load(head + DIT + "    memory: {bands: {a: null}}\n").cases
    assert case.memory is not None and set(case.memory.bands) == {"b"}
    with pytest.raises(CaseFileError, match=r"bands\.c"):  # nothing there to be left out
        load(head + DIT + "    memory: {bands: {c: null}}\n")


def test_what_int8_does_to_a_video_is_held_on_every_machine() -> None:
    """Of trained weights and with all else in float32, where a floor says something."""
    file = load_cases(Path(__file__).parents[1] / "cases.yaml", allowed_names()).for_backend(None)
    (case,) = (case for case in file.cases if "text_encoder=int8" in case.precision_label)
    assert (case.model, case.component, case.stock_precision) == ("tiny-wan", "pipeline", "fp32")
    assert case.precision == {"dit": "fp32", "vae": "fp32", "text_encoder": "int8"}
    assert case.parity is not None
    floors = {name: limit.min for name, limit in case.parity.limits.items()}
    assert floors["video.psnr_db"] >= 60 and floors["latents.psnr_db"] >= 66  # type: ignore[operator]


def test_a_band_of_memory_may_be_another_for_a_backend(load: Load) -> None:
    band = "bands: {a: {rel: 0.01, reason: r, by_backend: {%s: {rel: 0.2, abs: 3, reason: other}}}}"
    file = load(HEAD + DIT + MEMORY % (band % "tensorrt"))
    widths = [
        (case.memory_bands["a"].rel, case.memory_bands["a"].abs, case.memory_bands["a"].reason)
        for case in (*file.cases, *file.overridden(backend="tensorrt").cases)
    ]
    assert widths == [(0.01, 0, "r"), (0.2, 3, "other")]
    with pytest.raises(CaseFileError, match=r"cases.yaml:6: .*no backend 'tensort'; did you mean 'tensorrt'"):
        load(HEAD + DIT + MEMORY % (band % "tensort"))
    with pytest.raises(CaseFileError, match=r"by_backend\.tensorrt\.reason' is missing"):
        load(HEAD + DIT + MEMORY % (band % "tensorrt").replace(", reason: other", ""))


def test_a_band_of_memory_may_be_for_some_backends(load: Load) -> None:
    band = "bands: {a: {rel: 0.01, reason: r, only_backends: [%s]}}"
    file = load(HEAD + DIT + MEMORY % (band % "tensorrt"))
    held = [[*case.memory_bands] for case in (*file.cases, *file.overridden(backend="tensorrt").cases)]
    assert held == [[], ["a"]]
    with pytest.raises(CaseFileError, match=r"cases.yaml:6: .*no backend 'tensort'; did you mean 'tensorrt'"):
        load(HEAD + DIT + MEMORY % (band % "tensort"))
    with pytest.raises(CaseFileError, match="only_backends"):
        load(HEAD + DIT + MEMORY % (band % ""))


def test_memory_beside_the_reference(load: Load) -> None:
    limits = "reference: true, limits: {peak_over_reference: {max: 1.0, reason: r}}"
    (case,) = load(HEAD + DIT + MEMORY % limits).cases
    assert case.memory is not None and case.memory.reference
    assert case.memory.device_growth.max == 2**20
    assert case.memory.unattributed.max == 5 * 2**28


def test_anchors_merge_keys_and_exponents(load: Load) -> None:
    text = HEAD + DIT + (
        "    parity: &gate\n      limits: {relative_l2: {max: 1e-5, reason: r}}\n"
        "  - id: two\n    component: dit\n    parity:\n      <<: *gate\n"
        "  - id: three\n    component: dit\n    parity: *gate\n"
    )  # fmt: skip
    for case in load(text).cases:
        assert case.parity is not None
        assert case.parity.limits["relative_l2"].max == 1e-5


def test_precision_by_part_only_of_composites(load: Load) -> None:
    mixed = "    precision: {dit: fp16, vae: fp32}\n"
    (case,) = load(HEAD + DIT.replace("dit", "pipeline") + mixed + PARITY).cases
    assert case.precision_label == "dit=fp16,vae=fp32"
    with pytest.raises(
        CaseFileError, match=r"cases.yaml:6: .*only vae_decoder, vae_encoder, pipeline have a precision for"
    ):
        load(HEAD + DIT + mixed + PARITY)


def gate(text: str) -> str:
    return HEAD + DIT + f"    parity: {{limits: {{{text}}}}}\n"


MISTAKES = {
    "empty file": ("", r"cases.yaml:1: the file is empty"),
    "only comments": ("# nothing\n", r"cases.yaml:1: the file is empty"),
    "no YAML": ("version: 1\ncases: [}\n", r"cases.yaml:2: not valid YAML"),
    "a tag that makes objects": ("version: !!python/object:os.system 1\n", r"cases.yaml:1: not valid YAML"),
    "a list": ("- 1\n", r"cases.yaml:1: the file must be a mapping; allowed: version, defaults, cases"),
    "no version": ("cases: []\n", r"cases.yaml:1: key 'version' is None; allowed: 1"),
    "another version": (GOOD.replace("version: 1", "version: 2"), r"cases.yaml:1: key 'version' is 2; allowed: 1"),
    "no cases": (HEAD, r"cases.yaml:3: key 'cases' must be a list with at least one case"),
    "an empty list of cases": (HEAD.replace("cases:", "cases: []"), r"cases.yaml:3: key 'cases' must be a list"),
    "a case that is none": (HEAD + "  - one\n", r"cases.yaml:4: a case must be a mapping; allowed: id, model"),
    "unknown root key": (GOOD + "case: []\n", r"cases.yaml:7: key 'case' is unknown; did you mean 'cases'\?; allowed: v"),
    "unknown default": (GOOD.replace("{model", "{modle: x, model"), r"cases.yaml:2: key 'modle' is unknown; did you mean 'model'"),
    "id among the defaults": (GOOD.replace("{model", "{id: x, model"), r"cases.yaml:2: key 'id' is unknown"),
    "unknown key": (GOOD + "    wibble: 1\n", r"cases.yaml:7: case 'one': key 'wibble' is unknown; allowed: id, model, comp"),
    "key given twice": (GOOD + "    component: dit\n", r"cases.yaml:7: not valid YAML: key 'component' is given twice"),
    "recursive alias": (GOOD + "    perf: &a {parity: *a}\n", r"cases.yaml:7: not valid YAML: an alias refers to what"),
    "unknown key in a limit": (gate("psnr_db: {mim: 90, reason: r}"), r"cases.yaml:6: case 'one': key 'parity.limits.psnr_db.mim' is unknown; did you mean 'min'\?; allowed: min, max, reason"),
    "misspelt component": (GOOD.replace("component: dit", "component: dut"), r"cases.yaml:5: case 'one': key 'component': no component 'dut'; did you mean 'dit'\?; allowed: dit, text_encoder, vae_decoder, vae_encoder, pipeline"),
    "misspelt backend": (GOOD + "    backend: onnxruntim\n", r"cases.yaml:7: .*no backend 'onnxruntim'; did you mean 'onnxruntime'\?"),
    "misspelt default": (GOOD.replace("onnxruntime", "onxruntime"), r"cases.yaml:2: .*no backend 'onxruntime'"),
    "misspelt model": (GOOD + "    model: tinywan\n", r"cases.yaml:7: .*no model 'tinywan'; did you mean 'tiny-wan'\?; allowed: tiny-wan, or a folder"),
    "misspelt profile": (GOOD + "    profile: 128p-71f\n", r"cases.yaml:7: .*no profile '128p-71f'; did you mean '128p-17f'"),
    "misspelt precision": (GOOD + "    precision: fp23\n", r"cases.yaml:7: .*no precision 'fp23'; .*allowed: fp32, fp16, bf16, fp8, int8"),
    "precision of no kind": (GOOD + "    precision: 16\n", r"cases.yaml:7: .*no precision '16'"),
    "misspelt precision of a part": (GOOD.replace("dit", "pipeline") + "    precision: {dit: fp23}\n", r"cases.yaml:7: .*no precision.dit 'fp23'"),
    "misspelt part": (GOOD.replace("dit", "pipeline") + "    precision: {tid: fp16}\n", r"cases.yaml:7: .*'precision.tid' is unknown; did you mean 'precision.dit'"),
    "misspelt metric": (gate("psnr_bd: {min: 90, reason: r}"), r"cases.yaml:6: .*no metric 'psnr_bd'; did you mean 'psnr_db'\?"),
    "no reason": (gate("psnr_db: {min: 90}"), r"cases.yaml:6: .*'parity.limits.psnr_db.reason' is missing"),
    "empty reason": (gate("psnr_db: {min: 90, reason: ''}"), r"cases.yaml:6: .*reason' is '': string must have at least 1"),
    "no bound": (gate("psnr_db: {reason: r}"), r"cases.yaml:6: .*'parity.limits.psnr_db' needs a min or a max"),
    "NaN": (gate("psnr_db: {min: .nan, reason: r}"), r"cases.yaml:6: .*psnr_db.min' is nan: must be a finite number"),
    "infinite": (gate("relative_l2: {max: .inf, reason: r}"), r"cases.yaml:6: .*max' is inf: must be a finite number"),
    "negative floor": (gate("psnr_db: {min: -90, reason: r}"), r"cases.yaml:6: .*min' is -90: must be greater than 0"),
    "zero floor": (gate("psnr_db: {min: 0, reason: r}"), r"cases.yaml:6: .*min' is 0: must be greater than 0"),
    "negative ceiling": (gate("relative_l2: {max: -1, reason: r}"), r"cases.yaml:6: .*max' is -1: must be greater than or"),
    "a truth value": (gate("psnr_db: {min: yes, reason: r}"), r"cases.yaml:6: .*psnr_db.min' must be a number, not True"),
    "a word": (gate("psnr_db: {min: ninety, reason: r}"), r"cases.yaml:6: .*psnr_db.min' must be a number, not 'ninety'"),
    "min over max": (gate("psnr_db: {min: 90, max: 60, reason: r}"), r"cases.yaml:6: .*has a min \(90\) above its max \(60\)"),
    "bounded on the wrong side": (gate("psnr_db: {max: 90, reason: r}"), r"cases.yaml:6: .*psnr_db' needs a min: psnr_db is better when higher"),
    "over stock without a reference of another precision": (gate("error_over_stock: {max: 2, reason: r}"), r"cases.yaml:6: .*error_over_stock' needs a reference_precision"),
    "over stock of a video": (gate("error_over_stock: {max: 2, reason: r}").replace("dit", "pipeline") + "    reference_precision: fp16\n", r"cases.yaml:6: .*error_over_stock' is measured of components"),
    "the other wrong side": (gate("relative_l2: {min: 1, reason: r}"), r"cases.yaml:6: .*relative_l2' needs a max"),
    "out of reach": (gate("video.cvvdp_jod: {min: 11, reason: r}"), r"cases.yaml:6: .*min' is 11, cvvdp_jod ends at 10"),
    "parity without limits": (HEAD + DIT + "    parity: {limits: {}}\n", r"cases.yaml:6: .*'parity.limits' is {}"),
    "band without width": (GOOD.replace("}}}\n", "}}, bands: {psnr_db: {reason: r}}}\n"), r"cases.yaml:6: .*psnr_db.rel' is missing"),
    "no layers": (GOOD + "    layers: 0\n", r"cases.yaml:7: .*'layers' is 0: must be greater than or equal to 1"),
    "half a layer": (GOOD + "    layers: 1.5\n", r"cases.yaml:7: .*'layers' is 1.5: must be a valid integer"),
    "no gate": (HEAD + DIT, r"cases.yaml:4: case 'one': has no gate, so nothing would judge it"),
    "no growth": (HEAD + DIT + "    memory: {}\n", r"cases.yaml:6: .*'memory.growth' is missing"),
    "device growth without max": (HEAD + DIT + MEMORY % "device_growth: {min: 1, reason: r}", r"cases.yaml:6: .*'memory.device_growth' needs a max"),
    "nobody's without max": (HEAD + DIT + MEMORY % "unattributed: {min: 1, reason: r}", r"cases.yaml:6: .*'memory.unattributed' needs a max"),
    "ratio without reference": (HEAD + DIT + MEMORY % "limits: {peak_over_reference: {max: 1.0, reason: r}}", r"cases.yaml:6: .*'memory.limits.peak_over_reference' needs 'reference: true'"),
    "band without reference": (HEAD + DIT + MEMORY % "bands: {reference_device_used: {rel: 1.0, reason: r}}", r"cases.yaml:6: .*'memory.bands.reference_device_used' needs 'reference: true'"),
    "growth without max": (HEAD + DIT + "    memory: {growth: {min: 1, reason: r}}\n", r"cases.yaml:6: .*growth' needs a max"),
    "same id": (GOOD + DIT + PARITY, r"cases.yaml:7: key 'id' is 'one', as in case number 1; ids must differ"),
    "id that is no name": (GOOD.replace("one", "One Two"), r"cases.yaml:4: .*key 'id' is 'One Two': string must match pattern"),
    "no id": (HEAD + "  - component: dit\n" + PARITY, r"cases.yaml:4: case 'number 1': key 'id' is missing"),
    "speed-up of zero": (HEAD + DIT + PERF % ", speedup: 0", r"cases.yaml:6: .*'perf.speedup' is 0: must be greater than 0"),
    "no speed-up without reason": (HEAD + DIT + PERF % ", speedup: null", r"cases.yaml:6: .*'perf.speedup' is null, under the gate of 1.5: it needs a 'reason'"),
    "under the gate without reason": (HEAD + DIT + PERF % ", speedup: 1.2", r"cases.yaml:6: .*'perf.speedup' is 1.2, under the gate of 1.5: it needs a 'reason'"),
    "beside the gate, misspelt": (HEAD + DIT + PERF % ", also: [torch-compiled]", r"cases.yaml:6: .*'perf.also.0' is 'torch-compiled': must be 'torch-compile' or 'no-cuda-graphs'"),
    "graphs of a backend without": (HEAD + DIT + PERF % ", also: [no-cuda-graphs], limits: {graph_gain: {min: 1, reason: r}}", r"cases.yaml:6: .*a limit of graph_gain needs the backend tensorrt, and the case's is onnxruntime"),
    "a limit of what is not measured": (HEAD + DIT + PERF % ", limits: {compile_speedup: {min: 1, reason: r}}", r"cases.yaml:6: .*a limit of compile_speedup needs 'torch-compile' in 'perf.also'"),
    "a limit of what the gate holds": (HEAD + DIT + PERF % ", limits: {speedup: {min: 1, reason: r}}", r"cases.yaml:6: .*no metric 'speedup'; .*allowed: compile_speedup, graph_gain"),
    "a limit beside the gate on the wrong side": (HEAD + DIT + PERF % ", also: [torch-compile], limits: {compile_speedup: {max: 1, reason: r}}", r"cases.yaml:6: .*compile_speedup' needs a min"),
    "a plan's peak of no pipeline": (HEAD + DIT + "    memory: {growth: {max: 1, reason: r}, limits: {peak_over_plan: {max: 1, reason: r}}}", r"cases.yaml:6: .*'memory.limits.peak_over_plan' is measured of pipeline, not of components"),
    "whole video under the gate": (HEAD + DIT.replace("dit", "pipeline") + PERF % ", speedup: 1.49, reason: r", r"cases.yaml:6: .*is 1.49: the whole-video case always holds the gate; allowed: 1.5 and more"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_named_with_its_line(load: Load, text: str, message: str) -> None:
    with pytest.raises(CaseFileError, match=message):
        load(text)


def test_all_mistakes_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = GOOD.replace("component: dit", "component: dot") + "    wibble: 1\n" + DIT + PARITY
    with pytest.raises(CaseFileError) as caught:
        load(text)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["5", "7", "8"]


def test_under_the_gate_with_its_reason(load: Load) -> None:
    (case,) = load(HEAD + DIT + PERF % ", speedup: 1.2, reason: memory bound").cases
    assert case.perf is not None
    assert case.perf.below_gate


def test_what_is_timed_beside_the_gate(load: Load) -> None:
    text = ", also: [torch-compile, no-cuda-graphs], limits: {graph_gain: {min: 1.0, reason: or what are they for}}"
    file = load(HEAD + DIT + "    backend: tensorrt\n" + PERF % text)
    perf = file.cases[0].perf
    assert perf is not None
    assert file.cases[0].beside == perf.also == ("torch-compile", "no-cuda-graphs")
    assert perf.limits["graph_gain"].min == 1.0
    with pytest.raises(
        CaseFileError, match=r"--wan-backend does not fit case 'one' of .*needs the backend tensorrt"
    ):
        file.overridden(backend="onnxruntime").require_names(ALLOWED, "--wan-backend")


def test_cuda_graphs_are_left_out_of_where_there_are_none(load: Load) -> None:
    """So that one case file, and its defaults, serve machines with a GPU and without."""
    file = load(HEAD + DIT + PERF % ", also: [torch-compile, no-cuda-graphs]")
    (case,) = file.cases
    assert case.beside == ("torch-compile",)
    (other,) = file.overridden(backend="tensorrt").cases
    assert other.beside == ("torch-compile", "no-cuda-graphs")


def test_every_engine_of_this_repository_is_timed_without_cuda_graphs() -> None:
    """Of its own cases, each component that has an engine; of whole videos only tiny-wan's, where they matter."""
    cases = (
        load_cases(Path(__file__).parents[1] / "cases.yaml", allowed_names())
        .overridden(backend="tensorrt")
        .cases
    )
    timed = [case for case in cases if case.perf and case.only_backends != ("torch",)]
    without = {case.id for case in timed if "no-cuda-graphs" not in case.beside}
    assert {case.component for case in timed if case.id in without} == {"pipeline"}
    assert not any("tiny" in name for name in without)
    assert {"dit", "vae_decoder", "vae_encoder", "text_encoder"} <= {
        case.component for case in timed if case.model == "tiny-wan"
    }


def test_every_engine_of_this_repository_is_held_to_its_memory_on_a_gpu() -> None:
    """Weights and scratch of each, and the caches of one that keeps some."""
    cases = load_cases(Path(__file__).parents[1] / "cases.yaml", allowed_names()).cases
    held = [case for case in cases if case.memory and case.only_backends == ("tensorrt",)]
    assert {"dit", "vae_decoder", "vae_encoder", "text_encoder", "pipeline"} == {
        case.component for case in held
    }
    for case in held:
        assert case.memory is not None
        scratch = {"engine_scratch", "engine_own_scratch"} & case.memory.bands.keys()
        assert "engine_weights" in case.memory.bands and scratch, case.id
        caches = case.memory.bands.get("engine_caches")
        streams = case.component not in ("dit", "text_encoder")
        assert (caches is not None and caches.rel < 1e-4 and not caches.abs) == streams, case.id


PROMPTS = (
    "version: 1\nprompts:\n  - {id: one, prompt: a red square}\n  - {id: two, prompt: a circle, seed: 3}\n"
)
VIDEO = "    parity: {limits: {psnr_db: {min: 90, reason: floor}, mean.psnr_db: {min: 91, reason: r}}}\n"
OVER = "  - id: one\n    component: pipeline\n    prompts: prompts.yaml\n"


def test_prompts_are_read_from_the_file_beside(load: Load, tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    (case,) = load(HEAD + OVER + VIDEO).cases
    assert [(each.id, each.prompt, each.seed) for each in case.prompts] == [
        ("one", "a red square", 0),
        ("two", "a circle", 3),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROMPTS.replace("id: two", "id: one"), "prompts.yaml:4: key 'id' is 'one', as in prompt number 1"),
        (
            PROMPTS.replace("id: two", "id: mean"),
            "prompts.yaml:4: key 'id' is 'mean', the name of their mean",
        ),
        (
            PROMPTS.replace("seed: 3", "sead: 3"),
            "prompts.yaml:4: key 'sead' is unknown; did you mean 'seed'?",
        ),
        (
            PROMPTS.replace("a circle", "''"),
            "prompts.yaml:4: key 'prompt' is '': string must have at least 1",
        ),
        (PROMPTS.replace("seed: 3", "seed: -1"), "prompts.yaml:4: key 'seed' is -1"),
        (PROMPTS.replace("version: 1", "version: 2"), "prompts.yaml:1: key 'version' is 2; allowed: 1"),
        (
            "version: 1\nprompts: []\n",
            "prompts.yaml:2: key 'prompts' must be a list with at least one prompt",
        ),
    ],
)
def test_mistake_in_the_prompts_is_named_with_its_line(
    load: Load, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(CaseFileError) as error:
        load(HEAD + OVER + VIDEO)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OVER + VIDEO, "prompts.yaml: no such file of prompts"),
        (
            OVER.replace("prompts.yaml", "[{id: one}]") + VIDEO,
            "cases.yaml:6: case 'one': key 'prompts' must name a file",
        ),
        (
            OVER.replace("pipeline", "dit") + PARITY,
            "key 'prompts' is for the parity of the component pipeline only",
        ),
        (OVER.replace("    prompts: prompts.yaml\n", "") + VIDEO, "no metric 'mean.psnr_db'"),
    ],
)
def test_prompts_where_they_mean_nothing(load: Load, tmp_path: Path, text: str, message: str) -> None:
    if "prompts.yaml: no" not in message:
        (tmp_path / "prompts.yaml").write_text(PROMPTS)
    with pytest.raises(CaseFileError) as error:
        load(HEAD + text)
    assert message in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaseFileError, match=r"none\.yaml: no such case file; name one with --wan-cases FILE"):
        load_cases(tmp_path / "none.yaml", ALLOWED)
    with pytest.raises(CaseFileError, match=r"name one with --cases FILE$"):
        load_cases(tmp_path / "none.yaml", ALLOWED, "--cases")
    with pytest.raises(CaseFileError, match="not readable"):
        load_cases(tmp_path, ALLOWED)
    (tmp_path / "latin.yaml").write_bytes(b"version: 1 # \xe9\n")
    with pytest.raises(CaseFileError, match="not readable"):
        load_cases(tmp_path / "latin.yaml", ALLOWED)


def test_model_may_be_a_folder(load: Load, tmp_path: Path) -> None:
    (case,) = load(GOOD + f"    model: {tmp_path}\n    profile: 64p-9f\n").cases
    assert case.model == str(tmp_path)


def test_settings_of_a_case(load: Load) -> None:
    row = "version: 1\ncases:\n  - {id: a, model: tiny-wan, component: dit, profile: 128p-17f, precision: fp32, backend: torch,"
    row += "\n     memory: {growth: {max: 0, reason: r}},\n     settings: {%s}}\n"
    case = load(row % "pipeline.vae_tile: 256, tensorrt.max_graphs: 1").cases[0]
    assert case.settings == {"pipeline.vae_tile": 256, "tensorrt.max_graphs": 1}
    for wrong, message in {
        "pipeline.vae_tiles: 256": "'settings.pipeline.vae_tiles' is unknown; did you mean 'pipeline.vae_tile'",
        "perf.confidence: 0.9": "'settings.perf.confidence' is unknown.*allowed: tensorrt.profiles",  # how it is measured
        "pipeline.vae_tile: 100": r"'settings.pipeline.vae_tile': given: pipeline.vae_tile: 100 is not allowed",
    }.items():
        with pytest.raises(CaseFileError, match=rf"cases.yaml:5: case 'a': key {message}"):
            load(row % wrong)


def test_overrides(load: Load) -> None:
    file = load(GOOD)
    assert file.overridden(backend="torch", model=None).cases[0].backend == "torch"
    with pytest.raises(
        CaseFileError, match=r"--wan-backend does not fit case 'one' of .*no backend 'tensorflow'"
    ):
        file.overridden(backend="tensorflow").require_names(ALLOWED, "--wan-backend")
