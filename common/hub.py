"""Find models by name: a folder, a hub id or its local cache, or the embedded miniature."""

import functools
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.run_folder import expand

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

OVERLAY = "configs/overlays/mini.yaml"
"""The overlay that runs everything on the embedded miniature, offline."""

ASSETS = Path(__file__).resolve().parents[1] / "assets"

Kind = Literal["seq2seq", "classifier"]

_MINI = {"seq2seq": ASSETS / "mini" / "t5", "classifier": ASSETS / "mini" / "roberta"}
_PROBE_SECONDS = 5.0
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER = ("tokenizer.json", "spiece.model", "vocab.json")


NO_TEXT = "generates no text; name an encoder-decoder or a decoder-only language model"


class NotCached(str):
    """A problem that a connection to the hub, or the offline overlay, would solve."""


def resolve_model(name: str, kind: Kind = "seq2seq") -> str:
    """Return the embedded model's folder for ``mini``, and an absolute path for a folder.

    Adapter exports store this path, so that they find their backbone from any working directory.
    """
    if name == "mini":
        return str(_MINI[kind])
    folder = expand(name)
    return str(folder.resolve()) if folder.is_dir() else name


def is_gone(name: str) -> bool:
    """Return whether a model's absolute path no longer exists: it moved, or is on another host."""
    return Path(name).is_absolute() and not Path(name).is_dir()


def find_again(name: str) -> str:
    """Return a model's name or, of a miniature whose checkout is gone, this one's miniature.

    An adapter of the miniature stores its absolute path: PEFT alone could load no other name.
    """
    here = next((place for place in _MINI.values() if Path(name).match(_tail(place))), None)
    return name if here is None or not is_gone(name) else str(here)


def _tail(place: Path) -> str:
    return str(place.relative_to(ASSETS.parent))


def warn_of_move(what: str, old: str, new: str) -> None:
    """Warn that a backbone at a new path is assumed to be the one used for training."""
    logger.warning("%s was trained on %s; assuming that %s is the same model", what, old, new)


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turn errors while weights are loaded into a ``ValueError`` with a remedy.

    Raises:
        ValueError: If the weights are damaged, do not fit the config, or hold more than tensors.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {name} are damaged or incomplete ({error}); download or export them "
            "again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is refused: its weights are a pickle that holds more than tensors and could "
            "run code; use a model with safetensors"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {name} do not fit its config.json ({error}); download or export it "
            "again"
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Remove a model's folder if writing it fails, and name the disk space that was left.

    Raises:
        OSError: If the folder cannot be written; safetensors' own error for a full disk included.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 1e6
        raise OSError(
            f"cannot write the model to {folder.parent} ({error}; {free:,.1f} MB are free); make "
            "room on the disk, then continue a fit with --resume auto"
        ) from error


def load_tokenizer(name: str, kind: Kind = "seq2seq") -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model (hub id, folder, or ``mini``).

    Raises:
        OSError: If it does not exist.
        ValueError: If it cannot be parsed.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(name, kind), trust_remote_code=False
        )
    except OSError:
        raise
    except Exception as error:  # a damaged file raises anything, Rust's plain Exception included
        raise ValueError(f"cannot read the tokenizer of {name} ({error!r})") from error
    if tokenizer.pad_token_id is None:  # many decoder-only models have none; padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_decoder_only(name: str) -> bool:
    """Return whether a language model writes its responses into the row of their prompt."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    return not config.is_encoder_decoder


@functools.cache
def reachable() -> bool:
    """Return whether the hub answers; asks once per process, without the client's long retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception as error:  # the client's errors differ between its versions
        logger.info("The hub at %s does not answer: %s", constants.ENDPOINT, error)
        return False
    return True


def use_cache_only() -> None:
    """Stop the hub clients from retrying for minutes if the hub is known not to answer."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # read from the environment only once, at import


def find_model_problem(name: str, what: str, kind: str = "") -> str | None:
    """Return why a model cannot be loaded, or None if it can; loads nothing.

    Args:
        name: A folder written by ``save_pretrained``, or a hub id.
        what: The model's role in the message, for example "backbone".
        kind: "seq2seq" if it has to generate text.
    """
    folder = Path(name)
    if folder.is_dir():
        return _find_folder_problem(folder, what, kind)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{what}: there is no folder {name!r}"
    return _find_hub_problem(name, what)


def generates_text(config: Mapping[str, Any]) -> bool:
    """Return whether a model's ``config.json`` is that of a language model with an output head."""
    heads = config.get("architectures") or ["ForCausalLM"]
    endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    is_decoder = any(head.endswith(endings) for head in heads)
    return bool(config.get("is_encoder_decoder")) or is_decoder


def _find_hub_problem(name: str, what: str) -> str | None:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    def is_cached(names: Sequence[str]) -> bool:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in names)

    if all(map(is_cached, (["config.json"], _WEIGHTS, _TOKENIZER))):
        return None
    if not reachable():
        return NotCached(
            f"{what}: there is no folder {name!r}, and no model of that name in the local hub "
            f"cache ({constants.HF_HUB_CACHE})"
        )
    try:
        HfApi().model_info(name, timeout=_PROBE_SECONDS)
    except HfHubHTTPError as error:
        return (
            f"{what}: the hub has no readable model {name!r} ({error.response.status_code}); check "
            "the name, or log in with `hf auth login` if it is gated"
        )
    return None


def _find_folder_problem(folder: Path, what: str, kind: str) -> str | None:
    path = folder / "config.json"
    if not path.is_file():
        return f"{what}: the folder {folder} has no config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{what}: {path} is not JSON ({error})"
    if kind == "seq2seq" and not generates_text(config):
        return f"{what}: {folder} holds a {config.get('model_type')!r} model, which {NO_TEXT}"
    # transformers would build a tokenizer without words. ByT5 reads bytes and has no vocabulary.
    tokenizer = folder / "tokenizer_config.json"
    reads_bytes = tokenizer.is_file() and "ByT5" in tokenizer.read_text(encoding="utf-8")
    groups = {"weights": _WEIGHTS} | ({} if reads_bytes else {"tokenizer": _TOKENIZER})
    for part, names in groups.items():
        if not any((folder / name).is_file() for name in names):
            return f"{what}: the folder {folder} has no {part} (looked for {', '.join(names)})"
    return None
