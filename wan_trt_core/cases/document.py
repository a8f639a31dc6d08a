"""A YAML file as plain data that knows the line of every key, and the errors that name it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wan_trt_core.cases.case import BY_METRIC, GATES

Keys = tuple[str | int, ...]
"""Where something is in the document: mapping keys and list indices from the root."""


class CaseFileError(ValueError):
    """The case file is wrong; the message names the file, the line, the key and what is allowed."""


@dataclass(frozen=True)
class Problem:
    """One mistake and where it is."""

    keys: Keys
    message: str


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's floats: 1.1 reads ``1e-5`` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Document:
    """A YAML document as plain data, with the line of every key."""

    path: Path
    data: Any
    lines: Mapping[Keys, int]

    @classmethod
    def read(cls, path: Path, what: str) -> Document:
        """Read a file; ``what`` it is stands in the error where there is none.

        Raises:
            CaseFileError: when it cannot be read, is no YAML or is empty.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise CaseFileError(f"{path}: no such {what}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise CaseFileError(f"{path}: not readable: {error}") from error
        loader = _Loader(text)
        lines: dict[Keys, int] = {}
        try:
            node = loader.get_single_node()
            data = None if node is None else _plain(node, (), loader, lines, frozenset())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise CaseFileError(f"{path}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise CaseFileError(f"{path}: not valid YAML: {error}") from error
        finally:
            loader.dispose()
        if data is None:
            raise CaseFileError(f"{path}:1: the file is empty; it needs the keys version and cases")
        return cls(path, data, lines)

    def mapping(self, keys: Keys, allowed: Sequence[str]) -> dict[str, Any]:
        """The mapping at ``keys``, if it has no other keys than these.

        Raises:
            CaseFileError: when it is no mapping or has an unknown key.
        """
        value = self.data
        for key in keys:
            value = value[key]
        if not isinstance(value, dict):
            name = f"key '{keys[-1]}'" if keys else "the file"
            raise self.error(keys, f"{name} must be a mapping; allowed: {', '.join(allowed)}")
        strange = [Problem((*keys, key), unknown("key", key, allowed)) for key in value if key not in allowed]
        if strange:
            raise self.errors(strange)
        return value

    def error(self, keys: Keys, message: str) -> CaseFileError:
        """One mistake as an error, with its line."""
        return self.errors([Problem(keys, message)])

    def errors(self, problems: Iterable[Problem]) -> CaseFileError:
        """All of them in one error, ``file:line: message`` each, in the order of the file."""
        located = sorted({(self._line(problem.keys), problem.message): None for problem in problems})
        return CaseFileError("\n".join(f"{self.path}:{line}: {message}" for line, message in located))

    def _line(self, keys: Keys) -> int:
        """The line of the nearest key that the file has: in the case, the defaults, or around it."""
        if keys[:1] == ("cases",) and len(keys) > 2:
            whole = _taken_whole(keys[2:])
            if (*keys[:2], *whole) not in self.lines and ("defaults", *whole) in self.lines:
                keys = ("defaults", *keys[2:])
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)


def _plain(
    node: yaml.Node, keys: Keys, loader: _Loader, lines: dict[Keys, int], above: frozenset[int]
) -> Any:
    """A node as plain data; its line is that of its key."""
    lines.setdefault(keys, node.start_mark.line + 1)
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias refers to what it is in", problem_mark=node.start_mark)
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*keys, index), loader, lines, above) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    _refuse_twice(node)
    loader.flatten_mapping(node)  # resolves "<<"; the mapping's own keys come last and win
    mapping: dict[str, Any] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=name.start_mark)
        key = str(name.value)
        lines[*keys, key] = name.start_mark.line + 1
        mapping[key] = _plain(value, (*keys, key), loader, lines, above)
    return mapping


def _refuse_twice(node: yaml.MappingNode) -> None:
    """YAML lets the last of two equal keys win in silence; here a threshold would vanish that way."""
    seen: set[str] = set()
    # an aliased mapping is visited again after it was flattened
    merged = getattr(node, "wan_flattened", False)
    for name, _ in node.value:
        if not merged and name.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key '{name.value}' is given twice", problem_mark=name.start_mark
            )
        seen.add(str(name.value))
    node.wan_flattened = True  # type: ignore[attr-defined]


def _taken_whole(keys: Keys) -> Keys:
    """The part of a case around ``keys`` that comes either from the case or from the defaults."""
    if keys[0] not in GATES:
        return keys[:1]
    return keys[:3] if keys[1:2] and keys[1] in BY_METRIC else keys[:2]


def unknown(kind: str, value: Any, allowed: Iterable[Any], *, shown: str | None = None) -> str:
    """That a key or a name does not exist, with the nearest one that does and all that are allowed."""
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    subject = f"key '{shown or value}' is unknown" if kind == "key" else f"key '{kind}': no {kind} '{value}'"
    if kind == "metric":
        subject = f"no metric '{value}'"
    return f"{subject}{hint}; allowed: {', '.join(names)}"


def dotted(keys: Keys) -> str:
    """A place as a message names it."""
    return ".".join(map(str, keys))
