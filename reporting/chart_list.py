"""Which charts a comparison has, each with its content. A chart that nothing is known for is none.

Values are x 100 where the tables' are. Every group keeps its place in the palette in all charts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from metrics.intervals import Estimate
from reporting.charts import (
    Chart,
    Dot,
    Dots,
    Histogram,
    Panel,
    Scatter,
    Series,
    Style,
    running_mean,
)
from reporting.comparison import COMPARED, HEADLINE, Comparison
from reporting.formats import LABELS, scale_of
from reporting.groups import settings
from reporting.runs import Run

# Title, what y is, the metric, whether y starts at 0.
_LOSSES = (
    ("Training loss", "nats per token", "train/loss", False),
    ("Validation loss", "nats per token", "val/loss", False),
)
# Of reward models, DPO and classifiers: theirs is the loss of a choice, and no loss of tokens.
_CHOICES = (
    ("Training loss of choices", "nats per pair or label", "train/loss", False),
    ("Validation accuracy", "share of pairs or labels", "val/accuracy", False),
)
_TEXTS = (
    ("Validation ROUGE-1", "F1", "val/rouge1", True),
    ("Validation ROUGE-L", "F1", "val/rougeL", True),
    ("Validation toxicity", "P(hate)", "val/toxicity", True),
)
_PPO = (
    ("Reward", "score of the rollouts", "objective/reward", False),
    ("KL to the reference", "nats per sequence", "objective/kl", True),
    ("Entropy", "nats per token", "objective/entropy", False),
    ("Validation ROUGE-1", "F1", "val/rouge1", True),
    ("Validation toxicity", "P(hate)", "val/toxicity", True),
    ("KL coefficient", "reward per nat", "objective/kl_coef", True),
)
# Method, the setting that is swept, what it is called, settings that go along with it.
_SWEEPS = (
    ("lora", "model.init_args.r", "LoRA rank", ("model.init_args.alpha",)),
    ("soft_prompt", "model.init_args.virtual_tokens", "virtual tokens", ()),
    ("ppo", "model.init_args.ppo.kl_coef", "KL coefficient", ()),
)
_FRONTIER_POINTS = 40


def figures(comparison: Comparison) -> list[tuple[str, str, Sequence[Chart]]]:
    """File name, title and content of every figure; what there is nothing for has no content."""
    return [
        ("tradeoffs", "ROUGE against its cost", tradeoffs(comparison)),
        ("learning_curves", "Learning curves", learning_curves(comparison)),
        ("ppo", "PPO", ppo_curves(comparison)),
        (
            "toxicity_before_after",
            "Toxicity before and after",
            list(toxicity_changes(comparison).values()),
        ),
        ("sweeps", "Sweeps", sweeps(comparison)),
    ]


def metric_dots(comparison: Comparison) -> dict[str, Dots]:
    """Each metric by group, with intervals and the runs one by one; by metric."""
    found = {}
    for metric in COMPARED:
        dots = _dots(comparison, metric, lambda _: 0.0)
        if dots:
            label = "raw logit" if metric == "reward" else "x 100"
            found[metric] = Dots(LABELS.get(metric, metric), label, dots, scale_of(metric)[1])
    return found


def tradeoffs(comparison: Comparison) -> list[Scatter]:
    """ROUGE against what it costs: trained parameters, and toxicity."""
    models = [p for p, group in enumerate(comparison.groups) if group.first.has_model]
    name = LABELS[HEADLINE]

    def trainable(place: int) -> float | None:
        return comparison.groups[place].first.trainable

    def toxicity(place: int) -> float | None:
        found = comparison.estimate(place, "toxicity")
        return None if found is None else 100 * found.value

    charts = [
        Scatter(
            f"{name} and size", "trained parameters", "x 100",
            _dots(comparison, HEADLINE, trainable, models), log=True,
        ),
        Scatter(
            f"{name} and toxicity", "toxicity x 100 (left is better)", "x 100",
            _dots(comparison, HEADLINE, toxicity, models),
        ),
    ]  # fmt: skip
    return [chart for chart in charts if len(chart.dots) > 1]


def learning_curves(comparison: Comparison) -> list[Panel]:
    """Loss and validation over the steps of what was trained without PPO."""
    return [
        *_panels(comparison, _LOSSES, lambda run: not (is_ppo(run) or learns_choices(run))),
        *_panels(comparison, _CHOICES, learns_choices),
        *_panels(comparison, _TEXTS, lambda run: not is_ppo(run)),
    ]


def ppo_curves(comparison: Comparison) -> list[Panel]:
    """What PPO logs over its batches, and the reward that was had for the KL."""
    panels = _panels(comparison, _PPO, is_ppo)
    curves, styles = {}, {}
    for run, style in _named(comparison, is_ppo):
        kl, reward = run.curves.get("objective/kl"), run.curves.get("objective/reward")
        if kl and reward and kl.steps == reward.steps and len(kl.steps) > 1:
            every = max(1, len(kl.steps) // _FRONTIER_POINTS)
            smooth = [running_mean(each.values)[::every].tolist() for each in (kl, reward)]
            curves[run.name], styles[run.name] = Series(*smooth), style
    if curves:
        panels.append(
            Panel(
                "Reward for KL", "score of the rollouts", curves, False,
                "KL to the reference, nats per sequence", styles,
            )
        )  # fmt: skip
    return panels


def toxicity_changes(comparison: Comparison) -> dict[str, Histogram]:
    """The test's toxicity before and after PPO or DPO, by run."""
    found = {}
    for run in comparison.runs:
        groups = {
            label: list(values.values())
            for label, name in (("before", "toxicity_before"), ("after", "toxicity"))
            if (values := run.values(name))
        }
        if len(groups) == 2:
            title = f"{run.name}: toxicity before and after"
            found[run.name] = Histogram(title, "P(hate) of one summary", groups)
    return found


def sweeps(comparison: Comparison) -> list[Scatter]:
    """A metric over a setting, where groups of a method differ in it and in nothing else."""
    charts = []
    for method, key, name, along in _SWEEPS:
        for places in _swept(comparison, method, key, along):
            for metric in (HEADLINE, "toxicity"):
                own = {place: settings(comparison.groups[place].first)[key] for place in places}
                dots = _dots(comparison, metric, own.get, places)
                flat = [dot._replace(label=f"{dot.x:g}", style=places[0]) for dot in dots]
                title = f"{LABELS.get(metric, metric)} over {name}"
                if len({dot.x for dot in flat}) > 1:
                    charts.append(Scatter(title, name, "x 100", flat, True, True))
    return charts


def is_ppo(run: Run) -> bool:
    """Whether a run was trained by PPO."""
    return "objective/reward" in run.curves


def learns_choices(run: Run) -> bool:
    """Whether a run learnt to choose, between the two of a pair or among labels."""
    return "val/accuracy" in run.curves


def _swept(comparison: Comparison, method: str, key: str, along: Sequence[str]) -> list[list[int]]:
    """Lists of groups that differ in one setting, and those that go along with it, alone."""
    alike: dict[str, list[int]] = {}
    for place, group in enumerate(comparison.groups):
        own = settings(group.first)
        if group.first.method == method and isinstance(own.pop(key, None), int | float):
            rest = {name: value for name, value in own.items() if name not in along}
            alike.setdefault(repr(sorted(rest.items())), []).append(place)
    return [places for places in alike.values() if len(places) > 1]


def _dots(
    comparison: Comparison,
    metric: str,
    find_x: Callable[[int], float | None],
    places: Iterable[int] | None = None,
) -> list[Dot]:
    scale, _ = scale_of(metric)
    dots = []
    for place in range(len(comparison.groups)) if places is None else places:
        found, x = comparison.estimate(place, metric), find_x(place)
        if found is None or x is None:
            continue
        runs = [scale * one for one in comparison.run_values(place, metric)]
        runs = runs if len(runs) > 1 else []
        label = comparison.groups[place].label
        dots.append(Dot(label, place, found.scaled(scale), runs, float(x)))
    return dots


def _panels(
    comparison: Comparison,
    layout: Sequence[tuple[str, str, str, bool]],
    wanted: Callable[[Run], bool],
) -> list[Panel]:
    panels = []
    for title, y_label, metric, from_zero in layout:
        curves: dict[str, Series] = {}
        styles: dict[str, Style] = {}
        for run, style in _named(comparison, wanted):
            curve = run.curves.get(metric)
            flat = metric == "objective/kl_coef" and curve and len(set(curve.values)) == 1
            if curve is not None and len(curve.steps) > 1 and not flat:
                curves[run.name], styles[run.name] = curve, style
        if curves:
            panels.append(Panel(title, y_label, curves, from_zero, styles=styles))
    return panels


def _named(comparison: Comparison, wanted: Callable[[Run], bool]) -> Iterable[tuple[Run, Style]]:
    """Runs with the colour of their group, whose name the first of them bears."""
    for place, group in enumerate(comparison.groups):
        for number, run in enumerate(group.runs):
            if wanted(run):
                yield run, Style(place, group.label if number == 0 else "")


def scaled_bars(comparison: Comparison) -> Mapping[str, Mapping[str, Estimate]]:
    """ROUGE by group, x 100, for bars."""
    bars: dict[str, dict[str, Estimate]] = {}
    for metric, label in LABELS.items():
        for dot in _dots(comparison, metric, lambda _: 0.0):
            bars.setdefault(dot.label, {})[label] = dot.value
    return bars
