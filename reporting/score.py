"""Score predictions against references and dialogues: the work of `report.py score`."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from common import hub
from metrics import faithfulness, text_statistics
from metrics.faithfulness import CHECKS, find_unknown_speakers
from metrics.intervals import Estimate, bootstrap_mean, paired_change
from metrics.names import find_unknown_names
from metrics.rouge import score_rouge
from metrics.text_statistics import STATISTICS
from reporting.formats import MINUS
from reporting.pairing import Examples

Values = dict[str, list[float]]
"""Per-example values by metric, each [n]."""

TextScore = Callable[[Sequence[str]], list[float]]
"""One number for each text."""

_NEED_DIALOGUE = text_statistics.NEED_DIALOGUE | faithfulness.NEED_DIALOGUE


def load_toxicity(model: str, toxic_label: str) -> TextScore:
    """Load a classifier.

    Args:
        model: Hub id, folder or `mini`.
        toxic_label: The label whose probability is a text's toxicity.

    Returns:
        A function of texts that gives the toxicity of each.

    Raises:
        ValueError: The model cannot be had, or has no such label.
    """
    # Here, because they take seconds to import and most calls need no classifier.
    import transformers

    from lightning_modules.reward_scorer import RewardScorer

    transformers.logging.disable_progress_bar()
    path = hub.resolve_model(model, "classifier")
    if not Path(path).is_dir() and not hub.reachable():
        hub.use_cache_only()
    if problem := hub.find_model_problem(path, "toxicity classifier"):
        raise ValueError(f"{problem}.")
    scorer = RewardScorer(path, label=toxic_label).eval()
    scorer.find_column(toxic_label)
    scorer.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda texts: scorer.rate(texts, toxic_label)["toxicity"]


def score_examples(
    examples: Examples, use_stemmer: bool = True, toxicity: TextScore | None = None
) -> dict[str, Values]:
    """Score each prediction column.

    Args:
        examples: Texts that belong together.
        use_stemmer: Have ROUGE compare Porter stems instead of words.
        toxicity: Gives the toxicity of each text; None leaves it out.

    Returns:
        For each column its values: ROUGE ("<key>_best" only where a row has several references),
        `STATISTICS` and `CHECKS` (those over dialogues only where there are dialogues), toxicity.
    """
    return {
        name: _score_column(texts, examples, use_stemmer, toxicity)
        for name, texts in examples.predictions.items()
    }


def _score_column(
    texts: Sequence[str], examples: Examples, use_stemmer: bool, toxicity: TextScore | None
) -> Values:
    values = score_rouge(texts, examples.references, use_stemmer)
    dialogues = examples.dialogues or [""] * len(texts)
    for name, metric in (STATISTICS | CHECKS).items():
        if examples.dialogues is not None or name not in _NEED_DIALOGUE:
            values[name] = metric(texts, dialogues, examples.references)
    if toxicity is not None:
        values["toxicity"] = toxicity(texts)
    return values


def choose_pairs(columns: Sequence[str], baseline: str = "") -> list[tuple[str, str]]:
    """Choose the pairs of columns to compare, each as (before, after).

    Args:
        columns: All prediction columns.
        baseline: The column to compare all others with; every two columns where empty.

    Raises:
        ValueError: There is no such column.
    """
    if not baseline:
        return list(combinations(columns, 2))
    if baseline not in columns:
        raise ValueError(
            f"--baseline {baseline} is not among the prediction columns, {', '.join(columns)}."
        )
    return [(baseline, name) for name in columns if name != baseline]


def estimate(
    scores: Mapping[str, Values], pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, dict[str, Estimate]]:
    """Turn values into means with intervals, and pairs of columns into paired differences.

    Returns:
        For each column its metrics, and for each pair (before, after) in the second column
        "<metric>_minus_<before>", the mean of after - before over the same examples.
    """
    found = {
        name: {metric: bootstrap_mean(values) for metric, values in column.items()}
        for name, column in scores.items()
    }
    for before, after in pairs:
        for metric, values in scores[before].items():
            change = paired_change(values, scores[after][metric])
            found[after][f"{metric}{MINUS}{before}"] = change
    return found


def describe_examples(examples: Examples, scores: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Give every prediction with its values, a row for each example and prediction column.

    Returns:
        Rows with "id", "column", "prediction", each metric, and where there are dialogues
        "unknown_speakers" and "unknown_names", what the summary names and the dialogue has not.
    """
    rows = []
    for name, texts in examples.predictions.items():
        for place, text in enumerate(texts):
            row: dict[str, Any] = {"id": examples.ids[place], "column": name, "prediction": text}
            row |= {metric: values[place] for metric, values in scores[name].items()}
            if examples.dialogues is not None:
                dialogue = examples.dialogues[place]
                row["unknown_speakers"] = find_unknown_speakers(text, dialogue)
                row["unknown_names"] = find_unknown_names(text, dialogue)
            rows.append(row)
    return rows
