"""Format metrics, costs and intervals for readers."""

from typing import NamedTuple

from metrics.intervals import Estimate

ROUGE_LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}

MINUS = "_minus_"
"""Separates a metric from the run it is compared with: "rouge1_minus_zero_shot"."""


class Unit(NamedTuple):
    """How a metric is displayed: multiplied by `scale`, with `digits` decimals."""

    scale: float = 100
    digits: int = 1


PERCENT = Unit()
RAW = Unit(1, 2)


def unit_of(metric: str) -> Unit:
    """Return the unit of a metric: rewards and KL as they are, everything else x 100."""
    return RAW if metric in ("reward", "kl") else PERCENT


def format_value(estimate: Estimate, unit: Unit = PERCENT, sign: bool = False) -> str:
    """Format the value, e.g. "41.3", or "+1.2" with a sign."""
    return f"{unit.scale * estimate.value:{'+' if sign else ''}z.{unit.digits}f}"


def format_interval(estimate: Estimate, unit: Unit = PERCENT, sign: bool = False) -> str:
    """Format the interval, e.g. "40.1 to 42.0"; empty if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    style = f"{'+' if sign or estimate.low < 0 else ''}z.{unit.digits}f"
    return f"{unit.scale * estimate.low:{style}} to {unit.scale * estimate.high:{style}}"


def format_both(estimate: Estimate, unit: Unit = PERCENT, sign: bool = False) -> str:
    """Format value and interval, e.g. "41.3 (40.1 to 42.0)"."""
    value, interval = format_value(estimate, unit, sign), format_interval(estimate, unit, sign)
    return f"{value} ({interval})" if interval else value


def is_clear(estimate: Estimate) -> bool:
    """Return whether the interval of a difference excludes 0."""
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and (low > 0 or high < 0)


def format_duration(seconds: float) -> str:
    """Format a duration, e.g. "45 s", "1 min 52 s", "3 h 04 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_bytes(count: float) -> str:
    """Format an amount of memory in GiB."""
    return f"{count / 2**30:.2f} GiB"
