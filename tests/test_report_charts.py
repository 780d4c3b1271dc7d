"""What charts of a comparison hold, and that what is drawn lies where its number says."""

import re
from pathlib import Path

import pytest

from metrics.intervals import Estimate
from reporting import chart_list
from reporting.charts import Dot, Dots, Panel, Scatter, Series, running_mean
from reporting.comparison import Comparison
from reporting.page.drawing import draw
from reporting.runs import read_runs
from tests.report_runs import draw_values, lay_ppo, lay_run

NUMBER = r'="(-?[\d.]+)"'


def compare(*paths: Path) -> Comparison:
    runs, problems = read_runs(paths)
    assert problems == []
    return Comparison(runs)


def read(drawing: str, element: str, kind: str, *names: str) -> list[list[float]]:
    """The attributes of all elements of a class."""
    found = re.findall(rf'<{element} ([^>]*class="{kind}[ "][^>]*)>', drawing)
    return [[float(re.findall(rf"\b{name}{NUMBER}", one)[0]) for name in names] for one in found]


# What they hold ------------------------------------------------------------------------------


def test_reward_stands_over_kl_and_after_stands_beside_before(tmp_path: Path) -> None:
    values = draw_values(4, 30)
    comparison = compare(lay_ppo(tmp_path / "ppo", values))
    panels = {panel.title: panel for panel in chart_list.ppo_curves(comparison)}
    (run,) = comparison.runs
    frontier = panels["Reward for KL"].curves["ppo"]
    smooth = [running_mean(run.curves[f"objective/{name}"].values) for name in ("kl", "reward")]
    assert [list(part) for part in frontier] == [part[::2].tolist() for part in smooth]
    assert panels["Entropy"].curves["ppo"].values[-1] == 1.0
    (histogram,) = chart_list.toxicity_changes(comparison).values()
    assert histogram.groups["after"] == values["toxicity"]
    assert sum(histogram.groups["before"]) > sum(histogram.groups["after"])


def test_costs_stand_on_x_as_the_runs_have_them(tmp_path: Path) -> None:
    values = {name: draw_values(seed, 20) for seed, name in enumerate(("lora", "full_ft"))}
    sizes = {"lora": 57_344, "full_ft": 1_616_384}
    paths = [lay_run(tmp_path / n, v, n, trainable=sizes[n]) for n, v in values.items()]
    size, toxicity = chart_list.tradeoffs(compare(*paths))
    assert {dot.label: dot.x for dot in size.dots} == sizes
    for dot in toxicity.dots:
        own = values[dot.label]
        assert dot.x == pytest.approx(100 * sum(own["toxicity"]) / 20)
        assert dot.value.value == pytest.approx(100 * sum(own["rouge1"]) / 20)


@pytest.mark.parametrize(
    ("method", "setting", "title"),
    [("lora", "r", "LoRA rank"), ("soft_prompt", "virtual_tokens", "virtual tokens")],
)
def test_a_sweep_stands_over_its_setting(
    tmp_path: Path, method: str, setting: str, title: str
) -> None:
    values = {size: draw_values(size, 9, size / 20) for size in (8, 2, 4)}
    paths = [
        lay_run(tmp_path / str(size), own, method, config={"model": {"init_args": {setting: size}}})
        for size, own in values.items()
    ]
    rouge, toxicity = chart_list.sweeps(compare(*paths))
    for chart, metric in ((rouge, "rouge1"), (toxicity, "toxicity")):
        assert chart.title.endswith(f" over {title}")
        assert {dot.x: dot.value.value for dot in chart.dots} == pytest.approx(
            {size: 100 * sum(own[metric]) / 9 for size, own in values.items()}
        )


# Where it is drawn ---------------------------------------------------------------------------


def test_dots_and_whiskers_lie_where_their_numbers_say() -> None:
    values = [Estimate(10.0, 5, 4.0, 20.0), Estimate(30.0, 5, 28.0, 36.0)]
    drawn = draw(Dots("t", "x 100", [Dot(f"m{i}", i, one) for i, one in enumerate(values)]))
    (ten,), (thirty,) = read(drawn, "circle", "dot", "cx")
    unit = (thirty - ten) / 20
    assert unit > 0
    ends = read(drawn, "line", "whisker", "x1", "x2")
    for (left, right), one in zip(ends, values, strict=True):
        assert one.low is not None
        assert one.high is not None
        wanted = [ten + unit * (end - 10) for end in (one.low, one.high)]
        assert [left, right] == pytest.approx(wanted, abs=0.01)


def test_a_scatter_grows_upwards_and_by_powers_to_the_right() -> None:
    dots = [Dot(f"m{i}", i, Estimate(10.0 * i, 5, 10.0 * i - 2, 10.0 * i + 4), x=10.0**i)
            for i in (1, 2, 3)]  # fmt: skip
    zero = Dot("none", 0, Estimate(5.0))
    drawn = draw(Scatter("t", "x", "y", [zero, *dots], log=True))
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = read(drawn, "circle", "dot", "cx", "cy")
    assert x0 < x1 < x2 < x3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.01)
    assert y0 - y1 == pytest.approx((y1 - y2) / 2, abs=0.01)
    assert y1 > y2
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.01)
    low, high = read(drawn, "line", "whisker", "y1", "y2")[0]
    unit = (y1 - y2) / 10
    assert [low, high] == pytest.approx([y1 + 2 * unit, y1 - 4 * unit], abs=0.01)


def test_a_curve_goes_through_its_points() -> None:
    drawn = draw(Panel("t", "y", {"a": Series([0, 10, 30], [1.0, 3.0, 2.0])}))
    points = read(drawn, "circle", "run", "cx", "cy")
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x2 - x1) == pytest.approx(2 * (x1 - x0), abs=0.01)
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.01)
    assert y1 < y0
    (way,) = re.findall(r' d="M([^"]+)"', drawn)
    path = [float(part) for part in re.split("[ L]", way)]
    assert path == pytest.approx([part for point in points for part in point], abs=0.06)
