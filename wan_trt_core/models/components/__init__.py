"""The components: each module here is one, named as the file, and defines ``COMPONENT``. Other installed packages bring
more, see :mod:`wan_trt_core.models.installed`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from wan_trt_core.models import installed
from wan_trt_core.models.component import Component

if TYPE_CHECKING:
    from wan_trt_core.models.checkpoint import Checkpoint


class ComponentError(ValueError):
    """No such component, or not of this checkpoint or in this precision; the message lists what there is."""


def component_names() -> tuple[str, ...]:
    """The names of all components, in alphabetical order. Imports none of them."""
    return tuple(sorted({*_own_names(), *installed.names(installed.COMPONENTS)}))


def components_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the components of the checkpoint's architecture whose part it has: one with random weights has no
    text encoder unless one was asked for."""
    return tuple(name for name in component_names() if get_component(name).is_of(checkpoint))


def get_component(name: str) -> Component:
    """The component of that name.

    Raises:
        ComponentError: when there is none, or its module or what another package brings cannot be used.
    """
    own, brought = name in _own_names(), name in installed.names(installed.COMPONENTS)
    if own and brought:
        packages = installed.packages_with(installed.COMPONENTS, name)
        raise ComponentError(
            f"{packages} brings a component {name!r}, which there is already: rename that one"
        )
    if not (own or brought):
        raise ComponentError(f"no component {name!r}; there are {', '.join(component_names())}")
    found, what = _own(name) if own else _brought(name)
    if not isinstance(found, Component):
        raise ComponentError(f"{what} is {found!r}, expected an instance of Component")
    if (named := getattr(found, "name", None)) != name:
        raise ComponentError(f"{what} is a Component named {named!r}, expected one named {name!r}")
    return found


def _own(name: str) -> tuple[object, str]:
    """What the module of that name here defines, and how messages call it."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except Exception as error:  # a module may raise anything while it runs
        raise ComponentError(f"the component {name!r} cannot be imported: {installed.told(error)}") from error
    if not hasattr(module, "COMPONENT"):
        raise ComponentError(f"{module.__file__}: defines no COMPONENT, an instance of its Component")
    return module.COMPONENT, f"{module.__file__}: COMPONENT"


def _brought(name: str) -> tuple[object, str]:
    """As :func:`_own`, of what another package brings."""
    try:
        found: object = installed.load(installed.COMPONENTS, name)
    except installed.InstalledError as error:
        raise ComponentError(str(error)) from error
    return found, f"the entry point {name!r} of {installed.COMPONENTS}"


def require_architecture(component: Component, checkpoint: Checkpoint) -> None:
    """Raise unless the component is one of the checkpoint.

    Raises:
        ComponentError: naming those that are.
    """
    if component.architecture != checkpoint.architecture:
        raise ComponentError(
            f"{component.name} is a component of {component.architecture} models, and {checkpoint.source} is one of"
            f" {checkpoint.architecture}; its components are {', '.join(components_of(checkpoint)) or 'not installed'}"
        )


def _own_names() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def require_precision(component: Component, precision: str) -> None:
    """Raise unless the component has this precision.

    Raises:
        ComponentError: naming the precisions it has.
    """
    if precision not in component.precisions:
        raise ComponentError(
            f"{component.name} has no precision {precision!r}; it has {', '.join(component.precisions)}"
        )
