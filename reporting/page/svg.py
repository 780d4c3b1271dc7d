"""The elements that charts of the page are made of: tags, scales, axes.

Colours, fonts and line widths are the style sheet's, so that a chart follows the page into the dark
and onto paper. Texts are escaped by markupsafe.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

COLOURS = 8
"""Places in the palette of the style sheet."""

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

Scale = Callable[[float], float]


class Box(NamedTuple):
    """The plane of a chart, pixels from the top left corner of the drawing."""

    left: float
    top: float
    right: float
    bottom: float


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Make an element; an underscore in an attribute's name stands for a hyphen."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")  # noqa: S704 - all parts are escaped


def drawing(width: float, height: float, label: str, *children: str) -> Markup:
    """Make a drawing that scales with its place, and says what it is to a screen reader."""
    return tag(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", role="img",
        aria_label=label,
    )  # fmt: skip


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "start") -> Markup:
    """Write words at a point."""
    return tag("text", words, x=x, y=y, class_=kind, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Draw a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def colour(place: int) -> str:
    """The class of a place in the palette, which begins again behind its last."""
    return f"c{place % COLOURS}"


def dot(x: float, y: float, place: int, title: str, kind: str = "dot") -> Markup:
    """Draw a dot; behind the palette's last place the shapes change, so that none is like another.

    Args:
        x: Where it is.
        y: Where it is.
        place: The group's.
        title: What is said when the pointer rests on it.
        kind: Class.
    """
    shape, r = place // COLOURS % 3, 5.0 if kind == "dot" else 2.5
    classes, said = f"{kind} {colour(place)}", tag("title", title)
    if shape == 0:
        return tag("circle", said, cx=x, cy=y, r=r, class_=classes)
    turn = "" if shape == 1 else f" rotate(45 {x:.1f} {y:.1f})"
    corner = {"x": x - r, "y": y - r, "width": 2 * r, "height": 2 * r}
    return tag("rect", said, **corner, transform=turn.strip() or None, class_=classes)


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Choose round numbers between two ends."""
    raw = (high - low) / max(about, 1)
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in _NICE if nice * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def extent(values: Sequence[float], from_zero: bool = False, margin: float = 0.06) -> Box:
    """Choose the ends of an axis: `left` the low and `right` the high one.

    A constant is not magnified until its rounding shows.
    """
    low, high = min(values), max(values)
    least = 0.02 * max(abs(low), abs(high)) or 1e-3
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    room = margin * (high - low)
    low, high = low - room, high + room
    if from_zero:
        low = min(0.0, low) if min(values) < 0 else 0.0
    return Box(low, 0, high, 0)


def short_number(value: float) -> str:
    """A tick's number: "0.25", "1.6M"."""
    for size, unit in _UNITS:
        if abs(value) >= size and size >= 1e3 and abs(value) >= 10_000:
            return f"{value / size:.3g}{unit}"
    return f"{value:.6g}"


def axes(
    box: Box, x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str
) -> list[Markup]:
    """Draw a quiet grid, the numbers at it, and what x is."""
    parts = []
    for value in y_ticks:
        parts.append(line(box.left, y(value), box.right, y(value), "grid"))
        parts.append(text(box.left - 6, y(value) + 4, short_number(value), anchor="end"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    for value in x_ticks:
        parts.append(text(x(value), box.bottom + 16, short_number(value), anchor="middle"))
    parts.append(text(box.right, box.bottom + 32, x_label, "label", "end"))
    return parts


def shorten(name: str, most: int) -> str:
    """Cut a name that there is no room for."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours keep a gap, in their order, between two ends."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [0.0] * len(places)
    before = low - gap
    for i in order:
        moved[i] = before = max(places[i], before + gap)
    limit = high
    for i in reversed(order):
        moved[i] = limit = min(moved[i], limit)
        limit -= gap
    return moved


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
