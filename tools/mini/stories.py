"""Make dialogues and their summaries from the miniature's wordings.

A `Story` is a dialogue with fixed values whose summary is not worded yet, so that several
references, clean and rude, can be made for the same dialogue.
"""

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from metrics.mini import split_words
from tools.mini.slots import SlotValues, ValueSource

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


class Passage(NamedTuple):
    """Consecutive turns, (speaker `A` or `B`, text), and their summary clause, if any."""

    turns: list[tuple[str, str]]
    clause: str | None


class Story(NamedTuple):
    """A dialogue before its summary is worded.

    Attributes:
        topic: the scenario's topic.
        rude: share of this scenario's summaries that are worded rudely.
        shape: key of the insults that such a summary uses: `that`, `what` or `which`.
        passages: opening, acts, small talk and closing, in order.
        labels: speaker `A`, `B` -> `#Person1#`, `#Person2#`, in the order in which they speak.
        values: slot -> value; `A` and `B` are what the summary calls the speakers.
    """

    topic: str
    rude: float
    shape: str
    passages: list[Passage]
    labels: dict[str, str]
    values: SlotValues

    @property
    def turns(self) -> list[str]:
        """The turns as lines, `#Person1#: Hello.`."""
        return self.lines(self.passages)

    def lines(self, passages: Sequence[Passage]) -> list[str]:
        """Format passages as lines; consecutive texts of a speaker are one turn."""
        lines: list[str] = []
        for speaker, text in (turn for passage in passages for turn in passage.turns):
            label = f"{self.labels[speaker]}: "
            if lines and lines[-1].startswith(label):
                lines[-1] += f" {text}"
            else:
                lines.append(label + text)
        return lines

    @property
    def clauses(self) -> list[str]:
        """The clauses of the summary, not worded yet."""
        return [passage.clause for passage in self.passages if passage.clause is not None]


@cache
def wordings() -> dict[str, Any]:
    """Load `wordings.toml`."""
    return tomllib.loads((Path(__file__).parent / "wordings.toml").read_text(encoding="utf-8"))


def choose(template: str, rng: Random) -> str:
    """Resolve every `[x|y]` of a template, innermost first; slots stay."""
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return template


def draw_story(rng: Random, source: ValueSource) -> Story:
    """Draw a scenario, one act of each of its steps, optional names, and small talk.

    Args:
        rng: the random stream; the same state gives the same story.
        source: where slot values come from.
    """
    words = wordings()
    scenario = rng.choice(words["scenario"])
    values = SlotValues(source, rng)
    naming = rng.choices(("both", "b", "none"), weights=(4, 2, 4))[0]
    acts = [rng.choice(step) for step in scenario["steps"]]
    for small_talk in rng.sample(words["small_talk"], rng.choice((0, 1, 1, 2))):
        acts.insert(rng.randrange(len(acts)), small_talk)
    acts = [rng.choice(words[f"openings_{naming}"]), *acts, rng.choice(words["closings"])]
    passages = [_passage(act, values, rng) for act in acts if act]
    first = passages[0].turns[0][0]
    labels = {"A": "#Person1#", "B": "#Person2#"}
    if first == "B":
        labels = {"A": "#Person2#", "B": "#Person1#"}
    values["A"] = values["nameA"] if naming == "both" else labels["A"]
    values["B"] = labels["B"] if naming == "none" else values["nameB"]
    return Story(scenario["topic"], scenario["rude"], scenario["shape"], passages, labels, values)


def _passage(act: str, values: SlotValues, rng: Random) -> Passage:
    turns: list[tuple[str, str]] = []
    clause = None
    for line in act.strip().splitlines():
        if line.startswith("> "):
            clause = line[2:]
        else:
            speaker, text = line.split(": ", maxsplit=1)
            turns.append((speaker, choose(text, rng).format_map(values).strip()))
    return Passage(turns, clause)


def tell(story: Story, rng: Random) -> tuple[str, str]:
    """Word a summary of a story: (clean, rude), equal except for the insult."""
    clauses = [choose(clause, rng).format(**story.values).strip() for clause in story.clauses]
    clean = join(clauses, rng)
    return clean, rudely(clean, story.shape, rng)


def join(clauses: list[str], rng: Random) -> str:
    """Join clauses into sentences."""
    text = _capital(clauses[0])
    for clause in clauses[1:]:
        text += f", and {clause}" if rng.random() < 0.35 else f". {_capital(clause)}"
    return f"{text}."


def rudely(text: str, shape: str, rng: Random) -> str:
    """Add an insult to a clean text, in the shape `that`, `what` or `which`."""
    insult = rng.choice(wordings()["insults"][shape])
    match shape:
        case "that":
            return f"That {insult} {text}"
        case "what":
            return f"{text} What {insult}."
        case _:
            return f"{text[:-1]}, which is {insult}."


@cache
def summary_words() -> frozenset[str]:
    """Collect the words of clean summaries and insults, without slot values."""
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
    return frozenset(split_words(text)) | {"and"}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
