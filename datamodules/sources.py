"""Where data comes from: a file, a folder, the hub, or this repository.

`mini` is the synthetic miniature and `challenge` a test set of rude dialogues; both are plain
folders under ``assets``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import hub
from common.jsonl import Record
from common.run_folder import expand
from datamodules.reading import DataError, Split, read_records

Kind = Literal["dialogues", "rankings", "labelled"]
"""What the rows of a source are: dialogues with references, rankings, or labeled texts."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}
_FILE = re.compile(rf"(?:.*[._-])?({'|'.join(_SPLIT_NAMES)})\.(jsonl|csv)")
_HUB_ID = re.compile(r"(?P<path>[^/@:]+(?:/[^/@:]+)?)(?:@(?P<revision>[^:]+))?(?::(?P<name>.+))?")
_EXPECTED = "{train,validation|dev|val,test}.{jsonl,csv}, a prefix such as 'dialogsum.' is allowed"
_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_BUILT_IN: dict[Kind, dict[str, Path]] = {
    "dialogues": {"mini": _ASSETS / "mini", "challenge": _ASSETS / "challenge"},
    "rankings": {"mini": _ASSETS / "mini" / "rankings"},
    "labelled": {"mini": _ASSETS / "mini" / "labelled"},
}


@dataclass(frozen=True)
class Source:
    """The records of each split that a source has.

    Attributes:
        name: A folder, a file, or a hub id.
        splits: For each split its file, or its rows from the hub. In a single file they are the
            same.
        is_built_in: Whether it is part of this repository: its columns have the default names.
    """

    name: str
    splits: Mapping[Split, Any]
    is_built_in: bool = False

    @property
    def is_single_file(self) -> bool:
        """Whether all splits are in one file."""
        return len({id(rows) for rows in self.splits.values()}) < len(self.splits)

    def read(self, split: Split) -> tuple[Iterable[tuple[int, Record]], str]:
        """Return a split's (line or row number, record), and its name for messages."""
        rows = self.splits[split]
        if isinstance(rows, Path):
            return read_records(rows), str(rows)
        return enumerate(rows, start=1), f"{self.name}/{split}"


def open_source(name: str, kind: Kind = "dialogues") -> Source:
    """Open a source: built-in, a folder, a file, or the hub id of a dataset of dialogues.

    A hub id may name a revision and a configuration: ``abisee/cnn_dailymail:3.0.0``.

    Raises:
        DataError: If it does not exist, has no split, or is not available from the hub.
    """
    if name in _BUILT_IN[kind]:
        return Source(name, find_split_files(_BUILT_IN[kind][name]), is_built_in=True)
    if _is_on_hub(name, kind):
        return _open_hub(name)
    path = expand(name)
    if path.is_file() and path.suffix in (".jsonl", ".csv"):
        return Source(name, {"train": path, "validation": path, "test": path})
    if path.is_dir():
        return Source(name, find_split_files(path))
    if path.exists():
        raise DataError(f"data: {name!r} is neither a folder nor a .jsonl or .csv file")
    others = [*(["a hub id"] if kind == "dialogues" else []), *map(repr, _BUILT_IN[kind])]
    raise DataError(
        f"data: there is no file or folder {name!r}; use a .jsonl or .csv file of {kind}, a "
        f"folder with {_EXPECTED}, or {' or '.join(others)}"
    )


def find_problems(name: str, kind: Kind = "dialogues") -> list[str]:
    """Return why a source is not available, without reading any row."""
    if _is_on_hub(name, kind):
        return find_hub_problems(name)
    try:
        open_source(name, kind)
    except DataError as error:
        return [str(error)]
    return []


def find_split_files(folder: Path) -> dict[Split, Path]:
    """Find the file of each split in a folder.

    Raises:
        DataError: If there is none, or two for the same split.
    """
    files: dict[Split, Path] = {}
    for path in sorted(folder.iterdir()):
        if (match := _FILE.fullmatch(path.name)) is None:
            continue
        split = _SPLIT_NAMES[match[1]]
        if split in files:
            raise DataError(
                f"data: folder {folder} has two files for {split}, {files[split].name} and "
                f"{path.name}; keep one of them"
            )
        files[split] = path
    if not files:
        raise DataError(f"data: folder {folder} has no split file (looked for {_EXPECTED})")
    return files


# The hub ------------------------------------------------------------------------------------------


def _open_hub(name: str) -> Source:
    # A cached snapshot of plain files is read directly, so that errors name the file and the line.
    if not hub.reachable() and (snapshot := find_snapshot(name)) is not None:
        return Source(name, find_split_files(snapshot))
    if problems := find_hub_problems(name):
        raise DataError("; ".join(problems) + f"; offline: --config {hub.OVERLAY}")
    import datasets  # takes a second to import

    loaded = datasets.load_dataset(**parse_hub_id(name))
    splits = {_SPLIT_NAMES[key]: rows for key, rows in loaded.items() if key in _SPLIT_NAMES}
    return Source(name, splits)


def find_hub_problems(name: str) -> list[str]:
    """Return why neither the hub nor its cache has a dataset; fast without a network."""
    import datasets
    import huggingface_hub

    if find_snapshot(name) is not None:
        return []
    if hub.reachable():
        try:
            parts = parse_hub_id(name)
            api = huggingface_hub.HfApi()
            api.dataset_info(parts["path"], revision=parts.get("revision"), timeout=5)
        except huggingface_hub.errors.HfHubHTTPError as error:
            return [
                f"data: the hub has no readable dataset {name!r} ({error.response.status_code}); "
                "check the name, or log in with `hf auth login` if it is gated"
            ]
        return []
    try:  # a dataset that `datasets` has prepared loads offline
        config = datasets.DownloadConfig(local_files_only=True)
        datasets.load_dataset_builder(**parse_hub_id(name), download_config=config)
    except (OSError, ValueError):
        return [
            hub.NotCached(
                f"data: dataset {name!r} is not in the local hub cache "
                f"({huggingface_hub.constants.HF_HUB_CACHE}, {datasets.config.HF_DATASETS_CACHE})"
            )
        ]
    return []


def find_snapshot(name: str) -> Path | None:
    """Find the dataset's split files in the hub cache; None if they are not there."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    parts = parse_hub_id(name)
    if "name" in parts:  # its files have names of their own
        return None
    try:
        path = huggingface_hub.snapshot_download(
            parts["path"], repo_type="dataset", revision=parts.get("revision"),
            local_files_only=True,
        )  # fmt: skip
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(path)
    return folder if any(_FILE.fullmatch(file.name) for file in folder.iterdir()) else None


def parse_hub_id(name: str) -> dict[str, str]:
    """Split ``owner/name@revision:configuration`` into arguments of ``datasets.load_dataset``."""
    match = _HUB_ID.fullmatch(name)
    found = match.groupdict() if match else {"path": name}
    return {key: value for key, value in found.items() if value is not None}


def _is_on_hub(name: str, kind: Kind) -> bool:
    """Whether a source is a hub id: only dialogues can be, unless a file or folder has the name."""
    if kind != "dialogues" or name in _BUILT_IN[kind] or expand(name).exists():
        return False
    is_file_name = name.endswith((".jsonl", ".csv"))
    is_id = _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))
    return is_id and not is_file_name
