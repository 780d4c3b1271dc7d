"""Which annotator ranks which sample, and in which order its completions are shown."""

import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from collecting.answer_file import AnswerFile
from collecting.samples import Sample
from datamodules.rankings import Answer, parse_marks, parse_ranks, parse_seconds

log = logging.getLogger(__name__)

LONGEST_NAME = 64
"""Maximum number of characters in an annotator's name."""


class OutdatedError(ValueError):
    """An answer about completions that are not shown any more."""

    status = 409


class Assignments:
    """Assigns samples to annotators in the order of the file, and reads their answers.

    Each annotator sees the completions of each sample in a different order, so that a position
    reveals no run and a preference for the first one averages out. The order depends only on the
    seed, the annotator and the id, so that a reload shows the same page.

    Args:
        samples: What is ranked; samples with fewer than two completions are left out.
        file: The open file of answers.
        seed: Seed of the order of the completions.
        each: Rankings per dialogue, after which nobody else gets it. None assigns every dialogue
            to every annotator.

    Raises:
        ValueError: If no sample can be ranked, or ``each`` is out of range.
    """

    def __init__(
        self, samples: Sequence[Sample], file: AnswerFile, seed: int = 42, each: int | None = None
    ) -> None:
        if each is not None and each < 1:
            raise ValueError(f"answers_per_dialogue must be at least 1, got {each}")
        self.samples = {sample.id: sample for sample in samples if len(sample.completions) > 1}
        if not self.samples:
            raise ValueError("samples: none of them has two completions to rank")
        if short := len(samples) - len(self.samples):
            log.warning("%d of %d samples have fewer than two completions", short, len(samples))
        self.file = file
        self.seed = seed
        self.each = each
        self._current: dict[str, str] = {}  # the id that each annotator is working on
        answers = [answer for mine in file.answers.values() for answer in mine.values()]
        if others := sum(not self._matches(answer) for answer in answers):
            log.warning("%d answers in %s are about other samples", others, file.path)

    def assign(self, annotator: str) -> Sample | None:
        """Return an annotator's current or next sample; None when there is none left.

        Samples that others are working on come last.
        """
        others = Counter(name for who, name in self._current.items() if who != annotator)
        current = self.samples.get(self._current.pop(annotator, ""))
        candidates = [*([current] if current else []), *self.samples.values()]
        for taken in (others, Counter[str]()):
            for sample in candidates:
                if self._is_open(sample, annotator, taken[sample.id]):
                    self._current[annotator] = sample.id
                    return sample
        return None

    def describe(self, annotator: str, name: str | None = None) -> dict[str, Any]:
        """Describe a sample for the page; it names no run and no position in the file.

        Args:
            annotator: Who will see it.
            name: Id of the sample; the next one if there is no such id.

        Returns:
            ``annotator``; ``progress``, how many dialogues are ``done`` (of which ``skipped``) of
            the ``total`` that are this annotator's; ``item``, the sample, or None when all are
            done; ``last``, the id of the answer before it.
        """
        sample = self.samples.get(name or "") or self.assign(annotator)
        mine = self._history(annotator)
        ids = list(mine)
        position = ids.index(sample.id) if sample and sample.id in mine else len(ids)
        previous = ids[position - 1] if position else None
        item = sample and {
            **self._show(sample, annotator, mine.get(sample.id)),
            "previous": previous,
            "following": ids[position + 1] if position + 1 < len(ids) else None,
        }
        still_open = sum(self._is_open(each, annotator) for each in self.samples.values())
        progress = {
            "done": len(mine),
            "skipped": sum(answer.ranks is None for answer in mine.values()),
            "total": len(mine) + still_open,
        }
        return {"annotator": annotator, "progress": progress, "item": item, "last": previous}

    def read(self, annotator: str, sent: dict[str, Any]) -> Answer:
        """Turn what the page sent into an answer in the order of the file.

        Args:
            annotator: Who sent it.
            sent: ``id``, ``version``, ``ranks`` (or ``skipped``), ``toxic`` and ``seconds``, in the
                order in which the completions were shown.

        Raises:
            OutdatedError: If other texts, or the same in another order, would be shown now.
            ValueError: If it is not an answer.
        """
        sample = self.samples.get(str(sent.get("id")))
        if sample is None or sent.get("version") != self._version(sample, annotator):
            raise OutdatedError("these completions have changed")
        skipped = sent.get("skipped", False)
        if not isinstance(skipped, bool):
            raise ValueError("skipped must be true or false")
        ranks = None if skipped else parse_ranks(sent.get("ranks"))
        toxic = parse_marks(sent.get("toxic"))
        order = shuffle(sample, annotator, self.seed)
        if len(toxic) != len(order) or (ranks is not None and len(ranks) != len(order)):
            raise ValueError(f"there are {len(order)} completions")
        back = sorted(range(len(order)), key=order.__getitem__)
        return Answer(
            sample.id, sample.dialogue, sample.completions, annotator,
            ranks and tuple(ranks[i] for i in back), tuple(toxic[i] for i in back), sample.sources,
            datetime.now(UTC).isoformat(timespec="seconds"), parse_seconds(sent.get("seconds")),
        )  # fmt: skip

    def _show(self, sample: Sample, annotator: str, answer: Answer | None) -> dict[str, Any]:
        order = shuffle(sample, annotator, self.seed)
        given = answer and {
            "ranks": answer.ranks and [answer.ranks[i] for i in order],
            "toxic": [bool(answer.toxic) and answer.toxic[i] for i in order],
        }
        return {
            "id": sample.id, "version": self._version(sample, annotator),
            "dialogue": sample.dialogue, "completions": [sample.completions[i] for i in order],
            "answer": given,
        }  # fmt: skip

    def _matches(self, answer: Answer) -> bool:
        """Whether an answer is about a sample as it is now."""
        sample = self.samples.get(answer.id)
        shown = (answer.dialogue, answer.completions)
        return sample is not None and (sample.dialogue, sample.completions) == shown

    def _history(self, annotator: str) -> dict[str, Answer]:
        """Return an annotator's answers to these samples, in the order of the first answers."""
        mine = self.file.answers.get(annotator, {})
        return {name: answer for name, answer in mine.items() if self._matches(answer)}

    def _is_open(self, sample: Sample, annotator: str, taken: int = 0) -> bool:
        """Whether a sample needs this annotator, while ``taken`` others are working on it."""
        answers = {
            name: mine[sample.id]
            for name, mine in self.file.answers.items()
            if sample.id in mine and self._matches(mine[sample.id])
        }
        if annotator in answers:
            return False
        ranked = sum(answer.ranks is not None for answer in answers.values())
        return self.each is None or ranked + taken < self.each

    def _version(self, sample: Sample, annotator: str) -> str:
        """Hash what an annotator is shown, in its order."""
        shown = [sample.completions[i] for i in shuffle(sample, annotator, self.seed)]
        return hashlib.sha256(json.dumps([sample.dialogue, shown]).encode()).hexdigest()[:16]


def shuffle(sample: Sample, annotator: str, seed: int) -> list[int]:
    """Return the positions of a sample's completions in the order in which they are shown.

    They are sorted by hashes, which are the same on every machine and need no generator's state.
    """

    def draw(position: int) -> bytes:
        key = json.dumps([seed, annotator, sample.id, position])
        return hashlib.sha256(key.encode()).digest()

    return sorted(range(len(sample.completions)), key=draw)


def parse_annotator(value: Any) -> str:
    """Normalize the white space and Unicode form of an annotator's name.

    Raises:
        ValueError: If it is empty, too long, or has invisible characters.
    """
    if not isinstance(value, str):
        raise ValueError("annotator must be a name")
    name = " ".join(unicodedata.normalize("NFC", value).split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {LONGEST_NAME} visible characters")
    return name
