"""The drawings as files: curves, histograms, bars, scatters. They know nothing of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from common.run_folder import replacing
from metrics.intervals import Estimate
from reporting import panes
from reporting.charts import Chart, Dots, Histogram, Panel, Scatter

_LEGEND_CHARS = 40


def draw_curves(path: Path, title: str, panels: Sequence[Panel], columns: int = 3) -> None:
    """Draw panels of curves over training steps in a grid.

    Curves of many points are drawn thin, with their running mean thick on top.

    Args:
        path: The PNG to write.
        title: Title of the whole figure.
        panels: At least one.
        columns: Most panels side by side.
    """
    save(_draw_grid(panels, columns), title, path)


def draw_charts(path: Path, title: str, charts: Sequence[Chart], columns: int = 3) -> None:
    """Draw charts of any kind in a grid, as PNG and as SVG.

    Args:
        path: The PNG to write; the SVG lies beside it.
        title: Title of the whole figure.
        charts: At least one.
        columns: Most charts side by side.
    """
    save(_draw_grid(charts, columns), title, path, svg=True)


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
    panes.draw_histogram(figure.subplots(), Histogram("", x_label, groups, span))
    save(figure, title, path)


def _draw_grid(charts: Sequence[Chart], columns: int) -> Figure:
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        match chart:
            case Panel():
                panes.draw_panel(axes, chart)
            case Scatter():
                panes.draw_scatter(axes, chart)
            case Histogram():
                panes.draw_histogram(axes, chart)
            case Dots():
                panes.draw_dots(axes, chart)
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
            panes.name_dots(axes, dots)
    return figure


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
    for place, (label, colour) in enumerate(zip(labels, panes.COLOURS, strict=False)):
        x = [i + (place - (len(labels) - 1) / 2) * width for i in range(len(bars))]
        found = [group.get(label) for group in bars.values()]
        shown = [(at, one) for at, one in zip(x, found, strict=True) if one is not None]
        heights = [one.value for _, one in shown]
        axes.bar([at for at, _ in shown], heights, width * 0.92, color=colour, label=label)
        ends = [(one.low, one.high) for _, one in shown]
        below = [h - (h if low is None else low) for h, (low, _) in zip(heights, ends, strict=True)]
        above = [(h if top is None else top) - h for h, (_, top) in zip(heights, ends, strict=True)]
        axes.errorbar(
            [at for at, _ in shown], heights, yerr=[below, above], fmt="none", ecolor=panes.INK,
            elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    panes.finish(axes, "", "", y_label)
    turned = max(len(name) for name in bars) > 12
    axes.set_xticks(
        range(len(bars)),
        [panes.plain(name) for name in bars],
        rotation=25 if turned else 0,
        ha="right" if turned else "center",
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)
    # One line of a legend that is wider than the axes would leave them no room at all.
    columns = len(labels) if sum(map(len, labels)) <= _LEGEND_CHARS else 2
    axes.legend(frameon=False, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))
    save(figure, title, path, svg=True)


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
    panes.draw_reliability(figure.subplots(), x_label, bins)
    save(figure, title, path)


def save(figure: Figure, title: str, path: Path, svg: bool = False) -> None:
    """Give a figure its title and write it as PNG, and as SVG beside it where asked for."""
    figure.suptitle(panes.plain(title), fontsize=11.5, color=panes.INK)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    if svg:
        # Text as text, and no date: the same runs give the same file.
        as_text = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name})
        with as_text, replacing(path.with_suffix(".svg")) as partial:
            figure.savefig(partial, metadata={"Date": None}, format="svg")
