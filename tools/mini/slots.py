"""Draw slot values for the miniature: seen, partly unseen, or invented.

Training and validation rows take values from a closed list. Test rows take half of theirs from a
list that no training row uses, so that they can only be copied, not memorized. Pretraining takes
most values from made-up words, so that copying is learned as a skill.
"""

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

ValueSource = Callable[[str, Random], str]
"""Draws a value of a kind (`name`, `city`, `time`, ...) from a random stream."""

# fmt: off
_ONSETS = [
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z",
    "br", "cl", "dr", "fl", "gr", "kr", "pl", "qu", "sh", "st", "th", "tr",
]
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "io", "oo"]
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd", "rn", "sk", "th"]
_ADJECTIVES = [
    "old", "new", "small", "large", "green", "white", "broken", "heavy", "wooden", "cheap",
    "grey", "round",
]
# fmt: on
_TITLE_PARTS = ["of", "and", "in", "without", "under", "for"]
_TITLES = ["Mr.", "Mrs.", "Ms.", "Dr."]


@cache
def word_lists() -> dict[str, dict[str, list[str]]]:
    """Load `slots.toml`: kind -> `seen` and `unseen` -> values."""
    return tomllib.loads((Path(__file__).parent / "slots.toml").read_text(encoding="utf-8"))


def seen_value(kind: str, rng: Random) -> str:
    """Draw a value for training and validation rows: seen, or a round number."""
    if kind in word_lists():
        return rng.choice(word_lists()[kind]["seen"])
    return _computed(kind, rng, step=5)


def mixed_value(kind: str, rng: Random) -> str:
    """Draw a value for test rows: with probability 0.5 one that training never has."""
    if rng.random() < 0.5:
        return seen_value(kind, rng)
    if kind in word_lists():
        return rng.choice(word_lists()[kind]["unseen"])
    return _computed(kind, rng, step=1)


def invented_value(kind: str, rng: Random) -> str:
    """Draw a value for pretraining: invented with probability 0.75."""
    if rng.random() < 0.25:
        return seen_value(kind, rng)
    if kind not in word_lists():
        return _computed(kind, rng, step=1)
    word = _invented_word(rng)
    match kind:
        case "name":
            name = word.capitalize()
            return f"{rng.choice(_TITLES)} {name}" if rng.random() < 0.25 else name
        case "city":
            return word.capitalize()
        case "place":
            return f"the {word} {_invented_word(rng)}" if rng.random() < 0.5 else f"the {word}"
        case "book":
            tail = f"{rng.choice(_TITLE_PARTS)} {_invented_word(rng).capitalize()}"
            return f"The {word.capitalize()} {tail}"
        case "day":
            return f"{word.capitalize()} {rng.randint(1, 31)}"
        case "object" | "food" | "job":
            return f"a {rng.choice(_ADJECTIVES)} {word}" if rng.random() < 0.5 else f"a {word}"
        case "hobby":
            return f"{word}ing"
        case _:
            return word


def _invented_word(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


def _computed(kind: str, rng: Random, step: int) -> str:
    """Draw times, prices and numbers; steps of 5 leave the others to the test split."""
    match kind:
        case "time":
            return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 3 * step):02d} {rng.choice('ap')}m"
        case "price":
            return f"${rng.randrange(10, 400, step)}"
        case "number":
            return str(rng.randrange(5, 60, step) if step > 1 else rng.randint(2, 99))
        case _:
            raise ValueError(
                f"no slot kind {kind!r}: add it to slots.toml, or use one of "
                f"{sorted(word_lists())} or time, price, number"
            )


class SlotValues(dict[str, str]):
    """The values of one dialogue, drawn on first access.

    A key is a kind, with a suffix where a dialogue needs several (`time`, `time2`, `nameA`); no
    two keys share a value.
    """

    def __init__(self, source: ValueSource, rng: Random) -> None:
        super().__init__()
        self._source = source
        self._rng = rng

    def __missing__(self, key: str) -> str:
        kind = key.rstrip("2AB")
        value = self._source(kind, self._rng)
        while value in self.values():
            value = self._source(kind, self._rng)
        self[key] = value
        return value
