"""``--wan-checkpoint``: the weights of all selected cases, or of those of one model."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

from wan_trt_core.models.checkpoint import EMBEDDED, CheckpointError

__all__ = ["project"]

SMALL, LARGE = "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"

OPTION = Option((f"--wan-checkpoint={EMBEDDED}",), settings={"checkpoint": str(EMBEDDED)})
OF_MODEL = Option(
    (f"--wan-checkpoint=tiny-wan={EMBEDDED}",), settings={"checkpoint": {"tiny-wan": str(EMBEDDED)}}
)


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_of_a_model(project: Project) -> None:
    run_under(project, OF_MODEL, "strict")


@pytest.fixture
def models(project: Project) -> Project:
    """Cases of tiny-wan, of a model from an image to video, and of two sizes of another; ``cut`` has fewer layers."""
    head = "version: 1\ndefaults: {component: dit, precision: fp32, backend: onnxruntime}\ncases:\n"
    gate = "parity: {limits: {psnr_db: {min: 90, reason: the floor}}}"
    cases = {
        "tiny": "model: tiny-wan, profile: 128p-17f",
        "image": "model: tiny-wan2.1-i2v, profile: 64p-9f",
        "small": f"model: {SMALL}, profile: 480p-17f",
        "large": f"model: {LARGE}, profile: 480p-17f",
        "cut": f"model: {LARGE}, profile: 480p-17f, layers: 2",
    }
    project.file(head + "".join(f"  - {{id: good-{name}, {case}, {gate}}}\n" for name, case in cases.items()))
    return project


def refused(project: Project, *arguments: str) -> str:
    """What the run ends with before anything is measured."""
    result = project.run("-m", "parity", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str()
    assert not (project.path / "outputs").exists()
    return " ".join((result.stderr.str() + result.stdout.str()).split())


def test_each_model_has_its_own(models: Project) -> None:
    given = (f"--wan-checkpoint=tiny-wan={EMBEDDED}", f"--wan-checkpoint={SMALL}={EMBEDDED}")
    result = models.run("-m", "parity", *given)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"wan-trt: checkpoint tiny-wan={EMBEDDED}, {SMALL}={EMBEDDED}, by model (--wan-checkpoint)"]
    )
    found = models.results()["settings"]["checkpoint"]
    assert found == {"tiny-wan": str(EMBEDDED), SMALL: str(EMBEDDED)}


@pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["plain", "xdist"])
def test_one_that_is_not_of_all_selected_cases_is_told_with_what_to_name(
    models: Project, arguments: tuple[str, ...]
) -> None:
    told = refused(models, f"--wan-checkpoint={EMBEDDED}", "-k", "not cut", *arguments)
    assert (
        f"--wan-checkpoint: {EMBEDDED} goes to all selected cases, and is a model of another family" in told
    )
    for why in (
        "another family than tiny-wan2.1-i2v: 16 channels into one transformer, not 36 channels",
        f"another size than {SMALL}: 8 layers of width 128, not 30 layers of width 1536",
        f"another size than {LARGE}: 8 layers of width 128, not 40 layers of width 5120",
        f"once for each that has one: --wan-checkpoint tiny-wan={EMBEDDED}",
    ):
        assert why in told, told


def test_the_cases_of_one_model_may_run_on_a_cut_down_checkpoint(models: Project) -> None:
    result = models.run("-m", "parity", "-k", "small", f"--wan-checkpoint={EMBEDDED}")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"wan-trt: checkpoint {EMBEDDED}, of all cases (--wan-checkpoint)"])


def test_one_of_another_family_than_the_model_it_is_given_for(models: Project) -> None:
    told = refused(models, f"--wan-checkpoint=tiny-wan2.1-i2v={EMBEDDED}")
    assert (
        f"--wan-checkpoint: tiny-wan2.1-i2v={EMBEDDED}: a model of another family than tiny-wan2.1-i2v"
        in told
    )


def test_what_is_no_checkpoint_is_told_before_anything_runs(models: Project) -> None:
    told = refused(models, f"--wan-checkpoint={SMALL}=nowhere")
    assert f"--wan-checkpoint: no checkpoint at {models.path / 'nowhere'}: there is no such folder" in told
    passed = models.run("-m", "parity", "-k", "tiny", f"--wan-checkpoint={SMALL}=nowhere")
    assert passed.ret == 0, "no selected case would have it"


def test_fewer_layers_are_of_random_weights_alone(models: Project) -> None:
    told = refused(models, f"--wan-checkpoint={LARGE}={EMBEDDED}")
    assert (
        "only random weights can have fewer `layers`, as the selected good-cut; leave such cases out (-k)"
        in told
    )
    assert models.run("-m", "parity", "-k", "not cut", f"--wan-checkpoint={LARGE}={EMBEDDED}").ret == 0


def test_a_model_that_no_case_has_is_told(
    models: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt name would leave its cases with random weights. Where it is no option it may be for other cases."""
    told = refused(models, f"--wan-checkpoint=wan2.1-t2v-1.3={EMBEDDED}")
    assert f"no case of {models.path}/suites/cases.yaml has the model 'wan2.1-t2v-1.3'" in told
    assert f"did you mean '{SMALL}'?; its models are tiny-wan, tiny-wan2.1-i2v, {SMALL}, {LARGE}" in told
    assert "has the model 'wan2.2-ti2v-5b'" in refused(models, f"--wan-checkpoint=wan2.2-ti2v-5b={EMBEDDED}")
    monkeypatch.setenv("WAN_TRT_CHECKPOINT", f"wan2.2-ti2v-5b={EMBEDDED}")
    assert models.run("-m", "parity").ret == 0
    monkeypatch.setenv("WAN_TRT_CHECKPOINT", f"wan2.2-ti2v={EMBEDDED}")
    monkeypatch.chdir(models.path)
    result = models.run("-m", "parity", "--wan-report", str(tmp_path / "another"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*WAN_TRT_CHECKPOINT: no case of * has the model 'wan2.2-ti2v'; did you mean*"]
    )


def test_one_for_all_and_one_for_a_model_contradict_each_other(models: Project) -> None:
    result = models.run("-m", "parity", "--wan-checkpoint=here", f"--wan-checkpoint={SMALL}=there")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--wan-checkpoint: 'here' is no MODEL=FOLDER or MODEL=ID*"])


def test_a_model_of_the_hub_is_looked_at_without_its_weights(
    models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(place: str, *, weights: bool) -> None:
        asked.append((place, weights))
        raise CheckpointError("not to be had")

    monkeypatch.setattr("wan_trt_core.models.hub.open_checkpoint", opened)
    assert "--wan-checkpoint: not to be had" in refused(models, "--wan-checkpoint=owner/name")
    assert asked == [("owner/name", False)]
