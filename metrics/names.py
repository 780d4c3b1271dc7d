"""Proper names in a summary that its dialogue does not have, by rules alone.

No model and no list of names: a name is a capitalised word that is none of the words which English
capitalises for another reason. Spelling counts, so a misspelt name is a new one. docs/evaluation.md
says how often human references are found guilty.
"""

import re
from itertools import pairwise

SPEAKER = re.compile(r"(?i:#\s*person)\s*(\d+)\s*#?|\bPerson\s?(\d+)\b")
"""A speaker's tag, #Person1#, also where a model forgets a sign of it."""

_POSSESSIVE = re.compile(r"['\u2019]s\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
# Behind these a capital need not mean a name.
_OPENERS = frozenset('.!?:;"([\u201c\u2018')
# "Ital-ian" and "Ital-y", "America-n" and "America": a stem so long, and what may follow it.
_SHORTEST_STEM = 4
_SUFFIXES = "a an ans er ers ese i ian ians ish n ns s y"
_ENDINGS = frozenset(_SUFFIXES.split()) | {""}

_TITLES_AND_DATES = """
    mr mrs ms miss dr prof professor doctor sir madam mom mum mommy mummy dad daddy mother father
    grandma grandpa grandmother grandfather uncle aunt auntie president
    monday tuesday wednesday thursday friday saturday sunday january february march april may june
    july august september october november december am pm
"""
_SENTENCE_OPENERS = """
    a able about above according across actually additionally afraid after afterwards again
    against all along also although always among an and another any anybody anyone anything
    apparently around as asked at aware based basically because before behind being below
    beneath beside besides between beyond bored born both but by bye can certainly compared
    congratulations considering could couldn currently dear despite did didn do does doesn doing
    don down due during each eager either even eventually every everybody everyone everything
    except few finally fine first firstly for fortunately from furthermore generally given going
    good goodbye great had hadn happy has hasn have haven he hello hence her here hers hey hi
    him his hopefully how however if in initially inside instead into is isn it its just last
    lastly later let like luckily many may maybe me meanwhile might mine moreover most moved
    much must my near neither never next nice no nobody none nor not nothing now of off often oh
    ok okay on once one only onto or originally other others otherwise our ours out outside over
    past people perhaps please probably recently second secondly seen several shall she should
    since so some somebody someone something sometimes soon sorry still such suddenly sure
    surprisingly thank thanks that the their theirs them then there therefore these they third
    thirdly this those though three through throughout thus till tired to today together told
    tomorrow tonight too toward towards two unable under unfortunately unless unlike until up
    upon upset us used using usually via was we welcome well were what when whenever where
    whereas wherever whether which while who whom whose why will with within without won would
    wouldn wow yes yesterday yet you your yours
"""
_NOT_NAMES = frozenset((_TITLES_AND_DATES + _SENTENCE_OPENERS).split())


def find_unknown_names(summary: str, dialogue: str) -> list[str]:
    """List the proper names in a summary that its dialogue does not have.

    A name is a word with a capital first and a small letter somewhere. Not names: function words,
    titles, kinship, days and months, abbreviations in capitals, and at the start of a sentence
    participles and words that stand in small letters elsewhere in the summary. The dialogue has a
    name when it has the word in any case, another form of the name ("Americans" for "America"), or
    its two halves ("Mc Donald" for "McDonald"). Each word of a longer name counts by itself;
    speakers such as #Person1# are left to `metrics.faithfulness`.

    Args:
        summary: The text to check.
        dialogue: The text that it should be faithful to.

    Returns:
        The names as the summary spells them, each once, in its order.
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
        before: The text in front of it.
        small: Words that stand in small letters somewhere in the summary.
    """
    if not word[0].isupper() or word.isupper() or word.lower() in _NOT_NAMES:
        return False
    before = before.rstrip(" \t")
    opens_sentence = not before or before[-1].isspace() or before[-1] in _OPENERS
    return not (opens_sentence and (word.lower() in small or _is_participle(word)))


def _is_participle(word: str) -> bool:
    """Whether a word is one like "Having" or "Worried", but not a name like "Ming" or "Alfred"."""
    return (word.endswith("ing") and len(word) >= 6) or (word.endswith("ed") and len(word) >= 7)


def _is_known(name: str, known: set[str], names: set[str]) -> bool:
    """Whether a dialogue has a name or another form of it.

    Args:
        name: As the summary spells it.
        known: The dialogue's words in lower case.
        names: Those that it has with a capital.
    """
    name = name.lower()
    if name in known or name.removesuffix("s") in known:
        return True
    cuts = range(_SHORTEST_STEM, len(name) + 1)
    stems = [name[:cut] for cut in cuts if name[cut:] in _ENDINGS]
    return any(stem + ending in names for stem in stems for ending in _ENDINGS)
