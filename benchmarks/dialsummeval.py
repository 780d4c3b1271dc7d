"""How far do our metrics agree with people? Rank correlations on DialSummEval.

    python -m benchmarks.dialsummeval                              # DIALSUMMEVAL_DIR
    python -m benchmarks.dialsummeval --judge runs/real/judge/export

Gao and Wan 2022, "DialSummEval: Revisiting Summarization Evaluation for Dialogues": summaries of
70 SAMSum dialogues by 14 systems, each judged by three people. System A is SAMSum's reference; the
other 13 are compared with it. Correlations are Kendall's tau-b:

- by summary: of the 13 summaries of a dialogue, averaged over the dialogues;
- by system: of the means of the 13 systems.

Intervals resample the dialogues. A reward model (``--judge``) is compared on the second half of the
dialogues only, because `demo --real` trains it on the first.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from metrics.faithfulness import unfaithful_name
from metrics.rouge_scores import score_rouge
from metrics.text_statistics import novelty, words

Array = NDArray[np.float64]
QUALITIES = ("consistency", "relevance", "fluency", "coherence")
REFERENCE = "A"


def read_judgments(path: Path) -> tuple[dict[str, Array], list[list[str]], list[str], list[str]]:
    """Read DialSummEval.

    Returns:
        Mean scores of each quality and their "sum", [D, 13] each; the summaries [D][13]; the
        dialogues [D] and the references [D].
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ids = sorted({row["id"] for row in rows})
    systems = sorted({row["model_id"] for row in rows} - {REFERENCE})
    cells = {(row["id"], row["model_id"]): row for row in rows}
    table = [[cells[each, system] for system in systems] for each in ids]
    scores = {
        quality: np.array(
            [[np.mean([m[quality] for m in cell["annotations"]]) for cell in row] for row in table]
        )
        for quality in QUALITIES
    }
    scores["sum"] = np.sum(list(scores.values()), axis=0)
    summaries = [[cell["summary"] for cell in row] for row in table]
    references = [cells[each, REFERENCE] for each in ids]
    dialogues = [cell["dialogue"].lstrip("| ").replace(" | ", "\n") for cell in references]
    return scores, summaries, dialogues, [cell["summary"] for cell in references]


def measure(
    summaries: Sequence[Sequence[str]], dialogues: Sequence[str], references: Sequence[str]
) -> dict[str, Array]:
    """Compute our metrics of every summary, [D, 13] each; higher is meant to be better."""
    shape = (len(summaries), len(summaries[0]))
    texts = [text for row in summaries for text in row]
    said = [dialogue for dialogue in dialogues for _ in range(shape[1])]
    targets = [[text] for text in references for _ in range(shape[1])]
    rouge = score_rouge(texts, targets)
    found = {key: rouge[key] for key in ("rouge1", "rouge2", "rougeL")}
    found["words"] = words(texts, said, targets)
    found["no unknown name"] = [1 - each for each in unfaithful_name(texts, said, targets)]
    found["copied bigrams"] = [1 - each for each in novelty(texts, said, targets)]
    return {name: np.array(values).reshape(shape) for name, values in found.items()}


def by_summary(metric: Array, human: Array) -> float:
    """Return the mean over dialogues of tau-b; constant rows say nothing and are left out."""
    taus = [kendalltau(*rows).statistic for rows in zip(metric, human, strict=True)]
    return float(np.nanmean(taus))


def by_system(metric: Array, human: Array) -> float:
    """Return tau-b of the systems' means."""
    return float(kendalltau(metric.mean(axis=0), human.mean(axis=0)).statistic)


def correlate(metric: Array, human: Array, resamples: int = 500) -> Mapping[str, tuple[float, ...]]:
    """Return value, low and high of both correlations; intervals resample dialogues [D]."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(metric), size=(resamples, len(metric)))
    found = {}
    for name, statistic in (("by summary", by_summary), ("by system", by_system)):
        values = [statistic(metric[draw], human[draw]) for draw in draws]
        low, high = np.nanpercentile(values, [2.5, 97.5])
        found[name] = (statistic(metric, human), float(low), float(high))
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Print the correlations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--judge", help="export of a reward model")
    options = parser.parse_args(args)
    folder = Path(os.environ.get("DIALSUMMEVAL_DIR", "../shared/data/dialsummeval"))
    human, summaries, dialogues, references = read_judgments(folder / "human_judgment.jsonl")
    metrics = {
        name: (values, slice(None))
        for name, values in measure(summaries, dialogues, references).items()
    }
    if options.judge:
        from lightning_modules.reward_scorer import RewardScorer

        scorer = RewardScorer(options.judge)
        half = slice(len(dialogues) // 2, None)
        rewards = [
            scorer.logits(row, [dialogue] * len(row)).numpy()
            for row, dialogue in zip(summaries[half], dialogues[half], strict=True)
        ]
        metrics["reward model"] = (np.stack(rewards).astype(float), half)
    for kind in ("by summary", "by system"):
        table = Table("metric", "n", *QUALITIES, "sum", title=f"Kendall's tau-b, {kind}")
        for name, (values, part) in metrics.items():
            cells = [correlate(values, human[q][part])[kind] for q in (*QUALITIES, "sum")]
            shown = [f"{value:+.2f} ({low:+.2f} to {high:+.2f})" for value, low, high in cells]
            table.add_row(name, str(len(values)), *shown)
        Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
