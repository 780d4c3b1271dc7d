"""Draw completions of one dialogue until they differ, from several models that take turns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamodules.reading import Row
from prediction.summarizer import Summarizer


class Sampler:
    """Draws different completions of dialogues, the runs taking turns.

    The j-th completion of the i-th dialogue is drawn from run (i + j) mod R of R runs. Texts that
    differ in white space only are one text.

    Args:
        summarizers: By name of the run; they sample.
        completions: How many a dialogue.
        retries: How often what is missing is drawn again.
    """

    def __init__(
        self, summarizers: Mapping[str, Summarizer], completions: int, retries: int
    ) -> None:
        self.summarizers = summarizers
        self.completions = completions
        self.retries = retries

    def draw(
        self,
        rows: Sequence[Row],
        window: int,
        first: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """Draw for one window.

        Args:
            rows: N rows.
            window: Number of the window: a part of the seed.
            first: Number of its first row in the whole.
            advance: Is told how many completions of the first draw are done.

        Returns:
            N samples, as the file has them; a row may have fewer completions than were asked for.
        """
        names = list(self.summarizers)
        found: list[dict[str, tuple[str, str]]] = [{} for _ in rows]
        for attempt in range(self.retries + 1):
            for turn, name in enumerate(names):
                places = [
                    place
                    for place in range(len(rows))
                    for _ in range(self._count(first + place, turn) - _count(found[place], name))
                ]
                if not places:
                    continue
                texts = self.summarizers[name].summarise(
                    [rows[place] for place in places], window,
                    (lambda _: None) if attempt else advance, (turn, attempt),
                )  # fmt: skip
                for place, text in zip(places, texts, strict=True):
                    if key := " ".join(text.split()):
                        found[place].setdefault(key, (text, name))
        return [
            {
                "id": row.id, "dialogue": row.dialogue, "references": list(row.references),
                "completions": [text for text, _ in texts.values()],
                "sources": [name for _, name in texts.values()],
            }
            for row, texts in zip(rows, found, strict=True)
        ]  # fmt: skip

    def _count(self, number: int, turn: int) -> int:
        """Count the completions of a dialogue that are to come from a run."""
        runs = len(self.summarizers)
        return sum((number + place) % runs == turn for place in range(self.completions))


def _count(found: Mapping[str, tuple[str, str]], name: str) -> int:
    return sum(source == name for _, source in found.values())
