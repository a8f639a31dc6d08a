"""The ideas of ``benchmarks/graph_ideas.py`` compute what the graphs compute."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import load_script

from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import Sizes

VIDEO = Sizes(height=32, width=48, frames=5, text_length=8)


@pytest.fixture(scope="module")
def ideas() -> ModuleType:
    return load_script("benchmarks/graph_ideas.py")


def inputs(component: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(spec.shape(component.sizes(VIDEO)), generator=generator).to(
            dtype if spec.dtype == "precision" else getattr(torch, spec.dtype)
        )
        for spec in component.inputs(checkpoint)
    ]


@pytest.mark.parametrize(
    ("name", "idea", "precision", "tolerance"),
    [
        ("dit", "half-layer-norm", "fp16", 1e-2),
        ("dit", "half-modulation", "fp16", 1e-2),
        ("dit", "half-rotation", "fp16", 1e-2),
        ("dit", "one-product", "fp32", 1e-5),
        ("dit", "float32-sums", "fp16", 1e-2),
        ("dit", "float32-scores", "fp16", 1e-2),
        ("dit", "bf16-attention", "fp16", 1e-2),
        ("dit", "fp16-attention", "fp16", 1e-2),
        ("dit", "rotation-by-heads", "fp32", 1e-5),
        ("dit", "rotation-by-sums", "fp32", 1e-5),
        ("dit", "bf16-output", "fp16", 1e-2),
        ("dit", "bf16-values", "fp16", 1e-2),
        ("dit", "centred-values", "fp32", 1e-5),
        ("dit", "centred-values", "fp16", 1e-2),
        ("dit", "bf16-self-attention", "fp16", 1e-2),
        ("dit", "mean-behind", "fp32", 1e-5),
        ("dit", "mean-behind", "fp16", 1e-2),
        ("dit", "prompt-mean-before", "fp16", 1e-2),
        ("dit", "prompt-once", "fp32", 1e-5),
        ("dit", "prompt-once", "fp16", 1e-2),
        ("dit", "guided", "fp32", 1e-5),
        ("dit", "guided", "fp16", 1e-2),
        ("dit", "centred-values+guided", "fp16", 1e-2),
        ("vae_decoder_next", "channels-last", "fp32", 1e-5),
        ("vae_decoder_next", "resized", "fp32", 1e-5),
        ("vae_decoder_next", "transposed-images", "fp32", 1e-5),
        ("vae_decoder_next", "phased", "fp32", 1e-5),
        ("vae_decoder_next", "stacked-frames", "fp32", 1e-5),
        ("vae_decoder_next", "half-convolutions", "fp32", 1e-2),
        ("vae_decoder_next", "half-caches", "fp32", 1e-3),
        ("vae_decoder_next", "top-in-pairs", "fp32", 1e-5),
    ],
)
def test_an_idea_computes_what_the_graph_computes(
    ideas: ModuleType, small_checkpoint: Path, name: str, idea: str, precision: str, tolerance: float
) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    chosen, component = ideas.idea_named(name, idea), get_component(name)
    variant = ideas.changed(component, chosen)
    call = inputs(component, checkpoint, torch.float16 if precision == "fp16" else torch.float32)
    theirs = [
        ideas._last(value) if chosen.channels_last and index else value for index, value in enumerate(call)
    ]
    if chosen.half_caches:
        theirs[1:] = [cache.half() for cache in theirs[1:]]
    with torch.no_grad():
        graph, names = (
            component.graph(checkpoint, precision),
            [spec.name for spec in component.inputs(checkpoint)],
        )
        given = dict(zip(names, call, strict=True))
        expected = graph(*call)
        if chosen.prompts > 1:
            other = ideas._prompts(given, chosen.prompts)[1]
            expected = (torch.cat((expected[0], graph(*other.values())[0])),)
            assert not torch.equal(*expected[0].split(1)), "one prompt makes what the other does"
        if chosen.given is not None:
            made = chosen.given(graph, given)
            theirs = [made[spec.name] for spec in variant.inputs(checkpoint)]
            assert [tuple(value.shape) for value in theirs] == [
                spec.shape(component.sizes(VIDEO)) for spec in variant.inputs(checkpoint)
            ]
        found = variant.graph(checkpoint, precision)(*theirs)
    assert float((found[0].double() - expected[0].double()).norm() / expected[0].double().norm()) < tolerance
    for cache, reference in zip(found[1:], expected[1:], strict=True):
        cache = cache.permute(0, 4, 1, 2, 3) if chosen.channels_last else cache
        assert torch.allclose(cache.to(reference.dtype), reference, atol=1e-4 if tolerance < 1e-4 else 1e-2)
    for spec, value in zip(variant.outputs(checkpoint), found, strict=True):
        assert tuple(value.shape) == spec.shape(component.sizes(VIDEO)), spec


def test_inputs_of_a_point_and_the_exact_outputs(ideas: ModuleType) -> None:
    named = ("dit", "tiny-wan", None, None, "fp16", "onnxruntime", load_settings(environ={}).settings)
    subject = ideas.Subject(*named)
    made = {point: ideas._random_inputs(subject, point, 1, "cpu") for point in ideas.POINTS}
    model, component = resolve("tiny-wan"), get_component("dit")
    for point, calls in made.items():
        sizes = component.sizes_at(model.profile(), point)
        for spec in component.inputs(model.checkpoint):
            assert (tuple(calls[spec.name].shape), calls[spec.name].dtype) == (
                spec.shape(sizes),
                spec.torch_dtype("fp16"),
            )
        length = torch.hypot(calls["rope_cos"], calls["rope_sin"])
        assert torch.allclose(length, torch.ones_like(length)), "no rotation"
    least = made["min"]
    expected = component.graph(model.checkpoint, "fp32")(*(value.float() for value in least.values()))[0]
    found = ideas._exact(subject, least, "cpu")
    assert torch.allclose(found, expected.double(), atol=1e-5), "by heads it is the same"


def test_ideas_change_the_form_that_is_served(
    ideas: ModuleType, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many tokens that attends in BF16."""
    settings = load_settings(environ={}).settings
    named = ("dit", "wan2.1-t2v-1.3b", None, "480p-81f", "fp16", "tensorrt", settings)
    subject, checkpoint = ideas.Subject(*named), Checkpoint.open(small_checkpoint)
    attend, taken = ideas.dit._attend, set()
    monkeypatch.setattr(
        ideas.dit, "_attend", lambda *given: taken.add((given[2].shape[1], given[0].dtype)) or attend(*given)
    )

    def attended_in(idea: str) -> dict[int, torch.dtype]:
        taken.clear()
        subject.form(idea).graph(checkpoint, "fp16")(*inputs(get_component("dit"), checkpoint, torch.float16))
        return dict(taken)

    text, video = VIDEO.text_length, get_component("dit").tokens(VIDEO)
    half, bf16 = torch.float16, torch.bfloat16
    assert attended_in(ideas.AS_IS) == attended_in("one-product") == {text: half, video: bf16}
    assert attended_in("bf16-attention") == {text: bf16, video: bf16}
    assert attended_in("fp16-attention") == attended_in("centred-values") == {text: half, video: half}
    assert attended_in("mean-behind") == {text: half, video: half}


def test_ideas_leave_the_rest_of_a_form_as_it_is(
    ideas: ModuleType, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among few tokens that has centred values."""
    settings = load_settings(environ={}).settings
    subject = ideas.Subject("dit", "wan2.1-t2v-1.3b", None, "480p-17f", "fp16", "tensorrt", settings)
    checkpoint, did = Checkpoint.open(small_checkpoint), set()

    def noted(kind: type, name: str, static: bool = False) -> None:
        original = getattr(kind, name)
        note = lambda *given: did.add(name) or original(*given)  # noqa: E731
        monkeypatch.setattr(kind, name, staticmethod(note) if static else note)

    noted(ideas.dit._CentredAttention, "centre")
    noted(ideas._RotatedByHeads, "rotate", static=True)

    def done_in(idea: str) -> set[str]:
        did.clear()
        subject.form(idea).graph(checkpoint, "fp16")(*inputs(get_component("dit"), checkpoint, torch.float16))
        return set(did)

    for idea in (ideas.AS_IS, "one-product", "float32-scores"):
        assert done_in(idea) == {"centre"}, idea
    assert done_in("rotation-by-heads") == {"centre", "rotate"}
    assert done_in("bf16-self-attention") == done_in("fp16-attention") == set()
    assert done_in("rotation-by-heads+fp16-attention") == {"rotate"}


def test_ideas_about_the_mean_of_values_differ_in_where_it_is_put_back(
    ideas: ModuleType, small_checkpoint: Path
) -> None:
    """Before the product, which then has all of it, or behind, in float32."""
    checkpoint, component = Checkpoint.open(small_checkpoint), get_component("dit")

    def behind(idea: str) -> set[str]:
        """The attentions whose product is given nothing of the mean."""
        graph = ideas.changed(component, ideas.idea_named("dit", idea)).graph(checkpoint, "fp16")
        found, given = set(), []
        for name in ("attn1", "attn2"):
            attention = getattr(graph.blocks[0], name)
            attention.to_out.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
            attended = torch.zeros(1, attention.heads, 3, attention.head_dim, dtype=torch.float16)
            bare, whole = (attention.mixed(attended, centre) for centre in (None, torch.ones(1, 64).half()))
            assert not torch.equal(bare, whole)
            if not given[-1].any():
                found.add(name)
        return found

    assert behind("centred-values") == {"attn2"}
    assert behind("mean-behind") == {"attn1", "attn2"}
    assert behind("centred-values+prompt-mean-before") == set()


def test_two_latents_in_one_step_are_two_steps(ideas: ModuleType, small_checkpoint: Path) -> None:
    checkpoint, component = Checkpoint.open(small_checkpoint), get_component("vae_decoder_next")
    variant = ideas.changed(component, ideas.IDEAS[component.name]["two-latents"])
    latents, *caches = inputs(component, checkpoint, torch.float32)
    later = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = component.graph(checkpoint, "fp32")
        first = step(latents, *caches)
        second = step(later, *first[1:])
        found = variant.graph(checkpoint, "fp32")(torch.cat((latents, later), dim=2), *caches)
    assert torch.allclose(found[0], torch.cat((first[0], second[0]), dim=2), atol=1e-5)
    for left, expected in zip(found[1:], second[1:], strict=True):
        assert torch.allclose(left, expected, atol=1e-4)
    sizes = component.sizes(VIDEO)
    assert [spec.shape(sizes) for spec in variant.outputs(checkpoint)] == [
        tuple(each.shape) for each in found
    ]


def test_every_idea_is_tested(ideas: ModuleType) -> None:
    marks = test_an_idea_computes_what_the_graph_computes.pytestmark  # type: ignore[attr-defined]
    tested = {(row[0], row[1]) for row in marks[0].args[1]}
    assert tested == {
        (name, idea) for name, known in ideas.IDEAS.items() for idea in known if known[idea].latents == 1
    } | {("dit", "centred-values+guided")}


@pytest.mark.slow
def test_the_table_of_a_cpu(
    ideas: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    assert resolve("tiny-wan").profiles
    options = ["--backend", "onnxruntime", "--point", "min", "--json", str(tmp_path / "rows.json")]
    ideas.main(["vae_decoder_next", *options, "channels-last"])  # options may stand before the ideas
    assert "channels-last" in capsys.readouterr().out
    base, row = json.loads((tmp_path / "rows.json").read_text())
    assert base["name"] == ideas.AS_IS and row["milliseconds"] > 0 and row["relative_l2"] < 1e-5
