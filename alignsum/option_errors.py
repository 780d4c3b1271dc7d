"""Shorten the errors of jsonargparse that `alignsum.option_check` cannot foresee."""

_NOISE = ("Does not validate", "- Does not validate", "Subtypes: ", "Errors:", "Problem with given")
_NONE = "- Expected a <class 'NoneType'>"

MOST = 5
"""Lines that are shown."""


def explain(message: str) -> str:
    """Return jsonargparse's message without its internals."""
    text, _, value = message.partition("\n  Given value type:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith((*_NOISE, _NONE))]
    given = value.partition("\n  ")[2]
    if given and "NestedArg(" not in given:
        lines.append(given)
    return "\n".join([*lines[:MOST], "all options: python train.py fit --help"])
