"""Checkpoints: what is accepted, what is refused and why, and what loading gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import PARTS, Checkpoint, CheckpointError, torch_dtype
from wan_trt_core.models.loaded import LoadedCheckpoint

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*/absent.*--wan-checkpoint"):
        Checkpoint.open(tmp_path / "absent")


def test_a_folder_without_an_index_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model_index\.json\. Give the folder that .*-Diffusers"):
        Checkpoint.open(tmp_path)


def test_another_pipeline_is_refused(folder: Path) -> None:
    edit(folder / "model_index.json", lambda index: index.update(_class_name="FluxPipeline"))
    with pytest.raises(
        CheckpointError, match="a FluxPipeline, not a WanPipeline or a WanImageToVideoPipeline"
    ):
        Checkpoint.open(folder)


SECOND = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (SECOND, "there is a transformer_2 and no boundary_ratio, which says where it begins"),
        ({**SECOND, "boundary_ratio": 0.875}, r"transformer_2: missing"),
        (
            {"image_encoder": ["transformers", "CLIPModel"]},
            "image_encoder is CLIPModel, expected CLIPVisionModel",
        ),
    ],
)
def test_a_part_that_only_some_models_have_must_be_whole(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    edit(folder / "model_index.json", lambda index: index.update(change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize("model", ["tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b", "tiny-wan2.2-ti2v-5b"])
def test_the_variants_are_opened_as_they_were_saved(model: str, folder: Path, tmp_path: Path) -> None:
    """Of a pipeline that diffusers saved, with the text encoder of another."""
    made = resolve(model).checkpoint
    saved, stored = made.pipeline(), Checkpoint.open(folder)
    saved.register_modules(text_encoder=stored.load("text_encoder"), tokenizer=stored.tokenizer())
    saved.save_pretrained(tmp_path / "saved")
    opened = Checkpoint.open(tmp_path / "saved")
    assert set(opened.parts) == {*made.parts, "text_encoder"}
    pipe = opened.pipeline()
    assert type(pipe) is type(saved)
    for name in ("boundary_ratio", "expand_timesteps"):
        assert pipe.config[name] == saved.config[name]
    for part in made.parts:
        expected, found = (getattr(each, part).state_dict() for each in (saved, pipe))
        assert all(value.equal(found[name]) for name, value in expected.items())
    in_memory = LoadedCheckpoint(type(saved).from_pretrained(tmp_path / "saved"))
    for part in opened.parts:  # engines of this folder serve its pipeline
        assert in_memory.weights_sha256(part) == opened.weights_sha256(part)


def test_another_class_of_a_part_is_refused(folder: Path) -> None:
    edit(folder / "model_index.json", lambda index: index.update(vae=["diffusers", "AutoencoderKL"]))
    with pytest.raises(CheckpointError, match="vae is AutoencoderKL, expected AutoencoderKLWan"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["vae", "scheduler", "tokenizer"])
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"num_layers": None}, "num_layers is None, expected a positive integer"),
        (
            "transformer",
            {"attention_head_dim": "64"},
            "attention_head_dim is '64', expected a positive integer",
        ),
        ("vae", {"z_dim": 0}, "z_dim is 0, expected a positive integer"),
        ("vae", {"latents_mean": 0.1}, "latents_mean is 0.1, expected a list"),
        (
            "vae",
            {"temperal_downsample": [True, True, True]},
            r"temperal_downsample is \[True, True, True\], 8 frames a latent frame, expected 4; no other is supported",
        ),
        ("text_encoder", {"d_model": True}, "d_model is True, expected a positive integer"),
    ],
)
def test_a_configuration_of_something_else_is_named(
    folder: Path, part: str, change: dict[str, Any], message: str
) -> None:
    edit(folder / part / "config.json", lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=rf"{part}/config\.json: {message}(; copy or download|$)"):
        Checkpoint.open(folder)


def test_what_the_libraries_refuse_names_the_folder(folder: Path) -> None:
    """A value that only the module itself looks at."""
    edit(folder / "transformer" / "config.json", lambda config: config.update(ffn_dim="wide"))
    with pytest.raises(CheckpointError, match=r"transformer: cannot be loaded \(TypeError: .*download"):
        Checkpoint.open(folder).load("transformer")


@pytest.mark.parametrize("text", [None, "{"])
def test_a_broken_tokenizer_is_named(folder: Path, text: str | None) -> None:
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    if text is not None:
        (folder / "tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer: cannot be loaded .*copy or download"):
        Checkpoint.open(folder).tokenizer()


@pytest.mark.parametrize("entry", [None, ["diffusers", "NopeScheduler"]])
def test_an_unknown_scheduler_is_named(folder: Path, entry: Any) -> None:
    edit(folder / "model_index.json", lambda index: index.update(scheduler=entry))
    name = entry[1] if entry else "None"
    with pytest.raises(CheckpointError, match=rf"model_index\.json: scheduler is {name}, which diffusers"):
        Checkpoint.open(folder).scheduler()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_named(folder: Path, text: str) -> None:
    (folder / "vae" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"vae/config\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_truncated_weights_are_named(folder: Path, keep: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: truncated or corrupt"):
        Checkpoint.open(folder)


def test_weights_with_a_corrupt_header_are_named(folder: Path) -> None:
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        Checkpoint.open(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: missing"):
        Checkpoint.open(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled weights run code"):
        Checkpoint.open(folder)


def shard(folder: Path, name: str = "shard-1.safetensors") -> None:
    (folder / WEIGHTS).rename(folder / "transformer" / "shard-1.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"proj_out.weight": name}}))


def test_sharded_weights_are_found(folder: Path) -> None:
    shard(folder)
    assert [file.name for file in Checkpoint.open(folder).weight_files("transformer")] == [
        "shard-1.safetensors"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shard-2.safetensors", "missing"),
        ("../x.safetensors", "expected a safetensors"),
        ("a.bin", "expected a"),
    ],
)
def test_a_wrong_shard_is_named(folder: Path, name: str, message: str) -> None:
    shard(folder, name)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", lambda config: config.update(num_layers=4))
    with pytest.raises(
        CheckpointError, match=r"do not fit config\.json: \d+ missing keys, such as blocks\.3"
    ):
        Checkpoint.open(folder).load("transformer")


def test_modules_are_loaded_once_for_inference(checkpoint: Checkpoint) -> None:
    module = checkpoint.load("vae")
    assert checkpoint.load("vae", "float32", "cpu") is module
    assert checkpoint.load("vae", "fp16") is not module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_keeps_the_float32_islands(checkpoint: Checkpoint) -> None:
    transformer: Any = checkpoint.load("transformer", "fp16")
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.float16
    assert transformer.blocks[0].scale_shift_table.dtype == torch.float32
    assert transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    encoder: Any = checkpoint.load("text_encoder", "fp16")
    assert encoder.encoder.block[0].layer[-1].DenseReluDense.wo.weight.dtype == torch.float32


def test_the_text_encoder_has_the_one_embedding_that_is_stored(folder: Path) -> None:
    """As Wan's checkpoints have it: under one name, in a configuration that says nothing is tied."""
    edit(folder / "text_encoder/config.json", lambda config: config.update(tie_word_embeddings=False))
    path = folder / "text_encoder/model.safetensors"
    stored = load_file(path)
    embedding = stored["shared.weight"]
    save_file({name: stored[name] for name in stored if "embed_tokens" not in name}, path, {"format": "pt"})
    encoder: Any = Checkpoint.open(folder).load("text_encoder")
    assert torch.equal(encoder.encoder.embed_tokens.weight, embedding)


def test_the_text_encoder_is_read_straight_to_its_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host memory for 11 GB that a GPU holds, and a copy from there, would take seconds of every start."""
    found: list[Any] = []

    def to(module: Any, device: Any) -> Any:
        found.append({parameter.device.type for parameter in module.parameters()})
        return module

    monkeypatch.setattr(UMT5EncoderModel, "to", to)
    checkpoint.fresh("text_encoder", "bf16", "meta")
    assert found == [{"meta"}]


def test_a_device_without_room_is_no_fault_of_the_folder(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.58 GiB")

    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"10\.58 GiB"):
        checkpoint.fresh("text_encoder")


def test_unknown_parts_and_dtypes_are_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"no part 'unet'.*transformer, vae, text_encoder"):
        checkpoint.load("unet")
    for ask in (checkpoint.config, checkpoint.weight_files, checkpoint.weights_sha256):
        with pytest.raises(
            CheckpointError, match=r"no part 'transfomer' with weights; there are transformer, vae,"
        ):
            ask("transfomer")
    for part, known in (("vae", "fp32, fp16, bf16"), ("text_encoder", "fp32, fp16, bf16, int8")):
        with pytest.raises(CheckpointError, match=f"no dtype 'fp8'; use one of {known}$"):
            checkpoint.load(part, "fp8")
    with pytest.raises(CheckpointError, match="no part 'unet'"):
        checkpoint.pipeline({"unet": "fp16"})
    assert torch_dtype("bf16") is torch_dtype("bfloat16") is torch.bfloat16


def test_the_hash_follows_weights_and_configuration(checkpoint: Checkpoint, folder: Path) -> None:
    same = Checkpoint.open(folder)
    assert all(same.weights_sha256(part) == checkpoint.weights_sha256(part) for part in same.parts)

    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    edit(folder / "vae" / "config.json", lambda config: config["latents_mean"].__setitem__(0, 0.5))
    changed = Checkpoint.open(folder)
    assert changed.weights_sha256("transformer") != checkpoint.weights_sha256("transformer")
    assert changed.weights_sha256("vae") != checkpoint.weights_sha256("vae")
    assert changed.weights_sha256("text_encoder") == checkpoint.weights_sha256("text_encoder")


def test_inspecting_agrees_with_the_loaded_modules(checkpoint: Checkpoint) -> None:
    facts = checkpoint.inspect()
    for part in ("transformer", "vae"):
        parameters = dict(checkpoint.load(part).named_parameters())
        assert facts[part]["class"] == PARTS[part]
        assert facts[part]["parameters"] == sum(value.numel() for value in parameters.values())
        assert facts[part]["bytes"] == 4 * facts[part]["parameters"]
        assert facts[part]["dtypes"] == {"F32": facts[part]["parameters"]}
        assert facts[part]["tensors"].keys() == parameters.keys()
    assert facts["vae"]["tensors"]["decoder.conv_in.bias"] == {"dtype": "F32", "shape": [32]}


def test_the_pipeline_is_stock_and_runs(checkpoint: Checkpoint) -> None:
    pipeline = checkpoint.pipeline()
    assert type(pipeline).__name__ == "WanPipeline"
    assert pipeline.transformer is checkpoint.load("transformer")
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        "a small red square moves left", height=32, width=32, num_frames=5, num_inference_steps=1,
        guidance_scale=1.0, max_sequence_length=16, output_type="np",
    ).frames  # fmt: skip
    assert video.shape == (1, 5, 32, 32, 3)


def test_a_module_on_the_current_gpu_is_one_module_by_either_name(
    tiny_wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors name their GPU with its number, settings do not: two copies would be one that a hook never sees."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    checkpoint = Checkpoint.open(tiny_wan_folder)
    made: list[object] = []
    monkeypatch.setattr(checkpoint, "_load", lambda part, dtype, device: made.append(device) or object())
    assert checkpoint.load("vae", device="cuda") is checkpoint.load("vae", device=torch.device("cuda:1"))
    assert checkpoint.load("vae", device="cuda:0") is not checkpoint.load("vae", device="cuda")
    assert len(made) == 2
