"""What a run records about its origin: versions, commit, and its command without secrets."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets")

HIDDEN = "REDACTED"

_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD)(?:_|$)", re.IGNORECASE)
_SECRET_NAME = r"(?!(?:pad|eos|bos|unk|sep|cls|mask)_)(?:\w+_)?(?:api_?key|token|secret|password)"
_SECRETS = (
    # Hugging Face, Weights & Biases, OpenAI and Anthropic, GitHub; name:password@ in an address
    re.compile(r"()\b(?:hf_|wandb_v\d_|sk-|gh[opsu]_)[A-Za-z0-9_-]{16,}"),
    re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(rf"(--(?:\w+\.)*{_SECRET_NAME}[=\0])(?!--)[^\0]+"),
    re.compile(rf"^([ -]*{_SECRET_NAME}: )(?!null$|true$|false$).+$", re.MULTILINE),
)


def redact(text: str) -> str:
    """Hide keys and tokens in a YAML file or any other text.

    Hidden are the values of secret environment variables, strings in the format of well-known
    keys, and the values of YAML keys (and options) with names such as ``api_key``.
    """
    for name, value in os.environ.items():
        # Shorter values could be words; a path to a key file is no secret. os.path.exists, since
        # Path raises an error for values longer than any path.
        if _SECRET_VARIABLE.search(name) and len(value) >= 8 and not os.path.exists(value):
            text = text.replace(value, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Hide keys and tokens in a command's arguments."""
    return redact("\0".join(arguments)).split("\0")


def show_command(arguments: Sequence[str]) -> str:
    """Return a command as it is typed in a shell, without secrets."""
    return shlex.join(redact_arguments(arguments))


def find_versions() -> dict[str, str | None]:
    """Return the versions of Python and the main packages, and this repository's commit."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    return versions | {"alignsum": find_commit(Path(__file__).parents[1])}


def find_commit(root: Path) -> str | None:
    """Return a repository's git commit, with "-dirty" if files changed; None without git."""
    if not (root / ".git").exists():  # an installed package, perhaps inside another repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
