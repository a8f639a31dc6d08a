"""Names and folders become models with profiles; what does not is explained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import wan22

from wan_trt_core.models import catalogue
from wan_trt_core.models.catalogue import (
    CatalogueError,
    GenerationDefaults,
    model_names,
    require_size,
    resolve,
)
from wan_trt_core.models.checkpoint import CheckpointError
from wan_trt_core.models.profiles import POINTS


def test_the_catalogue() -> None:
    assert model_names() == (
        "tiny-wan", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b",
        "tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b", "tiny-wan2.2-ti2v-5b",
    )  # fmt: skip


def test_models_of_one_width_are_told_apart_by_their_channels_and_experts() -> None:
    for name in ("wan2.1-t2v-14b", "wan2.1-i2v-14b", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b", "tiny-wan"):
        assert catalogue._entry_of(resolve(name).checkpoint) is catalogue._ENTRIES[name]
    assert resolve("wan2.2-ti2v-5b").profile().opt.latent_width == 80


def test_tiny_wan_is_embedded(tiny_wan_folder: Path) -> None:
    model = resolve("tiny-wan", tiny_wan_folder)
    profile = model.profile("128p-17f")
    assert [(profile.at(p).height, profile.at(p).width, profile.at(p).frames) for p in POINTS] == [
        (64, 64, 5), (128, 128, 17), (160, 160, 21),
    ]  # fmt: skip
    assert model.profile() is profile
    stored = json.loads((tiny_wan_folder / "generation.json").read_text())
    assert profile.opt.text_length == model.generation.max_sequence_length == stored["max_sequence_length"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("wan2.1-i2v-14b", "16 channels into one transformer, not 36 channels into one transformer"),
        ("wan2.2-t2v-a14b", "16 channels into one transformer, not 16 channels into two transformers"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(model: str, message: str, tiny_wan_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"another family than {model}: {message}; name .* --wan-model"):
        resolve(model, tiny_wan_folder)


def test_without_an_embedded_checkpoint_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "EMBEDDED", tmp_path / "tiny_wan")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*tiny_wan"):
        resolve("tiny-wan")


def test_a_named_model_takes_its_weights_from_a_folder(small_checkpoint: Path) -> None:
    model = resolve("wan2.1-t2v-1.3b", small_checkpoint)
    assert set(model.profiles) == {"480p-17f", "480p-81f"}
    assert model.checkpoint.folder == small_checkpoint and not model.checkpoint.random


def test_a_checkpoint_of_another_size_is_told_apart(small_checkpoint: Path, tiny_wan_folder: Path) -> None:
    """By who asks: a case may run on a cut-down checkpoint of the model that it names."""
    found = resolve("wan2.1-t2v-1.3b", small_checkpoint).checkpoint
    told = "another size than wan2.1-t2v-1.3b: 3 layers of width 64, not 30 layers of width 1536; name .* --wan-model"
    with pytest.raises(CheckpointError, match=told):
        require_size("wan2.1-t2v-1.3b", found)
    for model in ("tiny-wan", str(tiny_wan_folder)):
        require_size(model, resolve("tiny-wan", tiny_wan_folder).checkpoint)


def test_profiles_are_in_the_latents_of_the_model_s_own_vae() -> None:
    entry = catalogue._ENTRIES["tiny-wan"]
    for checkpoint, spatial in ((resolve("tiny-wan").checkpoint, 8), (wan22.checkpoint(), 16)):
        model = catalogue._resolved("it", checkpoint, entry)
        assert model.spatial == model.profile().opt.spatial == spatial
        assert model.profile().opt.latent_height == 128 // spatial


def test_an_unknown_model_lists_what_there_is() -> None:
    with pytest.raises(CatalogueError, match=r"no model 'tiny-wam'.*tiny-wan, wan2\.1-t2v-1\.3b"):
        resolve("tiny-wam")


def test_an_unknown_profile_lists_what_there_is(small_checkpoint: Path) -> None:
    with pytest.raises(CatalogueError, match="no profile '4k'; there are 64p-9f"):
        resolve(str(small_checkpoint)).profile("4k")


def test_a_folder_of_unknown_size_gets_the_profile_of_its_own_video(small_checkpoint: Path) -> None:
    model = resolve(str(small_checkpoint))
    assert model.name == small_checkpoint.name
    profile = model.profile("64p-9f")
    assert profile.min == profile.opt == profile.max
    assert profile.opt.text_length == 16


def test_a_folder_of_a_known_size_gets_that_model_s_profiles(tiny_wan_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_wan_folder, tmp_path / "mine")
    assert set(resolve(str(copy)).profiles) == {"128p-17f"}


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("value", ["8", 0, -1, True, 2.5])
def test_a_wrong_generation_setting_is_named(small_checkpoint: Path, tmp_path: Path, value: object) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "mine"))
    (copy / "generation.json").write_text(json.dumps({"fps": value}))
    with pytest.raises(CheckpointError, match=r"generation\.json: fps is .*, expected a positive integer"):
        resolve(str(copy))


def test_a_checkpoint_without_generation_settings_gets_wan_s_own(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "mine"))
    (copy / "generation.json").unlink()
    assert resolve(str(copy)).generation == GenerationDefaults()


def test_the_profile_is_that_of_the_models_own_video() -> None:
    large = resolve("wan2.1-t2v-1.3b")
    assert (large.profile().name, large.own_profile().name) == ("480p-17f", "480p-81f")
    assert large.own_profile("480p-17f").name == "480p-17f"
    short = replace(large, profiles={"480p-17f": large.profile("480p-17f")})
    assert short.own_profile().name == "480p-17f", "the first where none serves it"
