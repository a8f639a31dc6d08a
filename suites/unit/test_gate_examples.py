"""``docs/gate_examples.md`` shows every reason code, and what is given by hand in it is what the gates say today."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from plugin_support import PLUGIN_ARGS
from scripts import load_script

from wan_trt_core.gates.verdict import Reason, Verdict

ROOT = Path(__file__).parents[2]
BY_HAND = "examples/gates"


TOOL = load_script("tools/record_examples.py")
PAGE = (ROOT / "docs" / "gate_examples.md").read_text()
EXAMPLES: list[re.Match[str]] = list(TOOL.EXAMPLE.finditer(PAGE))
HANDMADE = [example for example in EXAMPLES if example["folder"] == BY_HAND]


@pytest.mark.parametrize("example", HANDMADE, ids=lambda example: example["command"].strip())
def test_what_is_given_by_hand_is_what_the_gates_say(
    example: re.Match[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in os.environ:
        if variable.startswith(("GITHUB_", "PYTEST_ADDOPTS", "PYTEST_XDIST_", "WAN_TRT_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", TOOL.COLUMNS)
    shutil.copytree(
        ROOT / BY_HAND, pytester.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs")
    )
    pytest_, *arguments = shlex.split(example["command"])
    assert pytest_ == "pytest"
    result = pytester.runpytest_inprocess(*PLUGIN_ARGS, *arguments)
    assert TOOL.said(result.stdout.str(), pytester.path) == example["output"].rstrip("\n"), (
        "the gates say something else; if that is meant: python tools/record_examples.py docs/gate_examples.md"
    )


def test_every_verdict_and_every_reason_has_an_example() -> None:
    shown = set()
    for part in PAGE.split("\n## ")[1:]:
        title, *sections = part.split("\n### ")
        verdict = Verdict(title.split()[0])
        for section in sections:
            for code in re.findall(r"`([a-z_]+)`", section.splitlines()[0]):
                shown.add((verdict, Reason(code)))
                wanted = " PASS " if verdict is Verdict.PASS else f" {verdict.value.upper()} ({code}): "
                assert wanted in section
    assert {verdict for verdict, _ in shown} == set(Verdict)
    assert {reason for _, reason in shown} == set(Reason)


def test_only_the_outputs_that_are_asked_for_are_replaced() -> None:
    page = (
        "text\n\n```console\n$ one\nold\n```\n\n```console\nin/here$ two &&\n>   more\n```\n\n"
        "```yaml\nkey: $ no\n```\n"
    )
    asked = []

    def run(folder: str, command: str) -> str:
        asked.append((folder, command))
        return "new\nlines"

    assert TOOL.recorded(page, run) == page.replace("old", "new\nlines").replace(
        "more\n", "more\nnew\nlines\n"
    )
    assert asked == [("", "one\n"), ("in/here", "two &&\n  more\n")]
    assert TOOL.recorded(page, run, "one") == page.replace("old", "new\nlines")


def test_a_command_without_a_verdict_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text := "```console\n$ echo no such thing\n```\n")
    assert TOOL.main([str(page)]) == 1
    assert page.read_text() == text
    assert "no verdict in what was printed:\nno such thing" in capsys.readouterr().err
