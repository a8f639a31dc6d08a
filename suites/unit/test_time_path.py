"""What a pipeline on engines loads of the modules whose place they take: the time path of a transformer, and that with
the very values of the whole module."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import WanPipeline
from module_engine import component_engine
from torch import Tensor

from wan_trt_core.config import PipelineSettings, Settings
from wan_trt_core.models import random_weights
from wan_trt_core.models.catalogue import GenerationDefaults, resolve
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError, torch_dtype
from wan_trt_core.models.components import get_component
from wan_trt_core.models.graphs.dit import DitInputs, Modulation, RopeTables
from wan_trt_core.models.loaded import LoadedCheckpoint
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.pipeline.assembly import on_engines, placed
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.swap import REPLACED, swap

DTYPES = ("fp32", "fp16", "bf16")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = GenerationDefaults(
    32, 32, 5, num_inference_steps=2, guidance_scale=3.0, max_sequence_length=16, fps=8
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of every tensor that our own code reads from a file, by name."""
    taken: dict[str, int] = {}
    opened = safetensors.safe_open

    class Watched:
        def __init__(self, *given: Any, **named: Any) -> None:
            self._opened = opened(*given, **named)

        def __enter__(self) -> Watched:
            self._tensors = self._opened.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._opened.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tensors, name)

        def get_tensor(self, name: str) -> Tensor:
            tensor: Tensor = self._tensors.get_tensor(name)
            taken[name] = tensor.nbytes
            return tensor

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    return taken


def names_of(transformer: Any) -> set[str]:
    """Of the parameters of its time path."""
    inside = ("condition_embedder.time_embedder.", "condition_embedder.time_proj.")
    return {
        name
        for name, _ in transformer.named_parameters()
        if name.startswith(inside) or name.endswith("scale_shift_table")
    }


def assert_is_the_time_path_of(whole: Any, found: Any) -> None:
    """Its values bit for bit, and no others."""
    own = {name: value for name, value in found.named_parameters() if not value.is_meta}
    assert own.keys() == names_of(whole) and len(own) == 7 + len(whole.blocks)
    for name, value in own.items():
        expected = whole.get_parameter(name)
        assert (value.dtype, value.device.type, value.requires_grad) == (expected.dtype, "cpu", False), name
        assert value.equal(expected), name
    assert {name for name, _ in found.named_buffers()} == {"rope.freqs_cos", "rope.freqs_sin"}
    for name, buffer in found.named_buffers():
        assert buffer.dtype == whole.get_buffer(name).dtype and buffer.equal(whole.get_buffer(name))
    assert not found.training


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_of_files_the_time_path_alone_is_read(
    stored: str, dtype: str, folder: Path, read: dict[str, int]
) -> None:
    whole: Any = Checkpoint.open(folder).load("transformer")
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(torch_dtype(stored))
    shutil.rmtree(folder / "transformer")
    whole.save_pretrained(folder / "transformer", max_shard_size="200KB")
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.weight_files("transformer")) > 1
    found = checkpoint.time_path("transformer", dtype)
    assert read == {name: whole.get_parameter(name).nbytes for name in names_of(whole)}
    assert checkpoint._modules == {}
    assert_is_the_time_path_of(checkpoint.load("transformer", dtype), found)


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_random_weights_it_alone_is_drawn(dtype: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = resolve("tiny-wan2.2-t2v-a14b").checkpoint
    whole = checkpoint.load(part, dtype)
    drawn: list[str] = []
    uniform = random_weights.uniform
    monkeypatch.setattr(
        random_weights, "uniform", lambda name, *given: drawn.append(name) or uniform(name, *given)
    )
    assert_is_the_time_path_of(whole, checkpoint.apart().time_path(part, dtype))
    assert sorted(drawn) == sorted(f"0:{part}.{name}" for name in names_of(whole))


def test_of_a_pipeline_in_memory_it_is_the_module_itself(small_checkpoint: Path) -> None:
    pipe = WanPipeline.from_pretrained(small_checkpoint, dtype=torch.float16)
    assert LoadedCheckpoint(pipe).time_path("transformer", "fp16") is pipe.transformer


@pytest.mark.parametrize("changed", [False, True])
def test_in_another_precision_than_in_memory_it_is_the_folder_s_unless_that_has_other_weights(
    changed: bool, small_checkpoint: Path
) -> None:
    pipe = WanPipeline.from_pretrained(small_checkpoint, dtype=torch.bfloat16)
    if changed:
        with torch.no_grad():
            pipe.transformer.condition_embedder.time_proj.weight.mul_(3.0)
        pipe.transformer.rope.freqs_cos.mul_(0.5)  # as those do that make longer videos
    checkpoint = LoadedCheckpoint(pipe)
    found: Any = checkpoint.time_path("transformer", "fp32")
    assert checkpoint._modules == {}
    assert_is_the_time_path_of(checkpoint.load("transformer", "fp32"), found)
    own = pipe.transformer.condition_embedder.time_proj.weight.float()
    assert found.condition_embedder.time_proj.weight.equal(own) is changed


def without_a_table(tensors: dict[str, Tensor]) -> None:
    del tensors["blocks.1.scale_shift_table"]


def with_a_short_table(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.1.scale_shift_table"] = torch.zeros(1, 6, 63)


@pytest.mark.parametrize("change", [without_a_table, with_a_short_table])
def test_weights_that_do_not_fit_are_named(change: Callable[[dict[str, Tensor]], None], folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    message = (
        r"transformer: the weights do not fit config\.json: 1 are .* such as blocks\.1\.scale_shift_table;"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder).time_path("transformer")


@pytest.mark.parametrize(
    ("model", "component", "precision"),
    [
        *(("tiny-wan", "dit", precision) for precision in DTYPES),
        ("tiny-wan2.1-i2v", "dit", "fp16"),
        ("tiny-wan2.2-t2v-a14b", "dit_2", "fp16"),
        ("tiny-wan2.2-ti2v-5b", "dit", "fp32"),
    ],
)
def test_an_engine_is_given_what_the_whole_module_makes(model: str, component: str, precision: str) -> None:
    """With a timestep a token too, and inside ``inference_mode``, where pipelines ask first."""
    checkpoint = resolve(model).checkpoint
    part = get_component(component).part
    spatial = 16 if checkpoint.timestep_by_frame else 8
    call = get_component(component).call_tensors(checkpoint, Sizes(64, 64, 5, 512, spatial=spatial))
    prepare = get_component(component).prepare(checkpoint, precision)
    with torch.inference_mode():
        found = prepare(call)
    assert not {key for key in checkpoint._modules if key[0] == part}
    whole: Any = checkpoint.load(part, precision)
    reference = DitInputs(checkpoint, precision, part)
    reference._sources[torch.device("cpu")] = Modulation(whole), RopeTables(whole)
    with torch.no_grad():
        expected = reference(call)
    assert found.keys() == expected.keys()
    assert all(
        value.equal(found[name]) and value.dtype == found[name].dtype for name, value in expected.items()
    )


def loaded_bytes(pipe: Any) -> dict[str, int]:
    """Of the weights of each part of a pipeline that are in memory."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        name: sum(value.nbytes for value in module.parameters() if not value.is_meta)
        for name, module in modules.items()
    }


@pytest.mark.parametrize("offload", [False, True])
def test_weights_that_engines_replace_are_not_loaded(offload: bool, small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    settings = Settings(device="cpu", pipeline=PipelineSettings(offload=offload))
    dtypes = {"transformer": "fp16", "vae": "fp32"}
    stock, on_device = (placed(checkpoint, dtypes, "cpu", settings, replaced=each) for each in ((), REPLACED))
    whole, found = loaded_bytes(stock), loaded_bytes(on_device)
    assert min(whole.values()) > 0 and found["text_encoder"] == whole["text_encoder"]
    assert found["transformer"] == found["vae"] == 0
    for part in ("transformer", "vae"):  # an engine's part answers with it
        assert getattr(on_device, part).config.items() >= checkpoint.config(part).items()
    everything = placed(checkpoint, dtypes, "cpu", settings, replaced=(*REPLACED, "text_encoder"))
    assert set(loaded_bytes(everything).values()) == {0}


def test_a_pipeline_on_engines_that_are_built_loads_its_encoder_alone(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes the same video as with the whole modules beside its engines."""
    elsewhere = Checkpoint.open(small_checkpoint)
    monkeypatch.setattr(
        "wan_trt_core.pipeline.engines.load_engine",
        lambda component, model, profile, precision, *_, **__: component_engine(
            component, elsewhere, precision
        ),
    )
    monkeypatch.setattr("wan_trt_core.pipeline.engines.EngineStore.build", lambda *_, **__: None)
    model, settings = resolve(str(small_checkpoint)), Settings(device="cpu")
    precision = {"dit": "fp16", "vae": "fp32"}
    with EngineStore(settings) as store:
        made = (model, model.profile(), precision, "torch")
        found = generate(on_engines(*made, store, settings, "cpu"), "red", SMALL, keep_latents=True)
        assert {part for part, *_ in model.checkpoint._modules} == {"text_encoder"}
        whole = swap(model.checkpoint.pipeline(), store.pipeline(*made))
        expected = generate(whole, "red", SMALL, keep_latents=True)
    assert np.array_equal(found.frames, expected.frames)
    assert all(one.equal(other) for one, other in zip(found.latents, expected.latents, strict=True))
