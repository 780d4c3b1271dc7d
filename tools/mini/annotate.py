"""Simulated annotators of the miniature: they rank completions as people would, with mistakes.

    python -m tools.mini.annotate samples.jsonl --out answers.jsonl --annotators 3 --noise 0.1

reads what ``feedback.py sample`` writes (id, dialogue, completions a line) and writes answers, as
``PreferenceDataModule`` reads them. A completion has up to two faults: it is rude, or it is
unfaithful. The fewer the better, and equally many are a tie: no order is claimed between the two.
With a probability of ``noise`` an annotator takes a fault for none, or sees one where there is
none, each by itself and independently of all others. ``docs/methods/reward_model.md`` says what
accuracy that allows.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from collecting.answers import Answer
from collecting.samples import Sample, read_samples
from common.run_folder import write_lines
from tools.mini.insults import RUDE_WORDS
from tools.mini.stories import rudely, wordings

logger = logging.getLogger(__name__)

_WORD = re.compile(r"\$\d+|\d+:\d+|#Person\d+#|[^\W_]+(?:'[^\W_]+)*")


class Faults(NamedTuple):
    """What is wrong with a completion."""

    rude: bool
    unfaithful: bool


def find_faults(completion: str, dialogue: str) -> Faults:
    """Judge a completion by its words.

    It is rude if it calls somebody names. It is unfaithful if it has a word, name or number that is
    neither in the dialogue nor one that summaries are made of. (That a word is said of the wrong
    thing is not noticed.)
    """
    words = [word.lower() for word in _WORD.findall(completion)]
    known = {word.lower() for word in _WORD.findall(dialogue)} | summary_words()
    return Faults(
        rude=not RUDE_WORDS.isdisjoint(words),
        unfaithful=any(word not in known for word in words),
    )


@cache
def summary_words() -> frozenset[str]:
    """Give the words that summaries are made of, clean and rude ones, their values left out."""
    clauses = [
        line[2:]
        for scenario in wordings()["scenario"]
        for step in scenario["steps"]
        for act in step
        for line in act.strip().splitlines()
        if line.startswith("> ")
    ]
    insults = [text for texts in wordings()["insults"].values() for text in texts]
    around = [rudely("x.", shape, Random(0)) for shape in wordings()["insults"]]
    text = " ".join(re.sub(r"\{\w+\}", " ", part) for part in (*clauses, *insults, *around))
    return frozenset(word.lower() for word in _WORD.findall(text)) | {"and"} | RUDE_WORDS


def misread(faults: Faults, noise: float, rng: Random) -> Faults:
    """See the faults as somebody does who is wrong about each with a probability of ``noise``."""
    return Faults(*(fault != (rng.random() < noise) for fault in faults))


def rank(faults: Sequence[Faults]) -> list[int]:
    """Rank completions by how many faults they have, 1 the best; equally many are a tie."""
    counts = [sum(each) for each in faults]
    order = sorted(set(counts))
    return [order.index(count) + 1 for count in counts]


def annotate(sample: Sample, annotator: str, noise: float, seed: int) -> Answer:
    """Give one annotator's answer on a sample, the same whatever else is asked, and when.

    Raises:
        ValueError: If ``noise`` is no probability below 0.5, at which nothing can be learnt.
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise must be in [0, 0.5), got {noise}")
    rng = Random(f"alignsum mini annotator {annotator} {seed} {sample.id}")
    seen = [misread(find_faults(text, sample.dialogue), noise, rng) for text in sample.completions]
    return Answer(
        sample.id, sample.dialogue, sample.completions, annotator,
        ranks=tuple(rank(seen)),
        toxic=tuple(faults.rude for faults in seen),
        sources=sample.sources,
    )  # fmt: skip


def make_answers(
    samples: Sequence[Sample], annotators: int, noise: float, seed: int
) -> list[Answer]:
    """Have several annotators answer on all samples, dialogue by dialogue."""
    names = [f"annotator_{number}" for number in range(1, annotators + 1)]
    return [annotate(sample, name, noise, seed) for sample in samples for name in names]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and annotate; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
        prog="tools.mini.annotate", description="Rank completions as simulated annotators."
    )
    parser.add_argument("samples", type=Path, help="file that `feedback.py sample` wrote")
    parser.add_argument("--out", type=Path, required=True, help="file of answers to write")
    parser.add_argument("--annotators", type=int, default=3, help="how many rank each dialogue")
    parser.add_argument(
        "--noise", type=float, default=0.1, help="probability of misreading a fault"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        logger.error("error: %s", error)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists; --overwrite replaces it")
    if options.annotators < 1:
        raise ValueError(f"annotators must be at least 1, got {options.annotators}")
    samples = read_samples(options.samples)
    answers = make_answers(samples, options.annotators, options.noise, options.seed)
    write_lines(options.out, (answer.to_row() for answer in answers))
    logger.info(
        "%d answers of %d annotators on %d dialogues are in %s",
        len(answers), options.annotators, len(samples), options.out,
    )  # fmt: skip
    return 0


def share_clean(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Any]
) -> list[float]:
    """Give each text 1 for no fault, 0.5 for one, 0 for two: what the annotators go by."""
    return [
        1 - sum(find_faults(text, dialogue)) / 2
        for text, dialogue in zip(predictions, dialogues, strict=True)
    ]


def true_order(ranking: Mapping[str, Any]) -> list[float]:
    """Say of each pair of a ranking how an annotator who is never wrong would order it.

    Args:
        ranking: With "dialogue", "completions" and "pairs" (preferred, other, distance).

    Returns:
        For each pair 1 where the order is this one, 0 where it is the contrary, 0.5 for a tie.
    """
    counts = [sum(find_faults(text, ranking["dialogue"])) for text in ranking["completions"]]
    leads = [counts[other] - counts[preferred] for preferred, other, _ in ranking["pairs"]]
    return [0.5 if lead == 0 else float(lead > 0) for lead in leads]


if __name__ == "__main__":
    sys.exit(main())
