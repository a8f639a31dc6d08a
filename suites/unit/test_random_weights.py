"""Models without a checkpoint: the true shapes, the same weights everywhere, and marked wherever they are named."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from wan_trt_core.cases import Case
from wan_trt_core.comparison import measure_case
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.memory import measure_here
from wan_trt_core.comparison.targets import target_of
from wan_trt_core.config import Settings, load_settings, with_values
from wan_trt_core.gates import decide, judge
from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.models import catalogue, random_weights
from wan_trt_core.models.catalogue import CatalogueError, resolve
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError, torch_dtype
from wan_trt_core.models.components import components_of, get_component
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.models.prompts import PROMPT, encode_prompt, random_states
from wan_trt_core.models.random_weights import Configs, RandomCheckpoint, uniform, wan21_configs

NAME = "wan2.1-t2v-1.3b"
TINY: Configs = {
    **wan21_configs(128, 3, 128),
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 3, "ffn_dim": 128, "text_dim": 32,
        "freq_dim": 32,
    },
    "vae": {"base_dim": 8, "num_res_blocks": 1},
    "text_encoder": catalogue._OF_TINY["text_encoder"],
}  # fmt: skip
FLOOR = {"min": 90.0, "reason": "float32"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model of the catalogue that has become tiny."""
    entry = replace(
        catalogue._ENTRIES[NAME], configs=TINY, profiles={"64p-9f": ((32, 32, 5), (64, 64, 9), (64, 64, 9))}
    )
    monkeypatch.setitem(catalogue._ENTRIES, NAME, entry)
    return NAME


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    given = {"cache": str(tmp_path_factory.mktemp("cache")), "export.check": False}
    return load_settings(overrides=given, environ={}).settings


def checkpoint(configs: Configs = TINY, **arguments: Any) -> RandomCheckpoint:
    return RandomCheckpoint(configs, "get one", **arguments)


def case_of(component: str, model: str, **fields: Any) -> Case:
    metric = "video.psnr_db" if component == "pipeline" else "psnr_db"
    return Case.model_validate({
        "id": "random", "model": model, "component": component, "profile": "64p-9f", "precision": "fp32",
        "backend": "onnxruntime", "parity": {"limits": {metric: FLOOR}}, **fields,
    })  # fmt: skip


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize(
    ("name", "parameters"), [("wan2.1-t2v-1.3b", 1_418_996_800), ("wan2.1-t2v-14b", 14_288_491_584)]
)
def test_the_models_of_the_catalogue_have_the_published_size(name: str, parameters: int) -> None:
    model = resolve(name).checkpoint
    parts = model.inspect()
    assert parts["transformer"]["parameters"] == parameters
    assert parts["vae"]["parameters"] == 126_892_531
    config = model.config("transformer")
    assert (config["text_dim"], config["in_channels"], config["freq_dim"]) == (4096, 16, 256)
    assert config["attention_head_dim"] == random_weights.HEAD_DIM
    vae = model.config("vae")
    assert (len(vae["latents_mean"]), vae["latents_mean"][0], vae["latents_std"][0]) == (16, -0.7571, 2.8184)
    scheduler = model.scheduler()
    assert type(scheduler).__name__ == "UniPCMultistepScheduler"
    assert (scheduler.config.flow_shift, scheduler.config.use_flow_sigmas) == (3.0, True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wan2.1-i2v-14b", {"transformer": 16_394_878_784, "vae": 126_892_531, "image_encoder": 630_766_080}),
        ("wan2.2-t2v-a14b", {
            "transformer": 14_288_491_584, "transformer_2": 14_288_491_584, "vae": 126_892_531,
        }),
        ("wan2.2-ti2v-5b", {"transformer": 4_999_787_712, "vae": 704_688_668}),
    ],
)  # fmt: skip
def test_the_variants_have_the_published_size(name: str, parameters: dict[str, int]) -> None:
    model = resolve(name)
    assert {part: facts["parameters"] for part, facts in model.checkpoint.inspect().items()} == parameters
    fewer = resolve(name, layers=1).checkpoint
    assert {fewer.config(part)["num_layers"] for part in fewer.parts if part.startswith("transformer")} == {1}


def test_a_text_encoder_is_there_where_it_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match="no part 'transfomer' with weights; there are transformer,"):
        resolve(NAME).checkpoint.config("transfomer")
    with pytest.raises(CheckpointError, match="no tokenizer: its prompts become random states"):
        resolve(NAME).checkpoint.tokenizer()
    model = resolve(NAME, text_encoder=True).checkpoint
    assert model.source == "seeded random, text encoder too"
    assert model.inspect()["text_encoder"]["parameters"] == 5_680_910_336
    assert model.config("text_encoder")["d_model"] == model.config("transformer")["text_dim"]
    assert hashes_of(model) == hashes_of(resolve(NAME).checkpoint)  # so that both have the same engines
    cut = resolve(NAME, text_encoder=True, layers=1).checkpoint
    assert cut.source == "seeded random, 1 of 30 layers, text encoder too"
    assert cut.config("text_encoder") == model.config("text_encoder")


def hashes_of(model: Checkpoint) -> list[str]:
    return [model.weights_sha256(part) for part in ("transformer", "vae")]


@pytest.mark.parametrize(("asked", "wo"), [("bf16", torch.bfloat16), ("fp16", torch.float32)])
def test_a_text_encoder_is_in_the_precision_that_from_pretrained_gives_it(
    asked: str, wo: torch.dtype, tmp_path: Path
) -> None:
    encoder: Any = resolve("tiny-wan2.2-t2v-a14b", text_encoder=True).checkpoint.load("text_encoder", asked)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    encoder.save_pretrained(tmp_path)
    stock = UMT5EncoderModel.from_pretrained(tmp_path, dtype=torch_dtype(asked))
    assert dtypes(encoder) == dtypes(stock)
    assert {value for name, value in dtypes(encoder).items() if "wo" in name.split(".")} == {wo}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_prompt_goes_through_the_text_encoder(precision: str) -> None:
    model = resolve("tiny-wan2.2-t2v-a14b", text_encoder=True)
    pipe = model.checkpoint.pipeline({"text_encoder": precision})
    states, negative = pipe.encode_prompt(PROMPT, "a small blue circle", max_sequence_length=16)
    assert states.isfinite().all() and states.std() > 0.1
    assert not states.equal(negative)


def test_the_experts_have_weights_of_their_own() -> None:
    model = resolve("tiny-wan2.2-t2v-a14b").checkpoint
    one, other = (model.load(part).state_dict() for part in ("transformer", "transformer_2"))
    assert one.keys() == other.keys() and not any(value.equal(other[name]) for name, value in one.items())


def test_the_image_encoder_gives_the_states_that_the_transformer_takes() -> None:
    model = resolve("tiny-wan2.1-i2v").checkpoint
    image = Image.new("RGB", (96, 64), "red")
    states = model.pipeline().encode_image(image)
    image_states = get_component("dit").inputs(model)[-1]
    assert tuple(states.shape) == image_states.axes
    assert states.isfinite().all() and not states.equal(
        model.pipeline().encode_image(Image.new("RGB", (96, 64)))
    )


def test_values_are_a_hash_of_name_and_index() -> None:
    """Against the same hash in Python's own integers: what holds on the CPU holds on every device."""
    digest = hashlib.sha256(b"a name").digest()

    def value(index: int) -> float:
        bits = index ^ int.from_bytes(digest[:4])
        bits = (bits ^ bits >> 16) * 0x21F0AAAD % 2**32
        bits ^= int.from_bytes(digest[4:8])
        bits = (bits ^ bits >> 15) * 0x735A2D97 % 2**32
        return ((bits ^ bits >> 15) // 256 - 2**23) / 2**23

    found = uniform("a name", torch.Size((300, 50)), "cpu")
    assert found.flatten()[:1000].tolist() == [value(index) for index in range(1000)]
    assert abs(float(found.mean())) < 0.02
    assert float(found.std()) == pytest.approx(3**-0.5, rel=0.02)
    assert not found.equal(uniform("another", found.shape, "cpu"))


@pytest.mark.parametrize("at_once", [64, 7_499, 7_500, 14_999, 15_000])
def test_values_are_the_same_in_as_many_pieces_as_they_are_computed(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = uniform("a name", torch.Size((300, 50)), "cpu")
    monkeypatch.setattr(random_weights, "AT_ONCE", at_once)
    assert uniform("a name", torch.Size((300, 50)), "cpu").equal(whole)


def test_the_same_weights_each_time_in_every_precision() -> None:
    first = checkpoint().load("transformer").state_dict()
    again = checkpoint().load("transformer").state_dict()
    half = checkpoint().load("transformer", "fp16").state_dict()
    other = checkpoint(seed=1).load("transformer").state_dict()
    for name, value in first.items():
        assert value.equal(again[name])
        assert value.to(half[name].dtype).equal(half[name])
        assert not value.equal(other[name])
    assert not first["blocks.0.attn1.to_q.weight"].equal(first["blocks.0.attn1.to_k.weight"])


def test_fewer_layers_are_the_first_ones() -> None:
    full, cut = (checkpoint(layers=layers).load("transformer").state_dict() for layers in (None, 2))
    assert {name for name in full if not name.startswith("blocks.2.")} == set(cut)
    assert all(full[name].equal(value) for name, value in cut.items())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_modules_are_as_a_stored_checkpoint_gives_them(
    part: str, precision: str, small_checkpoint: Path
) -> None:
    """The float32 islands, buffers, mode and cache of :meth:`Checkpoint.load`."""
    stored = Checkpoint.open(small_checkpoint)
    model = checkpoint({name: stored.config(name) for name in ("transformer", "vae", "scheduler")})
    expected, found = stored.load(part, precision), model.load(part, precision)
    assert dtypes(found) == dtypes(expected)
    for name, buffer in expected.named_buffers():
        assert buffer.equal(found.get_buffer(name))
    assert not found.training and not any(value.requires_grad for value in found.parameters())
    assert model.load(part, precision) is found


def test_a_copy_on_the_cpu_beside_a_gpu_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "_maker", lambda device: torch.device("cpu:0"))
    model = checkpoint()
    assert model.load("transformer") is not model.load("transformer")
    assert model._modules == {}


def test_no_norm_is_degenerate_and_no_block_is_idle_or_leaves_half_precision() -> None:
    model = checkpoint({**TINY, "transformer": {**TINY["transformer"], "num_layers": 40}})
    block: Any = model.load("transformer").get_submodule("blocks.39")
    for weight in (block.attn1.norm_q.weight, block.attn2.norm_k.weight, block.norm2.weight):
        assert 0.8 < float(weight.min()) < 0.95 and 1.05 < float(weight.max()) < 1.2
    assert float(block.scale_shift_table.abs().max()) < 0.25
    component = get_component("dit")
    call = component.call_tensors(model, Sizes(32, 32, 5, 16))
    blocks = component.reference_blocks(model, "fp16")(call)
    assert all(float(output.abs().max()) < 100 for output in blocks.values())
    for before, after in zip(range(39), range(1, 40), strict=True):
        one, other = blocks[f"blocks.{before}"].float(), blocks[f"blocks.{after}"].float()
        assert float((other - one).norm() / one.norm()) > 0.02


def test_the_vae_decodes_to_more_than_black_and_white() -> None:
    component = get_component("vae_decoder_next")
    model = checkpoint()
    sample: Tensor = component.reference(model, "fp32")(component.call_tensors(model, Sizes(64, 64, 5, 16)))[
        "sample"
    ]
    assert float((sample.abs() == 1).float().mean()) < 0.2
    assert float(sample.std()) > 0.1


def test_there_is_no_text_encoder_and_the_error_says_what_to_do() -> None:
    model = resolve(NAME).checkpoint
    halves = (f"vae_{half}_{step}" for half in ("decoder", "encoder") for step in ("first", "next"))
    assert components_of(model) == ("dit", *halves)
    encoder = get_component("text_encoder")
    for asked in (
        lambda: model.load("text_encoder"),
        lambda: model.config("text_encoder"),
        lambda: model.weights_sha256("text_encoder"),
        lambda: encoder.graph(model, "fp32"),
        lambda: encoder.call_tensors(model, Sizes(32, 32, 5, 16)),
    ):
        with pytest.raises(
            CheckpointError, match=r"random weights has no .*give --wan-checkpoint Wan-AI/Wan2\.1-T2V-1\.3B"
        ):
            asked()


def test_prompts_are_random_states_padded_with_zeros() -> None:
    states = encode_prompt(checkpoint(), PROMPT, 16)
    assert states.shape == (1, 16, 32) and states.dtype == torch.float32
    words = len(PROMPT.split()) + 1
    assert states[:, :words].abs().amin(dim=-1).ne(0).all() and states[:, words:].eq(0).all()
    assert states.equal(random_states(PROMPT, 16, 32))
    assert not states[:, 0].equal(random_states("", 16, 32)[:, 0])
    assert random_states("a b c d", 2, 32).ne(0).all()
    assert states.equal(encode_prompt(checkpoint(text_encoder=True), PROMPT, 16))  # exports load none of it


def test_the_hash_follows_what_the_weights_are_made_from() -> None:
    def hashes(configs: Configs = TINY, **arguments: Any) -> tuple[str, str]:
        model = checkpoint(configs, **arguments)
        return model.weights_sha256("transformer"), model.weights_sha256("vae")

    transformer, vae = hashes()
    assert (transformer, vae) == hashes()
    assert hashes(layers=2)[0] != transformer and hashes(layers=2)[1] == vae
    assert transformer != hashes(seed=1)[0] and vae != hashes(seed=1)[1]
    assert vae != hashes({**TINY, "vae": {"base_dim": 16}})[1]


def test_layers_are_for_random_weights_only(small_checkpoint: Path) -> None:
    assert resolve("wan2.1-t2v-14b", layers=10).checkpoint.source == "seeded random, 10 of 40 layers"
    assert resolve("wan2.1-t2v-14b").checkpoint.source == "seeded random"
    with pytest.raises(CheckpointError, match="layers is 41; the model has 40"):
        resolve("wan2.1-t2v-14b", layers=41)
    for name, folder in (("tiny-wan", None), (str(small_checkpoint), None), (NAME, small_checkpoint)):
        with pytest.raises(
            CatalogueError, match=r"layers is 2, and .* is stored whole: only a model of the catalogue"
        ):
            resolve(name, folder, layers=2)


@pytest.mark.parametrize("engines", ["modules", pytest.param("onnxruntime", marks=pytest.mark.slow), "none"])
def test_a_video_of_stock_diffusers_and_one_of_engines_agree(
    engines: str, tiny: str, settings: Settings, request: pytest.FixtureRequest
) -> None:
    """Engines that run the components' graphs in PyTorch, those that an export comes to, and none."""
    backend = "torch" if engines == "none" else "onnxruntime"
    if engines == "modules":
        request.getfixturevalue("on_modules")
    case = case_of("pipeline", tiny, steps=2, layers=2, backend=backend)
    context = Context(settings)
    measurement = measure_case(case, "parity", context)
    checks = judge(case, "parity", measurement, None, bands_for_hardware=False, require_bands=False)
    assert decide(checks).verdict is Verdict.PASS, [check.message for check in checks]
    assert measurement.facts["random_weights"] == "seeded random, 2 of 3 layers"
    assert len(measurement.metrics["latents.psnr_db"].samples) == 2
    context.close()


def test_cases_with_other_layers_are_other_models(tiny: str, settings: Settings, on_modules: None) -> None:
    context = Context(settings)
    found = [
        measure_case(case_of("dit", tiny, layers=layers), "parity", context).facts["random_weights"]
        for layers in (1, 2)
    ]
    assert found == ["seeded random, 1 of 3 layers", "seeded random, 2 of 3 layers"]
    one, two = (engine.memory()["weights"] for engine in context.engines._engines.values())
    assert one < two
    context.close()


def test_cases_with_a_text_encoder_are_other_models(tiny: str, settings: Settings, on_modules: None) -> None:
    context = Context(settings)
    found = [
        measure_case(case_of("pipeline", tiny, steps=1, text_encoder=given), "parity", context)
        for given in (False, True)
    ]
    assert [each.facts["random_weights"] for each in found] == [
        "seeded random",
        "seeded random, text encoder too",
    ]
    context.close()


def test_a_model_s_checkpoint_is_that_of_its_cases_alone_and_their_records_say_so(
    tiny: str, settings: Settings, small_checkpoint: Path
) -> None:
    context = Context(with_values(settings, {"checkpoint": {"tiny-wan": str(small_checkpoint)}}))
    others = case_of("dit", tiny, backend="torch")
    own = case_of("dit", "tiny-wan", backend="torch", profile="128p-17f")
    assert (context.model(others).checkpoint.random, context.model(own).checkpoint.random) == (True, False)
    assert context.model(own).checkpoint.folder == small_checkpoint
    said = [target_of(case, context).facts() for case in (others, own)]
    assert [facts.get("random_weights") for facts in said] == ["seeded random", None]
    assert [facts.get("checkpoint") for facts in said] == [None, str(small_checkpoint)]
    context.close()


def test_the_reference_s_text_encoder_is_in_float32_unless_the_case_says_otherwise(
    tiny: str, settings: Settings, on_modules: None
) -> None:
    half = {"dit": "fp32", "vae": "fp32", "text_encoder": "bf16"}

    def encoders(**fields: Any) -> list[torch.dtype]:
        context = Context(settings)
        target = target_of(case_of("pipeline", tiny, text_encoder=True, **fields), context)
        found = [arm.pipe.text_encoder.dtype for arm in (target.reference, target.candidate)]
        context.close()
        return found

    assert encoders(precision=half) == [torch.float32, torch.bfloat16]
    assert encoders(precision=half, reference_precision=half) == [torch.bfloat16, torch.bfloat16]
    assert encoders(reference_precision=half) == [torch.bfloat16, torch.float32]


def test_memory_is_marked_too(tiny: str, settings: Settings, on_modules: None) -> None:
    growth = {"memory": {"growth": {"max": 1e9, "reason": "a test of the label"}}}
    case = case_of("vae_decoder_first", tiny, **growth)
    settings = settings.model_copy(
        update={"memory": settings.memory.model_copy(update={"runs": 5, "warmup": 0})}
    )
    assert measure_here(case, settings).facts["random_weights"] == "seeded random"
