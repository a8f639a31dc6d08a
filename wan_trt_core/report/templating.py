"""The templates of the HTML pages, in ``templates/``."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def templates() -> Environment:
    """The templates of a page; in them ``draw`` makes SVG of a chart."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from wan_trt_core.report.drawing import svg

    found = Environment(
        loader=PackageLoader("wan_trt_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    number = partial(next, count(1))
    # What Matplotlib writes is markup already; it escapes the names in it.
    found.globals["draw"] = lambda chart: Markup(svg(chart, f"chart{number()}"))
    return found
