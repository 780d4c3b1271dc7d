"""Charts: each class describes one kind, and draws itself on matplotlib axes.

The same charts are saved as PNG files in run folders and stand as SVG in the report page.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.run_folder import replacing
from metrics.intervals import Estimate

# From Okabe & Ito (2008), which color-blind readers can tell apart, and grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#595959")
INK, MUTED, GRID = "#1a1f26", "#59636f", "#d9dfe5"
_MARKERS, _LINES = "osD^", ("-", "--", ":", "-.")  # used in turn when the palette repeats
_STYLE: Any = {  # matplotlib types the keys as literals
    "font.size": 9, "text.parse_math": False, "text.color": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.linewidth": 0.6, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "alignsum",
}  # fmt: skip
_BINS = 20
_SMOOTH_FROM = 12
"""Curves with at least this many points are drawn as a running mean over the raw values."""

TOOLTIP = "tip:"
"""Prefix of the ids of SVG groups; the rest of such an id is the text to show on hover."""


class Series(NamedTuple):
    """Values of a metric over training steps (or another x), both of the same length."""

    steps: Sequence[float]
    values: Sequence[float]


class Curve(NamedTuple):
    """A line: its label (empty: unlabeled), data and position in the palette."""

    label: str
    series: Series
    color: int


class Curves(NamedTuple):
    """Lines over training steps, or one quantity over another.

    Attributes:
        title: Title of the chart.
        y_label: The quantity on y, with its unit.
        curves: At least one.
        from_zero: Start the y axis at 0.
        x_label: The quantity on x.
        directed: Mark the end of each curve, because x is not time.
    """

    title: str
    y_label: str
    curves: Sequence[Curve]
    from_zero: bool = False
    x_label: str = "training step"
    directed: bool = False

    def draw(self, axes: Axes) -> None:
        """Draw the lines, labelled at their right ends."""
        ends = []
        for label, (steps, values), place in self.curves:
            color, shown, marker = color_of(place), np.asarray(values), "o"
            if len(values) >= _SMOOTH_FROM:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                shown, marker = running_mean(values), ""
            (line,) = axes.plot(
                steps, shown, _turn(_LINES, place), color=color, linewidth=1.7, marker=marker,
                markersize=3.5,
            )  # fmt: skip
            ends.append((label, place, steps[-1], float(shown[-1])))
            line.set_gid(f"{TOOLTIP}{label}: {values[-1]:.4g} at {steps[-1]:.6g}")
            if self.directed:
                axes.plot(steps[-1:], shown[-1:], marker=">", color=color, markersize=8)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not self.directed))
        _limit_y(axes, self.from_zero)
        _label_points(axes, [end for end in ends if end[0]], beside=True)


class Dot(NamedTuple):
    """A value with its interval.

    Attributes:
        label: The run or method.
        color: Position in the palette.
        value: Value and interval in display units.
        runs: Values of the individual runs; in a `Scatter` as (x, y).
        x: Position on the x axis of a `Scatter`, perhaps with an interval.
        bold: Emphasize the label.
    """

    label: str
    color: int
    value: Estimate
    runs: Sequence[float | tuple[float, float]] = ()
    x: Estimate = Estimate(0.0)
    bold: bool = False


class Dots(NamedTuple):
    """Values with intervals, one row each; a text is the heading of the rows below it."""

    title: str
    x_label: str
    dots: Sequence[Dot | str]
    digits: int = 1

    def draw(self, axes: Axes) -> None:
        """Draw the rows from top to bottom, each with its number on the right."""
        labels = [dot if isinstance(dot, str) else dot.label for dot in self.dots]
        axes.set_yticks([-row for row in range(len(labels))], labels)
        for row, (text, dot) in enumerate(zip(axes.get_yticklabels(), self.dots, strict=True)):
            if isinstance(dot, str):
                below = self.dots[row + 1]
                text.set_color(MUTED if isinstance(below, str) else color_of(below.color))
                continue
            weight = "bold" if dot.bold else "normal"
            text.set(color=INK, fontweight=weight)
            _draw_dot(axes, dot, dot.value, Estimate(-row))
            for run in dot.runs:
                axes.plot([run], [-row], "|", color=color_of(dot.color), markersize=9)
            axes.annotate(
                f"{dot.value.value:.{self.digits}f}{' ★' * dot.bold}", (1.01, -row),
                xycoords=("axes fraction", "data"), va="center", fontweight=weight,
            )  # fmt: skip
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(0.6 - len(self.dots), 0.6)
        axes.set_xlabel(self.x_label)


class Scatter(NamedTuple):
    """Values with intervals over another quantity.

    Attributes:
        title: Title of the chart.
        x_label: The quantity on x, with its unit.
        y_label: The quantity on y, with its unit.
        dots: At least one.
        log: Logarithmic x axis; x = 0 is drawn at its left end.
        limit: Position of a dashed vertical line.
    """

    title: str
    x_label: str
    y_label: str
    dots: Sequence[Dot]
    log: bool = False
    limit: float | None = None

    def draw(self, axes: Axes) -> None:
        """Draw the dots, labelled next to them."""
        for dot in self.dots:
            _draw_dot(axes, dot, dot.x, dot.value)
            for x, y in (run for run in dot.runs if isinstance(run, tuple)):
                axes.plot([x], [y], ".", color=color_of(dot.color), alpha=0.6, markersize=5)
        if self.log:
            smallest = min((dot.x.value for dot in self.dots if dot.x.value > 0), default=1.0)
            axes.set_xscale("symlog", linthresh=smallest)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        axes.margins(x=0.15, y=0.12)
        if self.limit is not None:
            axes.axvline(self.limit, color=MUTED, linestyle="--", linewidth=1)
        _label_points(axes, [(d.label, d.color, d.x.value, d.value.value) for d in self.dots])


class Histogram(NamedTuple):
    """Distributions of per-example values on the same axes, between two limits."""

    title: str
    x_label: str
    groups: Mapping[str, Sequence[float]]
    limits: tuple[float, float] = (0, 100)

    def draw(self, axes: Axes) -> None:
        """Draw bars side by side, because overlaid ones mix their colors, and dashed means."""
        means = [float(np.mean(values)) for values in self.groups.values()]
        colors = [color_of(index) for index in range(len(means))]
        labels = [
            f"{label}: mean {mean:.3g} (n = {len(values)})"
            for (label, values), mean in zip(self.groups.items(), means, strict=True)
        ]
        bins = np.linspace(*self.limits, _BINS + 1).tolist()
        axes.hist(list(self.groups.values()), bins=bins, color=colors, label=labels, rwidth=0.9)
        for mean, color in zip(means, colors, strict=True):
            axes.axvline(mean, color=color, linestyle="--", linewidth=1.2)
        axes.set(xlabel=self.x_label, ylabel="examples", xlim=self.limits)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        # Above the axes, where it cannot cover bars; the title is above it.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), alignment="left", fontsize=8.5)


class Reliability(NamedTuple):
    """Share of correct predictions by confidence: (mean confidence, share correct, n) per bin."""

    title: str
    x_label: str
    bins: Sequence[tuple[float, float, int]]

    def draw(self, axes: Axes) -> None:
        """Draw the shares with two standard errors, and the diagonal of perfect calibration."""
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle=":", linewidth=1, label="calibrated")
        confidence, right, n = zip(*self.bins, strict=True)
        errors = [2 * (p * (1 - p) / count) ** 0.5 for p, count in zip(right, n, strict=True)]
        axes.errorbar(
            confidence, right, yerr=errors, color=PALETTE[0], marker="o", markersize=4,
            capsize=2.5, label=f"measured (n = {sum(n)})",
        )  # fmt: skip
        for x, y, count in zip(confidence, right, n, strict=True):
            axes.annotate(str(count), (x, y), (4, -10), textcoords="offset points", fontsize=7)
        axes.set(xlabel=self.x_label, ylabel="share correct", xlim=(0.48, 1.02))
        axes.set_ylim(min(0.4, *right) - 0.02, 1.02)
        axes.legend(fontsize=8.5, loc="lower right")


Chart = Curves | Dots | Scatter | Histogram | Reliability


def save_charts(path: Path, title: str, charts: Sequence[Chart], columns: int = 3) -> None:
    """Draw charts in a grid and save them as a PNG file.

    Args:
        path: The file to write.
        title: Title of the figure.
        charts: At least one.
        columns: Maximum number of charts side by side.
    """
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    with mpl.rc_context(_STYLE):
        height = max(map(_height, charts))
        figure = Figure(figsize=(4.7 * columns, height * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, chart in zip(grid.flat, charts, strict=False):
            chart.draw(axes)
            axes.set_title(chart.title, fontsize=10, loc="left")
        for axes in grid.flat[len(charts) :]:
            axes.set_visible(False)
        figure.suptitle(title, fontsize=11.5)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png")


def to_svg(chart: Chart) -> str:
    """Draw one chart without its title as an SVG document."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, _height(chart)), layout="constrained")
        chart.draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def curve_of(metric: str, series: Series | None) -> Series | None:
    """Return what charts show of a logged metric: ROUGE and toxicity x 100, others as they are.

    None if there are not two points to connect, or for a coefficient or loss that is constant.
    """
    if series is None or len(set(series.steps)) < 2:
        return None
    if metric in ("objective/kl_coef", "ppo/val/loss") and len(set(series.values)) == 1:
        return None
    scale = 100 if metric.startswith(("val/rouge", "val/toxicity")) else 1
    return Series(series.steps, [scale * value for value in series.values])


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Return the centred mean over a twentieth of the points; windows shrink at both ends."""
    half = min(max(1, len(values) // 40), (len(values) - 1) // 2)
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / counts


def color_of(index: int) -> str:
    """Return a color of the palette, which repeats."""
    return PALETTE[index % len(PALETTE)]


def _turn(choices: Sequence[str], index: int) -> str:
    """Return the marker or line that tells apart what has the same color."""
    return choices[index // len(PALETTE) % len(choices)]


def _height(chart: Chart) -> float:
    return 0.75 + 0.27 * len(chart.dots) if isinstance(chart, Dots) else 3.2


def _limit_y(axes: Axes, from_zero: bool) -> None:
    """Keep the axis from magnifying a constant until its rounding shows."""
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    least = 0.02 * abs(middle) or 1e-3
    if high - low < least:
        axes.set_ylim(middle - least, middle + least)
    if from_zero:
        bottom = min(0.0, low)
        axes.set_ylim(bottom, high + 0.04 * (high - bottom))  # not through the highest marker


def _draw_dot(axes: Axes, dot: Dot, x: Estimate, y: Estimate) -> None:
    """Draw intervals in both directions, and the marker on top with its tooltip."""
    color, tooltip = color_of(dot.color), f"{dot.label}: {dot.value.value:.2f}"
    for (low, high), other, plot in ((x[2:], y.value, axes.hlines), (y[2:], x.value, axes.vlines)):
        if low is not None and high is not None:
            plot(other, low, high, colors=color, linewidth=2.2, alpha=0.5)
    if dot.value.low is not None:
        tooltip += f" ({dot.value.low:.2f} to {dot.value.high:.2f})"
    (point,) = axes.plot(
        [x.value], [y.value], _turn(_MARKERS, dot.color), color=color, markersize=6.5, zorder=3
    )
    point.set_gid(TOOLTIP + tooltip)


def _label_points(
    axes: Axes, points: Sequence[tuple[str, int, float, float]], beside: bool = False
) -> None:
    """Write labels next to points, moved up until none overlaps another.

    Args:
        axes: The axes, with final limits and scales.
        points: Label, color, x and y of each.
        beside: Write to the right of the axes, as curves' ends are labelled, not at the point.
    """
    figure, spec = axes.figure, axes.get_subplotspec()
    width = figure.get_size_inches()[0] if isinstance(figure, Figure) else 5
    columns = spec.get_gridspec().ncols if spec else 1
    letter, line = 0.1 * columns / width, 0.065
    axes.autoscale_view()  # transLimits does not trigger it
    to_axes = axes.transScale + axes.transLimits
    found = [(label, color, *to_axes.transform((x, y))) for label, color, x, y in points]
    taken: list[tuple[float, float, float]] = []
    for label, color, x, y in sorted(found, key=lambda one: one[3]):
        size = letter * len(label)
        left = 1.02 if beside else x + 0.02 if x + size < 1.02 else x - size - 0.02
        at = y if beside else y + 0.035
        while any(abs(at - b) < line and a < left + size and left < c for a, b, c in taken):
            at += 0.01
        taken.append((left, at, left + size))
        axes.annotate(
            label, (x, y), (left, at), xycoords="axes fraction", textcoords="axes fraction",
            color=color_of(color), fontsize=8.5, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color_of(color), "alpha": 0.3,
                        "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
