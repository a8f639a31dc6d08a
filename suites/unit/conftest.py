"""Fixtures of the unit tests: checkpoints, and settings that touch no user folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wan_trt_core

if TYPE_CHECKING:
    from wan_trt_core.config import Settings
    from wan_trt_core.models.checkpoint import Checkpoint

if workers := os.environ.get(
    "PYTEST_XDIST_WORKER_COUNT"
):  # read by PyTorch when it is imported: they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

pytest.register_assert_rewrite("plugin_conditions")  # its assertions shall say what they compared


def pytest_configure() -> None:
    """A shell starts what it puts in the background with SIGINT ignored, and every child inherits that: the tests
    of Ctrl-C would wait for ever in a job that was started so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_tensorrt_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """What names no backend runs on the CPU, also on a machine that has TensorRT and a GPU."""
    monkeypatch.setattr("wan_trt_core.backends.registry.find_spec", lambda name: None)


@pytest.fixture(scope="session")
def tiny_wan_folder() -> Path:
    """The embedded checkpoint (another folder of the same configuration may be named while training)."""
    embedded = Path(wan_trt_core.__file__).parent / "models" / "tiny_wan"
    return Path(os.environ.get("WAN_TRT_TEST_CHECKPOINT", embedded))


@pytest.fixture(scope="session")
def engine_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One engine cache for every test that puts nothing wrong into its engines, in all files and all workers: each
    engine is made once in a run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "engine-cache"


@pytest.fixture(scope="session")
def small_checkpoint(tiny_wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, a third of tiny-wan's layers, half its channels and half the residual blocks of
    its VAE: quick to export."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, num_layers=3, ffn_dim=128, text_dim=32, freq_dim=32
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in name:
                parameter.normal_(mean=1.0, std=0.2)
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, latents_mean=[0.1] * 16, latents_std=[1.5] * 16)
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0)
    )
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(tiny_wan_folder / "tokenizer"),
        text_encoder=encoder,
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer,
    )
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    pipe.save_pretrained(folder)
    generation = {
        "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 3.0,
        "max_sequence_length": 16, "fps": 8,
    }  # fmt: skip
    (folder / "generation.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    """The small checkpoint, open; the modules that it loads go with the file of tests."""
    from wan_trt_core.models.checkpoint import Checkpoint

    return Checkpoint.open(small_checkpoint)


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may spoil."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a cache of the test's own; what is exported is not compared with PyTorch."""
    from wan_trt_core.config import Settings

    return Settings(cache=tmp_path / "cache", threads=1, export={"check": False})


@pytest.fixture(scope="session")
def small_image_checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of image to video: the catalogue's tiny transformer and image encoder, the VAE of the small checkpoint."""
    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.checkpoint import Checkpoint

    pipe, stored = resolve("tiny-wan2.1-i2v").checkpoint.pipeline(), Checkpoint.open(small_checkpoint)
    parts = {name: stored.load(name) for name in ("text_encoder", "vae")}
    pipe.register_modules(**parts, tokenizer=stored.tokenizer())
    folder = tmp_path_factory.mktemp("small-image") / "checkpoint"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As :func:`on_modules`; what is loaded is noted (:class:`module_engine.Loads`)."""
    from module_engine import Loads

    made = Loads()
    monkeypatch.setattr("wan_trt_core.pipeline.engines.load_engine", made)
    monkeypatch.setattr("wan_trt_core.pipeline.engines.EngineStore.build", lambda *_, **__: None)
    return made


@pytest.fixture
def on_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run a component's graph in PyTorch: for tests of what is around an engine, not of what it computes."""
    from module_engine import component_engine

    def load(component: str, model: Any, profile: Any, precision: str, *_: Any, **given: Any) -> Any:
        if given["built"] is not None:
            given["built"]()
        return component_engine(component, model.checkpoint, precision, block_outputs=given["block_outputs"])

    monkeypatch.setattr("wan_trt_core.pipeline.engines.load_engine", load)
    monkeypatch.setattr("wan_trt_core.pipeline.engines.EngineStore.build", lambda *_, **__: None)
