"""What models compute in where nobody says it: the rule, and that there is what it asks for."""

from __future__ import annotations

import pytest

from wan_trt_core.backends.base import EngineBackend
from wan_trt_core.backends.registry import backend_names, get_backend, runs_on
from wan_trt_core.cases import precision_word
from wan_trt_core.cli.videos import parse_precision, precision_for
from wan_trt_core.models.components import component_names
from wan_trt_core.pipeline.engines import check_precision, precision_of, usual_of_engine
from wan_trt_core.pipeline.precisions import usual_precision

USUAL = {"dit": "fp16", "vae": "fp32", "text_encoder": "bf16"}
ON_ENGINES = {**USUAL, "text_encoder": "fp32"}
OF_ENGINES = {
    "dit": "fp16", "dit_2": "fp16", "text_encoder": "fp32",
    "vae_decoder_first": "fp32", "vae_decoder_next": "fp32", "vae_encoder_first": "fp32", "vae_encoder_next": "fp32",
}  # fmt: skip


def test_a_cpu_has_float32_and_a_gpu_what_is_fast_and_right_there() -> None:
    assert usual_precision("cuda") == USUAL
    assert usual_precision("cuda", text_encoder_engine=True) == ON_ENGINES
    assert usual_precision("cpu") == usual_precision("cpu", text_encoder_engine=True) == "fp32"


def test_an_engine_that_is_built_is_the_one_that_a_pipeline_loads() -> None:
    """Every component of this package has its own; one that no pipeline loads is in float32."""
    assert {name: usual_of_engine(name, "cuda") for name in component_names()} == OF_ENGINES
    on_engines = usual_precision("cuda", text_encoder_engine=True)
    assert {name: precision_of(on_engines, name) for name in OF_ENGINES} == OF_ENGINES
    assert {usual_of_engine(name, "cpu") for name in OF_ENGINES} == {"fp32"}
    assert usual_of_engine("text_projection", "cuda") == "fp32"


@pytest.mark.parametrize("backend", [name for name in backend_names() if runs_on(name) == "cuda"])
def test_every_backend_of_a_gpu_has_these_engines(backend: str) -> None:
    runs = get_backend(backend)
    assert isinstance(runs, EngineBackend)
    for name, precision in OF_ENGINES.items():
        check_precision(runs, name, precision)


def test_what_is_usual_may_be_given_too() -> None:
    assert parse_precision(precision_word(usual_precision("cuda"))) == USUAL
    assert precision_word(usual_precision("cpu")) == "fp32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", [False, True])
def test_what_is_given_stays_as_it_is_given(device: str, engine: bool) -> None:
    assert precision_for("fp32", device, text_encoder_engine=engine) == "fp32"
    half = {"dit": "fp16", "vae": "fp16"}
    assert precision_for("dit=fp16,vae=fp16", device, text_encoder_engine=engine) == half
    assert precision_for(None, device, text_encoder_engine=engine) == usual_precision(
        device, text_encoder_engine=engine
    )
