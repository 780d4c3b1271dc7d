"""Describe charts: what a chart contains, not how it is drawn (see `reporting.draw`)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metrics.intervals import Estimate


class Series(NamedTuple):
    """Values of a metric over training steps (or another x), both of the same length."""

    steps: Sequence[float]
    values: Sequence[float]


class Curve(NamedTuple):
    """A line: its label (empty: unlabelled), data and position in the palette."""

    label: str
    series: Series
    colour: int


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


class Dot(NamedTuple):
    """A value with its interval.

    Attributes:
        label: The run or method.
        colour: Position in the palette.
        value: Value and interval in display units.
        runs: Values of the individual runs; in a `Scatter` as (x, y).
        x: Position on the x axis of a `Scatter`, perhaps with an interval.
        bold: Emphasize the label.
    """

    label: str
    colour: int
    value: Estimate
    runs: Sequence[float | tuple[float, float]] = ()
    x: Estimate = Estimate(0.0)
    bold: bool = False


class Dots(NamedTuple):
    """Values with intervals, one row each."""

    title: str
    x_label: str
    dots: Sequence[Dot]
    digits: int = 1


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


class Histogram(NamedTuple):
    """Distributions of per-example values on the same axes, between two limits."""

    title: str
    x_label: str
    groups: Mapping[str, Sequence[float]]
    limits: tuple[float, float] = (0, 1)


class Reliability(NamedTuple):
    """Share of correct predictions by confidence: (mean confidence, share correct, n) per bin."""

    title: str
    x_label: str
    bins: Sequence[tuple[float, float, int]]


Chart = Curves | Dots | Scatter | Histogram | Reliability

SMOOTH_FROM = 60
"""Curves with at least this many points are drawn as a running mean over the raw values."""


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Return the centred mean over a twentieth of the points; windows shrink at both ends."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    total = np.concatenate([[0.0], np.cumsum(array)])
    index = np.arange(len(array))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(array))
    return (total[last] - total[first]) / (last - first)


def last_quarter(values: Sequence[float]) -> Sequence[float]:
    """Return the last quarter of a curve, which stands for the end of the training."""
    return values[-max(1, len(values) // 4) :]
