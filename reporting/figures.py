"""The drawings: curves, histograms, bars. Each writes one PNG and knows nothing of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metrics.intervals import Estimate

# Okabe & Ito (2008): told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#333333"
_SMOOTH_FROM = 60
_LEGEND_CHARS = 40


class Series(NamedTuple):
    """One curve: training steps and the values at them, of the same length."""

    steps: Sequence[float]
    values: Sequence[float]


class Panel(NamedTuple):
    """One pair of axes: title, what y is (with unit), curves by label, whether y starts at 0."""

    title: str
    y_label: str
    curves: Mapping[str, Series]
    from_zero: bool = False


def draw_curves(path: Path, title: str, panels: Sequence[Panel], columns: int = 3) -> None:
    """Draw panels of curves over training steps in a grid.

    Curves of many points are drawn thin, with their running mean thick on top.

    Args:
        path: The PNG to write.
        title: Title of the whole figure.
        panels: At least one.
        columns: Most panels side by side.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for colour, (label, curve) in zip(COLOURS, panel.curves.items(), strict=False):
            _draw_curve(axes, curve, label, colour)
        finish(axes, panel.title, "training step (batches)", panel.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _calm(axes, panel.from_zero)
        if len(panel.curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    save(figure, title, path)


def draw_histograms(
    path: Path,
    title: str,
    x_label: str,
    groups: Mapping[str, Sequence[float]],
    span: tuple[float, float] = (0, 1),
) -> None:
    """Draw histograms of per-example values one over the other, each mean as a dashed line.

    Args:
        path: The PNG to write.
        title: Title of the figure.
        x_label: What is counted, with its unit.
        groups: Per-example values by label.
        span: Between which values they lie.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(*span, 26).tolist()
    for colour, (label, values) in zip(COLOURS, groups.items(), strict=False):
        mean = float(np.mean(values))
        text = f"{label}: mean {mean:.3f} (n = {len(values)})"
        axes.hist(values, bins=bins, color=colour, alpha=0.45, label=text)
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.6)
    finish(axes, "", x_label, "examples")
    axes.set_xlim(*span)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    # Above the axes: a legend inside would cover bars.
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=1)
    save(figure, title, path)


def draw_bars(
    path: Path, title: str, y_label: str, bars: Mapping[str, Mapping[str, Estimate]]
) -> None:
    """Draw grouped bars with 95 % intervals as whiskers.

    Args:
        path: The PNG to write.
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
            [at for at, _ in shown], heights, yerr=[below, above], fmt="none", ecolor=INK,
            elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    finish(axes, "", "", y_label)
    turned = max(len(name) for name in bars) > 12
    axes.set_xticks(
        range(len(bars)),
        list(bars),
        rotation=25 if turned else 0,
        ha="right" if turned else "center",
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)
    # One line of a legend that is wider than the axes would leave them no room at all.
    columns = len(labels) if sum(map(len, labels)) <= _LEGEND_CHARS else 2
    axes.legend(frameon=False, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))
    save(figure, title, path)


def draw_reliability(
    path: Path, title: str, x_label: str, bins: Sequence[tuple[float, float, int]]
) -> None:
    """Draw a reliability diagram: how often predictions of like confidence were right.

    Args:
        path: The PNG to write.
        title: Title of the figure.
        x_label: What the confidence is.
        bins: For each bin that is not empty mean confidence, share that was right, and n.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
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
    save(figure, title, path)


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Centred mean over a twentieth of the points; the window shrinks at both ends."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    total = np.concatenate([[0.0], np.cumsum(array)])
    place = np.arange(len(array))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(array))
    return (total[last] - total[first]) / (last - first)


def _draw_curve(axes: Axes, curve: Series, label: str, colour: str) -> None:
    if len(curve.values) < _SMOOTH_FROM:
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


def save(figure: Figure, title: str, path: Path) -> None:
    """Give a figure its title and write it."""
    figure.suptitle(title, fontsize=11.5, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
