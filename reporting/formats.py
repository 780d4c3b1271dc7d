"""How numbers are written for people."""

from metrics.intervals import Estimate
from metrics.words import KEYS

LABELS = dict(zip(KEYS, ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), strict=True))

MINUS = "_minus_"
"""Between a metric and what its values was held against, e.g. "rouge1_minus_zero_shot"."""

RAW = ("reward", "kl")
"""Metrics that are no shares: shown as they are, with two decimals, and not x 100."""


def format_estimate(
    estimate: Estimate, sign: bool = False, scale: float = 100, digits: int = 1
) -> str:
    """The value x 100, or another scale, with one decimal or more."""
    return f"{scale * estimate.value:{'+' if sign else ''}z.{digits}f}"


def format_interval(
    estimate: Estimate, sign: bool = False, scale: float = 100, digits: int = 1
) -> str:
    """The interval x 100, or another scale, e.g. "40.1 to 42.0"; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    style = f"{'+' if sign or estimate.low < 0 else ''}z.{digits}f"
    return f"{scale * estimate.low:{style}} to {scale * estimate.high:{style}}"


def scale_of(metric: str) -> tuple[float, int]:
    """Give the scale and the decimals that a metric is shown with, as the above take them."""
    return (1, 2) if metric in RAW else (100, 1)


def format_count(count: float) -> str:
    """A number of things, e.g. "1,616,384"."""
    return f"{count:,.0f}"


def format_duration(seconds: float) -> str:
    """A time, e.g. "75 s", "1 min 52 s", "3 h 04 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_bytes(count: float) -> str:
    """An amount of memory in GiB."""
    return f"{count / 2**30:.2f} GiB"


def format_dollars(amount: float) -> str:
    """A price: cents, and below a cent two digits."""
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.2g}"
