"""Score two baselines without a model: people (`human`) and lead-3 (`lead_3`).

`human`: each reference of a dialogue is scored against the others; a row's value is the mean over
its references. It shows how far apart people's summaries are. With k references each is compared
with k - 1 of them and a model with all k: means are comparable, "_best" values favor the model.

`lead_3`: the first three utterances (non-empty lines), speakers included: the lead-3 baseline for
dialogues of Gliwa et al. 2019, "SAMSum Corpus".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.run_folder import RunFolder
from common.versions import find_versions
from datamodules.reading import DataError, Row
from lightning_modules.reward_scorer import RewardScorer
from metrics.faithfulness import CHECKS
from metrics.intervals import bootstrap_mean
from metrics.rouge_scores import score_rouge
from metrics.text_statistics import STATISTICS

LEAD = 3


class Candidate(NamedTuple):
    """A text in place of a prediction, and the references it is compared with."""

    text: str
    references: Sequence[str]


def human(row: Row) -> list[Candidate]:
    """Return each reference with the others; nothing if there is only one."""
    texts = row.references
    if len(texts) < 2:
        return []
    return [Candidate(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)]


def lead_3(row: Row) -> list[Candidate]:
    """Return the first three utterances, one per line."""
    utterances = [line.strip() for line in row.dialogue.split("\n") if line.strip()]
    return [Candidate("\n".join(utterances[:LEAD]), row.references)]


METHODS: dict[str, Callable[[Row], list[Candidate]]] = {"human": human, "lead_3": lead_3}


class Baseline(NamedTuple):
    """A scored baseline.

    Attributes:
        rows: N rows for predictions.jsonl, with their scores; ROUGE as fractions of 1.
        scores: The same N values by metric.
        skipped: Number of rows for which the method has no text.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, list[float]]
    skipped: int


def score_baseline(
    rows: Sequence[Row],
    method: str,
    stemmer: bool = True,
    classifier: RewardScorer | None = None,
) -> Baseline:
    """Score a baseline's texts as if they were predictions.

    Args:
        rows: The test rows.
        method: A key of METHODS.
        stemmer: Compare Porter stems instead of words.
        classifier: Also scores toxicity and reward.

    Raises:
        DataError: No row has more than one reference, which `human` needs.
    """
    kept = [(row, candidates) for row in rows if (candidates := METHODS[method](row))]
    if not kept:
        raise DataError(
            f"data: {method} compares the references of a dialogue with each other, but no test "
            "row has more than one; leave this method out"
        )
    flat = [(one.text, row.dialogue, one.references) for row, found in kept for one in found]
    texts, dialogues, references = (list(column) for column in zip(*flat, strict=True))
    values = score_rouge(texts, references, stemmer)
    for name, metric in (STATISTICS | CHECKS).items():
        values[name] = metric(texts, dialogues, references)
    if classifier is not None:
        values |= classifier.rate(texts)
    ends = np.cumsum([len(candidates) for _, candidates in kept])[:-1]
    scores = {
        name: [float(part.mean()) for part in np.split(np.asarray(column), ends)]
        for name, column in values.items()
    }
    described = []
    for i, (row, candidates) in enumerate(kept):
        fields = {"id": row.id, "dialogue": row.dialogue, "references": list(row.references)}
        if len(candidates) == 1:
            fields["prediction"] = candidates[0].text
        described.append(fields | {name: column[i] for name, column in scores.items()})
    return Baseline(described, scores, len(rows) - len(kept))


def write_run(folder: RunFolder, method: str, baseline: Baseline, command: str) -> None:
    """Write predictions.jsonl and summary.json as a test would."""
    folder.merge_predictions(baseline.rows)
    folder.update_summary(
        command=command, versions=find_versions(), seed=None, backbone=None, method=method,
        parameters={"trainable": 0, "total": 0}, peak_memory_bytes=None, seconds=None,
    )  # fmt: skip
    folder.record_metrics(
        {f"test/{name}": bootstrap_mean(values) for name, values in baseline.scores.items()}
    )
