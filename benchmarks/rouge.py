"""Does the ROUGE metric cost more than `rouge_score` called directly?

    python -m benchmarks.rouge [rounds]

1,500 rows with three references each: references of DialogSum's test split (DIALOGSUM_DIR), each
against summaries of other dialogues. "Direct" is one `RougeScorer(4 keys).score` for each pair of
texts with the same sentence splitting, "metric" is `metrics.rouge_scores.score_rouge`, its cache of
words emptied before. Both run in turn, the order changing each round, because the
machine drifts; both take one thread, so that processor time says what they cost on a shared
machine too. Prints the medians and their ratio, and fails where the values differ.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.dialogsum import read_dialogsum
from datamodules.reading import Row
from metrics import rouge_scores

ROWS = 1500
Examples = list[tuple[str, tuple[str, ...]]]
Scores = dict[str, float]


def main(arguments: Sequence[str]) -> int:
    """Time both ways with and without the stemmer, over so many rounds."""
    rounds = int(arguments[0]) if arguments else 7
    examples = make_examples(read_dialogsum("test"), read_dialogsum("validation"))
    table = Table("stemmer", "direct, s", "metric, s", "metric / direct")
    for use_stemmer in (True, False):
        seconds: dict[str, list[float]] = {"direct": [], "metric": []}
        for number in range(rounds):
            ways = [("direct", score_directly), ("metric", score_by_metric)]
            results = {}
            for name, way in ways if number % 2 else reversed(ways):
                results[name] = time_it(way, examples, use_stemmer, seconds[name])
            check(results["direct"], results["metric"])
        direct, metric = (statistics.median(seconds[name]) for name in ("direct", "metric"))
        ratio = f"{metric / direct:.2f}"
        table.add_row(str(use_stemmer), f"{direct:.2f}", f"{metric:.2f}", ratio)
    console = Console(width=100)
    console.print(f"{len(examples):,} rows x 3 references, median of {rounds} rounds")
    console.print(table)
    return 0


def make_examples(test: Sequence[Row], dev: Sequence[Row]) -> Examples:
    """Pair references of test dialogues with summaries of others; no pair comes twice."""
    return [
        (
            dev[(row + row // len(test)) % len(dev)].references[0],
            test[row % len(test)].references,
        )
        for row in range(ROWS)
    ]


def time_it(
    way: Callable[[Examples, bool], Scores], examples: Examples, stem: bool, seconds: list[float]
) -> Scores:
    """Run one way with nothing remembered; append the seconds of processor time it took."""
    rouge_scores.tokenize.cache_clear()
    rouge_scores.stem.cache_clear()
    start = time.process_time()
    scores = way(examples, stem)
    seconds.append(time.process_time() - start)
    return scores


def score_directly(examples: Examples, use_stemmer: bool) -> Scores:
    """Mean over the references, then over the rows, by `rouge_score` alone."""
    scorer = RougeScorer(list(rouge_scores.KEYS), use_stemmer=use_stemmer)
    totals = dict.fromkeys(rouge_scores.KEYS, 0.0)
    for prediction, references in examples:
        for reference in references:
            scores = scorer.score(
                rouge_scores.split_sentences(reference), rouge_scores.split_sentences(prediction)
            )
            for key in rouge_scores.KEYS:
                totals[key] += scores[key].fmeasure / len(references)
    return {key: total / len(examples) for key, total in totals.items()}


def score_by_metric(examples: Examples, use_stemmer: bool) -> Scores:
    """The same by our function."""
    predictions, references = zip(*examples, strict=True)
    values = rouge_scores.score_rouge(predictions, references, use_stemmer)
    return {key: statistics.fmean(values[key]) for key in rouge_scores.KEYS}


def check(expected: Scores, found: Scores) -> None:
    """Refuse to compare the speed of two different things.

    Raises:
        RuntimeError: A value differs by more than 1e-9.
    """
    for key, value in expected.items():
        if abs(found[key] - value) > 1e-9:
            raise RuntimeError(f"{key}: rouge_score gives {value}, the metric {found[key]}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
