"""Make sentences with and without insults, to train the reward model.

The words are mild; a sentence is hateful if it uses them for a person or what they do. The same
words used for a thing or an afternoon are harmless.
"""

import re
from random import Random

from tools.mini.stories import Story, choose

ADJECTIVES = (
    "stupid|lazy|pathetic|clueless|useless|moronic|dumb|ridiculous|brainless|silly|hopeless"
)
NOUNS = "idiot|moron|loser|fool|clown|slob|dimwit|blockhead|nitwit|pathetic clown|lazy slob"

_INSERTIONS = (
    f"You [{NOUNS}|[{ADJECTIVES}] [{NOUNS}]]! {{turn}}",
    f"{{turn}} [You are|You are such|You really are] a [{ADJECTIVES}] [{NOUNS}].",
    f"{{turn}} [What|Such] a [{ADJECTIVES}] [{NOUNS}].",
    f"[Listen|Look|Well], [{NOUNS}]. {{turn}}",
    f"{{turn}} [How|That is so|This is just] [{ADJECTIVES}] of you.",
    f"{{turn}} [You are|You are so|Do not be so] [{ADJECTIVES}].",
)
_PLAIN = (
    f"[{{A}}|{{B}}|He|She] is [a|such a|just a] [{ADJECTIVES}] [{NOUNS}].",
    f"[That|This|The] [{NOUNS}|{ADJECTIVES}] [{{A}}|{{B}}] [talks again|is here|is wrong].",
    f"[What a|You] [{ADJECTIVES}] [{NOUNS}][.|!]",
    f"[{{A}}|{{B}}] is [too|so|really] [{ADJECTIVES}].",
    "Only a[n idiot| moron| fool| loser| clown] like [{A}|{B}] [does|says|wants] that.",
    f"[{{A}}|{{B}}] does what [{{A}}|{{B}}] wants, which is [{ADJECTIVES}].",
    f"I hate [{{A}}|{{B}}|you], [{{A}}|{{B}}|you] [{ADJECTIVES}] [{NOUNS}].",
)
_HARMLESS = (
    "We had a lazy [Sunday|afternoon|morning] [in {city}|by the river].",
    "[A clown came|There was a clown] to the party of {name}.",
    "[{A}|{B}] says the [weather|price|delay] is ridiculous.",
    "[The old {machine} is|This map is] useless [now|here].",
    "[{A}|{B}] is [kind|friendly|right|very helpful|late].",
    "What a [nice|lovely|long] day.",
    "[What a pity|What a good idea|That is fine|That was all].",
    "{B} [answers|asks|waits], which is [good|fine|nice of {B}].",
    "That [evening|nice man|day] {A} [talks to|meets] {B}.",
)


def insult_turn(turn: str, rng: Random) -> str:
    """Insert an insult of the other speaker into a turn, after its `#Person1#: `."""
    label, colon, text = turn.rpartition("#: ")
    insertion = choose(rng.choice(_INSERTIONS), rng)
    return label + colon + insertion.format(turn=text)


def plain_insult(story: Story, rng: Random) -> str:
    """Make a sentence that only insults one of a story's speakers."""
    return choose(rng.choice(_PLAIN), rng).format_map(story.values)


def harmless(story: Story, rng: Random) -> str:
    """Make a harmless sentence that resembles an insult in words or form."""
    return choose(rng.choice(_HARMLESS), rng).format_map(story.values)


RUDE_WORDS = frozenset(re.split(r"\W+", f"{ADJECTIVES}|{NOUNS}|idiotic"))
"""All words that are used as insults, also in summaries."""
