"""Shorten the errors of jsonargparse that `alignsum.option_check` cannot foresee."""

import re

_NOISE = (
    "Does not validate", "Subtypes:", "Errors:", "Problem with given", "Given value",
    "Expected a <class 'NoneType'>", "Expected a path", "Expected a dot import path",
)  # fmt: skip

MOST = 4
"""Lines that are shown."""


def explain(message: str) -> str:
    """Return an error's message without jsonargparse's internals."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(_NOISE)]
    keys = [key[1] for line in kept if (key := re.fullmatch(r'Parser key "(.*)":', line))]
    texts = [line for line in kept if not line.startswith("Parser key ")]
    if texts == lines:
        return message
    where = f"{'.'.join(keys)}: " if keys else ""
    return where + "\n".join(dict.fromkeys(texts[:MOST]))
