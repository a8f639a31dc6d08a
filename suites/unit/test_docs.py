"""The documentation: the site is built with no warning, and what pages say of the code is in the code."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import wan_trt_core
from wan_trt_core.cases import load_cases
from wan_trt_core.cli import regenerate
from wan_trt_core.cli.app import app
from wan_trt_core.config import HUB_ID, KEYS, SECTIONS
from wan_trt_core.measure.memory_recorder import SAMPLE_SECONDS
from wan_trt_core.pytest_plugin.session import allowed_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wan_trt_core"
DOCS = ROOT / "docs"
PUBLISHED = "https://example.org/owner/wan-trt-core"
NOT_DOCUMENTED = {"cli", "logs", "progress"}
"""Modules without an entry in the reference: the commands have a page of their own, the others are inner matters."""
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
GATES = {"perf", "memory"}
"""Sections of the settings whose names are also those of a case's gates, which have keys of their own."""


def sources() -> str:
    """The text of every module."""
    return "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A proxy that does not exist stands for a machine without a network."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {
        **os.environ,
        **nowhere,
        "PYTHONPATH": str(ROOT),
        "WAN_TRT_CONFIG": "",
        "DOCS_REPOSITORY": PUBLISHED,
    }
    answer = subprocess.run(build, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return folder


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        asked = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*", page.read_text()
        )
        assert not asked, f"{page.name}: {asked[0]}"


def test_every_setting_command_and_option_is_on_the_site(site: Path) -> None:
    settings, commands = (site / "settings.html").read_text(), (site / "commands.html").read_text()
    for key in KEYS:
        assert f"<code>WAN_TRT_{key.upper().replace('.', '__')}</code>" in settings
    for shown in ("wan-trt engines prune", "--negative-prompt", "--wan-require-bands", "--wan-cases FILE"):
        assert shown in commands


def test_links_out_of_the_docs_reach_the_site_or_the_repository(site: Path) -> None:
    assert f'href="{PUBLISHED}/blob/HEAD/config.yaml"' in (site / "settings.html").read_text()
    assert 'href="index.html#regenerate-baselines"' in (site / "adding-a-component.html").read_text()
    home = (site / "index.html").read_text()
    assert 'href="gpu-ci.html"' in home and f'href="{PUBLISHED}/blob/HEAD/LICENSE"' in home
    assert "images/tiny_wan_contact_sheet.png" in home


def test_what_docstrings_say_of_other_objects_are_links(site: Path) -> None:
    page = (site / "reference" / "gates.html").read_text()
    assert 'href="records.html#wan_trt_core.records.RunRecord"' in page
    assert not [file for file in site.rglob("*.html") if ":class:" in file.read_text()]


def test_every_module_is_in_the_reference() -> None:
    asked = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    }
    modules = {module.name for module in pkgutil.iter_modules(wan_trt_core.__path__)} - NOT_DOCUMENTED
    assert asked == {f"wan_trt_core.{name}" for name in modules}


def test_every_variable_that_the_code_reads_is_told() -> None:
    page = (DOCS / "settings.md").read_text()
    told = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", sources()))  # named where it is read
    read |= set(
        re.findall(r"^[A-Z_0-9]+ = \"([A-Z]+_[A-Z0-9_]*[A-Z0-9])\"$", sources(), re.M)
    )  # or by a constant
    read.discard("WAN_TRT_CONFIG")
    assert {"CXX", "TRT_LOGGER_LEVEL", "CUDA_VISIBLE_DEVICES"} <= read
    assert read <= told, f"docs/settings.md does not tell of {', '.join(sorted(read - told))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS - GATES)})\.\w+)", text))
    named |= {
        f"{section}.{key}".lower()
        for section, key in re.findall(r"WAN_TRT_([A-Z0-9_]+?)__([A-Z0-9_]+)", text)
    }
    assert named <= set(KEYS)


def test_how_often_memory_is_looked_at_is_told() -> None:
    told = re.findall(r"^\| `.*sampled every ([\d.]+) ms", (DOCS / "memory_recording.md").read_text(), re.M)
    assert [float(each) / 1e3 for each in told] == [SAMPLE_SECONDS] * 2


def test_the_layout_lists_every_benchmark() -> None:
    listed = re.search(r"^benchmarks/ (.*?)^\w", (DOCS / "layout.md").read_text(), re.M | re.S)
    assert listed is not None
    assert set(re.findall(r"\w+\.py", listed[1])) == {
        each.name for each in (ROOT / "benchmarks").glob("*.py")
    }


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert len(messages) > 25
    said = said_by_the_code()
    for message in messages:
        wanted = re.compile(".*?".join(re.escape(part) for part in message.split("…")), re.S)
        assert any(wanted.search(text) for text in said), f"no message of wan_trt_core reads {message!r}"


def said_by_the_code() -> list[str]:
    """The string literals of the package that are no prose, with ``…`` where a value is put in."""
    said = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                said.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                said.append(node.value.replace("%d", "…").replace("%s", "…"))
    return said


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?! export)", makefile, re.M))
    assert set(re.findall(r"^\.PHONY: (.*)", makefile, re.M)[0].split()) == targets
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) +\w", shown, re.M)) == targets


def commands() -> list[str]:
    """Every ``wan-trt`` command of the pages' consoles and workflows."""
    blocks = [
        block.replace("\\\n", " ")
        for page in PAGES
        for block in re.findall(r"^```(?:console|shell|yaml)\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    prompted = r"(?:^[$#] |^ +(?:- run: )?|ALONE |do )(wan-trt [^|;>&\n]*)"
    return [found for block in blocks for found in re.findall(prompted, block, re.M)]


def test_every_command_of_the_pages_has_its_options() -> None:
    """Parsed and not run."""
    found = commands()
    assert len(found) > 25
    for text in found:
        _, *words = shlex.split(text.replace("$suite", "perf"), comments=True)
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), text
        if command.name == "regenerate":
            regenerate._parser().parse_args(words)
        command.make_context(command.name, words)


def gpu_jobs() -> dict[str, Any]:
    """The job on a GPU of every place that has one."""
    texts = {"gate.yml": (ROOT / ".github" / "workflows" / "gate.yml").read_text()}
    for page in (DOCS / "gpu-ci.md", ROOT / "README.md"):
        blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
        (texts[page.name],) = (text for text in blocks if "self-hosted" in text)
    jobs = {name: yaml.safe_load(text)["jobs"] for name, text in texts.items()}
    return {
        name: next(job for job in each.values() if "gpu" in job["runs-on"]) for name, each in jobs.items()
    }


def test_the_jobs_on_a_gpu_have_the_same_time_and_settings() -> None:
    jobs, guide = gpu_jobs(), (DOCS / "gpu-ci.md").read_text()
    (hours,) = re.findall(r"Give the job (\d+) hours", guide)
    assert {name: job["timeout-minutes"] for name, job in jobs.items()} == dict.fromkeys(
        jobs, int(hours) * 60
    )
    needed = {"WAN_TRT_BACKEND": "tensorrt"}
    for name in ("gpu-ci.md", "README.md"):
        assert needed.items() <= jobs[name]["env"].items(), name
        runs = [step["run"] for step in jobs[name]["steps"] if "pytest -m" in step.get("run", "")]
        suites = jobs[name]["env"].get("SUITES", "")
        assert runs and all("--wan-require-bands" in run.replace("$SUITES", suites) for run in runs), name


def test_a_pull_request_cancels_no_run_of_another() -> None:
    """Of a ``concurrency`` group GitHub keeps one run that waits."""
    for name, job in gpu_jobs().items():
        group = job["concurrency"]["group"]
        assert group == "gpu-${{ github.event.pull_request.number || github.run_id }}", name


def test_the_jobs_of_the_pages_install_what_is_pinned_into_an_environment_of_their_own(
    tmp_path: Path,
) -> None:
    """The system's pip installs nothing (PEP 668), and checkout empties the work tree."""
    for name in ("gpu-ci.md", "README.md"):
        job = gpu_jobs()[name]
        script = "\n".join(step.get("run", "") for step in job["steps"])
        assert "@ git+https://" in job["env"]["PACKAGE"], f"{name}: the package is on no index"
        installs = [line for line in script.splitlines() if "install" in line]
        assert installs and all('install -c constraints.txt "$PACKAGE"' in line for line in installs), name
    (action,) = (
        yaml.safe_load(block)
        for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
        if "uses: OWNER/" in block
    )
    own = next(step for step in action if step.get("uses", "").startswith("OWNER/"))
    assert set(own["with"]) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    assert own["with"]["constraints"] and "python" not in own["with"]
    (prepare,) = (step["run"] for step in action if "run" in step)
    fake = tmp_path / "python3"  # `python3 -m venv FOLDER`, without the seconds that pip's installation takes
    fake.write_text('#!/bin/sh\n[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && touch "$3/bin/python"\n')
    fake.chmod(0o755)
    environ = {"RUNNER_TEMP": str(tmp_path / "temp"), "GITHUB_PATH": str(tmp_path / "path")}
    environ["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", prepare], env={**os.environ, **environ}, check=True)
    (folder,) = (tmp_path / "path").read_text().split()
    assert (Path(folder) / "python").exists()


def test_the_workflows_hold_by_the_published_schema(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="it brings the schema; it is in the extra dev")
    files = [ROOT / ".github" / "workflows" / "gate.yml", tmp_path / "guide.yml"]
    blocks = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "gpu-ci.md").read_text(), re.M | re.S)
    files[1].write_text(next(block for block in blocks if block.startswith("name: ")))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    answer = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_what_is_added_to_a_run_for_wan_fits_the_case_file_beside_it(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    (added,) = re.findall(r"For Wan 2.1 itself add `([^`]+)`", page)
    given = dict(zip(*[iter(added.split())] * 2, strict=True))
    fields = {name.removeprefix("--wan-"): value for name, value in given.items()}
    assert HUB_ID.fullmatch(fields.pop("checkpoint"))
    (text,) = re.findall(r"^```yaml\n(# cases.yaml\n.*?)^```", page, re.M | re.S)
    (tmp_path / "cases.yaml").write_text(text)
    file = load_cases(tmp_path / "cases.yaml", allowed_names()).overridden(**fields)
    file.require_names(allowed_names(), "the options of README.md")
    assert {case.backend for case in file.cases} == {"tensorrt"}


def test_the_jobs_by_model_leave_no_case_out() -> None:
    named = re.findall(r"`-k ([\w.-]+)`", (DOCS / "gpu-ci.md").read_text())
    cases = load_cases(ROOT / "suites" / "cases.yaml", allowed_names()).cases
    of = {case.id: [name for name in named if name in case.id] for case in cases}
    assert len(named) > 1 and all(len(names) == 1 for names in of.values()), of


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "cases.md"], ids=lambda page: page.name)
def test_the_case_files_of_the_docs_are_case_files(page: Path, tmp_path: Path) -> None:
    files = [
        text
        for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
        if "\ncases:\n" in text
    ]
    assert files
    for text in files:
        (tmp_path / "cases.yaml").write_text(text)
        load_cases(tmp_path / "cases.yaml", allowed_names())
