"""Rank completions for the miniature with simulated, fallible annotators.

    python -m collecting.simulated_annotators samples.jsonl --out answers.jsonl --annotators 3

reads the samples of ``python -m alignsum rank sample`` and writes answers in the format of
``datamodules.rankings``. A completion has up to two faults (`metrics.mini`): it is rude, or it is
unfaithful. Fewer faults rank higher and equally many are a tie, so no order of the two faults is
claimed. With probability ``noise`` an annotator misjudges a fault, independently for each fault,
completion and annotator. ``docs/methods/reward_model.md`` derives the accuracy that this allows.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from collecting.samples import Sample, read_samples
from common.exits import run, start_log
from common.run_folder import write_lines
from datamodules.rankings import Answer
from metrics.mini import Faults, find_faults

logger = logging.getLogger(__name__)


def misjudge(faults: Faults, noise: float, rng: Random) -> Faults:
    """Flip each fault with probability ``noise``."""
    return Faults(*(fault != (rng.random() < noise) for fault in faults))


def rank(faults: Sequence[Faults]) -> list[int]:
    """Rank completions by their number of faults, 1 is best; equal numbers are ties."""
    counts = [sum(each) for each in faults]
    order = sorted(set(counts))
    return [order.index(count) + 1 for count in counts]


def annotate(sample: Sample, annotator: str, noise: float, seed: int) -> Answer:
    """Return one annotator's answer, a function of the arguments only.

    Raises:
        ValueError: If ``noise`` is not in [0, 0.5); at 0.5 there is nothing to learn.
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise must be in [0, 0.5), got {noise}")
    rng = Random(f"alignsum mini annotator {annotator} {seed} {sample.id}")  # noqa: S311 - not for security
    seen = [misjudge(find_faults(text, sample.dialogue), noise, rng) for text in sample.completions]
    toxic = tuple(faults.rude for faults in seen)
    return Answer(
        sample.id, sample.dialogue, sample.completions, annotator, tuple(rank(seen)), toxic,
        sample.sources,
    )  # fmt: skip


def make_answers(
    samples: Sequence[Sample], annotators: int, noise: float, seed: int
) -> list[Answer]:
    """Have several annotators answer all samples, dialogue by dialogue."""
    names = [f"annotator_{number}" for number in range(1, annotators + 1)]
    return [annotate(sample, name, noise, seed) for sample in samples for name in names]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, annotate, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("samples", type=Path, help="file written by `alignsum rank sample`")
    parser.add_argument("--out", type=Path, required=True, help="file of answers to write")
    parser.add_argument("--annotators", type=int, default=3, help="annotators per dialogue")
    parser.add_argument("--noise", type=float, default=0.1, help="chance of misjudging a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    options = parser.parse_args(arguments)
    start_log()

    def work() -> None:
        if options.out.exists() and not options.overwrite:
            raise ValueError(f"{options.out} exists; --overwrite replaces it")
        samples = read_samples(options.samples)
        answers = make_answers(samples, options.annotators, options.noise, options.seed)
        write_lines(options.out, (answer.to_row() for answer in answers))
        logger.info("%d answers on %d dialogues: %s", len(answers), len(samples), options.out)

    return run(work, logger)


if __name__ == "__main__":
    sys.exit(main())
