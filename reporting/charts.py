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
    """Distributions of per-example values, one over the other; span: between which they lie."""

    title: str
    x_label: str
    groups: Mapping[str, Sequence[float]]
    span: tuple[float, float] = (0, 1)


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


Rectangle = tuple[float, float, float, float]
"""Left, top, width, height; y grows downwards."""

_LINE = 14.0
_MARK = 6.0


def place_labels(
    marks: Sequence[tuple[float, float, float]], left: float, right: float
) -> list[tuple[float, float]]:
    """Choose for each dot the side of it where its name covers least of names and dots.

    Args:
        marks: Where each dot is, pixels or points, y growing downwards, and how wide its name is.
        left: A name should not begin before it.
        right: A name should not end behind it.

    Returns:
        The top left corner of each name, which is 14 high.
    """
    taken: list[Rectangle] = [(x - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK) for x, y, _ in marks]
    corners = []
    for x, y, width in marks:
        sides = (
            (x + 9, y - 7), (x - 9 - width, y - 7),
            (x - width / 2, y - 24), (x - width / 2, y + 10),
            (x + 9, y - 20), (x + 9, y + 6),
            (x - 9 - width, y - 20), (x - 9 - width, y + 6),
        )  # fmt: skip
        costs = []
        for at, top in sides:
            outside = max(0.0, left - at) + max(0.0, at + width - right)
            covered = sum(_overlap((at, top, width, _LINE), other) for other in taken)
            costs.append(9 * outside + covered)
        corner = sides[costs.index(min(costs))]
        taken.append((*corner, width, _LINE))
        corners.append(corner)
    return corners


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
