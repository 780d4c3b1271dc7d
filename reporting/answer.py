"""Answer the reader's question: which method is best, how certain that is, what it costs."""

from collections.abc import Sequence
from typing import NamedTuple

from reporting.comparison import HEADLINE, Comparison
from reporting.numbers import ROUGE_LABELS, format_both, format_value, is_clear
from reporting.runs import Run


class Answer(NamedTuple):
    """The first screen of a comparison.

    Attributes:
        best: The best method by ROUGE-1, or that there is no clear winner.
        evidence: Its value, lead and the certainty of both.
        toxicity: The least toxic trained method and what it costs; empty if it is the best one.
        cautions: Reasons not to compare some of the runs.
    """

    best: str
    evidence: str
    toxicity: str
    cautions: list[str]

    @property
    def lines(self) -> list[str]:
        """All sentences that are not empty."""
        return [line for line in (self.best, self.evidence, self.toxicity, *self.cautions) if line]


def find_answer(comparison: Comparison) -> Answer:
    """Derive the answer from the numbers."""
    cautions = _find_cautions(comparison)
    ranked, labels = comparison.ranked, comparison.labels
    name = ROUGE_LABELS[HEADLINE]
    if not ranked:
        return Answer(f"No run has a test {name}, so there is no winner.", "", "", cautions)
    best = ranked[0]
    value = comparison.estimate(best, HEADLINE)
    assert value is not None, "ranked groups have the metric"  # noqa: S101
    shown = f"{name} {format_both(value)}"
    if len(ranked) == 1:
        return Answer(f"{labels[best]} is the only tested method.", f"{shown}.", "", cautions)
    start, second = f"{labels[best]} summarizes best.", ranked[1]
    close = [labels[index] for index in ranked[1:] if not _is_ahead(comparison, index, best)]
    if close:
        names = f"{', '.join([labels[best], *close[:-1]])} and {close[-1]}"
        start = f"No clear winner: {names} are not clearly different."
    if gap := comparison.difference(second, best, HEADLINE):
        lead = f"{format_both(gap)} above {labels[second]}"
    else:
        lead = f"with {labels[second]} next, on other dialogues"
    evidence = f"{shown}, {lead}{_describe_certainty(comparison)}."
    return Answer(start, evidence, _find_least_toxic(comparison), cautions)


def _is_ahead(comparison: Comparison, before: int, after: int) -> bool:
    """Return whether `after` beats `before`, by paired difference or by separate intervals."""
    gap = comparison.difference(before, after, HEADLINE)
    if gap is not None:
        return gap.low is not None and gap.low > 0
    one, two = (comparison.estimate(index, HEADLINE) for index in (before, after))
    return None not in (one, two) and (two.low or 0) > (one.high or 1)  # type: ignore[union-attr]


def _describe_certainty(comparison: Comparison) -> str:
    """Describe how often the best method leads, and how many seeds were trained."""
    first = comparison.labels[comparison.ranked[0]]
    counts = sorted({len(comparison.groups[index].runs) for index in comparison.ranked})
    several = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "one seed" if counts == [1] else f"{several} seeds"
    found = comparison.share_first
    if found is None:
        return f"; {seeds} per method"
    share = f"{100 * found[0]:.0f} %" if found[0] < 0.995 else "over 99 %"
    return f"; {first} leads in {share} of resamples of {found[1]:,} dialogues, {seeds} per method"


def _find_least_toxic(comparison: Comparison) -> str:
    """Name the trained method with the least toxicity if it beats the best one there."""
    best = comparison.ranked[0]
    found = {
        index: value
        for index in comparison.ranked
        if comparison.groups[index].first.trainable != 0
        and (value := comparison.estimate(index, "toxicity"))
    }
    if len(found) < 2 or best not in found:
        return ""
    least = min(found, key=lambda index: found[index].value)
    gap = comparison.difference(best, least, "toxicity")
    cost = comparison.difference(best, least, HEADLINE)
    if gap is None or cost is None or gap.value >= 0 or not is_clear(gap):
        return ""
    return (
        f"Least toxic: {comparison.labels[least]}, toxicity {format_both(found[least])} instead of "
        f"{format_value(found[best])}, at {format_both(cost, sign=True)} {ROUGE_LABELS[HEADLINE]} "
        f"compared with {comparison.labels[best]}."
    )


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
