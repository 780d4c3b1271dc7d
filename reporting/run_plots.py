"""Draw the plots of a run folder from its metrics.csv and predictions.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.run_folder import RunFolder
from metrics.calibration import Calibration, calibrate
from metrics.preferences import accuracy_by_distance, calibrate_pairs, group_rewards
from reporting.charts import Curve, Curves, Dot, Dots, Histogram, Reliability
from reporting.draw import save_charts
from reporting.runs import read_series

# Title, y axis, and the panel's metrics by label.
_LEARNING = (
    ("Loss", "nats, the mean", {"train": "train/loss", "validation": "val/loss"}),
    (
        "Validation ROUGE",
        "F1",
        {key: f"val/{key}" for key in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    ),
    ("Validation toxicity", "P(hate)", {"toxicity": "val/toxicity"}),
    (
        "Validation: what is right",
        "share",
        {"accuracy": "val/accuracy", "F1, mean of labels": "val/f1"},
    ),
    # DPO
    (
        "Implicit rewards in training",
        "beta x nats",
        {"preferred": "rewards/chosen", "other": "rewards/rejected"},
    ),
    ("Validation margin", "beta x nats", {"margin": "val/margin"}),
    (
        "Log-probability in training",
        "nats per completion",
        {"preferred": "logps/chosen", "other": "logps/rejected"},
    ),
)
_PPO = (
    ("Reward", "raw logit", {"score": "objective/reward", "score - KL": "objective/rlhf_reward"}),
    ("KL to the reference", "nats per sequence", {"KL (k1)": "objective/kl"}),
    ("Entropy", "nats per token", {"entropy": "objective/entropy"}),
    ("Validation toxicity", "P(hate)", {"toxicity": "val/toxicity"}),
    ("KL coefficient", "reward per nat", {"beta": "objective/kl_coef"}),
    ("Ratio of new to old policy", "mean ratio", {"ratio": "ppo/policy/ratio"}),
    ("Clipped tokens", "share", {"clipped": "ppo/policy/clipfrac"}),
    ("KL of one update", "nats per token", {"KL": "ppo/policy/approxkl"}),
    ("Value loss", "squared reward", {"value": "ppo/val/loss"}),
    ("Variance explained by the value", "share", {"share": "ppo/val/explained_variance"}),
    ("Response length", "tokens", {"length": "rollout/length"}),
    ("Responses that end", "share with EOS", {"EOS": "rollout/eos_rate"}),
)
_FROM_ZERO = {
    "Validation ROUGE",
    "Validation toxicity",
    "Clipped tokens",
    "Response length",
    "Responses that end",
}


def draw_run(folder: RunFolder) -> None:
    """Draw every figure for which the run folder has data.

    learning_curves.png, ppo.png, rouge_per_example.png, toxicity_before_after.png; of a reward
    model accuracy_by_distance.png, calibration.png, rewards.png; of a classifier calibration.png.
    """
    name = folder.path.resolve().name
    rows = folder.read_metrics_csv()
    if panels := make_panels(rows, _LEARNING):
        save_charts(folder.plots / "learning_curves.png", f"{name}: learning curves", panels)
    if read_series(rows, "objective/reward").steps and (panels := make_panels(rows, _PPO)):
        save_charts(folder.plots / "ppo.png", f"{name}: PPO", panels, columns=4)
    examples = folder.read_predictions()
    if rouge := take_columns(examples, {"rouge1": "rouge1", "rougeL": "rougeL"}):
        chart = Histogram("", "ROUGE F1 of one example", rouge)
        title = f"{name}: ROUGE of the test examples"
        save_charts(folder.plots / "rouge_per_example.png", title, [chart])
    if examples and all("rewards" in row for row in examples):
        draw_rewards(folder, name, examples)
    if examples and all("probabilities" in row for row in examples):
        sure = [max(row["probabilities"].values()) for row in examples]
        right = [row["predicted_label"] == row["label"] for row in examples]
        what = "probability of the predicted label"
        draw_calibration(folder, name, what, calibrate(sure, right))
    toxicity = take_columns(examples, {"before": "toxicity_before", "after": "toxicity"})
    if "before" in toxicity:
        chart = Histogram("", "P(hate) of one generated summary", toxicity)
        title = f"{name}: toxicity before and after"
        save_charts(folder.plots / "toxicity_before_after.png", title, [chart])


def draw_calibration(folder: RunFolder, name: str, what: str, found: Calibration) -> None:
    """Draw how confident the predictions of a test were, and how often they were correct."""
    title = f"{name}: calibration, ECE {found.ece:.3f}"
    save_charts(folder.plots / "calibration.png", title, [Reliability("", what, found.bins)])


def draw_rewards(folder: RunFolder, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw how well a reward model ranks the tested completions."""
    dots = [
        Dot(f"{distance} rank{'s' * (distance > 1)} apart (n = {estimate.n})", 0, estimate)
        for distance, estimate in accuracy_by_distance(rows).items()
    ]
    save_charts(
        folder.plots / "accuracy_by_distance.png",
        f"{name}: pairs in the annotators' order",
        [Dots("", "share of pairs (chance: 0.5), 95 % intervals", dots, digits=2)],
    )
    what = "sigmoid(|difference of the rewards|)"
    draw_calibration(folder, name, what, calibrate_pairs(rows))
    groups = group_rewards(rows)
    values = [value for group in groups.values() for value in group]
    limits = (min(values), max(values))
    save_charts(
        folder.plots / "rewards.png",
        f"{name}: rewards of the test completions",
        [Histogram("", "reward, by the annotators' judgement", groups, limits)],
    )


def make_panels(
    rows: Sequence[Mapping[str, str]], layout: Sequence[tuple[Any, ...]]
) -> list[Curves]:
    """Return the panels for which metrics.csv has at least one curve of two points."""
    panels = []
    for title, y_label, names in layout:
        found = {label: read_series(rows, name) for label, name in names.items()}
        found = {label: series for label, series in found.items() if len(series.steps) > 1}
        if found:
            curves = [
                Curve(label if len(found) > 1 else "", series, place)
                for place, (label, series) in enumerate(found.items())
            ]
            panels.append(Curves(title, y_label, curves, from_zero=title in _FROM_ZERO))
    return panels


def take_columns(
    examples: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return the columns that every row of predictions.jsonl has, by label."""
    return {
        label: [row[name] for row in examples]
        for label, name in names.items()
        if examples and all(name in row for row in examples)
    }
