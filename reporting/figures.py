"""The drawings as files: curves, histograms, bars, scatters. They know nothing of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metrics.intervals import Estimate
from reporting.charts import (
    SMOOTH_FROM,
    Chart,
    Dot,
    Dots,
    Histogram,
    Panel,
    Scatter,
    Series,
    place_labels,
    running_mean,
    smallest_positive,
)

# Okabe & Ito (2008): told apart by colour-blind readers too. The last two are ours.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959", "#7A4A21",
)  # fmt: skip
_MARKERS = "osD"  # where the palette begins again
_LETTER = 4.6  # width of a letter of a name, points
_INK = "#333333"


def draw_curves(path: Path, title: str, panels: Sequence[Panel], columns: int = 3) -> None:
    """Draw panels of curves over training steps in a grid.

    Curves of many points are drawn thin, with their running mean thick on top.

    Args:
        path: The PNG to write.
        title: Title of the whole figure.
        panels: At least one.
        columns: Most panels side by side.
    """
    _save(_draw_grid(panels, columns), title, path)


def draw_charts(path: Path, title: str, charts: Sequence[Chart], columns: int = 3) -> None:
    """Draw charts of any kind in a grid, as PNG and as SVG.

    Args:
        path: The PNG to write; the SVG lies beside it.
        title: Title of the whole figure.
        charts: At least one.
        columns: Most charts side by side.
    """
    _save(_draw_grid(charts, columns), title, path, svg=True)


def draw_histograms(
    path: Path, title: str, x_label: str, groups: Mapping[str, Sequence[float]]
) -> None:
    """Draw histograms of per-example values one over the other, each mean as a dashed line.

    Args:
        path: The PNG to write.
        title: Title of the figure.
        x_label: What is counted, with its unit.
        groups: Per-example values in [0, 1] by label.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    _draw_histogram(figure.subplots(), Histogram("", x_label, groups))
    _save(figure, title, path)


def _draw_grid(charts: Sequence[Chart], columns: int) -> Figure:
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        match chart:
            case Panel():
                _draw_panel(axes, chart)
            case Scatter():
                _draw_scatter(axes, chart)
            case Histogram():
                _draw_histogram(axes, chart)
            case Dots():
                _draw_dots(axes, chart)
    for axes in grid.flat[len(charts) :]:
        axes.set_visible(False)
    named = [
        (axes, chart.dots)
        for axes, chart in zip(grid.flat, charts, strict=False)
        if isinstance(chart, Scatter) and not chart.joined  # where x says which dot it is
    ]
    if named:
        figure.draw_without_rendering()
        for axes, dots in named:
            _name_dots(axes, dots)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    names = []
    for label, curve in panel.curves.items():
        style = panel.style(label)
        _draw_curve(axes, curve, _plain(style.name), _colour(style.colour))
        names += [style.name] if style.name else []
    _finish(axes, panel.title, panel.x_label, panel.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _calm(axes, panel.from_zero)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_scatter(axes: Axes, chart: Scatter) -> None:
    for dot in chart.dots:
        _draw_whiskers(axes, dot, dot.x, dot.value.value, vertical=True)
    for style in dict.fromkeys(dot.style for dot in chart.dots if chart.joined):
        line = sorted((dot.x, dot.value.value) for dot in chart.dots if dot.style == style)
        axes.plot(*zip(*line, strict=True), color=_colour(style), linewidth=1.2)
    if chart.log:
        axes.set_xscale("symlog", linthresh=smallest_positive(chart.dots))
    if chart.joined:
        axes.set_xticks(values := sorted({dot.x for dot in chart.dots}), [f"{x:g}" for x in values])
        axes.minorticks_off()
    axes.margins(x=0.15, y=0.12)
    _finish(axes, chart.title, chart.x_label, chart.y_label)


def _name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write each name beside its dot; the axes have their final place."""
    scale = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    spots = axes.transData.transform([(dot.x, dot.value.value) for dot in dots]) * scale
    marks = [
        (float(x), -float(y), _LETTER * len(dot.label))
        for (x, y), dot in zip(spots, dots, strict=True)
    ]
    corners = place_labels(marks, frame.x0 * scale, frame.x1 * scale)
    for dot, (x, y, _), (left, top) in zip(dots, marks, corners, strict=True):
        axes.annotate(
            _plain(dot.label), (dot.x, dot.value.value), xytext=(left - x, y - top),
            textcoords="offset points", fontsize=8, verticalalignment="top",
        )  # fmt: skip


def _draw_dots(axes: Axes, chart: Dots) -> None:
    for line, dot in enumerate(chart.dots):
        _draw_whiskers(axes, dot, dot.value.value, -line, vertical=False)
    axes.set_yticks([-line for line in range(len(chart.dots))])
    axes.set_yticklabels([_plain(dot.label) for dot in chart.dots])
    _finish(axes, chart.title, chart.label, "")


def _draw_whiskers(axes: Axes, dot: Dot, x: float, y: float, vertical: bool) -> None:
    value, low, high = dot.value.value, dot.value.low, dot.value.high
    colour = _colour(dot.style)
    if low is not None and high is not None:
        ends = [[value - low], [high - value]]
        along = {"yerr": ends} if vertical else {"xerr": ends}
        axes.errorbar([x], [y], **along, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)
    marker = _MARKERS[dot.style // len(COLOURS) % len(_MARKERS)]
    axes.plot([x], [y], marker, color=colour, markersize=6)


def _draw_histogram(axes: Axes, chart: Histogram) -> None:
    bins = np.linspace(0, 1, 26).tolist()
    for place, (label, values) in enumerate(chart.groups.items()):
        mean = float(np.mean(values))
        text = f"{label}: mean {mean:.3f} (n = {len(values)})"
        axes.hist(values, bins=bins, color=_colour(place), alpha=0.45, label=text)
        axes.axvline(mean, color=_colour(place), linestyle="--", linewidth=1.6)
    _finish(axes, "", chart.x_label, "examples")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    # Above the axes: a legend inside would cover bars.
    axes.legend(
        title=_plain(chart.title) or None, alignment="left", frameon=False, fontsize=9,
        loc="lower left", bbox_to_anchor=(0, 1), ncols=1,
    )  # fmt: skip


def draw_bars(
    path: Path, title: str, y_label: str, bars: Mapping[str, Mapping[str, Estimate]]
) -> None:
    """Draw grouped bars with 95 % intervals as whiskers, as PNG and as SVG.

    Args:
        path: The PNG to write; the SVG lies beside it.
        title: Title of the figure.
        y_label: What the height is, with its unit.
        bars: For each group (a run) the estimates by label; a label may miss in some groups.
    """
    labels = list(dict.fromkeys(label for group in bars.values() for label in group))
    width = 0.8 / len(labels)
    figure = Figure(figsize=(max(6.4, 1.25 * len(bars) + 1.2), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (label, colour) in enumerate(zip(labels, COLOURS, strict=False)):
        x = [i + (place - (len(labels) - 1) / 2) * width for i in range(len(bars))]
        found = [group.get(label) for group in bars.values()]
        shown = [(at, one) for at, one in zip(x, found, strict=True) if one is not None]
        heights = [one.value for _, one in shown]
        axes.bar([at for at, _ in shown], heights, width * 0.92, color=colour, label=label)
        ends = [(one.low, one.high) for _, one in shown]
        below = [h - (h if low is None else low) for h, (low, _) in zip(heights, ends, strict=True)]
        above = [(h if top is None else top) - h for h, (_, top) in zip(heights, ends, strict=True)]
        axes.errorbar(
            [at for at, _ in shown], heights, yerr=[below, above], fmt="none", ecolor=_INK,
            elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    _finish(axes, "", "", y_label)
    turned = max(len(name) for name in bars) > 12
    axes.set_xticks(
        range(len(bars)),
        [_plain(name) for name in bars],
        rotation=25 if turned else 0,
        ha="right" if turned else "center",
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=len(labels), loc="lower left", bbox_to_anchor=(0, 1))
    _save(figure, title, path, svg=True)


def _colour(place: int) -> str:
    """A place in the palette; it begins again behind the last."""
    return COLOURS[place % len(COLOURS)]


def _plain(text: str) -> str:
    """Keep matplotlib from reading formulas into a name."""
    return text.replace("$", r"\$")


def _draw_curve(axes: Axes, curve: Series, label: str, colour: str) -> None:
    if len(curve.values) < SMOOTH_FROM:
        marker = "o" if len(curve.values) < 25 else ""
        axes.plot(*curve, color=colour, label=label, marker=marker, markersize=3.5, linewidth=1.6)
        return
    axes.plot(*curve, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(curve.steps, running_mean(curve.values), color=colour, label=label, linewidth=1.8)


def _calm(axes: Axes, from_zero: bool) -> None:
    """Keep a constant from being magnified until its rounding shows."""
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    least = 0.02 * abs(middle) or 1e-3
    if high - low < least:
        axes.set_ylim(middle - least, middle + least)
    if from_zero:
        axes.set_ylim(bottom=min(0.0, low))


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes their words and a quiet grid."""
    if title:
        axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8.5, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, title: str, path: Path, svg: bool = False) -> None:
    figure.suptitle(_plain(title), fontsize=11.5, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    if svg:
        # Text as text, and no date: the same runs give the same file.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
