"""Choose the charts of a comparison.

Every group has the color of its kind, and its own marker and line, in all of them.
"""

from collections.abc import Callable, Iterator, Sequence

from metrics.intervals import Estimate
from reporting.charts import (
    PALETTE,
    Chart,
    Curve,
    Curves,
    Dot,
    Dots,
    Histogram,
    Scatter,
    Series,
    curve_of,
    running_mean,
)
from reporting.comparison import HEADLINE, LOWER_IS_BETTER, Comparison
from reporting.numbers import ROUGE_LABELS, unit_of
from reporting.runs import Run
from reporting.seeds import KINDS

# Title, quantity on y, metric, whether y starts at 0.
_Layout = Sequence[tuple[str, str, str, bool]]
_LOSSES: _Layout = (
    ("Training loss", "nats per token", "train/loss", False),
    ("Validation loss", "nats per token", "val/loss", False),
)
_CHOICES: _Layout = (("Validation accuracy", "share of pairs or labels", "val/accuracy", False),)
_VALIDATION: _Layout = (
    ("Validation ROUGE-1", "F1 x 100", "val/rouge1", True),
    ("Validation toxicity", "x 100, lower is better", "val/toxicity", True),
)
_PPO: _Layout = (
    ("Reward", "score of the rollouts", "objective/reward", False),
    ("KL to the reference", "nats per sequence", "objective/kl", True),
    ("Entropy", "nats per token", "objective/entropy", False),
    *_VALIDATION,
    ("KL coefficient", "reward per nat", "objective/kl_coef", True),
)


def list_charts(comparison: Comparison) -> dict[str, list[Chart]]:
    """Return the charts of a comparison by section, without those that would be empty.

    The sections are "results", "trade_offs", "learning_curves", "ppo" and "toxicity".
    """
    return {
        "results": [
            _results(comparison, metric)
            for metric in (HEADLINE, "toxicity")
            if any(comparison.estimate(index, metric) for index in range(len(comparison.groups)))
        ],
        "trade_offs": list(_trade_offs(comparison)),
        "learning_curves": [
            *_curves(comparison, _LOSSES, lambda run: not (is_ppo(run) or _is_choice(run))),
            *_curves(comparison, _CHOICES, _is_choice),
            *_curves(comparison, _VALIDATION, lambda run: not is_ppo(run)),
        ],
        "ppo": [*_curves(comparison, _PPO, is_ppo), *_reward_over_kl(comparison)],
        "toxicity": list(_toxicity_changes(comparison)),
    }


def is_ppo(run: Run) -> bool:
    """Return whether a run was trained by PPO."""
    return "objective/reward" in run.curves


def _is_choice(run: Run) -> bool:
    """Return whether a run learned to choose (reward model, DPO, classifier)."""
    return "val/accuracy" in run.curves


def _results(comparison: Comparison, metric: str) -> Dots:
    """Chart a metric of all groups by kind, and emphasize the best model."""
    lower = metric in LOWER_IS_BETTER
    found = _dots(comparison, metric, [Estimate(0.0)] * len(comparison.groups))
    models = {index: found[index].value.value for index in comparison.ranked if index in found}
    best = (min if lower else max)(models, key=lambda index: models[index], default=None)
    dots: list[Dot | str] = []
    for kind, name in enumerate(KINDS):
        own = {i: dot for i, dot in found.items() if comparison.groups[i].kind == kind}
        dots += [name] if own else []
        dots += [dot._replace(bold=i == best and len(models) > 1) for i, dot in own.items()]
    label = f"x 100, {'lower' if lower else 'higher'} is better; 95 % intervals"
    return Dots(ROUGE_LABELS.get(metric, metric), label, dots)


def _trade_offs(comparison: Comparison) -> Iterator[Scatter]:
    """Chart ROUGE-1 over trained parameters and over toxicity."""
    name = ROUGE_LABELS[HEADLINE]

    counts = [group.first.trainable for group in comparison.groups]
    trained = [None if count is None else Estimate(count) for count in counts]
    found = [comparison.estimate(index, "toxicity") for index in range(len(comparison.groups))]
    toxicity = [one and one.scaled(100) for one in found]
    for title, label, x in (
        ("trained weights", "trained weights", trained),
        ("toxicity", "toxicity x 100, lower is better", toxicity),
    ):
        dots = _dots(comparison, HEADLINE, x)
        models = [dot for i, dot in dots.items() if comparison.groups[i].first.has_model]
        if len(models) > 1:
            yield Scatter(f"{name} and {title}", label, f"{name} x 100", models, x is trained)


def _dots(
    comparison: Comparison, metric: str, positions: Sequence[Estimate | None]
) -> dict[int, Dot]:
    """Return the dots of the groups that have both values, by index."""
    scale, colors = unit_of(metric).scale, _colors(comparison)
    dots = {}
    for index, (label, x) in enumerate(zip(comparison.labels, positions, strict=True)):
        found = comparison.estimate(index, metric)
        if found is not None and x is not None:
            runs = [scale * one for one in comparison.run_values(index, metric)]
            runs = runs if len(runs) > 1 else []
            dots[index] = Dot(label, colors[index], found.scaled(scale), runs, x)
    return dots


def _colors(comparison: Comparison) -> list[int]:
    """Return each group's position in the repeated palette: its kind, and its place among them."""
    kinds = [group.kind for group in comparison.groups]
    return [kind + len(PALETTE) * kinds[:i].count(kind) for i, kind in enumerate(kinds)]


def _reward_over_kl(comparison: Comparison) -> Iterator[Curves]:
    """Chart the reward that PPO obtained over the KL that it cost."""
    curves = []
    for run, label, color in _labelled(comparison, is_ppo):
        kl, reward = run.curves.get("objective/kl"), run.curves["objective/reward"]
        if kl and kl.steps == reward.steps and len(kl.steps) > 1:
            every = max(1, len(kl.steps) // 40)
            smooth = [running_mean(each.values)[::every].tolist() for each in (kl, reward)]
            curves.append(Curve(label, Series(*smooth), color))
    if curves:
        x_label = "KL to the reference, nats per sequence; arrow: end of the training"
        yield Curves("Reward over KL", "score of the rollouts", curves, False, x_label, True)


def _toxicity_changes(comparison: Comparison) -> Iterator[Histogram]:
    """Chart the toxicity of the test summaries before and after PPO or DPO, of all seeds."""
    for group in comparison.groups:
        before, after = (
            [100 * value for run in group.runs for value in run.values(f"toxicity{end}").values()]
            for end in ("_before", "")
        )
        if before and after:
            groups = {"before": before, "after": after}
            yield Histogram(group.label, "toxicity x 100 of one summary", groups)


def _curves(
    comparison: Comparison, layout: _Layout, wanted: Callable[[Run], bool]
) -> Iterator[Curves]:
    for title, y_label, metric, from_zero in layout:
        curves = []
        for run, label, color in _labelled(comparison, wanted):
            if curve := curve_of(metric, run.curves.get(metric)):
                curves.append(Curve(label, curve, color))
        if curves:
            yield Curves(title, y_label, curves, from_zero)


def _labelled(
    comparison: Comparison, wanted: Callable[[Run], bool]
) -> Iterator[tuple[Run, str, int]]:
    """Yield runs with their group's label, on its first run only, and color."""
    for group, color in zip(comparison.groups, _colors(comparison), strict=True):
        for number, run in enumerate(group.runs):
            if wanted(run):
                yield run, "" if number else group.label, color
