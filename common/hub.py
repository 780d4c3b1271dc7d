"""Models by name: a folder, the Hugging Face hub or its cache, or the embedded miniature."""

import functools
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.paths import expand

logger = logging.getLogger(__name__)

OVERLAY = "configs/overlays/mini.yaml"
"""The overlay that runs everything on the embedded miniature, offline."""

_PROBE_SECONDS = 5.0

_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "mini"
_MINI = {"seq2seq": _ASSETS / "t5", "classifier": _ASSETS / "roberta"}


def resolve_model(name: str, kind: Literal["seq2seq", "classifier"] = "seq2seq") -> str:
    """Turn ``mini`` into the embedded model's folder, and a relative folder into an absolute one.

    An absolute path is what an exported adapter has to name, so that it finds its backbone from
    whatever folder it is loaded.
    """
    if name == "mini":
        return str(_MINI[kind])
    folder = expand(name)
    return str(folder.resolve()) if folder.is_dir() else name


def is_gone(name: str) -> bool:
    """Whether a model is named by a folder that is not there: moved, or of another machine."""
    return Path(name).is_absolute() and not Path(name).is_dir()


def warn_of_move(what: str, old: str, new: str) -> None:
    """Say what is taken for granted where a backbone is elsewhere than it was: nobody can tell."""
    logger.warning("%s was trained on %s; %s is taken to be the same model", what, old, new)


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Say in words why the weights of a model cannot be read; a malicious pickle never is.

    Raises:
        ValueError: If they are damaged, or hold more than tensors.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {name} cannot be read ({error}): the file is damaged or was cut off; "
            "fetch or export it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is refused: its weights hold more than tensors and plain values, and loading "
            "them could run code of whoever wrote them; take a model with safetensors"
        ) from error
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"the weights of {name} are of other shapes than its config.json says: the two are not "
            "of one model; fetch or export it again"
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in words why a model's folder cannot be written, and leave nothing of it.

    Raises:
        OSError: If it cannot be, a full disk included, of which safetensors has an error of its
            own.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 1e6
        raise OSError(
            f"the model could not be written to {folder.parent} ({error}; {free:,.1f} MB are free "
            "there). Make room on the disk; a fit goes on with --resume auto"
        ) from error


def load_tokenizer(
    name: str, kind: Literal["seq2seq", "classifier"] = "seq2seq"
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model (hub id, folder, or ``mini``).

    Raises:
        OSError: If it cannot be had.
        ValueError: If it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve_model(name, kind), trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # of a damaged file: whatever the parser met, or Rust's Exception
        raise ValueError(f"the tokenizer of {name} cannot be read ({error!r})") from error


@functools.cache
def reachable() -> bool:
    """Whether the hub answers; asked once a process, without the hub client's long retries."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception as error:  # the client's own errors differ between its versions
        logger.info("The hub at %s does not answer: %s", constants.ENDPOINT, error)
        return False
    return True


def use_cache_only() -> None:
    """Keep the hub clients from retrying for minutes when the hub is known not to answer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def cached(repo: str, names: Sequence[str], repo_type: str = "model") -> bool:
    """Whether one of the files ``names`` of ``repo`` lies in the local hub cache."""
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(repo, name, repo_type=repo_type), str)
        for name in names
    )


_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER = ("tokenizer.json", "spiece.model", "vocab.json")


class Unavailable(str):
    """A problem that only says that a model's weights are not at hand; a plan needs none."""


def find_model_problem(name: str, what: str, kind: str = "") -> str | None:
    """Say why a model cannot be had, or return None where it can; loads nothing.

    Args:
        name: A folder written by ``save_pretrained``, or a hub id.
        what: The model's role in the message, for example "backbone".
        kind: "seq2seq" where it has to be an encoder-decoder.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return f"{what}: the folder {folder} has no config.json"
        if problem := _find_config_problem(folder / "config.json", what, kind):
            return problem
        if not any((folder / file).is_file() for file in _WEIGHTS):
            return Unavailable(
                f"{what}: the folder {folder} has no weights (looked for {', '.join(_WEIGHTS)})"
            )
        return _find_tokenizer_problem(folder, what)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{what}: there is no folder {name!r}"
    if all(cached(name, files) for files in (("config.json",), _WEIGHTS, _TOKENIZER)):
        return None
    if reachable():
        answer = get_session().head(
            huggingface_hub.hf_hub_url(name, "config.json"),
            timeout=_PROBE_SECONDS,
            headers=huggingface_hub.utils.build_hf_headers(),
        )
        if answer.status_code < 400:
            return None
        return Unavailable(
            f"{what}: the hub has no readable model {name!r} (HTTP {answer.status_code}); "
            "check the name, or log in with `hf auth login` if it is gated"
        )
    return Unavailable(
        f"{what}: there is no folder {name!r}, and no model of that name in the local hub cache "
        f"({constants.HF_HUB_CACHE})"
    )


def _find_tokenizer_problem(folder: Path, what: str) -> str | None:
    """Say that a folder has no tokenizer: transformers would make one that knows no words."""
    config = folder / "tokenizer_config.json"
    # ByT5 reads bytes, and has no vocabulary.
    is_known = config.is_file() and "ByT5" in config.read_text(encoding="utf-8", errors="replace")
    if is_known or any((folder / file).is_file() for file in _TOKENIZER):
        return None
    return Unavailable(
        f"{what}: the folder {folder} has no tokenizer (looked for {', '.join(_TOKENIZER)})"
    )


def _find_config_problem(path: Path, what: str, kind: str) -> str | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{what}: {path} is no JSON ({error})"
    if not isinstance(config, dict):
        return f"{what}: {path} is no configuration of a model: it holds no JSON object"
    if kind == "seq2seq" and not config.get("is_encoder_decoder"):
        return (
            f"{what}: {path.parent} holds a {config.get('model_type')!r} model, and no "
            "encoder-decoder such as google/flan-t5-base"
        )
    return None
