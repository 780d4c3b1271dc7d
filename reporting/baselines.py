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

from callbacks.summary import find_versions
from datamodules.reading import DataError, Row
from lightning_modules.reward_model import RewardScorer
from metrics.intervals import bootstrap_mean
from metrics.rouge import BEST, Rouge
from run_folder import RunFolder

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
        scores: N values by name; ROUGE as fractions of 1.
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
    candidates = [METHODS[method](row) for row in rows]
    kept = [(row, texts) for row, texts in zip(rows, candidates, strict=True) if texts]
    if not kept:
        raise DataError(
            f"data: {method} holds the references of a dialogue against each other, and no test "
            "row has more than one; leave this method out"
        )
    scored = [texts for _, texts in kept]
    scores = score_rouge(scored, stemmer)
    if classifier is not None:
        scores |= score_toxicity(scored, classifier, toxic_label)
    described = [describe_row(row, texts) for row, texts in kept]
    return Baseline(described, scores, len(rows) - len(kept))


def describe_row(row: Row, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Give a row of predictions.jsonl, with no prediction where each reference stands for one."""
    fields: dict[str, Any] = {"id": row.id, "dialogue": row.dialogue}
    fields["references"] = list(row.references)
    return fields | ({"prediction": candidates[0].text} if len(candidates) == 1 else {})


def score_rouge(rows: Sequence[Sequence[Candidate]], stemmer: bool) -> dict[str, list[float]]:
    """Score rows by ROUGE, the value of a row being the mean over its candidates.

    Args:
        rows: N rows of at least one candidate each.
        stemmer: Compare Porter stems instead of words.

    Returns:
        N values for each key of :class:`Rouge`; "_best" only where a candidate has several
        references, for else it would be the same numbers.
    """
    rouge = Rouge(stemmer)
    candidates = [candidate for row in rows for candidate in row]
    rouge.update([one.text for one in candidates], [one.references for one in candidates])
    several = any(len(one.references) > 1 for one in candidates)
    return {
        key: mean_by_row(values.tolist(), rows)
        for key, values in rouge.per_example().items()
        if several or BEST not in key
    }


def score_toxicity(
    rows: Sequence[Sequence[Candidate]], classifier: RewardScorer, toxic_label: str
) -> dict[str, list[float]]:
    """Give N toxicities (probabilities) and rewards (logits), means over a row's candidates."""
    logits = classifier.all_logits([candidate.text for row in rows for candidate in row])
    toxicity = logits.softmax(dim=-1)[:, classifier.find_column(toxic_label)]
    return {
        "toxicity": mean_by_row(toxicity.tolist(), rows),
        "reward": mean_by_row(logits[:, classifier.column].tolist(), rows),
    }


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
