"""Draw the plots of a run folder from its metrics.csv and predictions.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.run_folder import RunFolder
from metrics.calibration import Calibration, calibrate
from metrics.preferences import accuracy_by_distance, calibrate_pairs, group_rewards
from reporting.charts import (
    Curve,
    Curves,
    Dot,
    Dots,
    Histogram,
    Reliability,
    curve_of,
    save_charts,
)
from reporting.runs import read_series

# Title, quantity on y, whether y starts at 0, and the metrics by label.
_TOXICITY = ("Validation toxicity", "x 100, lower is better", True, {"toxicity": "val/toxicity"})
_LEARNING = (
    ("Loss", "nats", False, {"train": "train/loss", "validation": "val/loss"}),
    ("Validation ROUGE", "F1 x 100", True,
     {"ROUGE-1": "val/rouge1", "ROUGE-2": "val/rouge2", "ROUGE-L": "val/rougeL"}),
    _TOXICITY,
    ("Validation accuracy", "share", False, {"accuracy": "val/accuracy", "macro-F1": "val/f1"}),
    # DPO
    ("Implicit rewards in training", "beta x nats", False,
     {"preferred": "rewards/chosen", "other": "rewards/rejected"}),
    ("Validation margin", "beta x nats", False, {"margin": "val/margin"}),
    ("Log-probability in training", "nats per completion", False,
     {"preferred": "logps/chosen", "other": "logps/rejected"}),
)  # fmt: skip
_PPO = (
    ("Reward", "raw logit", False,
     {"score": "objective/reward", "score - KL": "objective/rlhf_reward"}),
    ("KL to the reference", "nats per sequence", False, {"KL (k1)": "objective/kl"}),
    ("Entropy", "nats per token", False, {"entropy": "objective/entropy"}),
    _TOXICITY,
    ("KL coefficient", "reward per nat", False, {"beta": "objective/kl_coef"}),
    ("Ratio of new to old policy", "mean ratio", False, {"ratio": "ppo/policy/ratio"}),
    ("Clipped tokens", "share", True, {"clipped": "ppo/policy/clipfrac"}),
    ("KL of one update", "nats per token", False, {"KL": "ppo/policy/approxkl"}),
    ("Value loss", "squared reward", False, {"value": "ppo/val/loss"}),
    ("Explained variance of the value", "share", False,
     {"share": "ppo/val/explained_variance"}),
    ("Response length", "tokens", True, {"length": "rollout/length"}),
    ("Finished responses", "share with EOS", True, {"EOS": "rollout/eos_rate"}),
)  # fmt: skip


def draw_run(folder: RunFolder) -> None:
    """Draw every figure for which the run folder has data.

    learning_curves.png, ppo.png, rouge_per_example.png, toxicity_before_after.png; of a reward
    model accuracy_by_distance.png, calibration.png, rewards.png; of a classifier calibration.png.
    """
    name = folder.path.resolve().name
    logged, examples = folder.read_metrics_csv(), folder.read_predictions()

    def save(file: str, title: str, *charts: Any, columns: int = 3) -> None:
        if charts:
            save_charts(folder.plots / file, f"{name}: {title}", charts, columns)

    save("learning_curves.png", "learning curves", *_make_panels(logged, _LEARNING))
    if read_series(logged, "objective/reward").steps:
        save("ppo.png", "PPO", *_make_panels(logged, _PPO), columns=4)
    if rouge := _take_columns(examples, {"ROUGE-1": "rouge1", "ROUGE-L": "rougeL"}, 100):
        chart = Histogram("", "ROUGE F1 x 100 of one example", rouge)
        save("rouge_per_example.png", "ROUGE of the test examples", chart)
    toxicity = _take_columns(examples, {"before": "toxicity_before", "after": "toxicity"}, 100)
    if "before" in toxicity:
        chart = Histogram("", "toxicity x 100 of one summary", toxicity)
        save("toxicity_before_after.png", "toxicity before and after", chart)
    calibration: Calibration | None = None
    if _take_columns(examples, {"": "rewards"}):
        dots = [
            Dot(f"{distance} rank{'s' * (distance > 1)} apart (n = {estimate.n})", 0, estimate)
            for distance, estimate in accuracy_by_distance(examples).items()
        ]
        shares = Dots("", "share of pairs (chance: 0.5), 95 % intervals", dots, digits=2)
        save("accuracy_by_distance.png", "pairs in the annotators' order", shares)
        groups = group_rewards(examples)
        values = [value for group in groups.values() for value in group]
        limits = (min(values), max(values))
        rewards = Histogram("", "reward, by the annotators' judgment", groups, limits)
        save("rewards.png", "rewards of the test completions", rewards)
        what, calibration = "sigmoid(|difference of the rewards|)", calibrate_pairs(examples)
    elif examples and all("probabilities" in row for row in examples):
        confidence = [max(row["probabilities"].values()) for row in examples]
        right = [row["predicted_label"] == row["label"] for row in examples]
        what, calibration = "probability of the predicted label", calibrate(confidence, right)
    if calibration is not None:
        reliability = Reliability("", what, calibration.bins)
        save("calibration.png", f"calibration, ECE {calibration.ece:.3f}", reliability)


def _make_panels(
    rows: Sequence[Mapping[str, str]], layout: Sequence[tuple[str, str, bool, Mapping[str, str]]]
) -> list[Curves]:
    """Return the panels for which metrics.csv has at least one curve of two points."""
    panels = []
    for title, y_label, from_zero, names in layout:
        found = {
            label: series
            for label, name in names.items()
            if (series := curve_of(name, read_series(rows, name)))
        }
        if found:
            curves = [
                Curve(label if len(found) > 1 else "", series, place)
                for place, (label, series) in enumerate(found.items())
            ]
            panels.append(Curves(title, y_label, curves, from_zero))
    return panels


def _take_columns(
    examples: Sequence[Mapping[str, Any]], names: Mapping[str, str], scale: int = 1
) -> dict[str, list[Any]]:
    """Return the columns that every row of predictions.jsonl has, by label."""
    return {
        label: [scale * row[name] for row in examples]
        for label, name in names.items()
        if examples and all(name in row for row in examples)
    }
