"""Which settings a baseline's numbers depend on: every one is decided, and the runs of old stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
from fabricated import make_case

from wan_trt_core.backends.registry import backend_names
from wan_trt_core.cases import Case
from wan_trt_core.config import KEYS, Settings, load_settings, of_suites, with_values
from wan_trt_core.deciding_settings import (
    DECIDING,
    NOT_DECIDING,
    PARTS,
    changed_in_words,
    deciding,
    differing,
    in_words,
)
from wan_trt_core.gates import gate_backends

CENTRED = {"tensorrt.self_attention": "centred"}


def flat(**variables: str) -> dict[str, Any]:
    """The settings of a suite under these variables of the environment."""
    named = {f"WAN_TRT_{name}": value for name, value in variables.items()}
    return of_suites(load_settings(environ={"WAN_TRT_CONFIG": "", **named}).settings).flat()


def test_every_setting_decides_or_does_not_and_says_why() -> None:
    assert set(DECIDING) | set(NOT_DECIDING) == set(KEYS)
    assert not set(DECIDING) & set(NOT_DECIDING)
    assert all(why for _, why in DECIDING.values()) and all(NOT_DECIDING.values())


def test_the_backends_that_are_named_are_there_and_each_is_named() -> None:
    named = {backend for backends, _ in DECIDING.values() for backend in backends}
    assert named == {*backend_names()} - {"torch"}, "what does a new backend take of the settings?"


@pytest.mark.parametrize("backend", backend_names())
def test_the_defaults_are_nothing_to_tell(backend: str) -> None:
    assert deciding(flat(), "pipeline", [backend]) == {}


def test_tf32_is_off_in_the_suites_unless_it_is_given() -> None:
    """So that a baseline of before means what it meant; elsewhere it is as in PyTorch, and no baseline is of that."""
    assert Settings().perf.allow_tf32 is None and of_suites(Settings()).perf.allow_tf32 is False
    for given in ("true", "false"):
        assert flat(PERF__ALLOW_TF32=given)["perf.allow_tf32"] is (given == "true")
    assert deciding(flat() | {"perf.allow_tf32": None}, "vae_decoder", ["tensorrt"]) == {
        "perf.allow_tf32": None
    }


@pytest.mark.parametrize(
    ("backend", "variables", "told"),
    [
        ("tensorrt", {"TENSORRT__SELF_ATTENTION": "centred"}, CENTRED),
        ("onnxruntime-tensorrt", {"TENSORRT__SELF_ATTENTION": "centred"}, {}),
        ("onnxruntime-tensorrt", {"TENSORRT__OPTIMIZATION_LEVEL": "5"}, {"tensorrt.optimization_level": 5}),
        ("tensorrt", {"TENSORRT__PROFILES": "range,fixed"}, {"tensorrt.profiles": ["range", "fixed"]}),
        ("onnxruntime", {"TENSORRT__PROFILES": "fixed"}, {}),
        ("torch", {"PERF__ALLOW_TF32": "true"}, {"perf.allow_tf32": True}),
        ("torch-compile", {"TORCH_COMPILE__MODE": "max-autotune"}, {"torch_compile.mode": "max-autotune"}),
        ("tensorrt", {"TORCH_COMPILE__MODE": "max-autotune"}, {}),
        ("tensorrt", {"PIPELINE__VAE_LEAN": "true"}, {"pipeline.vae_lean": True}),
        ("torch", {"PIPELINE__VAE_LEAN": "true"}, {}),
        ("onnxruntime", {"THREADS": "2"}, {"threads": 2}),
        ("onnxruntime", {"EXPORT__OPSET": "21"}, {"export.opset": 21}),
    ],
)
def test_what_a_backend_takes_is_told(backend: str, variables: dict[str, str], told: dict[str, Any]) -> None:
    assert deciding(flat(**variables), "pipeline", [backend]) == told


@pytest.mark.parametrize(
    ("component", "told"),
    [
        ("dit", {"pipeline.attention_slicing"}),
        ("vae_decoder", {"pipeline.vae_tile"}),
        ("text_encoder", set()),
        ("pipeline", {"pipeline.attention_slicing", "pipeline.vae_tile", "pipeline.offload"}),
    ],
)
def test_what_does_nothing_to_a_component_is_not_told(component: str, told: set[str]) -> None:
    given = flat(PIPELINE__OFFLOAD="true", PIPELINE__VAE_TILE="256", PIPELINE__ATTENTION_SLICING="64")
    assert set(deciding(given, component, ["tensorrt"])) == told


def test_parts_are_of_settings_that_decide() -> None:
    assert set(PARTS) == {key for key in DECIDING if key.startswith("pipeline.")}


def test_how_it_is_measured_decides_nothing() -> None:
    """What the runs that made the stored baselines had set."""
    settings = flat(
        CACHE="/elsewhere",
        EXPORT__CHECK="false",
        TORCH_COMPILE__REGIONAL="true",
        PERF__WARMUP="2",
        PERF__ALSO_PAIRS="5",
        MEMORY__RUNS="6",
        MEMORY__BUDGET="12GB",
        TENSORRT__TIMING_CACHE="false",
        TENSORRT__BUILDER_THREADS="4",
        LOG__LEVEL="debug",
    )
    assert deciding(settings, "pipeline", ["tensorrt"]) == {}


def test_what_the_case_sets_for_itself_is_the_case() -> None:
    case = make_case().model_copy(update={"settings": {"pipeline.vae_tile": 256}, "tf32": True})
    assert case.own_settings == {"pipeline.vae_tile": 256, "perf.allow_tf32": True}
    settings = flat(PERF__ALLOW_TF32="true", PIPELINE__VAE_TILE="64", PIPELINE__OFFLOAD="true")
    assert deciding(settings, "pipeline", ["tensorrt"], case.own_settings) == {"pipeline.offload": True}


def test_a_record_of_before_a_setting_says_nothing_of_it() -> None:
    assert deciding({"threads": None, "tensorrt.gone": 3}, "pipeline", ["tensorrt"]) == {}


def test_torch_compile_counts_where_a_band_is_on_it() -> None:
    def case(*bands: str) -> Case:
        made = make_case(bands={name: {"rel": 0.1, "reason": "r"} for name in bands})  # type: ignore[misc]
        assert made.perf
        perf = made.perf.model_copy(update={"also": ("torch-compile",)})
        return made.model_copy(update={"perf": perf})

    assert gate_backends(case("candidate_time"), "perf") == ("onnxruntime",)
    assert gate_backends(case("compile_speedup"), "perf") == ("onnxruntime", "torch-compile")
    assert gate_backends(case("compile_speedup"), "parity") == ("onnxruntime",)


def test_what_one_does_not_name_is_at_its_default() -> None:
    assert differing({}, CENTRED) == {"tensorrt.self_attention": ("auto", "centred")}
    assert differing(CENTRED, {}) == {"tensorrt.self_attention": ("centred", "auto")}
    assert differing(CENTRED, CENTRED) == differing({}, {}) == {}
    # stored as another than the default of then, which it is now
    assert differing({"tensorrt.self_attention": "auto"}, {}) == {}
    assert differing({"tensorrt.gone": 3}, {}) == {"tensorrt.gone": (3, None)}


def test_a_value_that_reads_otherwise_is_the_same() -> None:
    given = of_suites(with_values(Settings(), {"tensorrt.workspace_gib": 4})).flat()
    assert differing(deciding(given, "dit", ["tensorrt"]), {"tensorrt.workspace_gib": 4}) == {}


def test_words() -> None:
    settings = {"threads": None, "perf.allow_tf32": True, "tensorrt.profiles": ["range", "fixed"], **CENTRED}
    assert in_words(settings) == (
        "perf.allow_tf32=true, tensorrt.profiles=range,fixed, tensorrt.self_attention=centred, threads=null"
    )
    assert in_words({}) == changed_in_words({}) == ""
    assert changed_in_words(differing({}, CENTRED)) == "tensorrt.self_attention: auto → centred"
