"""Two rows to hold models against: what people agree on, and what needs no model.

``human``: each reference of a dialogue is scored against the others, and the row's value is the
mean over its references. It shows how far one person's summary is from another's, which no model
can be asked to beat by much. With k references each is held against k - 1 of them, a model against
all k: the means are comparable, the "_best" values favour the model, which has one chance more.

``lead_3``: the first three utterances as they stand, speakers included, which is the lead-3 of
dialogues (Gliwa et al. 2019, "SAMSum Corpus"). An utterance is a line that is not empty; a dialogue
of fewer gives all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.run_folder import RunFolder
from common.versions import find_versions
from datamodules.reading import DataError, Row
from lightning_modules.reward_scorer import RewardScorer
from metrics.faithfulness import CHECKS
from metrics.intervals import bootstrap_mean
from metrics.rouge import score_rouge
from metrics.text_statistics import STATISTICS

LEAD = 3


class Candidate(NamedTuple):
    """A text in the place of a prediction, and the references that it is held against."""

    text: str
    references: Sequence[str]


def human(row: Row) -> list[Candidate]:
    """Each reference against the others; nothing where there is only one."""
    texts = row.references
    if len(texts) < 2:
        return []
    return [Candidate(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)]


def lead_3(row: Row) -> list[Candidate]:
    """The first three utterances, a line each."""
    utterances = [line.strip() for line in row.dialogue.split("\n") if line.strip()]
    return [Candidate("\n".join(utterances[:LEAD]), row.references)]


METHODS: dict[str, Callable[[Row], list[Candidate]]] = {"human": human, "lead_3": lead_3}
"""What each baseline puts in the place of a row's prediction."""


class Baseline(NamedTuple):
    """A scored baseline.

    Attributes:
        rows: N rows for predictions.jsonl, without scores.
        scores: N values by name: ROUGE as fractions of 1, and all else that a test measures.
        left_out: Rows that the method has nothing for.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, list[float]]
    left_out: int


def score_baseline(
    rows: Sequence[Row],
    method: str,
    stemmer: bool = True,
    classifier: RewardScorer | None = None,
    toxic_label: str = "hate",
) -> Baseline:
    """Put a baseline's texts in the place of predictions and score them.

    Args:
        rows: The test rows.
        method: A key of METHODS.
        stemmer: Compare Porter stems instead of words.
        classifier: Gives toxicity and reward too.
        toxic_label: The label whose probability is the toxicity.

    Raises:
        DataError: No row has what the method needs.
    """
    kept = [(row, candidates) for row in rows if (candidates := METHODS[method](row))]
    if not kept:
        raise DataError(
            f"data: {method} holds the references of a dialogue against each other, and no test "
            "row has more than one; leave this method out"
        )
    scored = [candidates for _, candidates in kept]
    texts = [one.text for candidates in scored for one in candidates]
    references = [one.references for candidates in scored for one in candidates]
    dialogues = [row.dialogue for row, candidates in kept for _ in candidates]
    values = score_rouge(texts, references, stemmer)
    for name, metric in (STATISTICS | CHECKS).items():
        values[name] = metric(texts, dialogues, references)
    if classifier is not None:
        values |= classifier.rate(texts, toxic_label)
    scores = {name: mean_by_row(column, scored) for name, column in values.items()}
    described = [describe_row(row, candidates) for row, candidates in kept]
    return Baseline(described, scores, len(rows) - len(kept))


def describe_row(row: Row, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Give a row of predictions.jsonl, with no prediction where each reference stands for one."""
    fields: dict[str, Any] = {"id": row.id, "dialogue": row.dialogue}
    fields["references"] = list(row.references)
    return fields | ({"prediction": candidates[0].text} if len(candidates) == 1 else {})


def mean_by_row(values: Sequence[float], rows: Sequence[Sequence[Candidate]]) -> list[float]:
    """Turn a value for each candidate into the mean of each row."""
    ends = np.cumsum([len(row) for row in rows])
    return [float(part.mean()) for part in np.split(np.asarray(values), ends[:-1])]


def write_run(folder: RunFolder, method: str, baseline: Baseline, command: str) -> None:
    """Write predictions.jsonl and summary.json of a baseline as a test would."""
    scores: Mapping[str, list[float]] = baseline.scores
    folder.merge_predictions(
        [
            row | {name: values[i] for name, values in scores.items()}
            for i, row in enumerate(baseline.rows)
        ]
    )
    folder.update_summary(
        command=command,
        versions=find_versions(),
        # There is no model: nothing was drawn, trained or measured.
        seed=None, backbone=None, method=method, parameters={"trainable": 0, "total": 0},
        peak_memory_bytes=None, seconds=None,
    )  # fmt: skip
    folder.record_metrics(
        {f"test/{name}": bootstrap_mean(values) for name, values in scores.items()}
    )
