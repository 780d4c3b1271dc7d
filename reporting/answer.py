"""Answer the reader's question: which method is best, how certain that is, what it costs."""

from collections.abc import Sequence
from typing import NamedTuple

from reporting.comparison import HEADLINE, Comparison
from reporting.numbers import ROUGE_LABELS, format_both
from reporting.runs import Run


class Answer(NamedTuple):
    """The first screen of a comparison.

    Attributes:
        best: The best method by ROUGE-1, or that there is no clear winner.
        evidence: Its value and its lead.
        least_toxic: The least toxic trained method.
        cost: Its toxicity, and what it costs compared with the best.
        cautions: Reasons not to compare some of the runs.
    """

    best: str
    evidence: str
    least_toxic: str
    cost: str
    cautions: list[str]

    @property
    def lines(self) -> list[str]:
        """All sentences that are not empty."""
        return [line for line in (*self[:4], *self.cautions) if line]


def find_answer(comparison: Comparison) -> Answer:
    """Derive the answer from the numbers."""
    cautions = _find_cautions(comparison)
    ranked, labels = comparison.ranked, comparison.labels
    name = ROUGE_LABELS[HEADLINE]
    if not ranked:
        return Answer(f"No run has a test {name}, so there is no winner.", "", "", "", cautions)
    best = ranked[0]
    value = comparison.estimate(best, HEADLINE)
    assert value is not None, "ranked groups have the metric"  # noqa: S101
    evidence = f"{name} {format_both(value)}"
    if len(ranked) == 1:
        start = f"{labels[best]} is the only tested method."
    else:
        start = f"{labels[best]} summarizes best."
        if gap := comparison.difference(ranked[1], best, HEADLINE):
            evidence += f", {format_both(gap)} above {labels[ranked[1]]}"
        else:
            evidence += f", with {labels[ranked[1]]} next, on other dialogues"
    if len(leaders := comparison.leaders) > 1:
        shown = [labels[index] for index in leaders[: 3 if len(leaders) == 3 else 2]]
        rest = f"{len(leaders) - 2} others" if len(leaders) > 3 else shown.pop()
        start = f"No clear winner: {', '.join(shown)} and {rest} are not clearly different."
    return Answer(start, f"{evidence}.", *_find_least_toxic(comparison), cautions)


def _find_least_toxic(comparison: Comparison) -> tuple[str, str]:
    """Name the trained method with the least toxicity, and compare it with the best one."""
    best = comparison.ranked[0]
    found = {
        index: value
        for index in comparison.ranked
        if comparison.groups[index].first.trainable != 0
        and (value := comparison.estimate(index, "toxicity"))
    }
    if len(found) < 2:
        return "", ""
    least = min(found, key=lambda index: found[index].value)
    cost = f"Toxicity {format_both(found[least])}"
    gap = comparison.difference(best, least, "toxicity")
    quality = comparison.difference(best, least, HEADLINE)
    if gap is not None and quality is not None:
        cost += (
            f", {format_both(gap, sign=True)} compared with {comparison.labels[best]}, "
            f"at {format_both(quality, sign=True)} {ROUGE_LABELS[HEADLINE]}"
        )
    return f"{comparison.labels[least]} is the least toxic trained method.", f"{cost}."


def _find_cautions(comparison: Comparison) -> list[str]:
    tested = {frozenset(values) for run in comparison.runs if (values := run.values(HEADLINE))}
    ranked = [run for index in comparison.ranked for run in comparison.groups[index].runs]
    backbones = {run.summary.get("backbone") for run in ranked}
    return [
        *(["Not all runs were tested on the same dialogues."] if len(tested) > 1 else []),
        *(["Not all runs have the same backbone."] if len(backbones) > 1 else []),
        *_compare_classifiers(comparison.runs),
    ]


def _compare_classifiers(runs: Sequence[Run]) -> list[str]:
    """Return a caution that lists the settings by which toxicity was measured differently."""
    known = {
        run.name: run.classifier
        for run in runs
        if run.classifier and "test/toxicity" in run.metrics
    }
    first = next(iter(known.values()), {})
    differing = [key for key in first if any(one[key] != first[key] for one in known.values())]
    if not differing:
        return []
    described = [
        f"{name} ({', '.join(f'{key}: {one[key]}' for key in differing)})"
        for name, one in known.items()
    ]
    return [
        "Toxicity and reward were measured with different settings and are not comparable: "
        f"{'; '.join(described)}."
    ]
