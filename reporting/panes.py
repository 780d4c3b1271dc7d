"""One pair of axes of a figure, for each kind of chart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reporting.charts import (
    SMOOTH_FROM,
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
INK = "#333333"
_MARKERS = "osD"  # where the palette begins again
_LETTER = 4.6  # width of a letter of a name, points


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw curves; those of many points thin, with their running mean thick on top."""
    names = []
    for label, curve in panel.curves.items():
        style = panel.style(label)
        _draw_curve(axes, curve, plain(style.name), _colour(style.colour))
        names += [style.name] if style.name else []
    finish(axes, panel.title, panel.x_label, panel.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _calm(axes, panel.from_zero)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_scatter(axes: Axes, chart: Scatter) -> None:
    """Draw values with whiskers; their names come when the axes have their place."""
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
    finish(axes, chart.title, chart.x_label, chart.y_label)


def name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
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
            plain(dot.label), (dot.x, dot.value.value), xytext=(left - x, y - top),
            textcoords="offset points", fontsize=8, verticalalignment="top",
        )  # fmt: skip


def draw_dots(axes: Axes, chart: Dots) -> None:
    """Draw values with whiskers, a line for each."""
    for line, dot in enumerate(chart.dots):
        _draw_whiskers(axes, dot, dot.value.value, -line, vertical=False)
    axes.set_yticks([-line for line in range(len(chart.dots))])
    axes.set_yticklabels([plain(dot.label) for dot in chart.dots])
    finish(axes, chart.title, chart.label, "")


def _draw_whiskers(axes: Axes, dot: Dot, x: float, y: float, vertical: bool) -> None:
    value, low, high = dot.value.value, dot.value.low, dot.value.high
    colour = _colour(dot.style)
    if low is not None and high is not None:
        ends = [[value - low], [high - value]]
        across, up = (None, ends) if vertical else (ends, None)
        axes.errorbar(
            [x], [y], xerr=across, yerr=up, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5
        )
    marker = _MARKERS[dot.style // len(COLOURS) % len(_MARKERS)]
    axes.plot([x], [y], marker, color=colour, markersize=6)


def draw_histogram(axes: Axes, chart: Histogram) -> None:
    """Draw distributions one over the other, each mean as a dashed line."""
    bins = np.linspace(*chart.span, 26).tolist()
    for place, (label, values) in enumerate(chart.groups.items()):
        mean = float(np.mean(values))
        text = f"{label}: mean {mean:.3f} (n = {len(values)})"
        axes.hist(values, bins=bins, color=_colour(place), alpha=0.45, label=text)
        axes.axvline(mean, color=_colour(place), linestyle="--", linewidth=1.6)
    finish(axes, "", chart.x_label, "examples")
    axes.set_xlim(*chart.span)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    # Above the axes: a legend inside would cover bars.
    axes.legend(
        title=plain(chart.title) or None, alignment="left", frameon=False, fontsize=9,
        loc="lower left", bbox_to_anchor=(0, 1), ncols=1,
    )  # fmt: skip


def draw_reliability(axes: Axes, x_label: str, bins: Sequence[tuple[float, float, int]]) -> None:
    """Draw for bins of like confidence how often it was right, with n beside each."""
    axes.plot([0.5, 1], [0.5, 1], color=INK, linestyle=":", linewidth=1, label="calibrated")
    confidence, right, n = zip(*bins, strict=True)
    # Two standard errors of a share, which are wide where there are few.
    errors = [2 * (p * (1 - p) / count) ** 0.5 for p, count in zip(right, n, strict=True)]
    axes.errorbar(
        confidence, right, yerr=errors, color=COLOURS[0], marker="o", markersize=4,
        linewidth=1.6, elinewidth=1, capsize=2.5, label=f"measured (n = {sum(n)})",
    )  # fmt: skip
    for x, y, count in zip(confidence, right, n, strict=True):
        axes.annotate(str(count), (x, y), (4, -10), textcoords="offset points", fontsize=7)
    finish(axes, "", x_label, "share that was right")
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.4, *right) - 0.02, 1.02)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


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


def finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes their words and a quiet grid."""
    if title:
        axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _colour(place: int) -> str:
    """A place in the palette; it begins again behind the last."""
    return COLOURS[place % len(COLOURS)]


def plain(text: str) -> str:
    """Keep matplotlib from reading formulas into a name."""
    return text.replace("$", r"\$")
