"""Components that take turns: what waits holds nothing on the device, and the video is the same to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, current_thread
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from module_engine import ModuleEngine, component_engine
from torch import Tensor

from wan_trt_core.backends.base import BackendUnavailable, Engine, EngineError
from wan_trt_core.backends.torch_compile import BACKEND as TORCH_COMPILE
from wan_trt_core.config import PipelineSettings, Settings, load_settings
from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel, resolve
from wan_trt_core.pipeline import engines as engines_module
from wan_trt_core.pipeline import offload as offload_module
from wan_trt_core.pipeline.assembly import in_order, on_engines, placed
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.offload import Needs, OffloadedEngine, Turns, fits_beside, offload, overlap
from wan_trt_core.pipeline.swap import REPLACED

SMALL = GenerationDefaults(32, 32, 5, num_inference_steps=1, guidance_scale=1, max_sequence_length=16, fps=8)
PARTS = ("text_encoder", "transformer", "vae")
OFFLOAD = Settings(device="cpu", pipeline=PipelineSettings(offload=True))


@pytest.fixture
def model(small_checkpoint: Path) -> ResolvedModel:
    return resolve("small", small_checkpoint)


def video(pipe: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return generate(pipe, "red", SMALL).frames


def on_device(pipe: Any, hosts: Mapping[str, int]) -> list[str]:
    """The parts whose weights are not those on the host."""
    return [part for part in PARTS if next(getattr(pipe, part).parameters()).data_ptr() != hosts[part]]


def test_modules_take_turns(model: ResolvedModel) -> None:
    expected = video(model.checkpoint.pipeline())
    pipe = model.checkpoint.apart().pipeline()
    offload(pipe, Turns(), "cpu")
    hosts = {part: next(getattr(pipe, part).parameters()).data_ptr() for part in PARTS}
    seen: dict[str, list[str]] = {}
    for part, inside in (("text_encoder", "encoder"), ("transformer", "blocks.0"), ("vae", "decoder")):

        def look(*_: object, part: str = part) -> None:
            seen[part] = on_device(pipe, hosts)

        getattr(pipe, part).get_submodule(inside).register_forward_pre_hook(look)
    for _ in range(2):  # the second video begins where the first has ended
        assert np.array_equal(video(pipe), expected)
        assert seen == {part: [part] for part in PARTS}
    pipe.remove_all_hooks()
    assert on_device(pipe, hosts) == []
    assert not any(hasattr(getattr(pipe, part), "_hf_hook") for part in PARTS)
    assert np.array_equal(video(pipe), expected)


def test_a_part_that_stays_leaves_the_pipeline_where_the_others_work(model: ResolvedModel) -> None:
    """PyTorch's ``meta`` stands for the device; it holds no values, but says where everything would be."""
    settings = Settings(device="cpu", pipeline=PipelineSettings(offload=True, text_encoder_device="cpu"))
    pipe = placed(model.checkpoint, {}, "meta", settings)
    assert pipe._execution_device == torch.device("meta")
    assert [getattr(pipe, part).device.type for part in PARTS] == 3 * ["cpu"]
    hosts = {part: next(getattr(pipe, part).parameters()).data_ptr() for part in PARTS}
    for part in PARTS:
        pipe.components[part]._hf_hook.execution_device = torch.device(
            "cpu"
        )  # to which weights can be brought
        getattr(pipe, part)._hf_hook.pre_forward(getattr(pipe, part))
        assert on_device(pipe, hosts) == ([] if part == "text_encoder" else [part])
    shared = model.checkpoint.pipeline()
    assert shared.transformer is not pipe.transformer and not hasattr(shared.transformer, "_hf_hook")


def test_the_text_encoder_alone_stays_on_the_cpu(model: ResolvedModel) -> None:
    settings = Settings(device="cpu", pipeline=PipelineSettings(text_encoder_device="cpu"))
    pipe = placed(model.checkpoint, {}, "meta", settings)
    assert [getattr(pipe, part).device.type for part in PARTS] == ["cpu", "meta", "meta"]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ModuleEngine]]:
    """Every engine that was loaded, in order; PyTorch runs them."""
    engines: list[ModuleEngine] = []

    def load(
        component: str, model: ResolvedModel, profile: object, precision: str, *_: Any, **__: Any
    ) -> Engine:
        engines.append(component_engine(component, model.checkpoint, precision))
        return engines[-1]

    monkeypatch.setattr(engines_module, "load_engine", load)
    monkeypatch.setattr(EngineStore, "build", lambda *_, **__: None)
    yield engines


def test_engines_take_turns(model: ResolvedModel, loaded: list[ModuleEngine]) -> None:
    expected = video(model.checkpoint.pipeline())
    with EngineStore(OFFLOAD) as store:
        given = (model, model.profile(), "fp32", "torch")
        pipe = on_engines(*given, store, OFFLOAD, "cpu", text_encoder=True)
        made = store.pipeline(*given, text_encoder=True)
        names = {"text": made.text_encoder, "dit": made.dit, "first": made.vae_first, "next": made.vae_next}
        holding = [name for name, engine in names.items() if engine.memory()["weights"]]
        assert holding == ["text"]  # the last to be loaded
        assert np.abs(video(pipe) - expected).max() < 1e-3
        holding = [name for name, engine in names.items() if engine.memory()["weights"]]
        assert holding == ["first", "next"]
        assert len(loaded) == 7  # each once to know it, and again in its turn: the text encoder's is first
        assert sum(not engine.closed for engine in loaded) == 2
    assert all(engine.closed for engine in loaded)
    with pytest.raises(EngineError, match="closed"):
        made.dit.run({})


def test_the_video_of_real_engines_is_the_same_to_the_bit(
    small_checkpoint: Path, engine_cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's, and the text encoder in PyTorch: all that takes turns on a GPU takes turns here."""
    model, loads = resolve(str(small_checkpoint)), list[str]()
    load = engines_module.load_engine

    def counted(component: str, *given: Any, **named: Any) -> Engine:
        loads.append(component)
        return load(component, *given, **named)

    monkeypatch.setattr(engines_module, "load_engine", counted)

    def videos(offloaded: bool) -> Iterator[np.ndarray[Any, Any]]:
        changed = {
            "cache": str(engine_cache_folder),
            "export.check": False,
            "device": "cpu",
            "pipeline.offload": offloaded,
        }
        settings = load_settings(overrides=changed, environ={}).settings
        own = replace(model, checkpoint=model.checkpoint.apart())
        loads.clear()
        with EngineStore(settings) as store:
            pipe = on_engines(own, model.profile(), "fp32", "onnxruntime", store, settings, "cpu")
            if offloaded:  # which settings alone do on a GPU only
                offload(pipe, store.turns, "cpu", leave=REPLACED)
            for _ in range(2):
                with torch.inference_mode():
                    yield generate(pipe, "red", model.generation).frames

    plain = [*videos(False)]
    once = Counter(loads)
    offloaded = [*videos(True)]
    assert once == {"dit": 1, "vae_decoder_first": 1, "vae_decoder_next": 1}
    assert loads.count("dit") == 3 and loads.count("vae_decoder_next") >= 3  # to know it, and for each video
    assert float(plain[0].std()) > 0
    for found in offloaded:
        assert np.array_equal(found, plain[0]) and np.array_equal(found, plain[1])


def test_an_engine_that_waits_is_loaded_by_whatever_asks_for_it(
    loaded: list[ModuleEngine], model: Any
) -> None:
    turns = Turns()
    engine = OffloadedEngine(lambda: engines_module.load_engine("dit", model, None, "fp32"), turns, "dit")  # type: ignore[arg-type, call-arg]
    turns.take("vae")
    assert loaded[0].closed and not any(engine.memory().values())
    with suppress(EngineError):
        engine.run({})
    assert len(loaded) == 2 and any(engine.memory().values())
    turns.take("dit")
    assert not loaded[1].closed


class GraphEngine(Engine):
    """Notes whether each of its runs may be replayed as a graph."""

    inputs, outputs = {}, {}

    def __init__(self, noted: list[bool]) -> None:
        self.noted, self.replays = noted, True

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.noted.append(self.replays)
        return {}

    @property
    def runs(self) -> int:
        return len(self.noted)

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        self.replays = False
        yield
        self.replays = True

    @property
    def graphs(self) -> int:
        return 3

    def memory(self) -> dict[str, int]:
        return {}


def test_without_graphs_an_engine_has_none_after_it_came_back() -> None:
    """The arm that shows what graphs gain leaves those of all its engines aside before the first runs."""
    turns, loads, noted = Turns(), list[str](), dict[str, list[bool]]()

    def load(stage: str) -> Engine:
        loads.append(stage)
        return GraphEngine(noted.setdefault(stage, []))

    engines = [OffloadedEngine(partial(load, stage), turns, stage) for stage in ("transformer", "vae")]
    assert [engine.graphs for engine in engines] == [0, 3], "only the last to be loaded holds any"
    loads.clear()
    with ExitStack() as off:
        for engine in engines:
            off.enter_context(engine.without_graphs())
        assert loads == []  # what is not needed yet is not loaded: the arm is timed
        for engine in engines:
            engine.run({})
    for engine in engines:
        engine.run({})
    assert noted == {"transformer": [False, True], "vae": [False, True]}


def test_an_engine_comes_back_to_the_gpu_that_it_was_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one is each thread's own, and that of a thread which a server starts is the first."""
    current, seen = [1], list[int]()

    @contextmanager
    def device(index: int) -> Iterator[None]:
        before, current[0] = current[0], current[0] if index < 0 else index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)

    def load() -> Engine:
        seen.append(current[0])
        return GraphEngine([])

    turns = Turns()
    engine = OffloadedEngine(load, turns, "transformer")
    turns.take("vae")
    current[0] = 0
    engine.run({})
    assert seen == [1, 1]


# ---- the next stage's engines come while the one before is at work ------------------------------------------


@pytest.mark.parametrize(
    ("stages", "fits"),
    [
        ([], ()),
        ([Needs(5)], ()),
        ([Needs(5), Needs(3, 2)], (False,)),  # 8, where neither needs more than 5
        ([Needs(2), Needs(3, 2)], (True,)),  # 5, as the second needs at work anyway
        ([Needs(2), Needs(3, 1)], (False,)),
        ([Needs(11), Needs(3, 1), Needs(1, 9)], (False, True)),
        ([Needs(0), Needs(3, 1), Needs(2)], (True, False)),  # what works elsewhere leaves room for the next
    ],
)
def test_what_comes_early_makes_no_peak(stages: list[Needs], fits: tuple[bool, ...]) -> None:
    assert fits_beside(stages) == fits


class KnownEngine(GraphEngine):
    """Of a known size, loaded by a known thread."""

    def __init__(self, weights: int, working: int = 0) -> None:
        super().__init__([])
        self.weights, self.needed, self.by, self.closed = weights, working, current_thread().name, False

    @property
    def working(self) -> int:
        return self.needed

    def memory(self) -> dict[str, int]:
        return {"weights": self.weights}

    def close(self) -> None:
        self.closed = True


class Loaded:
    """Engines of a stage: ``load`` of an :class:`OffloadedEngine`, which may wait, or fail once."""

    def __init__(self, turns: Turns, stage: str, weights: int, working: int = 0) -> None:
        self.found: list[KnownEngine] = []
        self.may, self.fails = Event(), False
        self.may.set()
        self._of = weights, working
        self.engine = OffloadedEngine(self.load, turns, stage)
        self.engines = (self.engine,)

    def load(self) -> Engine:
        assert self.may.wait(10)
        if self.fails:
            self.fails = False
            raise EngineError("no room")
        self.found.append(KnownEngine(*self._of))
        return self.found[-1]

    def loaded_by(self) -> list[str]:
        return [engine.by.partition("_")[0] for engine in self.found]


@pytest.fixture
def pair() -> tuple[Loaded, Loaded]:
    """A transformer of 3 bytes, and a decoder of 1 that needs 9 at work, each of which was loaded once."""
    turns = Turns()
    found = Loaded(turns, "transformer", 3), Loaded(turns, "vae", 1, 9)
    overlap(None, *found)
    return found


def test_an_engine_comes_while_the_one_before_is_at_work(pair: tuple[Loaded, Loaded]) -> None:
    dit, vae = pair
    vae.may.clear()
    for _ in range(3):  # denoising steps
        dit.engine.run({})
    assert vae.engine.memory() == {"weights": 0} and not dit.found[-1].closed
    vae.may.set()
    vae.engine.run({})
    assert vae.loaded_by() == ["MainThread", "onload"] and dit.found[-1].closed
    assert [engine.runs for engine in (dit.found[-1], vae.found[-1])] == [3, 1]
    dit.engine.run({})
    assert dit.loaded_by() == 3 * ["MainThread"], "a video's first stage follows nothing"
    wait_for(lambda: len(vae.found) == 3)
    assert vae.engine.memory() == {"weights": 1}, "what it holds is told while it waits"
    for each in pair:
        each.engine.close()
    assert all(engine.closed for each in pair for engine in each.found)


def test_nothing_comes_early_where_both_would_need_more(pair: tuple[Loaded, Loaded]) -> None:
    dit, vae = pair
    wide = Loaded(Turns(), "vae", 1)
    overlap(dit, wide)
    dit.engine.run({})
    assert dit.engine.followers == () and len(wide.found) == 1 and len(vae.found) == 1


def test_what_could_not_come_early_is_loaded_in_its_turn(
    pair: tuple[Loaded, Loaded], caplog: pytest.LogCaptureFixture
) -> None:
    dit, vae = pair
    vae.fails = True
    dit.engine.run({})
    vae.engine.run({})
    assert vae.loaded_by() == 2 * ["MainThread"] and vae.found[-1].runs == 1
    assert "could not be loaded ahead and is loaded now: no room" in caplog.text
    vae.fails = True
    dit.engine.run({})
    wait_for(lambda: not vae.fails)
    vae.engine.close()  # without a word of what is not needed any more


def test_what_came_early_for_nothing_goes(pair: tuple[Loaded, Loaded]) -> None:
    """The video was interrupted, and the next one begins."""
    dit, vae = pair
    dit.engine.run({})
    dit.engine._turns.take("text_encoder")
    assert vae.loaded_by() == ["MainThread", "onload"] and all(engine.closed for engine in vae.found)
    assert vae.engine.memory() == {"weights": 0}


def wait_for(done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if done():
            return
        sleep(0.01)
    pytest.fail("it did not come")


def test_the_engines_of_a_video_come_early(
    model: ResolvedModel, loaded: list[ModuleEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformer's while the text encoder is at work, wherever that is; the decoder's while the transformer is."""
    expected = video(model.checkpoint.pipeline())
    monkeypatch.setattr(offload_module, "fits_beside", lambda stages: (len(stages) - 1) * (True,))
    settings = Settings(device="cpu", pipeline=PipelineSettings(offload=True, text_encoder_device="cpu"))
    by: dict[str, set[str]] = {}
    load = engines_module.load_engine

    def noted(component: str, *given: Any, **named: Any) -> Engine:
        by.setdefault(component, set()).add(current_thread().name.partition("_")[0])
        return load(component, *given, **named)

    monkeypatch.setattr(engines_module, "load_engine", noted)
    with EngineStore(settings) as store:
        own = replace(model, checkpoint=model.checkpoint.apart())
        pipe = on_engines(own, model.profile(), "fp32", "torch", store, settings, "cpu")
        offload(pipe, store.turns, "cpu", stay=("text_encoder",), leave=REPLACED)
        overlap(*in_order(pipe).values())
        by.clear()
        for _ in range(2):
            assert np.abs(video(pipe) - expected).max() < 1e-3
        assert by == {key: {"onload"} for key in ("dit", "vae_decoder_first", "vae_decoder_next")}
        assert sum(not engine.closed for engine in loaded) == 2
    assert all(engine.closed for engine in loaded)


def test_an_image_is_encoded_before_the_denoising(model: ResolvedModel) -> None:
    """So nothing comes while its prompt is encoded: it would be sent away again."""
    pipe = model.checkpoint.pipeline()
    assert [*in_order(pipe)] == ["text_encoder", "transformer", "vae"]
    parts = {**pipe.components, "image_encoder": None, "image_processor": None}
    assert [*in_order(WanImageToVideoPipeline(**parts))] == ["transformer", "vae"]


def test_weights_that_do_not_all_fit_are_given_back(
    model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = model.checkpoint.apart().pipeline()
    turns = Turns()
    offload(pipe, turns, "cpu")
    module, moved, to = pipe.transformer, [0], Tensor.to
    hosts = [tensor.data_ptr() for tensor in module.parameters()]

    def full(tensor: Tensor, *given: Any, **keywords: Any) -> Tensor:
        moved[0] += 1
        if moved[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(tensor, *given, **keywords)

    with monkeypatch.context() as short, pytest.raises(torch.OutOfMemoryError):
        short.setattr(Tensor, "to", full)
        module._hf_hook.pre_forward(module)
    assert [tensor.data_ptr() for tensor in module.parameters()] == hosts
    module._hf_hook.pre_forward(module)  # when there is room again
    assert not {tensor.data_ptr() for tensor in module.parameters()} & {*hosts}


def test_compiled_modules_are_not_moved() -> None:
    with pytest.raises(BackendUnavailable, match=r"pipeline\.offload"):
        TORCH_COMPILE.require(OFFLOAD)
