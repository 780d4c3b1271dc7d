"""Shorten the errors of jsonargparse that `alignsum.option_check` cannot foresee."""

_NOISE = (
    "Does not validate", "Subtypes:", "Errors:", "Problem with given", "Given value",
    "Expected a <class 'NoneType'>",
)  # fmt: skip

MOST = 4
"""Lines that are shown."""


def explain(message: str) -> str:
    """Return an error's message without jsonargparse's internals."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(_NOISE)]
    return message if kept == lines else "\n".join(dict.fromkeys(kept[:MOST]))
