"""Find proper names in a summary that are not in its dialogue, by rules alone.

No model and no list of names: a name is a capitalized word that English does not capitalize for
another reason (``not_names.txt``). Spelling counts, so a misspelled name is a new one.
docs/evaluation.md has the share of human references that are flagged.
"""

import re
from itertools import pairwise
from pathlib import Path

SPEAKER = re.compile(r"(?i:#\s*person)\s*(\d+)\s*#?|\bPerson\s?(\d+)\b")
"""A speaker tag, #Person1#, also with a sign missing."""

_POSSESSIVE = re.compile(r"['\u2019]s\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
# After these a capital letter does not indicate a name.
_OPENERS = frozenset('.!?:;"([\u201c\u2018')
# "Ital-ian" and "Ital-y", "America-n" and "America": the shortest stem, and its endings.
_SHORTEST_STEM = 4
_SUFFIXES = "a an ans er ers ese i ian ians ish n ns s y"
_ENDINGS = frozenset(_SUFFIXES.split()) | {""}

_NOT_NAMES = frozenset(
    word
    for line in Path(__file__).with_name("not_names.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for word in line.split()
)


def find_unknown_names(summary: str, dialogue: str) -> list[str]:
    """List the proper names in a summary that are not in its dialogue.

    A name is a word with an initial capital and a lower-case letter. Not names are function words,
    titles, kinship terms, days and months, abbreviations in capitals, and at the start of a
    sentence participles and words that are in lower case elsewhere in the summary. The dialogue has
    a name if it has the word in any case, another form of the name ("Americans" for "America"), or
    its two halves ("Mc Donald" for "McDonald"). Each word of a longer name counts separately;
    speakers such as #Person1# are checked by `metrics.faithfulness`.

    Args:
        summary: The text to check.
        dialogue: The text that it summarizes.

    Returns:
        The names as the summary spells them, without repetitions, in its order.
    """
    text = _POSSESSIVE.sub("", SPEAKER.sub(" x ", summary))
    small = {word for word in _WORD.findall(text) if word.islower()}
    said = _WORD.findall(_POSSESSIVE.sub("", dialogue))
    names = {word.lower() for word in said if word[0].isupper()}
    said = [word.lower() for word in said]
    known = {*said, *(one + two for one, two in pairwise(said))}
    unknown: dict[str, None] = {}  # an ordered set
    for match in _WORD.finditer(text):
        word = match[0]
        if _is_name(word, text[: match.start()], small) and not _is_known(word, known, names):
            unknown[word] = None
    return list(unknown)


def _is_name(word: str, before: str, small: set[str]) -> bool:
    """Whether a word of a summary is a proper name, as far as rules can tell.

    Args:
        word: The word.
        before: The text before it.
        small: The lower-case words of the summary.
    """
    if not word[0].isupper() or word.isupper() or word.lower() in _NOT_NAMES:
        return False
    before = before.rstrip(" \t")
    opens_sentence = not before or before[-1].isspace() or before[-1] in _OPENERS
    return not (opens_sentence and (word.lower() in small or _is_participle(word)))


def _is_participle(word: str) -> bool:
    """Whether a word is like "Having" or "Worried", not like "Ming" or "Alfred"."""
    return (word.endswith("ing") and len(word) >= 6) or (word.endswith("ed") and len(word) >= 7)


def _is_known(name: str, known: set[str], names: set[str]) -> bool:
    """Whether a dialogue has a name or another form of it.

    Args:
        name: The name as the summary spells it.
        known: The dialogue's words in lower case.
        names: The dialogue's capitalized words, in lower case.
    """
    name = name.lower()
    if name in known or name.removesuffix("s") in known:
        return True
    cuts = range(_SHORTEST_STEM, len(name) + 1)
    stems = [name[:cut] for cut in cuts if name[cut:] in _ENDINGS]
    return any(stem + ending in names for stem in stems for ending in _ENDINGS)
