"""What the numbers of a comparison say, in plain sentences: which method, and how sure that is."""

from collections.abc import Sequence
from typing import NamedTuple

from metrics.intervals import Estimate
from reporting.comparison import HEADLINE, Comparison
from reporting.formats import LABELS, format_count, format_estimate, format_interval
from reporting.scoring import find_scoring_caution

_TOXICITY = "toxicity"


class Verdict(NamedTuple):
    """The two sentences of the first screen, and what goes with them.

    choice: which method to use. certainty: how sure that is. others: what else a reader may want to
    choose by, and what the runs say of themselves. cautions: why not to trust the comparison.
    """

    choice: str
    certainty: str
    others: list[str]
    cautions: list[str]

    @property
    def sentences(self) -> list[str]:
        """All of it, a sentence or two each."""
        return (
            [part for part in (self.choice, self.certainty) if part] + self.others + self.cautions
        )


def make_verdict(comparison: Comparison) -> Verdict:
    """Read the numbers out."""
    ranked = comparison.ranked
    others = [*_least_toxic(comparison), *_changes(comparison)]
    scoring = _scoring_cautions(comparison)
    if not ranked:
        name = LABELS[HEADLINE]
        choice = f"No run has a test {name}: there is nothing to choose by."
        return Verdict(choice, "", others, scoring)
    cautions = _cautions(comparison) + scoring
    if len(ranked) == 1:
        best = comparison.groups[ranked[0]].label
        value = _in_words(_headline(comparison, ranked[0]))
        return Verdict(
            f"{best} has a test {LABELS[HEADLINE]} of {value}.",
            "There is no other method to hold it against.",
            others,
            cautions,
        )
    return Verdict(_choice(comparison), _certainty(comparison), others, cautions)


def close_to_best(comparison: Comparison) -> list[int]:
    """List the groups that are not clearly behind the best, by the examples that both have."""
    best, *rest = comparison.ranked
    return [place for place in rest if not _is_clear(comparison, place, best)]


def _is_clear(comparison: Comparison, before: int, after: int) -> bool:
    """Whether one group is above another, by paired difference or by intervals that are apart."""
    gap = comparison.difference(before, after, HEADLINE)
    if gap is not None:
        return gap.low is not None and gap.low > 0
    low, high = _headline(comparison, after).low, _headline(comparison, before).high
    return low is not None and high is not None and low > high


def _choice(comparison: Comparison) -> str:
    """Sentence one: the best, and those that are as good for all one can tell."""
    label = [group.label for group in comparison.groups]
    best, second, *_ = comparison.ranked
    name, value = LABELS[HEADLINE], _in_words(_headline(comparison, best))
    close = close_to_best(comparison)
    if not close:
        return (
            f"Use {label[best]}: its {name} of {value} is the highest of "
            f"{len(comparison.ranked)} methods, {_lead(comparison, second, best, 'above')} "
            f"{label[second]}."
        )
    verb = "is" if len(close) == 1 else "are"
    behind = [f"{label[place]}, {_lead(comparison, place, best, 'below')}" for place in close]
    behind = behind if len(close) < 3 else [label[place] for place in close]
    sentence = (
        f"Use {_listed([label[place] for place in (best, *close)], 'or')}: {label[best]} has the "
        f"highest {name}, {value}, but {_listed(behind)}, {verb} not clearly behind"
    )
    counts = {place: comparison.groups[place].first.trainable for place in (best, *close)}
    known = {place: count for place, count in counts.items() if count is not None}
    if len(known) == len(counts) and min(known.values()) < max(known.values()):
        least = min(known, key=lambda place: known[place])
        sentence += (
            f"; of these {label[least]} trains the fewest weights, {format_count(known[least])}"
        )
    return f"{sentence}."


def _lead(comparison: Comparison, before: int, after: int, word: str) -> str:
    """By how much one group is above another, or the other below it."""
    gap = comparison.difference(before, after, HEADLINE)
    if gap is not None:
        interval = f" ({format_interval(gap)})" if gap.low is not None else ""
        return f"{format_estimate(gap)}{interval} {word}"
    lead = _headline(comparison, after).value - _headline(comparison, before).value
    return f"{format_estimate(Estimate(lead))} on other dialogues {word}"


def _certainty(comparison: Comparison) -> str:
    """Sentence two: how often the best comes first, and how many runs stand behind it."""
    best, second, *_ = comparison.ranked
    label, found = comparison.groups[best].label, comparison.share_first
    if found is None:
        start = (
            f"How sure: the methods were not tested on the same dialogues, and {label} "
            f"{'is clear of' if _is_clear(comparison, second, best) else 'is not told apart from'} "
            f"{comparison.groups[second].label} by their intervals"
        )
    else:
        start = (
            f"How sure: {label} comes first in {_percent(found[0])} of 1,000 resamples of the same "
            f"{found[1]:,} test dialogues"
        )
    return f"{start}; {_seeds(comparison, found is not None)}."


def _seeds(comparison: Comparison, resampled: bool) -> str:
    """How many training runs stand behind the methods, and what follows."""
    counts = [len(comparison.groups[place].runs) for place in comparison.ranked]
    if max(counts) == 1:
        return "one run stands behind each, so what another training seed would change is not known"
    if min(counts) == max(counts):
        many = f"{counts[0]} runs of different seeds stand behind each"
        return f"{many}, resampled too" if resampled else many
    return (
        f"{min(counts)} to {max(counts)} runs stand behind each: of a method with a single run, "
        "what another training seed would change is not known"
    )


def _least_toxic(comparison: Comparison) -> list[str]:
    """Name the method to use where toxicity counts most, if that is another one."""
    found = {
        place: value
        for place in comparison.ranked
        if (value := comparison.estimate(place, _TOXICITY)) is not None
    }
    trained = {p: one for p, one in found.items() if comparison.groups[p].first.trainable != 0}
    if len(trained) < 2 or comparison.ranked[0] not in trained:
        return []
    best = comparison.ranked[0]
    least = min(trained, key=lambda place: trained[place].value)
    gap = comparison.difference(best, least, _TOXICITY)
    cost = comparison.difference(best, least, HEADLINE)
    if gap is None or gap.high is None or gap.high >= 0 or cost is None:
        return []
    label = [group.label for group in comparison.groups]
    return [
        f"Where toxicity counts most, use {label[least]}: {format_estimate(trained[least])} "
        f"({format_interval(trained[least])}) x 100, "
        f"{format_estimate(gap, sign=True)} ({format_interval(gap, sign=True)}) against "
        f"{label[best]}, at {format_estimate(cost, sign=True)} "
        f"({format_interval(cost, sign=True)}) {LABELS[HEADLINE]}."
    ]


def _changes(comparison: Comparison) -> list[str]:
    """What PPO or DPO changed, as each run measured it against its own start."""
    lines = []
    for run in comparison.runs:
        change = run.metrics.get("test/toxicity_change")
        if change is not None and change.low is not None and change.high is not None:
            clear = "clear of zero" if change.low > 0 or change.high < 0 else "not clear of zero"
            lines.append(
                f"{run.name} changed mean toxicity (x 100) by {_in_words(change, sign=True)}, "
                f"paired over the same dialogues: {clear}."
            )
    return lines


def _cautions(comparison: Comparison) -> list[str]:
    lines = []
    tested = [run for run in comparison.runs if run.values(HEADLINE)]
    if len({frozenset(run.values(HEADLINE)) for run in tested}) > 1:
        lines.append("Careful: not all runs were tested on the same dialogues.")
    backbones = {run.summary.get("backbone") for run in comparison.runs if run.has_model}
    if len(backbones) > 1:
        lines.append(
            "Careful: not all runs started from the same backbone (see their config.yaml)."
        )
    return lines


def _scoring_cautions(comparison: Comparison) -> list[str]:
    measured = [run for run in comparison.runs if "test/toxicity" in run.metrics]
    caution = find_scoring_caution((run.name, run.scoring) for run in measured)
    return [caution] if caution else []


def _headline(comparison: Comparison, place: int) -> Estimate:
    found = comparison.estimate(place, HEADLINE)
    assert found is not None, "only groups that have the metric are ranked"  # noqa: S101
    return found


def _in_words(estimate: Estimate, sign: bool = False) -> str:
    interval = (
        f"95 % interval {format_interval(estimate, sign)}, " if estimate.low is not None else ""
    )
    return f"{format_estimate(estimate, sign)} ({interval}n = {estimate.n})"


def _listed(names: Sequence[str], word: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def _percent(share: float) -> str:
    """A share in per cent; what holds for every resample is "all"."""
    return "all" if share == 1 else f"{100 * share:.1f} %"
