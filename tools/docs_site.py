"""What pages of the documentation site take from the code and the rest of the repository (hooks of mkdocs.yml)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import griffe
import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from wan_trt_core.config import ENVIRONMENT_PREFIX, KEYS, Settings
from wan_trt_core.pytest_plugin.options import add_options

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)]*)?\)")
ROLE = re.compile(r":(?:class|data|func|meth|mod):`(?P<whole>~?)(?P<name>[\w.]+)`")
GENERATED = re.compile(r"<!-- generated: (?P<name>\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README is the landing page."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what the code says, and mend links that point out of the site."""
    folder = ROOT if page.file.src_uri == "index.md" else (ROOT / "docs" / page.file.src_uri).parent
    markdown = GENERATED.sub(lambda marker: GENERATORS[marker["name"]](), markdown)
    return LINK.sub(lambda link: _mended(link, folder, config.extra["repository"]), markdown)


def _mended(link: re.Match[str], folder: Path, repository: str) -> str:
    """A link as it is inside the site: to a page of it, to the repository, or where that has no address no link."""
    target = (folder / link["target"]).resolve()
    anchor = link["anchor"] or ""
    if target.is_relative_to(ROOT / "docs"):
        if folder != ROOT:
            return link[0]
        return f"[{link['text']}]({target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
    if target == ROOT / "README.md":
        return f"[{link['text']}]({os.path.relpath(ROOT / 'docs' / 'index.md', folder)}{anchor})"
    if not target.is_relative_to(ROOT) or not target.exists():
        return link[0]  # mkdocs says what is wrong with it
    path = target.relative_to(ROOT).as_posix()
    if repository:
        return f"[{link['text']}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor})"
    return link["text"] if path in link["text"] else f"{link['text']} (`{path}`)"


def settings_table() -> str:
    """Every setting with its variable, a table a section: what is allowed, the default, what it means."""
    sections: dict[str, list[str]] = {}
    values = Settings().flat()
    for key, field in KEYS.items():
        section, _, name = key.rpartition(".")
        # a default that is made depends on the user: its description says where
        default = "" if field.default_factory is not None else _code(_words(values[key]))
        variable = ENVIRONMENT_PREFIX + key.upper().replace(".", "__")
        cells = (f"{_code(name)}<br>{_code(variable)}", _allowed(field), default, field.description or "")
        sections.setdefault(section, []).append(_row(*cells))
    head = _row("setting, variable", "allowed", "default", "meaning") + _row(*["---"] * 4)
    return "\n".join(
        f"### {_code(section) if section else 'Without a section'}\n\n{head}{''.join(rows)}"
        for section, rows in sections.items()
    )


def _allowed(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
        if hasattr(bound, name)
    ]
    return " or ".join(_kind(kind) for kind in kinds) + (f", {', '.join(bounds)}" if bounds else "")


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(_code(value) for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_kind(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}
    return "`null`" if kind is type(None) else names[kind]


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def pytest_options() -> str:
    """The plugin's options, as a table."""
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    rows = (
        _row(_code(" ".join(_names(option))), option.attrs()["help"])
        for option in parser.getgroup("wan-trt").options
    )
    return _row("option", "meaning") + _row("---", "---") + "".join(rows)


def _names(option: Any) -> tuple[str, ...]:
    metavar = option.attrs().get("metavar")
    return (*option.names(), *([metavar] if metavar else []))


def commands() -> str:
    """Every command of ``wan-trt`` with its arguments and options."""
    describe = (sys.executable, "-m", "typer", "wan_trt_core.cli.app", "utils", "docs", "--name", "wan-trt")
    text = subprocess.run(describe, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return re.sub(r"^#", "##", text, flags=re.MULTILINE)  # a section of the page that it stands in


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _code(text: object) -> str:
    return f"`{text}`"


def component_example() -> str:
    """The file that the guide to components puts into the package."""
    path = "examples/custom_component/text_projection.py"
    return f'```python title="{path}"\n{(ROOT / path).read_text()}```'


GENERATORS: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "options": pytest_options,
    "commands": commands,
    "component": component_example,
}
"""What a page asks for by ``<!-- generated: NAME -->``."""


class SphinxRoles(griffe.Extension):
    """Docstrings name other objects as Sphinx does (``:func:`name```); here they become links of this site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn the roles of one object's docstring into links."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda role: self._link(obj, role), obj.docstring.value)

    @staticmethod
    def _link(obj: griffe.Object, role: re.Match[str]) -> str:
        first, dot, rest = role["name"].partition(".")
        with suppress(griffe.NameResolutionError):
            first = obj.resolve(first)
        shown = role["name"].rpartition(".")[2] if role["whole"] else role["name"]
        # optional: what has no entry of its own (a constant, the standard library) stays a word
        return f'<autoref identifier="{first}{dot}{rest}" optional><code>{shown}</code></autoref>'
