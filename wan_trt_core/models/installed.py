"""Components, models and backends that other installed packages bring, by the entry points of their metadata."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from wan_trt_core.hashing import files_sha256

COMPONENTS = "wan_trt_core.components"
"""Group of entry points, each a :class:`~wan_trt_core.models.component.Component` by its name."""

MODELS = "wan_trt_core.models"
"""Group of entry points, each a function by the model's name: from the checkpoint that is given for it (a folder, an id
or ``None``) to its :class:`~wan_trt_core.models.catalogue.ResolvedModel`."""

BACKENDS = "wan_trt_core.backends"
"""Group of entry points, each a :class:`~wan_trt_core.backends.base.EngineBackend` or
:class:`~wan_trt_core.backends.base.ModuleBackend` by its name."""


class InstalledError(ValueError):
    """What a package brings cannot be used; the message names the package, what it brings and what to do."""


@functools.cache
def brought(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, in the order of their names. Imports none of them."""
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


def names(group: str) -> tuple[str, ...]:
    """The names in a group, each once, in alphabetical order."""
    return tuple(dict.fromkeys(point.name for point in brought(group)))


def load(group: str, name: str) -> Any:
    """What the entry point of that name in a group points to.

    Raises:
        InstalledError: when two packages bring one of that name, or it cannot be imported.
    """
    point, *others = (point for point in brought(group) if point.name == name)
    if others:
        raise InstalledError(
            f"{name!r} of {group} is brought by {packages_with(group, name)}: uninstall all but one"
        )
    try:
        return point.load()
    except Exception as error:  # the module is another's, and may raise anything while it runs
        raise InstalledError(
            f"{name!r} of {group}, brought by {package_of(point)}, cannot be imported from {point.value}: {told(error)}"
        ) from error


def packages_with(group: str, name: str) -> str:
    """The distributions that bring something of that name in a group, with their versions."""
    return " and by ".join(package_of(point) for point in brought(group) if point.name == name)


def told(error: Exception) -> str:
    """What an import ended with, in one line: the file and line of the module that was imported, as far as it was run,
    and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f"{frame.filename}:{frame.lineno}: " for frame in frames if frame.name == "<module>"), "")
    what: object = error
    if isinstance(error, SyntaxError) and not at:  # it was not run; the error's own text has no folder
        at, what = f"{error.filename}:{error.lineno}: ", error.msg
    return f"{at}{type(error).__name__}: {' '.join(str(what).split())}"


def package_of(point: EntryPoint) -> str:
    """The distribution that an entry point is of, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def sources_sha256(kind: type) -> str:
    """Hash over the source code of the package that a class is defined in (hex): all its Python files, or the one
    module where it is no package."""
    top = sys.modules.get(kind.__module__.partition(".")[0]) or importlib.import_module(kind.__module__)
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return files_sha256(files or [Path(str(top.__file__))])
