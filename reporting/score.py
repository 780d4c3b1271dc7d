"""Score prediction files against references and dialogues, for the `score` command."""

from collections.abc import Callable, Mapping, Sequence

from metrics import faithfulness, text_statistics
from metrics.faithfulness import CHECKS
from metrics.intervals import Estimate, bootstrap_mean, paired_change
from metrics.rouge_scores import BEST, score_rouge
from metrics.text_statistics import STATISTICS
from reporting.numbers import MINUS, ROUGE_LABELS, Unit, format_both, is_clear
from reporting.prediction_files import Examples

TextScore = Callable[[Sequence[str]], list[float]]
"""Returns a number for each text."""

_NEED_DIALOGUE = text_statistics.NEED_DIALOGUE | faithfulness.NEED_DIALOGUE
_LABELS = {
    **ROUGE_LABELS,
    **{key + BEST: f"{label}, best reference" for key, label in ROUGE_LABELS.items()},
    "words": "words",
    "length_ratio": "length / references",
    **{f"novelty{n}": f"new {n}-grams" for n in (1, 2, 3)},
    "copy_density": "length of copied spans, words",
    "unfaithful_speaker": "unknown speaker",
    "unfaithful_name": "unknown name",
    "swapped_speakers": "speakers swapped",
    "toxicity": "toxicity",
}
_COUNTS = ("words", "copy_density")


def load_toxicity(model: str, toxic_label: str) -> TextScore:
    """Load a toxicity classifier.

    Args:
        model: Hub id, folder or `mini`.
        toxic_label: The label whose probability is a text's toxicity.

    Returns:
        A function that returns the toxicity of each text.

    Raises:
        ValueError: The model is not available or has no such label.
    """
    import torch

    from common import hub
    from common.exits import quieten_models
    from lightning_modules.reward_scorer import RewardScorer

    path = hub.resolve_model(model, "classifier")
    if problem := hub.find_model_problem(path, "toxicity classifier"):
        raise ValueError(f"{problem}.")
    quieten_models()
    scorer = RewardScorer(path, label=toxic_label).eval()
    scorer.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda texts: scorer.rate(texts, toxic_label)["toxicity"]


def score_examples(
    examples: Examples, use_stemmer: bool = True, toxicity: TextScore | None = None
) -> dict[str, dict[str, Estimate]]:
    """Score each prediction column.

    Args:
        examples: Paired rows.
        use_stemmer: Let ROUGE compare Porter stems instead of words.
        toxicity: Scores the toxicity of texts; None leaves it out.

    Returns:
        For each column its metrics: ROUGE ("<key>_best" only if a row has several references),
        text statistics, faithfulness (both need dialogues, mostly) and toxicity. From the second
        column on also "<metric>_minus_<first column>", the paired difference.
    """
    values = {
        name: _score_column(texts, examples, use_stemmer, toxicity)
        for name, texts in examples.predictions.items()
    }
    first = next(iter(values))
    found = {}
    for name, column in values.items():
        found[name] = {metric: bootstrap_mean(one) for metric, one in column.items()}
        if name != first:
            for metric, one in column.items():
                change = paired_change(values[first][metric], one)
                found[name][f"{metric}{MINUS}{first}"] = change
    return found


def _score_column(
    texts: Sequence[str], examples: Examples, use_stemmer: bool, toxicity: TextScore | None
) -> dict[str, list[float]]:
    """Return the values [n] of each metric."""
    values = score_rouge(texts, examples.references, use_stemmer)
    dialogues = examples.dialogues or [""] * len(texts)
    for name, metric in (STATISTICS | CHECKS).items():
        if examples.dialogues is not None or name not in _NEED_DIALOGUE:
            values[name] = metric(texts, dialogues, examples.references)
    if toxicity is not None:
        values["toxicity"] = toxicity(texts)
    return values


def tabulate_scores(found: Mapping[str, Mapping[str, Estimate]]) -> list[list[str]]:
    """Tabulate the metrics: titles, then a row for each; differences are columns of their own."""
    first, *others = found
    columns: dict[str, tuple[str, str]] = {name: (name, "") for name in found}
    columns |= {f"{name} - {first}": (name, MINUS + first) for name in others}
    rows = [["metric", *columns]]
    for metric, label in _LABELS.items():
        cells = []
        for name, end in columns.values():
            if (estimate := found[name].get(metric + end)) is not None:
                unit = Unit(1 if metric in _COUNTS else 100, 1)
                star = " *" if end and is_clear(estimate) else ""
                cells.append(format_both(estimate, unit, sign=bool(end)) + star)
        rows += [[label, *cells]] if cells else []
    return rows
