"""What the charts of a comparison contain, and that drawings show the numbers they are given."""

import itertools
import re
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metrics.intervals import Estimate
from reporting.charts import (
    TOOLTIP,
    Chart,
    Curve,
    Curves,
    Dot,
    Dots,
    Scatter,
    Series,
    color_of,
    curve_of,
    running_mean,
    save_charts,
    to_svg,
)
from reporting.comparison import Comparison
from reporting.comparison_charts import list_charts
from reporting.page.inline_svg import inline_svg
from reporting.runs import read_runs
from tests.reporting.run_folders import draw_values, write_ppo, write_run


def compare(*paths: Path) -> Comparison:
    runs, problems = read_runs(paths)
    assert problems == []
    return Comparison(runs)


def draw_axes(chart: Chart) -> Axes:
    axes = Figure().subplots()
    chart.draw(axes)
    return axes


def markers(axes: Axes) -> list[tuple[float, float]]:
    """The points that have a tooltip."""
    lines = [line for line in axes.lines if str(line.get_gid()).startswith(TOOLTIP)]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


# Content ------------------------------------------------------------------------------------------


def test_ppo_charts_show_reward_over_kl_and_toxicity_before_and_after(tmp_path: Path) -> None:
    values = draw_values(4, 30)
    comparison = compare(write_ppo(tmp_path / "ppo", values))
    charts = list_charts(comparison)
    (run,) = comparison.runs
    found = {chart.title: chart for chart in charts["ppo"]}["Reward over KL"]
    assert isinstance(found, Curves)
    smooth = [running_mean(run.curves[f"objective/{name}"].values) for name in ("kl", "reward")]
    assert [list(part) for part in found.curves[0].series] == [p[::2].tolist() for p in smooth]
    (histogram,) = charts["toxicity"]
    assert histogram.groups["after"] == [100 * value for value in values["toxicity"]]
    assert sum(histogram.groups["before"]) > sum(histogram.groups["after"])


def test_trade_offs_have_costs_on_x(tmp_path: Path) -> None:
    values = {name: draw_values(seed, 20) for seed, name in enumerate(("lora", "full_ft"))}
    sizes = {"lora": 57_344, "full_ft": 1_616_384}
    paths = [write_run(tmp_path / n, v, n, trainable=sizes[n]) for n, v in values.items()]
    size, toxicity = list_charts(compare(*paths))["trade_offs"]
    assert {dot.label: dot.x.value for dot in size.dots} == sizes
    for dot in toxicity.dots:
        own = values[dot.label]
        assert dot.x.value == pytest.approx(100 * sum(own["toxicity"]) / 20)
        assert dot.value.value == pytest.approx(100 * sum(own["rouge1"]) / 20)


def test_methods_are_grouped_by_kind_and_the_best_one_is_bold(tmp_path: Path) -> None:
    good, bad = draw_values(0, 20, 0.3), draw_values(1, 20, 0.6)
    ppo = write_ppo(tmp_path / "ppo", draw_values(2, 20, 0.5))
    paths = [ppo, write_run(tmp_path / "a", good), write_run(tmp_path / "b", bad, "full_ft")]
    charts = {chart.title: chart for chart in list_charts(compare(*paths))["results"]}
    shown = [dot if isinstance(dot, str) else dot.label for dot in charts["ROUGE-1"].dots]
    assert shown == ["supervised", "a", "b", "preferences and RL", "ppo"]
    dots = {name: [d for d in chart.dots if isinstance(d, Dot)] for name, chart in charts.items()}
    assert [dot.label for dot in dots["ROUGE-1"] if dot.bold] == ["b"]
    assert [dot.label for dot in dots["toxicity"] if dot.bold] == ["a"]
    a, b, ppo_color = (color_of(dot.color) for dot in dots["ROUGE-1"])
    assert a == b != ppo_color
    assert "lower is better" in charts["toxicity"].x_label


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("val/rouge1", [0.25, 0.5], [25, 50]),
        ("val/loss", [0.25, 0.5], [0.25, 0.5]),
        ("objective/kl_coef", [0.7, 0.7], None),
        ("val/rouge1", [0.5], None),
    ],
)
def test_curves_are_in_the_units_of_the_tables(
    metric: str, values: list[float], shown: list[float] | None
) -> None:
    curve = curve_of(metric, Series(range(len(values)), values))
    assert (curve and curve.values) == shown


def test_losses_of_tokens_and_choices_do_not_share_a_chart(tmp_path: Path) -> None:
    curves = {"train/loss": [0.7, 0.5], "val/accuracy": [0.5, 0.8], "val/rouge1": [0.3, 0.4]}
    paths = [
        write_run(tmp_path / "lora", draw_values(0, 5)),
        write_run(tmp_path / "dpo", draw_values(1, 5), "dpo", curves=curves),
        write_run(tmp_path / "short", draw_values(2, 5), "x", curves={"train/loss": [1.0]}),
    ]
    found = list_charts(compare(*paths))["learning_curves"]
    assert {chart.title: [curve.label for curve in chart.curves] for chart in found} == {
        "Training loss": ["lora"], "Validation accuracy": ["dpo"],
        "Validation ROUGE-1": ["lora", "dpo"],
    }  # fmt: skip


# Drawing ------------------------------------------------------------------------------------------

DOTS = [
    Dot("a", 0, Estimate(10.0, 5, 4.0, 20.0), x=Estimate(0.0)),
    Dot("b", 1, Estimate(30.0, 5, 28.0, 36.0), x=Estimate(100.0)),
]


def test_dots_and_intervals_are_at_their_numbers() -> None:
    axes = draw_axes(Dots("t", "x 100", DOTS))
    assert [x for x, _ in markers(axes)] == [10, 30]
    ends = [line.get_segments()[0][:, 0].tolist() for line in axes.collections]
    assert ends == [[4, 20], [28, 36]]
    assert [text.get_text() for text in axes.texts] == ["10.0", "30.0"]


def test_a_scatter_shows_zero_on_a_logarithmic_axis() -> None:
    axes = draw_axes(Scatter("t", "x", "y", DOTS, log=True, limit=50.0))
    assert markers(axes) == [(0, 10), (100, 30)]
    assert axes.get_xscale() == "symlog"
    assert [50.0, 50.0] in [list(line.get_xdata()) for line in axes.lines]
    assert sorted(text.get_text() for text in axes.texts) == ["a", "b"]


def test_labels_at_the_same_place_do_not_overlap() -> None:
    dots = [Dot(f"label {i}", i, Estimate(1.0 + i / 100), x=Estimate(1.0)) for i in range(5)]
    dots.append(Dot("far", 5, Estimate(9.0), x=Estimate(9.0)))
    axes = draw_axes(Scatter("t", "x", "y", dots))
    heights = sorted(float(text.xyann[1]) for text in axes.texts if text.get_text() != "far")
    assert all(after - before > 0.06 for before, after in itertools.pairwise(heights))


def test_long_curves_are_drawn_with_their_running_mean() -> None:
    values = [float(i % 2) for i in range(100)]
    axes = draw_axes(Curves("t", "y", [Curve("a", Series(range(100), values), 0)]))
    raw, mean = axes.lines
    assert list(raw.get_ydata()) == values
    assert list(mean.get_ydata()) == list(running_mean(values))


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 2.0, 6.0]).tolist() == [1.5, 3.0, 4.0]


@pytest.mark.parametrize("chart", [Dots("t", "x", DOTS), Scatter("t", "x", "y", DOTS)])
def test_svg_for_the_page_has_no_styles_and_follows_the_theme(chart: Chart) -> None:
    name = "<b>$x$ & \"q\"</b> 'r'"
    chart = chart._replace(dots=[*DOTS, Dot(name, 2, Estimate(1.0), x=Estimate(2.0))])
    svg = inline_svg(to_svg(chart), "about <it>")
    assert "style" not in svg
    assert ' id="' not in re.sub(r'<(path|clipPath) id="', "", svg)
    assert "#0072b2" not in svg
    assert "var(--s0)" in svg
    assert "var(--muted)" in svg
    assert "<title>a: 10.00 (4.00 to 20.00)</title>" in svg
    assert "<b>" not in svg
    assert "&lt;b&gt;$x$ &amp; " in svg
    assert 'aria-label="about &lt;it&gt;"' in svg


def test_png_is_written_and_settings_of_matplotlib_stay(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_charts(tmp_path / "plots" / "x.png", "t", [Dots("t", "x", DOTS)] * 4)
    assert (tmp_path / "plots" / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert dict(mpl.rcParams) == before
