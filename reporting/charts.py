"""What can be drawn: the content of a chart, without a word of how it is drawn.

`reporting.figures` draws these as PNG and SVG files, `reporting.page.drawing` as SVG in the page.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metrics.intervals import Estimate


class Series(NamedTuple):
    """One curve: training steps, or another x, and the values at them, of the same length."""

    steps: Sequence[float]
    values: Sequence[float]


class Style(NamedTuple):
    """How a curve is told from others: its place in the palette, and its name, if it has one."""

    colour: int
    name: str


class Panel(NamedTuple):
    """One pair of axes of curves.

    title; y_label: what y is, with its unit; curves by label; from_zero: whether y starts at 0;
    x_label; styles by label, of those curves that are not simply the next in the palette.
    """

    title: str
    y_label: str
    curves: Mapping[str, Series]
    from_zero: bool = False
    x_label: str = "training step (batches)"
    styles: Mapping[str, Style] = {}

    def style(self, label: str) -> Style:
        """Give a curve's style."""
        return self.styles.get(label) or Style(list(self.curves).index(label), label)


class Dot(NamedTuple):
    """One method's value: where it is on x (scatter only), its interval, its runs one by one."""

    label: str
    style: int
    value: Estimate
    runs: Sequence[float] = ()
    x: float = 0.0


class Dots(NamedTuple):
    """Values with whiskers, a line for each method; decimals to write them with."""

    title: str
    label: str
    dots: Sequence[Dot]
    decimals: int = 1


class Scatter(NamedTuple):
    """Values with whiskers over another quantity.

    log: x is logarithmic, and 0 stands by itself at the left. joined: dots of one style are joined
    by a line, in the order of x.
    """

    title: str
    x_label: str
    y_label: str
    dots: Sequence[Dot]
    log: bool = False
    joined: bool = False


class Histogram(NamedTuple):
    """Distributions of per-example values in [0, 1], one over the other."""

    title: str
    x_label: str
    groups: Mapping[str, Sequence[float]]


Chart = Panel | Dots | Scatter | Histogram

SMOOTH_FROM = 60
"""A curve of so many points is drawn thin, with its running mean thick on top."""


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Centred mean over a twentieth of the points; the window shrinks at both ends."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    total = np.concatenate([[0.0], np.cumsum(array)])
    place = np.arange(len(array))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(array))
    return (total[last] - total[first]) / (last - first)


def smallest_positive(dots: Sequence[Dot]) -> float:
    """The smallest x above 0, where a logarithmic axis that has a 0 may begin."""
    return min((dot.x for dot in dots if dot.x > 0), default=1.0)
