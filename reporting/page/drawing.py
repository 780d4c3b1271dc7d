"""Charts as SVG for the page: see `reporting.charts` for what they hold."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from markupsafe import Markup

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
from reporting.page.svg import (
    Box,
    Scale,
    axes,
    colour,
    dot,
    drawing,
    extent,
    line,
    linear,
    short_number,
    shorten,
    spread,
    tag,
    text,
    ticks,
)

_WIDTH, _HEIGHT = 390, 236
_MOST_POINTS = 240
_BINS = 20
_LETTER = 6.4  # width of a letter of a name, pixels


def draw(chart: Chart) -> Markup:
    """Draw a chart of any kind; title and y are the caption's."""
    match chart:
        case Panel():
            return _draw_panel(chart)
        case Dots():
            return _draw_dots(chart)
        case Scatter():
            return _draw_scatter(chart)
        case Histogram():
            return _draw_histogram(chart)


def in_words(estimate: Estimate) -> str:
    """Value and interval in the chart's own unit."""
    words = f"{estimate.value:.2f}"
    if estimate.low is not None and estimate.high is not None:
        words += f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return words


def _draw_dots(chart: Dots) -> Markup:
    """A line for each group: name, whisker, dot, number."""
    longest = max(len(one.label) for one in chart.dots)
    names = min(24 + 6.6 * longest, 0.36 * _WIDTH)
    box = Box(names, 8, _WIDTH - 52, 8 + 27 * len(chart.dots))
    ends = [end for one in chart.dots for end in _ends(one)]
    low, _, high, _ = extent(ends)
    x = linear(low, high, box.left + 8, box.right - 8)
    parts = []
    for value in ticks(low, high):
        parts.append(line(x(value), box.top, x(value), box.bottom, "grid"))
        parts.append(text(x(value), box.bottom + 16, short_number(value), anchor="middle"))
    for place, one in enumerate(chart.dots):
        y = box.top + 27 * place + 14
        parts.append(text(0, y + 4, shorten(one.label, int(names / 6.6)), "name"))
        parts += _whisker(one, partial(_level, y, x))
        parts.append(text(_WIDTH, y + 4, f"{one.value.value:.{chart.decimals}f}", "value", "end"))
    label = f"{chart.title}: " + "; ".join(
        f"{one.label} {in_words(one.value)}" for one in chart.dots
    )
    return drawing(_WIDTH, box.bottom + 26, label, *parts)


def _ends(one: Dot) -> list[float]:
    found = (one.value.value, one.value.low, one.value.high, *one.runs)
    return [end for end in found if end is not None]


def _whisker(one: Dot, at: Callable[[float], tuple[float, float]]) -> list[Markup]:
    """Draw interval, runs and dot of a value; `at` says where a value is."""
    parts = []
    title = f"{one.label}: {in_words(one.value)}"
    if one.value.low is not None and one.value.high is not None:
        parts.append(line(*at(one.value.low), *at(one.value.high), f"whisker {colour(one.style)}"))
    parts += [dot(*at(run), one.style, f"{one.label}, a run: {run:.2f}", "run") for run in one.runs]
    return [*parts, dot(*at(one.value.value), one.style, title)]


def _draw_scatter(chart: Scatter) -> Markup:
    box = Box(44, 12, _WIDTH - 16, _HEIGHT - 38)
    low, _, high, _ = extent([end for one in chart.dots for end in _ends(one)], margin=0.1)
    y = linear(low, high, box.bottom, box.top)
    x, x_ticks = _log_scale(chart.dots, box) if chart.log else _plain_scale(chart.dots, box)
    parts = axes(box, x, y, x_ticks, ticks(low, high), chart.x_label)
    for style in dict.fromkeys(one.style for one in chart.dots if chart.joined):
        own = sorted((one.x, one.value.value) for one in chart.dots if one.style == style)
        parts.append(_path([(x(at), y(value)) for at, value in own], f"curve {colour(style)}"))
    for one in chart.dots:
        parts += _whisker(one, partial(_point, x(one.x), y))
    if not chart.joined:  # where x says which dot it is
        parts += _name_dots(chart.dots, x, y, box)
    label = f"{chart.title}: " + "; ".join(
        f"{one.label} {in_words(one.value)} at {one.x:g}" for one in chart.dots
    )
    return drawing(_WIDTH, _HEIGHT, label, *parts)


def _level(down: float, x: Scale, value: float) -> tuple[float, float]:
    return x(value), down


def _point(across: float, y: Scale, value: float) -> tuple[float, float]:
    return across, y(value)


def _plain_scale(dots: Sequence[Dot], box: Box) -> tuple[Scale, list[float]]:
    low, _, high, _ = extent([one.x for one in dots], margin=0.12)
    return linear(low, high, box.left + 4, box.right - 4), ticks(low, high)


def _log_scale(dots: Sequence[Dot], box: Box) -> tuple[Scale, list[float]]:
    """A logarithmic scale; 0 stands by itself at the left."""
    positive = [one.x for one in dots if one.x > 0] or [1.0]
    has_zero = any(one.x <= 0 for one in dots)
    low, high = math.log10(smallest_positive(dots)), math.log10(max(positive))
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    start = box.left + (48 if has_zero else 16)
    inner = linear(low, high, start, box.right - 24)
    values = sorted({one.x for one in dots})
    if len(values) > 6 or high - low > 1.5:
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        values = [*([0.0] if has_zero else []), *(10.0**power for power in decades)]
    return lambda value: box.left + 12 if value <= 0 else inner(math.log10(value)), values


def _name_dots(dots: Sequence[Dot], x: Scale, y: Scale, box: Box) -> list[Markup]:
    """Write each name beside its dot."""
    words = [shorten(one.label, 20) for one in dots]
    marks = [
        (x(one.x), y(one.value.value), _LETTER * len(word))
        for one, word in zip(dots, words, strict=True)
    ]
    corners = place_labels(marks, box.left, box.right + 12)
    return [
        text(left, top + 11, word, "name") for (left, top), word in zip(corners, words, strict=True)
    ]


def _draw_panel(panel: Panel) -> Markup:
    """Curves with their names at their ends."""
    styles = {label: panel.style(label) for label in panel.curves}
    named = [label for label in panel.curves if styles[label].name]
    longest = max((len(styles[label].name) for label in named), default=0)
    room = min(8 + 6.6 * longest, 110) if len(named) > 1 else 14
    box = Box(48, 10, _WIDTH - room, _HEIGHT - 38)
    smooth = {label: _smooth(curve) for label, curve in panel.curves.items()}
    shown = [*smooth.values(), *(c for c in panel.curves.values() if len(c.steps) < SMOOTH_FROM)]
    low, _, high, _ = extent([v for curve in shown for v in curve.values], panel.from_zero)
    steps = [step for curve in panel.curves.values() for step in curve.steps]
    first, last = min(steps), max(steps)
    x, y = linear(first, last, box.left, box.right - 4), linear(low, high, box.bottom, box.top)
    parts = axes(box, x, y, ticks(first, last), ticks(low, high), panel.x_label)
    ends = []
    for label, curve in panel.curves.items():
        kind = colour(styles[label].colour)
        points = [(x(step), y(value)) for step, value in zip(*smooth[label], strict=True)]
        title = f"{label}: {curve.values[-1]:.4g} at {curve.steps[-1]:g}"
        parts.append(_path(points, f"curve {kind}", title))
        if len(curve.steps) < 25:
            parts += [
                dot(*point, styles[label].colour, f"{label}: {value:.4g} at {step:g}", "run")
                for point, step, value in zip(points, *curve, strict=True)
            ]
        ends.append(points[-1])
    if len(named) > 1:
        last_points = [ends[place] for place, label in enumerate(panel.curves) if label in named]
        heights = spread([point[1] for point in last_points], 12, box.top + 4, box.bottom - 2)
        for label, height, end in zip(named, heights, last_points, strict=True):
            kind = colour(styles[label].colour)
            parts.append(line(end[0] + 4, end[1], box.right - 1, height, f"leader {kind}"))
            words = shorten(styles[label].name, int(room / 6.4))
            parts.append(text(box.right + 2, height + 4, words, f"name {kind}"))
    return drawing(_WIDTH, _HEIGHT, _describe(panel), *parts)


def _describe(panel: Panel) -> str:
    ends = "; ".join(
        f"{label} from {curve.values[0]:.4g} to {curve.values[-1]:.4g}"
        for label, curve in panel.curves.items()
    )
    return f"{panel.title}, {panel.y_label}: {ends}"


def _smooth(curve: Series) -> Series:
    """The running mean of a curve of many points, at no more points than can be seen."""
    if len(curve.steps) < SMOOTH_FROM:
        return curve
    every = max(1, len(curve.steps) // _MOST_POINTS)
    return Series(curve.steps[::every], running_mean(curve.values)[::every].tolist())


def _draw_histogram(chart: Histogram) -> Markup:
    """Distributions one over the other, each with its mean."""
    box = Box(44, 12 + 17 * len(chart.groups), _WIDTH - 14, _HEIGHT - 38)
    edges = np.linspace(0, 1, _BINS + 1)
    counts = {label: np.histogram(v, bins=edges)[0] for label, v in chart.groups.items()}
    most = max(int(each.max()) for each in counts.values())
    x, y = linear(0, 1, box.left, box.right), linear(0, most * 1.05, box.bottom, box.top)
    parts = axes(box, x, y, ticks(0, 1), ticks(0, most, 3), chart.x_label)
    said = []
    for place, (label, values) in enumerate(chart.groups.items()):
        mean = float(np.mean(values))
        for (left, right), count in zip(pairwise(edges), counts[label], strict=True):
            title = f"{label}: {count} of {len(values)} between {left:.2f} and {right:.2f}"
            parts.append(
                tag(
                    "rect", tag("title", title), x=x(left) + 0.5, y=y(count),
                    width=x(right) - x(left) - 1, height=box.bottom - y(count),
                    class_=f"bar {colour(place)}",
                )
            )  # fmt: skip
        parts.append(line(x(mean), box.top, x(mean), box.bottom, f"mean {colour(place)}"))
        words = f"{label}: mean {mean:.3f}, n = {len(values)}"
        parts.append(text(box.left, 14 + 17 * place, words, f"name {colour(place)}"))
        said.append(words)
    return drawing(_WIDTH, _HEIGHT, f"{chart.title}: {'; '.join(said)}", *parts)


def _path(points: Sequence[tuple[float, float]], kind: str, title: str = "") -> Markup:
    way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", *([tag("title", title)] if title else []), d=way, class_=kind)
