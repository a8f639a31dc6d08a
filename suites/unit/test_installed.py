"""Components, models and backends that other packages bring are found by their entry points; what is wrong with one is
told."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wan_trt_core import doctor
from wan_trt_core.backends.base import EngineBackend, ModuleBackend
from wan_trt_core.backends.registry import UnknownBackend, backend_names, device_of, get_backend, runs_on
from wan_trt_core.cases import load_cases
from wan_trt_core.comparison import measure_case
from wan_trt_core.comparison.context import Context
from wan_trt_core.config import Settings, load_settings, of_suites, with_values
from wan_trt_core.deciding_settings import deciding
from wan_trt_core.memory.prediction import workload
from wan_trt_core.models import components, installed
from wan_trt_core.models.catalogue import CatalogueError, resolve
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError
from wan_trt_core.models.components import ComponentError, component_names, components_of, get_component
from wan_trt_core.pipeline.engines import components_run, engine_identity, onnx_identity
from wan_trt_core.pytest_plugin.session import allowed_names

ROOT = Path(__file__).parents[2]
PACKAGE = "of_another"
POINTS = {
    installed.COMPONENTS: {"text_projection": f"{PACKAGE}.text_projection:COMPONENT"},
    installed.MODELS: {"tiny-ltx": f"{PACKAGE}.model:ltx"},
    installed.BACKENDS: {"aot-eager": f"{PACKAGE}.aot_eager:BACKEND", "mine": f"{PACKAGE}.mine:BACKEND"},
}

MINE = """
from wan_trt_core.backends.onnxruntime import OnnxRuntimeBackend


class Mine(OnnxRuntimeBackend):
    name = "mine"
    runs_on = "cpu"


BACKEND = Mine()
"""
"""An engine backend of another package."""

Install = Callable[..., Path]


def block_of(page: str, kind: str) -> str:
    """The only code block of a kind on a page of the documentation."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    return str(text)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package on the path: the component of the examples, the model of the guide, and its entry points."""
    site = tmp_path / "site"
    (site / PACKAGE).mkdir(parents=True)
    (site / PACKAGE / "__init__.py").touch()
    shutil.copy(ROOT / "examples/custom_component/text_projection.py", site / PACKAGE)
    (site / PACKAGE / "model.py").write_text(block_of("adding-a-model.md", "python"))
    (site / PACKAGE / "aot_eager.py").write_text(block_of("adding-a-backend.md", "python"))
    (site / PACKAGE / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(site))

    def install(points: Mapping[str, Mapping[str, str]] = POINTS, distribution: str = "of-another") -> Path:
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = (
            line
            for group, named in points.items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in named.items()))
        )
        (info / "entry_points.txt").write_text("\n".join(lines))
        installed.brought.cache_clear()
        return site / PACKAGE

    yield install
    installed.brought.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_a_component_of_another_package_is_one_as_all_others(
    install: Install, small_checkpoint: Path
) -> None:
    install()
    assert "text_projection" in component_names() and "dit" in component_names()
    checkpoint = Checkpoint.open(small_checkpoint)
    assert "text_projection" in components_of(checkpoint)
    assert get_component("text_projection").describe(checkpoint)["part"] == "transformer"


def test_its_source_is_part_of_what_its_onnx_file_is_known_by(
    install: Install, small_checkpoint: Path
) -> None:
    package = install()
    model, settings = resolve(str(small_checkpoint)), load_settings(environ={}).settings

    def identity(component: str) -> dict[str, Any]:
        return onnx_identity(component, model, model.profile(), "fp32", "onnxruntime", settings)

    before, own = identity("text_projection"), identity("dit")
    with (package / "text_projection.py").open("a") as source:
        source.write("\n# another\n")
    assert identity("text_projection") != before, "an engine of the old source would be taken"
    assert identity("dit") == own


def test_the_guide_s_model_of_another_architecture_has_its_own_components_alone(
    install: Install, tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import LTXVideoTransformer3DModel

    install()
    stock = LTXVideoTransformer3DModel(8, 8, 1, 1, 2, 16, 32, num_layers=1, caption_channels=8)
    stock.save_pretrained(tmp_path / "ltx/transformer")
    model = resolve("tiny-ltx", tmp_path / "ltx")
    assert model.profile().max.spatial == 32
    assert components_of(model.checkpoint) == ()
    loaded = model.checkpoint.load("transformer")
    assert isinstance(loaded, LTXVideoTransformer3DModel) and loaded.config["in_channels"] == 8
    assert model.checkpoint.inspect()["transformer"]["class"] == "LTXVideoTransformer3DModel"
    for component in ("dit", "vae_decoder", "pipeline"):
        with pytest.raises(ComponentError, match=r"a component of wan models, and .*/ltx is one of ltx; its"):
            components_run(component, model.checkpoint)
    with pytest.raises(CheckpointError, match=r"/ltx: whole videos are of Wan alone, and this is one of ltx"):
        model.checkpoint.pipeline()
    monkeypatch.setattr(type(get_component("text_projection")), "architecture", "ltx")
    assert components_of(model.checkpoint) == ("text_projection",)
    with pytest.raises(
        ComponentError, match=r"text_projection is a component of ltx models.* one of wan; .* dit,"
    ):
        components_run("text_projection", Checkpoint.open(small_checkpoint))


def test_a_case_may_name_both(install: Install, tmp_path: Path) -> None:
    install()
    (tmp_path / "cases.yaml").write_text(
        "version: 1\ncases:\n  - {id: one, model: tiny-ltx, component: text_projection, profile: any, precision: fp32,"
        " backend: onnxruntime, parity: {limits: {psnr_db: {min: 90, reason: float32}}}}\n"
    )
    (case,) = load_cases(tmp_path / "cases.yaml", allowed_names()).cases
    assert (case.model, case.component) == ("tiny-ltx", "text_projection")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "dit",
            "text_projection:COMPONENT",
            r"of-another 1\.2 brings a component 'dit', which there is already: rename that one",
        ),
        (
            "late",
            "nowhere:COMPONENT",
            r"'late' of .*components, brought by of-another 1\.2, cannot be imported from",
        ),
        (
            "late",
            "text_projection:LATE",
            r"'late' of .*components, brought by of-another 1\.2, cannot be imported",
        ),
        (
            "late",
            "text_projection:COMPONENT",
            "'late' of .* is a Component named 'text_projection', expected one named 'late'",
        ),
        (
            "late",
            "text_projection:TextProjection",
            "'late' of .* is <class .*>, expected an instance of Component",
        ),
    ],
)
def test_a_component_that_cannot_be_used_is_told_with_its_package(
    name: str, value: str, said: str, install: Install
) -> None:
    install({installed.COMPONENTS: {name: f"{PACKAGE}.{value}"}})
    with pytest.raises(ComponentError, match=said):
        get_component(name)


FAULTS = {
    "abstract": (
        lambda text: text.replace("def blocks(", "def block("),
        r"{file}:\d+: TypeError: Can't instantiate abstract class TextProjection.* blocks?'?$",
    ),
    "syntax": (
        lambda text: text.replace("name = ", "name := ", 1),
        r"{file}:\d+: SyntaxError: invalid syntax$",
    ),
    "name": (lambda text: text + "\nnowhere()\n", r"{file}:\d+: NameError: name 'nowhere' is not defined$"),
}
"""What an author may get wrong in a component's file, and what is said of it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_component_whose_file_does_not_run_is_told_in_a_line(fault: str, install: Install) -> None:
    change, said = FAULTS[fault]
    file = install() / "text_projection.py"
    file.write_text(change(file.read_text()))
    said = r"brought by of-another 1\.2, cannot be imported from .*: " + said.format(
        file=re.escape(str(file))
    )
    with pytest.raises(ComponentError, match=said):
        get_component("text_projection")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        *(
            (fault, "the component 'added' cannot be imported: " + said)
            for fault, (_, said) in FAULTS.items()
        ),
        ("no component", "{file}: defines no COMPONENT"),
        (
            "another name",
            "{file}: COMPONENT is a Component named 'text_projection', expected one named 'added'",
        ),
    ],
)
def test_a_file_of_this_package_that_is_no_component_is_told_in_a_line(
    fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "examples/custom_component/text_projection.py").read_text()
    changes = {fault: change for fault, (change, _) in FAULTS.items()}
    changes |= {"no component": lambda text: text.replace("COMPONENT =", "MINE ="), "another name": str}
    file = tmp_path / "added.py"
    file.write_text(changes[fault](text))
    monkeypatch.setattr(components, "__path__", [*components.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{components.__name__}.added", raising=False)
    with pytest.raises(ComponentError, match=said.format(file=re.escape(str(file)))):
        get_component("added")
    sys.modules.pop(f"{components.__name__}.added", None)


def test_a_name_of_two_packages_is_nobody_s(install: Install) -> None:
    install()
    install(distribution="of-a-third")
    with pytest.raises(
        ComponentError, match=r"brought by of-a\S+ 1\.2 and by of-a\S+ 1\.2: uninstall all but"
    ):
        get_component("text_projection")


def test_a_model_that_cannot_be_used_is_told(install: Install) -> None:
    install(
        {installed.MODELS: {"tiny-ltx": f"{PACKAGE}.model:ltx", "typed": "builtins:str", "no": "nowhere:no"}}
    )
    with pytest.raises(
        CatalogueError, match="tiny-ltx is brought by another package: only a model of the catalogue"
    ):
        resolve("tiny-ltx", layers=2)
    with pytest.raises(
        CatalogueError, match=r"'typed' of .*models returned 'None', expected a ResolvedModel"
    ):
        resolve("typed")
    with pytest.raises(CatalogueError, match=r"'no' of .*, brought by of-another 1\.2, cannot be imported"):
        resolve("no")
    with pytest.raises(CatalogueError, match=r"nor one of tiny-wan, .* no, tiny-ltx, typed, nor the id"):
        resolve("not there")


def test_a_backend_of_another_package_is_one_as_all_others(
    install: Install, small_checkpoint: Path, tmp_path: Path
) -> None:
    assert "mine" not in backend_names()
    install()
    assert {"mine", "aot-eager", "torch"} <= {*backend_names()}
    assert isinstance(get_backend("aot-eager"), ModuleBackend)
    assert get_backend("mine").name == "mine" and runs_on("mine") == "cpu" and runs_on("aot-eager") is None
    settings = load_settings(overrides={"backend": "mine"}, environ={}).settings
    assert device_of(settings) == "cpu"
    found = {finding.name: finding.status for finding in doctor._backends(settings)}
    assert (found["backend mine"], found["backend aot-eager"]) == ("ok", "ok")


def test_backends_of_other_packages_are_imported_when_they_are_asked_for(install: Install) -> None:
    install()
    backend_names(), allowed_names(), runs_on("tensorrt"), get_backend("torch")
    assert not [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]
    get_backend("mine")
    assert f"{PACKAGE}.mine" in sys.modules and f"{PACKAGE}.aot_eager" not in sys.modules


def test_the_guide_s_backend_compiles_without_changing_the_module(install: Install) -> None:
    import torch

    install()
    backend, module, settings = get_backend("aot-eager"), torch.nn.Linear(2, 2), Settings()
    assert isinstance(backend, ModuleBackend)
    backend.require(settings)
    wrapped = backend.wrap(module, settings)
    assert wrapped is not module and list(backend.versions()) == ["torch"]
    assert {id(weight) for weight in wrapped.parameters()} == {id(weight) for weight in module.parameters()}


CASE = (
    "version: 1\ncases:\n  - {id: one, model: MODEL, component: dit, profile: 64p-9f, precision: fp32,"
    " backend: BACKEND, parity: {limits: {psnr_db: {min: 90, reason: float32}}}}\n"
)


def test_a_case_is_measured_on_it(
    install: Install, small_checkpoint: Path, tmp_path: Path, on_modules: None
) -> None:
    """Named by the case, or for all cases by the run."""
    install()
    (tmp_path / "cases.yaml").write_text(
        CASE.replace("BACKEND", "mine").replace("MODEL", str(small_checkpoint))
    )
    file = load_cases(tmp_path / "cases.yaml", allowed_names())
    file.overridden(backend="aot-eager").require_names(allowed_names(), "--wan-backend")
    given = {"cache": str(tmp_path / "cache"), "device": "cpu"}
    with closing(Context(load_settings(overrides=given, environ={}).settings)) as context:
        measurement = measure_case(file.cases[0], "parity", context)
    assert measurement.metrics["psnr_db"].value > 90 and not measurement.problems
    assert "onnxruntime" in measurement.facts["backend_versions"]


def test_its_source_is_part_of_what_its_engines_are_known_by(
    install: Install, small_checkpoint: Path
) -> None:
    package = install()
    model, settings = resolve(str(small_checkpoint)), load_settings(environ={}).settings
    onnx = onnx_identity("dit", model, model.profile(), "fp32", "onnxruntime", settings)

    def identity(backend: str) -> dict[str, Any]:
        runs = get_backend(backend)
        assert isinstance(runs, EngineBackend)
        return engine_identity(runs, onnx, "fp32", settings)

    before, own = identity("mine"), identity("onnxruntime")
    with (package / "mine.py").open("a") as source:
        source.write("\n# another\n")
    assert identity("mine") != before, "an engine of the old source would be taken"
    assert identity("onnxruntime") == own and own.keys() < before.keys()


def test_every_setting_may_decide_what_it_measures(install: Install) -> None:
    install()
    given = with_values(Settings(), {"tensorrt.optimization_level": 5, "log.level": "debug"})
    flat = of_suites(given).flat()
    assert deciding(flat, "dit", ["mine"]) == {"tensorrt.optimization_level": 5}
    assert deciding(flat, "dit", ["onnxruntime"]) == {}


def test_whether_it_has_engines_the_memory_plan_asks_it(install: Install) -> None:
    install()
    model = resolve("tiny-wan")
    engines = {
        name: workload(model, model.profile(), name, "cpu", Settings()).engines
        for name in ("mine", "aot-eager", "torch", "onnxruntime")
    }
    assert engines == {"mine": True, "aot-eager": False, "torch": False, "onnxruntime": True}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("torch", "mine:BACKEND", r"of-another 1\.2 brings a backend 'torch', which there is already: rename that"),
        ("late", "nowhere:BACKEND", r"'late' of .*backends, brought by of-another 1\.2, cannot be imported from"),
        ("late", "mine:BACKEND", r"'late' of .*backends, brought by of-another 1\.2, is a backend named 'mine', exp"),
        ("late", "mine:Mine", r"brought by of-another 1\.2, is <class .*>, expected an EngineBackend or ModuleBackend"),
    ],
)  # fmt: skip
def test_a_backend_that_cannot_be_used_is_told_with_its_package(
    name: str, value: str, said: str, install: Install
) -> None:
    install({installed.BACKENDS: {name: f"{PACKAGE}.{value}"}})
    for asked in (get_backend, runs_on):
        with pytest.raises(UnknownBackend, match=said):
            asked(name)
    assert "onnxruntime" in backend_names() and get_backend("onnxruntime").name == "onnxruntime"
    settings = load_settings(overrides={"backend": "onnxruntime"}, environ={}).settings
    (found,) = (each for each in doctor._backends(settings) if each.name == f"backend {name}")
    assert found.status == "missing" and "of-another 1.2" in found.detail


def test_a_backend_of_two_packages_is_nobody_s(install: Install) -> None:
    install()
    install(distribution="of-a-third")
    with pytest.raises(
        UnknownBackend, match=r"'mine' of .*brought by of-a\S+ 1\.2 and by of-a\S+ 1\.2: uninstall"
    ):
        get_backend("mine")
