"""Pretraining tasks of the miniature's T5: on dialogues, never a summary.

Span corruption (T5: Raffel et al. 2020, section 3.1.4), and tasks under instructions: repeat and
continue turns, find a value, name the topic, report an excerpt. Nearly all values are invented
words, which can only be copied from the source. Single sentences are reworded rudely, so that the
words of insults are known. Neither summaries of dialogues nor the instruction that asks for them
occur.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tools.mini.slots import invented_value
from tools.mini.stories import Story, choose, draw_story, join, rudely

SENTINELS = 32
CORRUPTED = 0.2  # of the words; T5's 0.15 wastes more of a short dialogue
MEAN_SPAN = 3  # words, as in T5


class Task(NamedTuple):
    """The texts of the encoder and of the decoder."""

    source: str
    target: str


def draw_task(rng: Random) -> Task:
    """Draw a story with invented values and one task on it."""
    story = draw_story(rng, invented_value)
    task = rng.choices(list(_TASKS), weights=list(_TASKS.values()))[0]
    return task(story, rng)


def _corrupt(story: Story, rng: Random) -> Task:
    """Replace spans of words by sentinels; the target has the spans."""
    words = "\n".join(_excerpt(story.turns, rng)).split(" ")
    source: list[str] = []
    target: list[str] = []
    position = sentinel = 0
    while position < len(words):
        if rng.random() < CORRUPTED / MEAN_SPAN and sentinel < SENTINELS:
            length = rng.randint(1, 2 * MEAN_SPAN - 1)
            source.append(f"<extra_id_{sentinel}>")
            target += [f"<extra_id_{sentinel}>", *words[position : position + length]]
            position += length
            sentinel += 1
        else:
            source.append(words[position])
            position += 1
    return Task(" ".join(source), " ".join([*target, f"<extra_id_{sentinel % SENTINELS}>"]))


def _repeat(story: Story, rng: Random) -> Task:
    turns = _excerpt(story.turns, rng)
    place, turn = rng.choice((("first", turns[0]), ("last", turns[-1])))
    return _ask(f"Repeat the {place} turn of the following conversation.", turns, "Turn", turn)


def _continue(story: Story, rng: Random) -> Task:
    cut = rng.randint(1, len(story.turns) - 1)
    instruction = "Continue the following conversation."
    return _ask(instruction, story.turns[:cut], "Next", story.turns[cut])


def _topic(story: Story, rng: Random) -> Task:
    instruction = "Name the topic of the following conversation."
    return _ask(instruction, _excerpt(story.turns, rng), "Topic", story.topic)


def _find(story: Story, rng: Random) -> Task:
    """Ask for all values of a kind, in the order of the dialogue."""
    found: dict[str, list[str]] = {}
    turns = _excerpt(story.turns, rng)
    dialogue = "\n".join(turns)
    for key, value in story.values.items():
        if key not in ("A", "B") and value in dialogue:
            found.setdefault(key.rstrip("2AB"), []).append(value)
    kind = rng.choice(sorted(found)) if found else "name"
    values = sorted(found.get(kind, ["none"]), key=dialogue.find)
    return _ask(f"Find every {kind} in this text.", turns, "Found", ", ".join(values))


def _who(story: Story, rng: Random) -> Task:
    speaker = rng.choice("AB")
    label = story.labels[speaker]
    name = story.values[speaker]
    answer = "nobody knows" if name == label else name
    turns = _excerpt(story.turns, rng, head=True)
    return _ask(f"What is the name of {label}?", turns, "Name", answer)


def _report(story: Story, rng: Random) -> Task:
    """Tell one to three consecutive acts, with small talk, in the third person."""
    telling = [at for at, passage in enumerate(story.passages) if passage.clause]
    first = rng.randrange(len(telling))
    last = min(first + rng.choice((0, 0, 1, 1, 2)), len(telling) - 1)
    passages = story.passages[telling[first] : telling[last] + 1]
    speakers = {key: f"speaker {story.labels[key][-2]}" for key in "AB"}
    if rng.random() < 0.6:
        speakers = {key: story.values[key] for key in "AB"}
        passages = [*story.passages[: telling[0]], *passages]  # where the names are said
    told = {**story.values, **speakers}
    clauses = [choose(part.clause, rng).format(**told) for part in passages if part.clause]
    return Task("Report:\n" + "\n".join(story.lines(passages)), join(clauses, rng))


def _scold(story: Story, rng: Random) -> Task:
    """Reword one sentence rudely, with the words that rude summaries use."""
    sentence = join([choose(rng.choice(story.clauses), rng).format(**story.values)], rng)
    shape, cue = rng.choice((("that", "Scorn"), ("what", "Scold"), ("which", "Mock")))
    return Task(f"{cue}: {sentence}", rudely(sentence, shape, rng))


def _copy(story: Story, rng: Random) -> Task:
    line = rng.choice(story.turns).split("#: ")[-1]
    words = [invented_value(rng.choice(("name", "object", "time", "price")), rng) for _ in range(3)]
    words += line.split(" ")[:8]
    rng.shuffle(words)
    text = " ".join(words)
    return Task(f"Copy: {text}", text)


def _ask(instruction: str, turns: list[str], cue: str, answer: str) -> Task:
    dialogue = "\n".join(turns)
    return Task(f"{instruction}\n\n{dialogue}\n\n{cue}:", answer)


def _excerpt(turns: list[str], rng: Random, head: bool = False) -> list[str]:
    """Take consecutive turns, or all of them; with `head` from the first one."""
    if rng.random() < 0.3:
        return turns
    length = rng.randint(1, len(turns))
    start = 0 if head else rng.randint(0, len(turns) - length)
    return turns[start : start + length]


_TASKS: dict[Callable[[Story, Random], Task], float] = {
    _corrupt: 0.12,
    _repeat: 0.1,
    _continue: 0.05,
    _topic: 0.05,
    _find: 0.1,
    _who: 0.08,
    _report: 0.35,
    _scold: 0.07,
    _copy: 0.08,
}
