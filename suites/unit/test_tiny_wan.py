"""The embedded checkpoint: it loads, stays small, and follows its prompts; and its checker can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # the scripts there import one another by bare name

import check_tiny_wan  # noqa: E402
import clips  # noqa: E402

SIZE_LIMIT = 25_000_000  # bytes, the whole folder


@pytest.fixture(scope="module")
def pipe(tiny_wan_folder: Path) -> Any:
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(tiny_wan_folder)


@pytest.fixture(scope="module")
def truth() -> tuple[torch.Tensor, torch.Tensor]:
    """48 random specifications from both sides of the split, and their rendered clips in [0, 1]."""
    specs = torch.cat([clips.all_specs(held_out=False), clips.all_specs(held_out=True)])
    specs = specs[torch.randperm(len(specs), generator=torch.Generator().manual_seed(0))[:48]]
    return specs, (check_tiny_wan.ground_truth(specs) + 1) / 2


@pytest.fixture(scope="module")
def truth_measured(truth: tuple[torch.Tensor, torch.Tensor]) -> list[check_tiny_wan.Measurement]:
    return [m for chunk in truth[1].split(16) for m in check_tiny_wan.measure(chunk)]


class TestFolder:
    def test_size(self, tiny_wan_folder: Path) -> None:
        total = sum(file.stat().st_size for file in tiny_wan_folder.rglob("*") if file.is_file())
        assert 20_000_000 < total <= SIZE_LIMIT

    def test_weights_are_safetensors_only(self, tiny_wan_folder: Path) -> None:
        suffixes = {file.suffix for file in tiny_wan_folder.rglob("*") if file.is_file()}
        assert suffixes == {".json", ".safetensors"}

    def test_tokenizer_class_is_known_to_every_supported_transformers(self, tiny_wan_folder: Path) -> None:
        index = json.loads((tiny_wan_folder / "model_index.json").read_text())
        config = json.loads((tiny_wan_folder / "tokenizer" / "tokenizer_config.json").read_text())
        assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"

    def test_generation_defaults(self, tiny_wan_folder: Path) -> None:
        defaults = check_tiny_wan.load_generation_defaults(tiny_wan_folder)
        assert defaults == {
            "height": clips.FRAME_SIZE,
            "width": clips.FRAME_SIZE,
            "num_frames": clips.NUM_FRAMES,
            "num_inference_steps": 20,
            "guidance_scale": 3.0,
            "max_sequence_length": 32,
            "fps": clips.FPS,
        }


class TestPipeline:
    def test_components(self, pipe: Any) -> None:
        from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
        from transformers import UMT5EncoderModel

        assert isinstance(pipe.transformer, WanTransformer3DModel)
        assert isinstance(pipe.vae, AutoencoderKLWan)
        assert isinstance(pipe.text_encoder, UMT5EncoderModel)
        assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
        for model in (pipe.transformer, pipe.vae, pipe.text_encoder):
            assert model.dtype == torch.float32

    def test_geometry_is_wan(self, pipe: Any) -> None:
        assert pipe.transformer.config.attention_head_dim == 64
        assert pipe.transformer.config.in_channels == pipe.vae.config.z_dim == 16
        assert tuple(pipe.transformer.config.patch_size) == (1, 2, 2)
        assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 8)

    def test_tokenizer_knows_every_caption_word(self, pipe: Any) -> None:
        ids = pipe.tokenizer(" ".join(clips.CAPTION_WORDS)).input_ids
        assert pipe.tokenizer.unk_token_id not in ids
        assert max(ids) < pipe.text_encoder.config.vocab_size
        assert pipe.tokenizer("A Small RED square, moves left!").input_ids == (
            pipe.tokenizer("a small red square moves left").input_ids
        )
        assert pipe.tokenizer("giraffe").input_ids[0] == pipe.tokenizer.unk_token_id


class TestSplit:
    def test_a_quarter_of_the_triples_is_held_out(self) -> None:
        held_out, training = clips.all_specs(held_out=True), clips.all_specs(held_out=False)
        columns = [clips.COLUMN[name] for name in ("shape", "colour", "direction")]
        unseen = {tuple(row) for row in held_out[:, columns].tolist()}
        seen = {tuple(row) for row in training[:, columns].tolist()}
        assert len(unseen) == 24
        assert len(seen) == 72
        assert not unseen & seen

    def test_training_sees_every_pair_of_attributes(self) -> None:
        training = clips.all_specs(held_out=False)
        for first, second in (("shape", "colour"), ("shape", "direction"), ("colour", "direction")):
            pairs = {tuple(row) for row in training[:, [clips.COLUMN[first], clips.COLUMN[second]]].tolist()}
            assert len(pairs) == len(clips.ATTRIBUTES[first]) * len(clips.ATTRIBUTES[second])

    def test_benchmark_is_held_out_and_distinct(self) -> None:
        specs = clips.held_out_benchmark(96)
        assert bool(clips.is_held_out(specs).all())
        assert len({clips.caption(spec) for spec in specs}) == 96


class TestChecker:
    def test_right_on_ground_truth(
        self, truth: tuple[torch.Tensor, torch.Tensor], truth_measured: list[check_tiny_wan.Measurement]
    ) -> None:
        assert check_tiny_wan.agreement(truth_measured, truth[0]).lowest() >= 0.98

    def test_at_chance_on_shuffled_captions(
        self, truth: tuple[torch.Tensor, torch.Tensor], truth_measured: list[check_tiny_wan.Measurement]
    ) -> None:
        shuffled = check_tiny_wan.shuffled_agreement(truth_measured, truth[0])
        for name in check_tiny_wan.MEASURED:
            assert getattr(shuffled, name) == pytest.approx(1 / len(clips.ATTRIBUTES[name]), abs=0.06)

    def test_reversed_clips_move_the_other_way(self, truth: tuple[torch.Tensor, torch.Tensor]) -> None:
        specs, video = truth
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
        measured = check_tiny_wan.drift_directions(video[:8].flip(2))
        assert measured == [opposite[clips.describe(spec)["direction"]] for spec in specs[:8]]

    def test_noise_and_grey_show_nothing(self) -> None:
        grey = torch.full((1, 3, clips.NUM_FRAMES, clips.FRAME_SIZE, clips.FRAME_SIZE), 0.5)
        nothing = check_tiny_wan.Measurement("none", "none", "none")
        assert check_tiny_wan.measure(grey) == [nothing]
        coloured_noise = torch.rand(grey.shape, generator=torch.Generator().manual_seed(0))
        assert check_tiny_wan.measure(coloured_noise)[0].direction == "none"

    def test_a_still_shape_has_no_direction(self, truth: tuple[torch.Tensor, torch.Tensor]) -> None:
        still = truth[1][:2, :, :1].expand(-1, -1, clips.NUM_FRAMES, -1, -1)
        assert check_tiny_wan.drift_directions(still) == ["none", "none"]


class TestQuality:
    def test_autoencoder_psnr_on_held_out_clips(self, pipe: Any) -> None:
        reference = check_tiny_wan.ground_truth(clips.held_out_benchmark(1), seed=7)
        assert check_tiny_wan.psnr(check_tiny_wan.reconstruct(pipe.vae, reference), reference) >= 30

    @pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
    def test_follows_held_out_captions(self, pipe: Any, tiny_wan_folder: Path, count: int) -> None:
        specs = clips.held_out_benchmark(count)
        defaults = check_tiny_wan.load_generation_defaults(tiny_wan_folder)
        video = check_tiny_wan.generate(pipe, specs, defaults, seed=0, batch=count)
        measured = check_tiny_wan.measure(video)
        assert check_tiny_wan.agreement(measured, specs).lowest() == 1.0
