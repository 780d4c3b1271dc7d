"""The drawings of the frontier: every seed of every arm, and toxicity against ROUGE-1 by beta."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metrics.intervals import Estimate
from reporting.figures import save
from reporting.frontier import HALF, Arm, lines_of_betas
from reporting.panes import COLOURS, INK, finish

_BLUE, _RED, _GREEN = COLOURS[:3]
_MAP = "cividis"  # made for colour-blind readers (Nuñez et al. 2018)
_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<", ">")


def draw_seeds(path: Path, arms: Sequence[Arm], max_loss: float, columns: int = 4) -> None:
    """Draw a panel for each arm: one dot a seed, the mean with its intervals, the target shaded.

    Args:
        path: The PNG to write.
        arms: At least one.
        max_loss: How much rouge1 may be lost, a fraction of 1.
        columns: Most panels side by side.
    """
    columns = min(columns, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.2, 2.5 * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    runs = [run for arm in arms for run in arm.outcomes]
    rouge = [arm.estimates["rouge1_change"] for arm in arms]
    ends = [100 * end for one in rouge for end in one[2:] if end is not None]
    x = _limits([*ends, *(100 * run.rouge1_change for run in runs), -100 * max_loss, 0])
    y = _limits([*(100 * run.relative_change for run in runs), -100, 0])
    for axes, arm in zip(grid.flat, arms, strict=False):
        _draw_target(axes, (-100 * max_loss, y[0]), (x[1], -100 * HALF))
        _draw_arm(axes, arm)
        axes.set(xlim=x, ylim=y)
        finish(axes, f"{arm.name}: {arm.reaches} of {len(arm.outcomes)}", "", "")
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel("change of ROUGE-1, x 100", fontsize=9.5, color=INK)
    figure.supylabel("change of toxicity, %", fontsize=9.5, color=INK)
    loss = f"at most {100 * max_loss:g} ROUGE-1 lost"
    title = f"Each seed (dots), mean and 95 % intervals (bars);\nshaded: toxicity halved, {loss}"
    save(figure, title, path)


def _draw_arm(axes: Axes, arm: Arm) -> None:
    good = [run for run in arm.outcomes if run.halves and run.keeps]
    bad = [run for run in arm.outcomes if run not in good]
    for runs, marker, colour in ((good, "o", _BLUE), (bad, "X", _RED)):
        axes.scatter(
            [100 * run.rouge1_change for run in runs], [100 * run.relative_change for run in runs],
            marker=marker, color=colour, s=34, linewidths=0.6, edgecolors="white", zorder=3,
        )  # fmt: skip
    rouge, toxicity = arm.estimates["rouge1_change"], arm.estimates["toxicity_change"]
    before = arm.estimates["toxicity_before"].value
    _draw_cross(axes, _times(rouge, 100), _times(toxicity, 100 / before if before else 0.0))


def draw_frontier(path: Path, arms: Sequence[Arm], chosen: Arm | None, max_loss: float) -> None:
    """Draw the arms' means, toxicity after against the change of rouge1, coloured by KL.

    Arms that differ in the weight of the KL only are joined and labelled by it.

    Args:
        path: The PNG to write.
        arms: At least one.
        chosen: The one to ring.
        max_loss: How much rouge1 may be lost, a fraction of 1.
    """
    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    axes = figure.subplots()
    lines = lines_of_betas(arms)
    joined = [arm for line in lines for arm in line]
    for line in lines:
        axes.plot(*zip(*map(_place, line), strict=True), color="#999999", linewidth=1.2, zorder=1)
    ends = [end for arm in arms for end in _ends(arm)]
    x = _limits([at for at, _ in ends] + [-100 * max_loss, 0])
    y = _limits([height for _, height in ends] + [0])
    _draw_target(axes, (-100 * max_loss, y[0]), (x[1], y[1]))
    # Most arms stay near the reference: the root tells them apart beside one that has left it.
    most = max((arm.kl for arm in arms if not math.isnan(arm.kl)), default=0.0)
    shades = ScalarMappable(PowerNorm(0.5, 0, most or 1.0), _MAP)
    markers = itertools.cycle(_MARKERS)
    for arm in arms:
        if arm in joined:
            _draw_point(axes, arm, "o", shades, None)
            axes.annotate(
                f"$\\beta$ {arm.kl_coef:g}", _place(arm), xytext=(7, 6),
                textcoords="offset points", fontsize=8.5, color=INK,
            )  # fmt: skip
        else:
            _draw_point(axes, arm, next(markers), shades, arm.name)
    if chosen is not None:
        axes.scatter(
            *_place(chosen), s=230, facecolors="none", edgecolors=_RED, linewidths=1.8, zorder=4,
            label=f"chosen: {chosen.name}",
        )  # fmt: skip
    axes.set(xlim=x, ylim=y)
    figure.colorbar(shades, ax=axes, label="KL to the reference, nats a sequence", pad=0.02)
    finish(axes, "", "change of ROUGE-1, x 100", "toxicity after, x 100")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, fontsize=8.5, loc="outside lower center", ncols=4)
    loss = f"at most {100 * max_loss:g} ROUGE-1 lost"
    save(figure, f"What is bought and what it costs; means over seeds; shaded: {loss}", path)


def _draw_point(
    axes: Axes, arm: Arm, marker: str, shades: ScalarMappable, label: str | None
) -> None:
    rouge, toxicity = arm.estimates["rouge1_change"], arm.estimates["toxicity"]
    _draw_cross(axes, _times(rouge, 100), _times(toxicity, 100), faint=True)
    # Hollow where the KL is unknown.
    colour = "white" if math.isnan(arm.kl) else shades.to_rgba(np.array([arm.kl]))[0]
    axes.scatter(
        *_place(arm), marker=marker, s=75, color=[colour], edgecolors=INK, linewidths=0.8, zorder=3,
        label=label,
    )  # fmt: skip


def _place(arm: Arm) -> tuple[float, float]:
    return 100 * arm.estimates["rouge1_change"].value, 100 * arm.estimates["toxicity"].value


def _ends(arm: Arm) -> list[tuple[float, float]]:
    """Where an arm's bars end, to be seen whole."""
    rouge, toxicity = arm.estimates["rouge1_change"], arm.estimates["toxicity"]
    x, y = _place(arm)
    across = [(100 * end, y) for end in (rouge.low, rouge.high) if end is not None]
    return [(x, y), *across, *((x, 100 * end) for end in toxicity[2:] if end is not None)]


def _draw_cross(axes: Axes, x: Estimate, y: Estimate, faint: bool = False) -> None:
    style: dict[str, Any] = {
        "color": INK,
        "alpha": 0.35 if faint else 0.85,
        "linewidth": 1.0 if faint else 1.4,
    }
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value, y.value], zorder=2, **style)
    if y.low is not None and y.high is not None:
        axes.plot([x.value, x.value], [y.low, y.high], zorder=2, **style)


def _draw_target(axes: Axes, corner: tuple[float, float], opposite: tuple[float, float]) -> None:
    size = opposite[0] - corner[0], opposite[1] - corner[1]
    axes.add_patch(Rectangle(corner, *size, color=_GREEN, alpha=0.13, linewidth=0, zorder=0))


def _times(estimate: Estimate, factor: float) -> Estimate:
    low, high = (None if end is None else factor * end for end in estimate[2:])
    return Estimate(factor * estimate.value, estimate.n, low, high)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.07 * (high - low) or 1.0
    return low - margin, high + margin
