"""Charts as SVG to stand in an HTML page: drawn by Matplotlib, coloured by the page.

The page's style sheet gives each colour a value (``--reference``, ``--candidate`` …), so that one drawing serves its
dark and its light form; text stays text, in the page's font. Nothing runs in the browser and nothing is loaded by it.
"""

from __future__ import annotations

import io
import re
import textwrap
from typing import TYPE_CHECKING, Any

from wan_trt_core.report.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "#010101": "--ink",
    "#020202": "--grid",
    "#030303": "--limit",
    "#040404": "--reference",
    "#050505": "--candidate",
    "#060606": "--third",
}
"""What Matplotlib draws with, and the variable of the style sheet that takes its place."""

_INK, _GRID, _LIMIT, *_SERIES = _COLOURS
_KNOWN = {"reference": 0, "candidate": 1}
_MARKERS = "so^"
_HATCHES = ("", "////")
_LINES = (":", "-")
_NAME_WIDTH = 24  # characters
_WIDTH = 4.2  # inches; drawn for a phone's width, larger on larger screens only up to its own size
_CURVES, _ROW = 1.6, 0.17  # inches, of a timeline: the height of its curves, and of a row below them

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wan-trt",  # the same drawing for the same data
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("grid.color", "hatch.color"), _GRID),
}


def svg(chart: Chart, name: str) -> str:
    """Draw a chart.

    Args:
        name: what the ids inside begin with: no two drawings of a page may share it.

    Returns:
        An ``<svg>`` element for an HTML page, without a title: the page says what it shows.
    """
    import matplotlib
    from matplotlib.figure import Figure

    draw = {"spread": _spread, "lines": _lines, "bars": _bars, "timeline": _timeline}[chart.kind]
    rows = {
        "spread": 0.6 + 0.45 * len(chart.series),
        "lines": 1.9,
        "bars": 0.8 + 0.34 * len(chart.labels),
        "timeline": 0.7 + _CURVES + _ROW * len(chart.spans),
    }
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.5 + rows[chart.kind]), layout="constrained")
        if chart.kind == "timeline":
            heights = (_CURVES, _ROW * len(chart.spans))
            axes, below = figure.subplots(2, sharex=True, height_ratios=heights)
            _spans(below, chart)
        else:
            axes = figure.add_subplot()
        draw(axes, chart)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=2)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _for_page(text.getvalue(), name)


def _spread(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    positions = range(len(chart.series), 0, -1)
    for position, (name, values) in zip(positions, chart.series.items(), strict=True):
        colour, marker = _look(name, 0)
        box: Any = {f"{part}props": {"color": colour} for part in ("box", "whisker", "cap", "median")}
        axes.boxplot(
            [values],
            positions=[position],
            orientation="horizontal",
            widths=0.5,
            showfliers=False,
            **box,
        )
        axes.plot(values, [position] * len(values), marker, color=colour, alpha=0.6, markersize=4)
    axes.set_yticks(list(positions), list(chart.labels or chart.series))
    axes.set_ylim(0.5, len(chart.series) + 0.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(chart.axis)
    _mark(axes, chart, upright=True)


def _lines(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for order, (name, values) in enumerate(chart.series.items()):
        colour, marker = _look(name, order)
        label = _wrapped(name) if len(chart.series) > 1 else None
        axes.plot(
            range(1, len(values) + 1),
            values,
            marker=marker,
            color=colour,
            markersize=4,
            linewidth=1,
            label=label,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.index)
    axes.set_ylabel(chart.axis)
    _mark(axes, chart, upright=False)


def _timeline(axes: Axes, chart: Chart) -> None:
    for order, (name, values) in enumerate(chart.series.items()):
        colour, _ = _look(name, order)
        axes.plot(chart.times, values, color=colour, linewidth=1.5, linestyle=_LINES[order], label=name)
    axes.set_ylabel(chart.axis)
    # room for a mark at the end; some width if nothing took time
    axes.set_xlim(0, 1.02 * chart.times[-1] or 1)
    for label, time in chart.marks.items():
        axes.axvline(time, color=_LIMIT, linestyle="--", linewidth=1.5, label=_wrapped(label))


def _spans(axes: Axes, chart: Chart) -> None:
    """A row for everything that went on, with its name beside it, so that no names meet however short it was."""
    for row, spans in enumerate(chart.spans.values()):
        bars = [(start, end - start) for start, end in spans]
        # the outline shows what is too short to be seen
        axes.broken_barh(bars, (row - 0.35, 0.7), facecolor=_INK, edgecolor=_INK, linewidth=1, alpha=0.6)
    axes.set_yticks(range(len(chart.spans)), list(chart.spans))
    axes.tick_params("y", length=0)
    axes.set_ylim(len(chart.spans) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.index)
    for time in chart.marks.values():
        axes.axvline(time, color=_LIMIT, linestyle="--", linewidth=1.5)


def _bars(axes: Axes, chart: Chart) -> None:
    thick = 0.8 / len(chart.series)
    for order, (name, values) in enumerate(chart.series.items()):
        places = [index + (order - (len(chart.series) - 1) / 2) * thick for index in range(len(values))]
        colour, _ = _look(name, order)
        label = _wrapped(name) if len(chart.series) > 1 else None
        axes.barh(places, values, thick, color=colour, label=label, hatch=_HATCHES[order], linewidth=0)
    axes.set_yticks(range(len(chart.labels)), [_wrapped(label) for label in chart.labels])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.axis)


def _mark(axes: Axes, chart: Chart, *, upright: bool) -> None:
    line, span = (axes.axvline, axes.axvspan) if upright else (axes.axhline, axes.axhspan)
    for order, (label, (low, high)) in enumerate(chart.bands.items()):
        colour = (_GRID, _SERIES[1])[order] if upright else _GRID
        span(low, high, color=colour, alpha=(0.5, 0.2)[order], linewidth=0, label=label)
    for label, value in chart.marks.items():
        line(value, color=_LIMIT, linestyle="--", linewidth=1.5, label=label)


def _look(name: str, order: int) -> tuple[str, str]:
    place = _KNOWN.get(name, (order + 1) % len(_SERIES))
    return _SERIES[place], _MARKERS[place]


def _wrapped(name: str) -> str:
    """In two lines, preferably after the full stop of ``dit.engine_weights``; a chart has no room for more."""
    return "\n".join(textwrap.wrap(name.replace(".", ". "), _NAME_WIDTH, max_lines=2, placeholder="…"))


def _for_page(text: str, name: str) -> str:
    """Without what only a file needs, with ids and colours that fit the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="1.1"', "", text)
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)
