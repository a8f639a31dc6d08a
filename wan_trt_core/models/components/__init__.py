"""The components: each module here is one, named as the file, and defines ``COMPONENT``."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from wan_trt_core.models.component import Component

if TYPE_CHECKING:
    from wan_trt_core.models.checkpoint import Checkpoint


class ComponentError(ValueError):
    """No such component, or not of this checkpoint or in this precision; the message lists what there is."""


def component_names() -> tuple[str, ...]:
    """The names of all components, in alphabetical order. Imports none of them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def components_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the components whose part the checkpoint has: one with random weights has no text encoder unless
    one was asked for."""
    return tuple(name for name in component_names() if get_component(name).part in checkpoint.parts)


def get_component(name: str) -> Component:
    """The component of that name.

    Raises:
        ComponentError: when there is none.
    """
    if name not in component_names():
        raise ComponentError(f"no component {name!r}; there are {', '.join(component_names())}")
    component: Component = importlib.import_module(f"{__name__}.{name}").COMPONENT
    return component


def require_precision(component: Component, precision: str) -> None:
    """Raise unless the component has this precision.

    Raises:
        ComponentError: naming the precisions it has.
    """
    if precision not in component.precisions:
        raise ComponentError(
            f"{component.name} has no precision {precision!r}; it has {', '.join(component.precisions)}"
        )
