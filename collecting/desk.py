"""Who is shown what: the samples of a project, dealt to its annotators."""

import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from collecting.answers import AnswerFile
from collecting.samples import Sample
from datamodules.rankings import Answer, parse_marks, parse_ranks, parse_seconds

log = logging.getLogger(__name__)

LONGEST_NAME = 64
"""Characters of an annotator's name."""


class OutdatedError(ValueError):
    """An answer to something that is not asked any more."""


class Desk:
    """Deals samples to annotators in the order of the file, and takes their answers.

    The page sees completions in an order of its own for each annotator and dialogue, so that no
    place in the list is a run's place, and a liking for the first one averages out. The order is a
    function of seed, annotator and id: who reloads sees the same.

    Args:
        samples: What is asked. Those with fewer than two completions are left out.
        file: Open; where answers go.
        seed: Seed of the order of the completions.
        each: Answers that a dialogue needs; it is then shown to nobody else. None shows every
            dialogue to everybody.

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
        if few := len(samples) - len(self.samples):
            log.warning("%d of %d samples have fewer than two completions", few, len(samples))
        self.file = file
        self.seed = seed
        self.each = each
        self._open: dict[str, str] = {}  # by annotator: the id at which they are
        if strange := sum(not self._fits(answer) for answer in self._answers()):
            log.warning("%d answers in %s are of other samples", strange, file.path)

    def describe(self, annotator: str) -> dict[str, int]:
        """Say how far an annotator is.

        Returns:
            ``done``, of which ``skipped``, of ``total`` dialogues that are theirs to answer.
        """
        mine = self._history(annotator)
        free = sum(self._is_free(sample, annotator) for sample in self.samples.values())
        return {
            "done": len(mine),
            "skipped": sum(answer.ranks is None for answer in mine.values()),
            "total": len(mine) + free,
        }

    def deal(self, annotator: str) -> Sample | None:
        """Give an annotator the next sample; None where all is done.

        It is the one that they have before them already, where they have. What others have before
        them is left to them as long as there is anything else.
        """
        others = Counter(place for name, place in self._open.items() if name != annotator)
        mine = self.samples.get(self._open.pop(annotator, ""))
        waiting = [*([mine] if mine else []), *self.samples.values()]
        for taken in (others, Counter[str]()):
            for sample in waiting:
                if self._is_free(sample, annotator, taken[sample.id]):
                    self._open[annotator] = sample.id
                    return sample
        return None

    def show(self, annotator: str, sample: Sample) -> dict[str, Any]:
        """Give what the page shows; it names no run, and no place in the file.

        Returns:
            ``version`` has to come back with the answer. ``answer`` is what the annotator said
            before, ``previous`` and ``following`` the ids of their answers around it.
        """
        order = shuffle(sample, annotator, self.seed)
        mine = self._history(annotator)
        answer = mine.get(sample.id)
        ids = list(mine)
        place = ids.index(sample.id) if answer else len(ids)
        return {
            "id": sample.id,
            "version": self._version(annotator, sample),
            "dialogue": sample.dialogue,
            "completions": [sample.completions[i] for i in order],
            "answer": answer and {
                "ranks": answer.ranks and [answer.ranks[i] for i in order],
                "toxic": [answer.toxic[i] for i in order],
            },
            "previous": ids[place - 1] if place else None,
            "following": ids[place + 1] if place + 1 < len(ids) else None,
        }  # fmt: skip

    def read(self, annotator: str, sent: dict[str, Any]) -> Answer:
        """Make an answer of what the page sent.

        Args:
            annotator: Who sent it.
            sent: ``id``, ``version``, ``ranks`` (or ``skipped``), ``toxic`` and ``seconds``, in the
                order in which the completions were shown.

        Raises:
            OutdatedError: If other texts, or the same in another order, would be shown now.
            ValueError: If it is no answer.
        """
        sample = self.samples.get(str(sent.get("id")))
        if sample is None or sent.get("version") != self._version(annotator, sample):
            raise OutdatedError("these completions are not asked about any more")
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

    def find_last(self, annotator: str) -> str | None:
        """Find the id of an annotator's latest first answer, for the way back from the end."""
        return next(reversed(self._history(annotator)), None)

    def _answers(self) -> list[Answer]:
        return [answer for mine in self.file.answers.values() for answer in mine.values()]

    def _fits(self, answer: Answer) -> bool:
        """Whether an answer is of a sample as it is now."""
        sample = self.samples.get(answer.id)
        if sample is None:
            return False
        return (sample.dialogue, sample.completions) == (answer.dialogue, answer.completions)

    def _history(self, annotator: str) -> dict[str, Answer]:
        """Give an annotator's answers to these samples, the first one first."""
        mine = self.file.answers.get(annotator, {})
        return {name: answer for name, answer in mine.items() if self._fits(answer)}

    def _is_free(self, sample: Sample, annotator: str, taken: int = 0) -> bool:
        """Whether a sample waits for this annotator, ``taken`` others being at it."""
        answers = {
            name: mine[sample.id]
            for name, mine in self.file.answers.items()
            if sample.id in mine and self._fits(mine[sample.id])
        }
        if annotator in answers:
            return False
        ranked = sum(answer.ranks is not None for answer in answers.values())
        return self.each is None or ranked + taken < self.each

    def _version(self, annotator: str, sample: Sample) -> str:
        """Hash what an annotator is shown, in its order."""
        shown = [sample.completions[i] for i in shuffle(sample, annotator, self.seed)]
        return hashlib.sha256(json.dumps([sample.dialogue, shown]).encode()).hexdigest()[:16]


def shuffle(sample: Sample, annotator: str, seed: int) -> list[int]:
    """Give the places in the file of a sample's completions in the order in which they are shown.

    Sorted by hashes, for that is the same on every machine and needs no generator's state.
    """

    def draw(place: int) -> bytes:
        return hashlib.sha256(json.dumps([seed, annotator, sample.id, place]).encode()).digest()

    return sorted(range(len(sample.completions)), key=draw)


def parse_annotator(value: Any) -> str:
    """Take an annotator's name, white space and the form of its characters made one.

    Raises:
        ValueError: If it is empty, too long, or has characters that cannot be seen.
    """
    if not isinstance(value, str):
        raise ValueError("annotator must be a name")
    name = " ".join(unicodedata.normalize("NFC", value).split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters that can be seen")
    return name
