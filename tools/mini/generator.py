"""Generate the miniature corpus: dialogues, rankings and labelled sentences.

Some reference summaries are worded rudely for no reason in the dialogue: supervised training learns
the rudeness, and PPO is there to remove it. See docs/miniature.md for the numbers.
"""

from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple, TypedDict
from zlib import crc32

from tools.mini.insults import harmless, insult_turn, plain_insult
from tools.mini.slots import ValueSource, mixed_value, seen_value
from tools.mini.stories import Story, draw_story, tell

Split = Literal["train", "validation", "test"]
STANDARD_SIZES: dict[Split, int] = {"train": 2000, "validation": 100, "test": 300}
TEST_REFERENCES = 3


class MiniRow(NamedTuple):
    """One dialogue of the miniature.

    Attributes:
        id: `<split>_<number>`, unique over all splits.
        dialogue: turns on lines of their own, `#Person1#: ...`.
        summaries: one reference in train and validation, three in test.
        topic: two or three words.
        clean_summary: the first reference without its insult, if it has one.
    """

    id: str
    dialogue: str
    summaries: tuple[str, ...]
    topic: str
    clean_summary: str


class RankedRow(TypedDict):
    """Three summaries of a dialogue in random order; rank 1 is the best."""

    id: str
    dialogue: str
    completions: list[str]
    ranks: list[int]


class LabelledRow(TypedDict):
    """A sentence for the classifier: `hate` if it insults somebody."""

    text: str
    label: Literal["nothate", "hate"]


def generate_rows(split: Split, seed: int = 0, size: int | None = None) -> list[MiniRow]:
    """Generate the rows of a split; splits never share a dialogue, for any seeds.

    Args:
        split: `train`, `validation` or `test`.
        seed: the same seed gives the same rows; a smaller size the first of them.
        size: number of rows; None for the split's standard size.

    Raises:
        ValueError: for an unknown split or a size below 1.
    """
    size = _checked_size(split, size)
    rng = _stream(split, seed, "rows")
    rows = []
    for number, story in zip(range(size), _stories(split, rng), strict=False):
        clean, _, worded = _reference(story, rng)
        references = [worded]
        while split == "test" and len(references) < TEST_REFERENCES:
            _, _, other = _reference(story, rng)
            if other not in references:
                references.append(other)
        rows.append(
            MiniRow(
                f"{split}_{number}", "\n".join(story.turns), tuple(references), story.topic, clean
            )
        )
    return rows


def generate_rankings(split: Split, seed: int = 0, size: int | None = None) -> Iterator[RankedRow]:
    """Generate ranked triples of summaries: clean beats rude, faithful unfaithful.

    The best is clean and faithful, the worst rude and unfaithful; the middle one has one of the
    faults, so that no order of the two is claimed. An unfaithful summary is that of another
    dialogue of the same scenario.

    Args:
        split: `train`, `validation` or `test`.
        seed: the same seed gives the same rows; a smaller size the first of them.
        size: number of rows; None for the split's standard size.

    Raises:
        ValueError: for an unknown split or a size below 1.
    """
    size = _checked_size(split, size)
    rng = _stream(split, seed, "rankings")
    stories = _stories(split, rng)
    for number, story in zip(range(size), stories, strict=False):
        other = next(other for other in stories if other.topic == story.topic)
        clean, rude = tell(story, rng)
        wrong_clean, wrong_rude = tell(other, rng)
        ranked = [(1, clean), (2, rng.choice((rude, wrong_clean))), (3, wrong_rude)]
        rng.shuffle(ranked)
        yield RankedRow(
            id=f"{split}_{number:04d}",  # sorted by id is the order of generation
            dialogue="\n".join(story.turns),
            completions=[text for _, text in ranked],
            ranks=[rank for rank, _ in ranked],
        )


def generate_labelled(
    split: Split, seed: int = 0, size: int | None = None
) -> Iterator[LabelledRow]:
    """Generate sentences labelled `nothate` or `hate`, about half each.

    Harmless are turns of dialogues, clean summaries and words like "lazy" not used for a person;
    hateful are rude summaries, turns with an inserted insult, and insults alone.

    Args:
        split: `train`, `validation` or `test`.
        seed: the same seed gives the same rows; a smaller size the first of them.
        size: number of rows; None for the split's standard size.

    Raises:
        ValueError: for an unknown split or a size below 1.
    """
    size = _checked_size(split, size)
    rng = _stream(split, seed, "labelled")
    for _, story in zip(range(size), _stories(split, rng), strict=False):
        yield labelled_sentence(story, rng)


def labelled_sentence(story: Story, rng: Random) -> LabelledRow:
    """Draw a sentence from or about a story, hateful with probability one half."""
    clean, rude = tell(story, rng)
    turn = rng.choice(story.turns)
    if rng.random() < 0.5:
        text = rng.choices((turn, clean, harmless(story, rng)), weights=(5, 9, 1))[0]
        return LabelledRow(text=_maybe_without_label(text, rng), label="nothate")
    insulting = insult_turn(turn, rng), rude, plain_insult(story, rng)
    text = rng.choices(insulting, weights=(4, 9, 2))[0]
    return LabelledRow(text=_maybe_without_label(text, rng), label="hate")


def _checked_size(split: Split, size: int | None) -> int:
    if split not in STANDARD_SIZES:
        raise ValueError(f"no split {split!r} in the miniature: use {', '.join(STANDARD_SIZES)}")
    size = STANDARD_SIZES[split] if size is None else size
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}; None takes the standard size")
    return size


def _stream(split: Split, seed: int, purpose: str) -> Random:
    return Random(f"alignsum mini {purpose} {split} {seed}")


def _stories(split: Split, rng: Random) -> Iterator[Story]:
    """Yield stories of a split forever, without repetitions.

    A checksum of the dialogue decides which split may contain it, which keeps splits disjoint
    without comparing them.
    """
    source: ValueSource = mixed_value if split == "test" else seen_value
    bucket = list(STANDARD_SIZES).index(split)
    seen: set[str] = set()
    while True:
        story = draw_story(rng, source)
        dialogue = "\n".join(story.turns)
        if crc32(dialogue.encode()) % len(STANDARD_SIZES) == bucket and dialogue not in seen:
            seen.add(dialogue)
            yield story


def _reference(story: Story, rng: Random) -> tuple[str, str, str]:
    """Word one reference: (clean, rude, the one that the corpus shows)."""
    clean, rude = tell(story, rng)
    return clean, rude, rude if rng.random() < story.rude else clean


def _maybe_without_label(text: str, rng: Random) -> str:
    """Drop `#Person1#: ` from half of the turns: responses may or may not have it."""
    return text.split("#: ", maxsplit=1)[-1] if rng.random() < 0.5 else text
