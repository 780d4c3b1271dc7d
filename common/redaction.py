"""Keep keys and tokens out of what a run writes down."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence

HIDDEN = "***"

_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    # Not pad_token and the like, nor max_new_tokens.
    r"(?!(?:pad|eos|bos|unk|sep|cls|mask)_token$)"
    r"(?:[a-z0-9]+_)*(?:api_?key|token|secret|password|passwd)",
    re.IGNORECASE,
)
_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),  # Hugging Face
    re.compile(r"\b(?:wandb_v\d_|local-)[A-Za-z0-9_-]{20,}"),  # Weights & Biases
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),  # OpenAI, Anthropic
    re.compile(r"\bgh[opsu]_[A-Za-z0-9]{16,}"),  # GitHub
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # name:password@ in an address
)
_BARE = re.compile(r"^(\s*(?:- )*(?:[\w.-]+:[ ]+)?)(\*\*\*.*?)[ ]*$", re.MULTILINE)
_SHORTEST = 8
"""A value of fewer characters in a secret variable hides nothing, and might be a word."""


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace what looks like a key or token, and what the environment holds as one.

    Args:
        text: Any text.
        environment: Its variables; None takes those of the process.
    """
    for name, value in (os.environ if environment is None else environment).items():
        # os.path, for Path raises an error where a key is longer than a path can be.
        is_path = os.path.exists(value)
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST and not is_path:
            text = text.replace(value, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(HIDDEN, text)
    return text


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Redact a command line, the values of options such as ``--api_key`` too."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        word = name.rpartition(".")[2].lstrip("-")
        is_secret = name.startswith("-") and _SECRET_NAME.fullmatch(word)
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
        elif is_secret and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact(argument))
        hide_next = bool(is_secret) and not equals
    return shown


def show_command(arguments: Sequence[str]) -> str:
    """Write a command as one types it, to be shown or recorded: keys and tokens left out."""
    return shlex.join(redact_arguments(arguments))


def redact_yaml(text: str) -> str:
    """Redact a YAML text, the values of keys such as ``api_key`` too."""
    lines = []
    for line in text.splitlines(keepends=True):
        match = re.fullmatch(r"(\s*(?:- )?)([\w.-]+)(:\s+)(\S.*?)(\s*)", line)
        if match and _SECRET_NAME.fullmatch(match[2]) and match[4] not in ("null", "true", "false"):
            line = f"{match[1]}{match[2]}{match[3]}'{HIDDEN}'{match[5]}"
        lines.append(line)
    # A plain scalar that begins with a star would be an alias.
    hidden = redact("".join(lines))
    return _BARE.sub(lambda m: m[1] + "'" + m[2].replace("'", "''") + "'", hidden)
