"""The rewritten graphs compute what the stock modules do, and a fault in them shows."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wan22
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import AvgDown3D, DupUp3D
from faults import drop_block, negate_angles, permute_caches, relative, scale_block, swap_heads
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from wan_trt_core.cases import COMPOSITES
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Component
from wan_trt_core.models.components import ComponentError, component_names, get_component
from wan_trt_core.models.components.dit import Dit
from wan_trt_core.models.graphs import dit
from wan_trt_core.models.graphs.text_encoder import TextEncoderGraph
from wan_trt_core.models.graphs.vae_decoder import VaeDecoderGraph
from wan_trt_core.models.graphs.vae_encoder import VaeEncoderGraph
from wan_trt_core.models.graphs.vae_shortcuts import DownShortcut, UpShortcut
from wan_trt_core.models.profiles import POINTS, ShapeProfile, Sizes
from wan_trt_core.models.prompts import PROMPT, encode_prompt
from wan_trt_core.models.vae_caches import decoder_caches, encoder_caches

TOLERANCE = 1e-5
"""Relative L2 of a rewritten graph in float32."""

FAULT = 1e-3
"""What a fault must move the output by, at the least: a hundred tolerances."""

NAMES = (
    "dit",
    "dit_2",
    "text_encoder",
    "vae_decoder_first",
    "vae_decoder_next",
    "vae_encoder_first",
    "vae_encoder_next",
)
VIDEO = Sizes(height=32, width=48, frames=9, text_length=12)

OF_SMALL = tuple(("small", name) for name in NAMES if name != "dit_2")
VARIANTS = (
    ("tiny-wan2.1-i2v", "dit"),
    ("tiny-wan2.2-t2v-a14b", "dit_2"),
    *(
        ("tiny-wan2.2-ti2v-5b", name)
        for name in ("dit", *COMPOSITES["vae_decoder"], *COMPOSITES["vae_encoder"])
    ),
)
"""Models that differ from text to video in Wan 2.1, and the components that do."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def of_model(checkpoint: Checkpoint) -> Callable[[str], tuple[Checkpoint, Sizes]]:
    """The checkpoint of a model, and a video of it."""

    def of(model: str) -> tuple[Checkpoint, Sizes]:
        if model == "small":
            return checkpoint, VIDEO
        found = resolve(model)
        return found.checkpoint, found.profile().opt

    return of


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Norm weights and biases are ones and zeros in a new module; a graph that mixed them up would pass."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        elif "norm" in name or "gamma" in name:
            parameter.data = 1 + 0.5 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def transformer(**changes: Any) -> Any:
    config = {
        "num_attention_heads": 3, "attention_head_dim": 32, "num_layers": 3, "ffn_dim": 160, "text_dim": 48,
        "freq_dim": 64, "rope_max_seq_len": 64, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    return randomised(WanTransformer3DModel(**config))


def dit_call(
    shape: tuple[int, int, int] = (3, 8, 12), text_length: int = 20, tokens: int | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn((1, text_length, 48), generator=generator)
    if tokens is not None:
        states[:, tokens:] = 0
    return {
        "hidden_states": torch.randn((1, 16, *shape), generator=generator),
        "timestep": torch.tensor([637]),
        "encoder_hidden_states": states,
    }


def run_dit(model: Any, call: dict[str, Tensor], fault: Callable[[Any], None] | None = None) -> Tensor:
    graph = dit.DitGraph(model)
    if fault is not None:
        fault(graph)
    modulation = dit.Modulation(model)(call["timestep"], call["encoder_hidden_states"].dtype)
    rope = dit.RopeTables(model)(call["hidden_states"])
    states = call["encoder_hidden_states"]
    rows = dit.ReadOnce(dit.rows_needed)(states)
    text = (states[:, :rows], dit.text_scores(states.shape[1], rows))
    sample: Tensor = graph(call["hidden_states"], *modulation, *rope, *text)[0]
    return sample


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 4, 4), (5, 10, 6), (2, 16, 20)])
def test_dit_equals_diffusers(shape: tuple[int, int, int]) -> None:
    model, call = transformer(), dit_call(shape)
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"eps": 1e-3},
        {"cross_attn_norm": False},
        {"attention_head_dim": 12},
        {"attention_head_dim": 64},
        {"attention_head_dim": 128, "num_attention_heads": 1},
    ],
)
def test_dit_equals_diffusers_in_every_configuration(changes: dict[str, Any]) -> None:
    model, call = transformer(**changes), dit_call()
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("text_length", "tokens", "rows"),
    [
        (20, 0, 5),
        (20, 3, 5),  # and two of padding, which stand for 17
        (20, 4, 10),  # one of padding would have to
        (20, 18, 20),
        (20, 20, 20),
        (512, 64, 128),
        (512, 65, 256),
        (512, 512, 512),
        (6, 1, 2),
        (3, 1, 2),
        (1, 1, 1),
    ],
)
def test_few_rows_of_padding_stand_for_all(text_length: int, tokens: int, rows: int) -> None:
    model, call = transformer(), dit_call(text_length=text_length, tokens=tokens)
    assert dit.ReadOnce(dit.rows_needed)(call["encoder_hidden_states"]) == rows
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) < TOLERANCE


@pytest.mark.parametrize("lengths", [(1, 1, 4), (3, 8, 20), (77, 226, 512), (512, 512, 512)])
def test_every_prompt_is_within_what_an_engine_is_built_for(lengths: tuple[int, int, int]) -> None:
    least, opt, most = (Sizes(32, 32, 5, length) for length in lengths)
    profile = ShapeProfile("p", least, opt, most)
    for built, served in ((profile, range(lengths[0], lengths[2] + 1)), (profile.opt_alone(), lengths[1:2])):
        sizes = [Dit().sizes_at(built, point)["text_rows"] for point in POINTS]
        needed = {dit.text_rows(length, tokens) for length in served for tokens in range(length + 1)}
        assert sizes == sorted(sizes)
        assert (min(needed), max(needed)) == (sizes[0], sizes[2])
        assert sizes[1] == dit.text_rows(lengths[1], 0), "tuned for a short prompt"


def test_a_prompt_in_full_is_one_that_the_pipeline_cuts(checkpoint: Checkpoint) -> None:
    component = Dit()
    call = component.call_tensors(checkpoint, VIDEO)
    full = component.in_full(checkpoint, call)
    (states,) = full.pop("encoder_hidden_states")
    long = "a small red square moves left " * 50
    encoded, _ = checkpoint.pipeline().encode_prompt(
        long, do_classifier_free_guidance=False, max_sequence_length=VIDEO.text_length
    )
    assert states.equal(encoded[0])
    assert len(states.unique(dim=0)) == VIDEO.text_length, "no row is padding, or another's"
    assert all(full[name].equal(call[name]) for name in full)


def test_zeros_within_a_prompt_are_no_padding() -> None:
    model, call = transformer(), dit_call(tokens=7)
    states = call["encoder_hidden_states"]
    states[:, :3] = states[:, 4:6] = 0
    states[:, 7:] = -0.0
    assert (dit.tokens_of(states), dit.ReadOnce(dit.rows_needed)(states)) == (7, 10)
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) < TOLERANCE
    states[:, 15] = torch.nan
    assert dit.tokens_of(states) == 16


def test_one_maker_of_inputs_serves_prompts_that_alternate(
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
) -> None:
    """As with and without guidance, and with another ``max_sequence_length``."""
    (checkpoint, video), component = of_model("small"), get_component("dit")
    call, dim = component.call_tensors(checkpoint, video), checkpoint.config("transformer")["text_dim"]
    prepare, reference = component.prepare(checkpoint, "fp32"), component.reference(checkpoint, "fp32")
    graph = component.graph(checkpoint, "fp32")
    for length, tokens, rows in ((12, 1, 3), (12, 9, 12), (12, 1, 3), (24, 1, 6), (16, 6, 8), (24, 4, 12)):
        states = torch.randn((1, length, dim), generator=torch.Generator().manual_seed(length + tokens))
        states[:, tokens:] = 0
        given = {**call, "encoder_hidden_states": states}
        tensors = prepare(given)
        assert len(tensors["text_scores"]) == rows
        assert relative(graph(*tensors.values())[0], reference(given)["sample"]) < TOLERANCE


def test_padding_that_counts_for_itself_alone_is_far_beyond_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, call = transformer(), dit_call(tokens=3)
    monkeypatch.setattr(dit, "text_scores", lambda length, rows: torch.zeros(rows))
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) > FAULT


def test_rows_of_a_prompt_are_read_once_and_again_where_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    tokens_of = dit.tokens_of
    monkeypatch.setattr(dit, "tokens_of", lambda states: reads.append(1) or tokens_of(states))
    rows, states = dit.ReadOnce(dit.rows_needed), dit_call(text_length=64, tokens=5)["encoder_hidden_states"]
    assert rows(states) == rows(states) == 16
    assert len(reads) == 1
    states[:, 5:40] = 1.0
    assert rows(states) == 48
    assert rows(states[:, :48].clone()) == 48, "another prompt"
    assert len(reads) == 3


def test_rows_of_a_prompt_of_inference_mode_are_read_each_time() -> None:
    with torch.inference_mode():
        rows, states = (
            dit.ReadOnce(dit.rows_needed),
            dit_call(text_length=64, tokens=5)["encoder_hidden_states"],
        )
        assert rows(states) == 16
        states[:, 5:40] = 1.0  # which nothing counts
        assert rows(states) == 48


def test_rows_of_a_prompt_keep_no_tensor() -> None:
    rows, states = dit.ReadOnce(dit.rows_needed), torch.ones(1, 64, 48)
    rows(states)
    storage = weakref.ref(states.untyped_storage())
    del states
    assert storage() is None and not rows._known


@pytest.fixture
def modulated(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The timesteps that a modulation was computed of."""
    seen: list[Tensor] = []
    compute = dit.Modulation.__call__

    def noted(self: Any, timestep: Tensor, *given: Any, **named: Any) -> Any:
        seen.append(timestep)
        return compute(self, timestep, *given, **named)

    monkeypatch.setattr(dit.Modulation, "__call__", noted)
    return seen


def modulation(prepare: Callable[[Any], Any], call: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    made = prepare(call)
    return made["modulation"], made["output_modulation"]


OF_TIME = (("small", "dit"), ("tiny-wan2.2-t2v-a14b", "dit_2"), ("tiny-wan2.2-ti2v-5b", "dit"))
"""One timestep, that of a second transformer, and one a token."""


@pytest.mark.parametrize(("model", "name"), OF_TIME)
def test_the_modulation_of_a_step_is_computed_once_and_again_where_the_timestep_changes(
    model: str, name: str, of_model: Callable[[str], tuple[Checkpoint, Sizes]], modulated: list[Tensor]
) -> None:
    """With guidance a step has two calls. What is kept is what each call would have computed, to the bit."""
    (checkpoint, video), component = of_model(model), get_component(name)
    call, prepare = component.call_tensors(checkpoint, video), component.prepare(checkpoint, "fp32")
    other = {**call, "hidden_states": torch.zeros_like(call["hidden_states"])}
    first = [part.clone() for part in modulation(prepare, call)]
    second = modulation(prepare, other)
    assert len(modulated) == 1
    assert all(map(torch.equal, first, second))
    call["timestep"].sub_(100)
    changed = modulation(prepare, call)
    assert len(modulated) == 2 and not torch.equal(changed[0], first[0])
    anew = modulation(component.prepare(checkpoint, "fp32"), call)
    assert all(map(torch.equal, changed, anew)) and len(modulated) == 3
    modulation(prepare, {**call, "timestep": call["timestep"].clone()})
    assert len(modulated) == 4, "another tensor"
    modulation(prepare, call)
    assert len(modulated) == 5, "only that of the last step is kept"


def test_a_modulation_is_kept_of_a_view_and_changes_with_its_base(
    checkpoint: Checkpoint, modulated: list[Tensor]
) -> None:
    """Pipelines expand a scalar of the scheduler's."""
    component, base = get_component("dit"), torch.tensor(900.0)
    call = {**component.call_tensors(checkpoint, VIDEO), "timestep": base.expand(1)}
    prepare = component.prepare(checkpoint, "fp32")
    before = modulation(prepare, call)[0].clone()
    with torch.inference_mode():  # in which a tensor from outside still counts its changes
        base.fill_(100.0)
    assert not torch.equal(modulation(prepare, call)[0], before) and len(modulated) == 2


def test_frames_that_share_a_timestep_have_a_modulation_of_their_number(
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
) -> None:
    (checkpoint, video), component = of_model("tiny-wan2.2-ti2v-5b"), get_component("dit")
    prepare, call = component.prepare(checkpoint, "fp32"), component.call_tensors(checkpoint, video)
    one = {**call, "timestep": torch.tensor([900.0])}
    fewer = {**one, "hidden_states": call["hidden_states"][:, :, :1]}
    frames = call["hidden_states"].shape[2]
    assert [modulation(prepare, each)[0].shape[2] for each in (one, fewer, one)] == [frames, 1, frames]


def test_a_timestep_of_inference_mode_is_computed_with_each_time(
    checkpoint: Checkpoint, modulated: list[Tensor]
) -> None:
    component = get_component("dit")
    prepare = component.prepare(checkpoint, "fp32")
    with torch.inference_mode():
        call = component.call_tensors(checkpoint, VIDEO)
        call["timestep"] = torch.tensor([900.0])
        before = modulation(prepare, call)[0].clone()
        call["timestep"].fill_(100.0)  # which nothing counts
        assert not torch.equal(modulation(prepare, call)[0], before)


def test_a_capture_neither_takes_a_kept_modulation_nor_leaves_one(
    checkpoint: Checkpoint, modulated: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph would have this timestep's in it whatever is written to the tensor; its own is empty until replayed."""
    component = get_component("dit")
    call, prepare = component.call_tensors(checkpoint, VIDEO), component.prepare(checkpoint, "fp32")
    modulation(prepare, call)
    monkeypatch.setattr(dit, "capturing", lambda device: True)
    modulation(prepare, call)
    assert len(modulated) == 2
    call["timestep"].sub_(100)
    modulation(prepare, call)
    monkeypatch.undo()
    kept = modulation(prepare, call)
    assert all(map(torch.equal, kept, modulation(component.prepare(checkpoint, "fp32"), call)))


def test_a_modulation_goes_with_its_timestep(checkpoint: Checkpoint) -> None:
    component = get_component("dit")
    call, prepare = component.call_tensors(checkpoint, VIDEO), component.prepare(checkpoint, "fp32")
    kept = weakref.ref(modulation(prepare, call)[0].untyped_storage())
    assert kept() is not None
    del call["timestep"]
    assert kept() is None


@pytest.mark.parametrize("fault", [drop_block, swap_heads, scale_block])
def test_a_fault_in_the_dit_is_far_beyond_the_tolerance(fault: Callable[[Any], None]) -> None:
    model, call = transformer(), dit_call()
    assert relative(run_dit(model, call, fault), model(**call, return_dict=False)[0]) > FAULT


def test_negated_angles_are_far_beyond_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = transformer(), dit_call()
    tables = dit.rope_tables
    monkeypatch.setattr(dit, "rope_tables", lambda *sizes: negate_angles(tables(*sizes)))
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) > FAULT


def test_unpermuted_rows_are_far_beyond_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = transformer(), dit_call()
    monkeypatch.setattr(dit, "half_rotation_rows", lambda heads, dim: torch.arange(heads * dim))
    assert relative(run_dit(model, call), model(**call, return_dict=False)[0]) > FAULT


def without_image(graph: Any) -> None:
    for value in graph.blocks[1].attn2.add_v.parameters():
        value.zero_()


def with_norm_of_text(graph: Any) -> None:
    attention = graph.blocks[1].attn2
    attention.norm_added_k.copy_(attention.norm_k)


def without_second_norm(graph: Any) -> None:
    graph.image_embedder.norm2_weight.fill_(1.0)


@pytest.mark.parametrize("fault", [without_image, with_norm_of_text, without_second_norm])
def test_a_fault_in_what_attends_to_the_image_is_far_beyond_the_tolerance(
    fault: Callable[[Any], None], of_model: Callable[[str], tuple[Checkpoint, Sizes]]
) -> None:
    (checkpoint, video), component = of_model("tiny-wan2.1-i2v"), get_component("dit")
    call = component.call_tensors(checkpoint, video)
    graph = component.graph(checkpoint, "fp32")
    fault(graph)
    assert differs(component, checkpoint, graph, call) > FAULT


@pytest.mark.parametrize("of_frame", [0, 1])
def test_one_frame_s_timestep_for_all_is_far_beyond_the_tolerance(
    of_frame: int,
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (checkpoint, video), component = of_model("tiny-wan2.2-ti2v-5b"), get_component("dit")
    by_frame = dit.frame_timesteps
    monkeypatch.setattr(
        dit, "frame_timesteps", lambda *given: by_frame(*given)[of_frame].expand(video.latent_frames)
    )
    call = component.call_tensors(checkpoint, video)
    assert differs(component, checkpoint, component.graph(checkpoint, "fp32"), call) > FAULT


def test_a_timestep_for_all_frames_is_one_for_each(
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
) -> None:
    (checkpoint, video), component = of_model("tiny-wan2.2-ti2v-5b"), get_component("dit")
    call = {**component.call_tensors(checkpoint, video), "timestep": torch.tensor([637])}
    assert differs(component, checkpoint, component.graph(checkpoint, "fp32"), call) < TOLERANCE


@pytest.mark.parametrize(
    ("timestep", "frames", "expected"),
    [
        ([0, 0, 7, 7, 7, 7], 3, True), ([0, 0, 7, 7], 2, True), ([0, 7, 7, 7], 2, False),
        ([7, 7, 7, 7, 7], 2, False),
    ],
)  # fmt: skip
def test_timesteps_are_compared_within_each_frame(timestep: list[int], frames: int, expected: bool) -> None:
    assert dit.equal_within_frames(torch.tensor([timestep]), frames) is expected


def test_what_is_asked_of_a_timestep_again_is_not_read_again() -> None:
    asked: list[int] = []
    equal = dit.ReadOnce(
        lambda tensor, frames: asked.append(frames) or dit.equal_within_frames(tensor, frames)
    )
    timestep = torch.tensor([[0, 0, 7, 7]])
    assert (equal(timestep, 2), equal(timestep, 2), asked) == (True, True, [2])
    assert (equal(timestep, 1), asked) == (False, [2, 1])
    timestep[0, 1] = 7
    assert (equal(timestep, 2), asked) == (False, [2, 1, 2])


def test_a_row_of_each_frame_is_cut_out_as_it_lies() -> None:
    """TensorRT makes the rows of a transposed modulation in one slow kernel: 5.9 of 87.7 ms of the 5B on an H200."""
    modulation = torch.randn(12, 3, 8)
    rows = dit._rows(modulation)
    assert all(
        row.is_contiguous() and torch.equal(row[0], want) for row, want in zip(rows, modulation, strict=True)
    )


def test_the_second_expert_is_compared_below_the_boundary(
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
) -> None:
    checkpoint, video = of_model("tiny-wan2.2-t2v-a14b")
    first, second = (
        float(get_component(name).call_tensors(checkpoint, video)["timestep"]) for name in ("dit", "dit_2")
    )
    assert second < 875 <= first


def differs(component: Component, checkpoint: Checkpoint, graph: Any, call: dict[str, Tensor]) -> float:
    expected = component.reference(checkpoint, "fp32")(call)["sample"]
    return relative(graph(*component.prepare(checkpoint, "fp32")(call).values())[0], expected)


def test_rope_tables_are_computed_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    original = dit.rope_tables

    def counted(rope: nn.Module, *size: int) -> tuple[Tensor, Tensor]:
        sizes.append(size)
        return original(rope, *size)

    monkeypatch.setattr(dit, "rope_tables", counted)
    tables = dit.RopeTables(transformer())
    small, large = torch.zeros(1, 16, 1, 4, 4), torch.zeros(1, 16, 2, 4, 6)
    assert tables(small)[0] is tables(small)[0]
    assert tables(large)[0].shape == (2, 2, 3, 16)
    assert sizes == [(1, 2, 2), (2, 2, 3)]


def test_a_video_beyond_the_rope_tables_is_an_error() -> None:
    with pytest.raises(ValueError, match="65 positions; this checkpoint has 64"):
        dit.RopeTables(transformer())(torch.zeros(1, 16, 65, 4, 4))


def test_graphs_never_share_weights_with_the_stock_module() -> None:
    model = transformer()
    stock = {parameter.data_ptr() for parameter in model.parameters()}
    graph = dit.DitGraph(model)
    assert not stock & {parameter.data_ptr() for parameter in graph.parameters()}


def autoencoder(**changes: Any) -> Any:
    torch.manual_seed(0)
    return randomised(AutoencoderKLWan(**{"base_dim": 8, **changes}))


Between = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""What becomes of the caches between two steps."""


def in_steps(graph: Any, vae: Any, chunks: tuple[Tensor, ...], between: Between = tuple) -> Tensor:
    """A whole video by the two graphs of one half of the VAE."""
    first, following = graph(vae, first=True), graph(vae, first=False)
    made, *caches = first(chunks[0])
    every = [made]
    for chunk in chunks[1:]:
        made, *caches = following(chunk, *between(tuple(caches)))
        every.append(made)
    return torch.cat(every, dim=2)


def decode(vae: Any, latents: Tensor, between: Between = tuple) -> Tensor:
    return in_steps(VaeDecoderGraph, vae, latents.split(1, dim=2), between)


def encode(vae: Any, video: Tensor, between: Between = tuple) -> Tensor:
    chunks = video.split([1, *[4] * (video.shape[2] // 4)], dim=2)
    return in_steps(VaeEncoderGraph, vae, chunks, between)


def noise(channels: int, *shape: int) -> Tensor:
    return torch.randn((1, channels, *shape), generator=torch.Generator().manual_seed(1))


CONFIGURATIONS = (
    {},
    {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "num_res_blocks": 1},
    {"temperal_downsample": [True, True, False]},
    wan22.VAE,
)


@pytest.mark.parametrize("changes", CONFIGURATIONS)
@pytest.mark.parametrize("shape", [(4, 4, 6), (1, 8, 4)])
def test_a_video_decoded_in_steps_equals_decode(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    vae = autoencoder(**changes)
    latents = noise(vae.config.z_dim, *shape)
    expected = vae.decode(latents, return_dict=False)[0]
    assert float((expected.abs() < 1).float().mean()) > 0.01, "everything is clamped: nothing is compared"
    assert relative(decode(vae, latents), expected) < TOLERANCE


@pytest.mark.parametrize("changes", CONFIGURATIONS)
@pytest.mark.parametrize("shape", [(13, 32, 48), (5, 16, 32), (1, 64, 32)])
def test_a_video_encoded_in_steps_equals_encode(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    vae, video = autoencoder(**changes), noise(3, *shape)
    assert relative(encode(vae, video), vae.encode(video).latent_dist.mode()) < TOLERANCE


@pytest.mark.parametrize(
    ("inside", "outside", "frames", "size"),
    [(8, 8, 2, 2), (8, 4, 2, 2), (8, 2, 2, 2), (8, 1, 2, 2), (8, 4, 1, 2), (8, 8, 1, 1), (6, 2, 3, 1)],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_shortcuts_of_wan22_equal_diffusers(
    inside: int, outside: int, frames: int, size: int, first: bool
) -> None:
    up, down = DupUp3D(inside, outside, frames, size), AvgDown3D(outside, inside, frames, size)
    small, large = noise(inside, 1 if first else 2, 4, 6), noise(outside, 1 if first else 2 * frames, 4, 6)
    assert torch.equal(UpShortcut(up, first=first)(small), up(small, first_chunk=first))
    torch.testing.assert_close(DownShortcut(down, first=first)(large), down(large))


def test_a_shortcut_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"by \(2, 2, 2\) with channels shared by 16 values is that of no Wan VAE"
    ):
        UpShortcut(DupUp3D(4, 8, 2, 2), first=False)


def zeros(caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(map(torch.zeros_like, caches))


def without_halving(caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Only the caches of the encoder's temporal downsampling are forgotten: they have one frame."""
    return tuple(torch.zeros_like(cache) if cache.shape[2] == 1 else cache for cache in caches)


@pytest.mark.parametrize(
    ("half", "between"),
    [
        ("decoder", permute_caches),
        ("decoder", zeros),
        ("encoder", permute_caches),
        ("encoder", zeros),
        ("encoder", without_halving),
    ],
)
def test_wrong_caches_are_far_beyond_the_tolerance(half: str, between: Between) -> None:
    vae = autoencoder()
    if half == "decoder":
        latents = noise(16, 3, 4, 6)
        found, expected = decode(vae, latents, between), vae.decode(latents, return_dict=False)[0]
    else:
        video = noise(3, 9, 32, 48)
        found, expected = encode(vae, video, between), vae.encode(video).latent_dist.mode()
    assert relative(found, expected) > FAULT


@pytest.mark.parametrize(
    "changes", [*CONFIGURATIONS[1:], {"num_res_blocks": 1, "base_dim": 4}, {"decoder_base_dim": 16}]
)
def test_the_cache_specs_are_those_of_the_stock_modules(changes: dict[str, Any]) -> None:
    vae = autoencoder(**changes)

    def used(half: Any, taken: Tensor, following: Tensor, **first: bool) -> list[tuple[int, ...]]:
        slots: list[Any] = [None] * 64
        half(taken, feat_cache=slots, feat_idx=[0], **first)
        half(following, feat_cache=slots, feat_idx=[0])
        return [tuple(slot.shape) for slot in slots if slot is not None]

    latents, video = (
        torch.zeros(1, vae.config.z_dim, 1, 4, 6),
        torch.zeros(1, vae.config.in_channels, 4, 32, 48),
    )
    for specs, found in (
        (decoder_caches(vae.config), used(vae.decoder, latents, latents, first_chunk=True)),
        (encoder_caches(vae.config), used(vae.encoder, video[:, :, :1], video)),
    ):
        assert found == [spec.taken().shape({"height": 4, "width": 6}) for spec in specs]
        assert len({spec.name for spec in specs} | {spec.output for spec in specs}) == 2 * len(specs)


def encoder(**changes: Any) -> Any:
    config = {
        "vocab_size": 64, "d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 3,
        "dropout_rate": 0.0, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    return randomised(UMT5EncoderModel(UMT5Config(**config)))


@pytest.mark.parametrize(("length", "words"), [(12, 12), (32, 5), (200, 180)])
@pytest.mark.parametrize("gated", [True, False])
def test_the_text_encoder_equals_transformers(length: int, words: int, gated: bool) -> None:
    model = encoder(feed_forward_proj="gated-gelu" if gated else "relu")
    ids = torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < words).long()[None]
    expected = model(ids, mask).last_hidden_state
    assert relative(TextEncoderGraph(model)(ids, mask)[0], expected) < TOLERANCE
    if words < length:
        assert relative(TextEncoderGraph(model)(ids, torch.ones_like(mask))[0], expected) > FAULT


@pytest.mark.parametrize("fault", [drop_block, scale_block])
def test_a_fault_in_the_text_encoder_is_far_beyond_the_tolerance(fault: Callable[[Any], None]) -> None:
    model = encoder()
    graph = TextEncoderGraph(model)
    fault(graph)
    ids, mask = torch.arange(1, 13)[None], torch.ones(1, 12, dtype=torch.long)
    assert relative(graph(ids, mask)[0], model(ids, mask).last_hidden_state) > FAULT


def test_components_are_found_by_file() -> None:
    assert component_names() == NAMES
    assert all(get_component(name).name == name for name in NAMES)
    with pytest.raises(
        ComponentError, match="no component 'unet'; there are dit, dit_2, text_encoder, vae_decoder_first"
    ):
        get_component("unet")


def test_describing_components_needs_no_torch(small_checkpoint: Path) -> None:
    script = (
        "import sys; from wan_trt_core.models.checkpoint import Checkpoint;"
        "from wan_trt_core.models.components import components_of, get_component;"
        f"checkpoint = Checkpoint.open({str(small_checkpoint)!r});"
        "[get_component(name).describe(checkpoint) for name in components_of(checkpoint)]; checkpoint.inspect();"
        "assert not {'torch', 'diffusers', 'transformers', 'onnx'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(("model", "name"), OF_SMALL + VARIANTS)
def test_a_component_keeps_what_it_declares(
    model: str, name: str, of_model: Callable[[str], tuple[Checkpoint, Sizes]]
) -> None:
    checkpoint, video = of_model(model)
    component, sizes = get_component(name), get_component(name).sizes(video)
    call = component.call_tensors(checkpoint, video)
    tensors = component.prepare(checkpoint, "fp32")(call)
    taken = {**sizes, "text_rows": len(tensors.get("text_scores", ()))}  # as many as the prompt needs
    assert taken["text_rows"] <= video.text_length
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        spec.name: spec.shape(taken) for spec in component.inputs(checkpoint)
    }
    assert list(tensors) == [spec.name for spec in component.inputs(checkpoint)]
    for precision in component.precisions:
        made = component.prepare(checkpoint, precision)(call)
        assert {key: tensor.dtype for key, tensor in made.items()} == {
            spec.name: spec.torch_dtype(precision) for spec in component.inputs(checkpoint)
        }

    outputs, blocks = component.outputs(checkpoint), component.blocks(checkpoint)
    expected = component.reference(checkpoint, "fp32")(call)
    expected_blocks = component.reference_blocks(checkpoint, "fp32")(call)
    assert {key: tuple(tensor.shape) for key, tensor in expected.items()} == {
        spec.name: spec.shape(sizes) for spec in outputs
    }
    assert tuple(expected_blocks) == blocks

    found = component.graph(checkpoint, "fp32", block_outputs=True)(*tensors.values())
    named = dict(zip([*(spec.name for spec in outputs), *blocks], found, strict=True))
    for key, tensor in {**expected, **expected_blocks}.items():
        assert named[key].shape == tensor.shape
        assert relative(named[key], tensor) < TOLERANCE or not tensor.any(), key
    plain = component.graph(checkpoint, "fp32")(*tensors.values())
    assert len(plain) == len(outputs)


@pytest.mark.parametrize(
    ("model", "name", "precision", "dtype", "tolerance"),
    [
        *((*of, "fp16", torch.float16, 1e-2) for of in OF_SMALL + VARIANTS),
        ("small", "dit", "bf16", torch.bfloat16, 5e-2),
    ],
)
def test_half_precision_stays_near_float32(
    model: str,
    name: str,
    precision: str,
    dtype: torch.dtype,
    tolerance: float,
    of_model: Callable[[str], tuple[Checkpoint, Sizes]],
) -> None:
    component, (checkpoint, video) = get_component(name), of_model(model)
    call = component.call_tensors(checkpoint, video)
    tensors = component.prepare(checkpoint, precision)(call)
    found = component.graph(checkpoint, precision)(*tensors.values())[0]
    expected = next(iter(component.reference(checkpoint, "fp32")(call).values()))
    assert found.dtype == dtype
    assert relative(found, expected) < tolerance


@pytest.mark.parametrize("model", ["small", "tiny-wan2.1-i2v"])
def test_what_every_token_attends_to_is_embedded_in_float32(
    model: str, of_model: Callable[[str], tuple[Checkpoint, Sizes]]
) -> None:
    """An error in it would be the same for all of them, and not level out."""
    (checkpoint, video), component = of_model(model), Dit()
    call = component.in_full(checkpoint, component.call_tensors(checkpoint, video))
    graph = component.graph(checkpoint, "fp16", block_outputs=True)
    found = graph(*component.prepare(checkpoint, "fp16")(call).values())
    named = dict(zip(component.blocks(checkpoint), found[1:], strict=True))
    exact, half = (component.reference_blocks(checkpoint, precision)(call) for precision in ("fp32", "fp16"))
    embedders = [name for name in named if name.endswith("_embedder")]
    assert len(embedders) == 1 + (model == "tiny-wan2.1-i2v")
    for name in embedders:
        assert named[name].dtype == half[name].dtype == torch.float16
        assert relative(named[name], exact[name]) < relative(half[name], exact[name])


@pytest.mark.parametrize("model", ["small", "tiny-wan2.1-i2v"])
def test_half_precision_attends_to_values_less_their_mean(
    model: str, of_model: Callable[[str], tuple[Checkpoint, Sizes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To those of the prompt always, counting its padding as often as there is of it; of the video where asked to."""
    checkpoint, video = of_model(model)
    attend, tokens, means = dit._attend, Dit().tokens(video), dict[str, float]()
    monkeypatch.setattr(dit, "CENTRE_EVERY", 1)

    def seen(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None = None) -> Tensor:
        counts = torch.ones(value.shape[1]) if added is None else added.float().exp()
        mean = (value.float() * counts.view(1, -1, 1, 1)).sum(1) / counts.sum()
        to = "video" if value.shape[1] == tokens else "prompt" if added is not None else "image"
        means.setdefault(to, float(mean.norm() / value.float().norm(dim=(2, 3)).mean()))
        return attend(query, key, value, added)

    monkeypatch.setattr(dit, "_attend", seen)

    def run(precision: str, form: Any = "plain") -> tuple[float, dict[str, float]]:
        means.clear()
        component = Dit().with_self_attention(form)
        call = component.in_full(checkpoint, component.call_tensors(checkpoint, video))
        tensors = component.prepare(checkpoint, precision)(call)
        found = component.graph(checkpoint, precision)(*tensors.values())[0]
        return relative(found, component.reference(checkpoint, "fp32")(call)["sample"]), dict(means)

    error, plain = run("fp16")
    assert plain["prompt"] < 1e-3 < 1e-2 < plain["video"]
    other, centred = run("fp16", "centred")
    assert centred["prompt"] == plain["prompt"] and centred["video"] < 1e-3
    assert other < 1.2 * error < 1e-2
    for precision in ("fp32", "bf16"):
        assert run(precision, "centred") == run(precision), "sums are float32 there"
        assert min(means.values()) > 1e-2, "so all is as it was"


@pytest.mark.parametrize("model", ["small", "tiny-wan2.1-i2v"])
def test_bf16_attention_is_that_of_the_video_to_itself(
    model: str, of_model: Callable[[str], tuple[Checkpoint, Sizes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint, video), component = of_model(model), Dit().with_self_attention("bf16")
    call = component.call_tensors(checkpoint, video)
    attend, taken, tokens = dit._attend, set(), component.tokens(video)

    def seen(query: Tensor, key: Tensor, value: Tensor, *added: Tensor | None) -> Tensor:
        taken.add((key.shape[1] == tokens, query.dtype, key.dtype, value.dtype))
        return attend(query, key, value, *added)

    monkeypatch.setattr(dit, "_attend", seen)

    def run(component: Component, precision: str) -> Tensor:
        tensors = component.prepare(checkpoint, precision)(call)
        return component.graph(checkpoint, precision)(*tensors.values())[0]

    found = run(component, "fp16")
    assert taken == {(True, *(torch.bfloat16,) * 3), (False, *(torch.float16,) * 3)}
    assert found.dtype == torch.float16
    expected = component.reference(checkpoint, "fp32")(call)["sample"]
    rounded = run(Dit(), "fp16")
    assert relative(rounded, expected) < relative(found, expected) < 1e-2, "eight bits of eleven"
    for other in ("fp32", "bf16"):
        assert torch.equal(run(component, other), run(Dit(), other)), f"nothing else is in {other}"


def test_hooks_are_gone_after_the_blocks_were_taken(checkpoint: Checkpoint) -> None:
    component = get_component("dit")
    component.reference_blocks(checkpoint, "fp32")(component.call_tensors(checkpoint, VIDEO))
    assert not any(module._forward_hooks for module in checkpoint.load("transformer").modules())


def test_call_tensors_follow_the_seed(checkpoint: Checkpoint) -> None:
    component = get_component("dit")
    first, again, other = (
        component.call_tensors(checkpoint, VIDEO, seed=seed)["hidden_states"] for seed in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)


def test_the_prompt_is_encoded_as_the_pipeline_does_it(checkpoint: Checkpoint) -> None:
    expected, _ = checkpoint.pipeline().encode_prompt(
        PROMPT, do_classifier_free_guidance=False, max_sequence_length=12
    )
    assert encode_prompt(checkpoint, PROMPT, 12).equal(expected)


def test_a_prompt_is_encoded_once_and_its_encoder_let_go(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UMT5-XXL takes 23 GB of host memory in float32, and an export needs the room afterwards."""
    opened, encoders = Checkpoint.open(small_checkpoint), list[weakref.ref[Any]]()
    fresh = opened.fresh

    def noted(part: str, *given: Any) -> Any:
        module = fresh(part, *given)
        encoders.append(weakref.ref(module))
        return module

    monkeypatch.setattr(opened, "fresh", noted)
    pipe = opened.pipeline()
    expected = {
        length: pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=length)[0]
        for length in (16, 12, 20, 2)
    }
    del pipe
    opened._modules.clear()
    encoders.clear()
    states = encode_prompt(opened, PROMPT, 16)
    (encoder,) = encoders
    assert encoder() is None and not opened._modules
    assert states.equal(expected[16])
    states.zero_()  # the caller's own
    for length in (16, 12, 20):
        torch.testing.assert_close(encode_prompt(opened, PROMPT, length), expected[length])
    assert len(encoders) == 1, "padding is no reason to encode again"
    torch.testing.assert_close(encode_prompt(opened, PROMPT, 2), expected[2])
    assert len(encoders) == 2, "a prompt that is cut is another"
    torch.testing.assert_close(encode_prompt(opened, PROMPT, 20), expected[20])
    encode_prompt(opened, "a circle", 16)
    assert len(encoders) == 3
    kept = opened.load("text_encoder")
    encode_prompt(opened, "a square", 16)
    assert len(encoders) == 4 and opened.prompt_encoder() is kept, "one that is there anyway serves"


def test_an_unknown_precision_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(ComponentError, match="dit has no precision 'int8'; it has fp32, fp16"):
        get_component("dit").graph(checkpoint, "int8")


@pytest.mark.parametrize(
    ("name", "part", "change", "message"),
    [
        ("dit", "transformer", {"pos_embed_seq_len": 514}, "first and last frame"),
        ("dit", "transformer", {"patch_size": [1, 1, 1]}, r"patch_size is \[1, 1, 1\]"),
        ("vae_encoder_next", "vae", {"attn_scales": [1.0]}, r"attn_scales is \[1\.0\]"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    name: str, part: str, change: dict[str, Any], message: str, checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = {**checkpoint.config(part), **change}
    monkeypatch.setattr(checkpoint, "config", lambda part: config)
    with pytest.raises(ComponentError, match=message):
        get_component(name).inputs(checkpoint)


def test_sizes_of_another_vae_are_refused() -> None:
    with pytest.raises(
        ComponentError, match=r"covers 16 pixels, and the sizes given are for 8: Sizes\(…, spatial=16\)"
    ):
        get_component("vae_decoder_next").call_tensors(wan22.checkpoint(), VIDEO)
