"""Components and models that other packages bring are found by their entry points; what is wrong with one is told."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wan_trt_core.cases import load_cases
from wan_trt_core.config import load_settings
from wan_trt_core.models import components, installed
from wan_trt_core.models.catalogue import CatalogueError, resolve
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError
from wan_trt_core.models.components import ComponentError, component_names, components_of, get_component
from wan_trt_core.pipeline.engines import components_run, onnx_identity
from wan_trt_core.pytest_plugin.session import allowed_names

ROOT = Path(__file__).parents[2]
PACKAGE = "of_another"
POINTS = {
    installed.COMPONENTS: {"text_projection": f"{PACKAGE}.text_projection:COMPONENT"},
    installed.MODELS: {"tiny-ltx": f"{PACKAGE}.model:ltx"},
}

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
            "another package brings a component 'dit', which there is already",
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
