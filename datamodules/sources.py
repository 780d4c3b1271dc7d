"""Where dialogues come from: a folder, the Hugging Face hub, or what this repository brings."""

import re
from pathlib import Path
from typing import Protocol

import datasets
import huggingface_hub
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from common import hub
from common.jsonl import read_jsonl
from common.paths import expand
from datamodules.reading import (
    ColumnNames,
    DataError,
    OnBadRow,
    Row,
    Split,
    parse,
    read_csv,
)
from tools.mini.generator import generate_rows

_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}
_FILE = re.compile(rf"(?:.*[._-])?({'|'.join(_SPLITS)})\.(jsonl|csv)")
_CHALLENGE = Path(__file__).resolve().parents[1] / "assets" / "challenge"
_EXPECTED = "{train,validation|dev|val,test}.{jsonl,csv}, a prefix such as 'dialogsum.' allowed"


class Source(Protocol):
    """Something that has splits of rows."""

    splits: frozenset[Split]

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read a split, one row per line of the source."""


class MiniSource:
    """The embedded miniature corpus."""

    splits: frozenset[Split] = frozenset(_SPLITS.values())

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Generate a split; its rows are always good."""
        return [Row(row.id, row.dialogue, row.summaries) for row in generate_rows(split)]


class FolderSource:
    """A folder with one file per split.

    Args:
        folder: The folder.

    Raises:
        DataError: If it has no file of a split, or two of the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[Split, Path] = {}
        for path in sorted(folder.iterdir()):
            if (match := _FILE.fullmatch(path.name)) is None:
                continue
            split = _SPLITS[match[1]]
            if split in self.files:
                raise DataError(
                    f"data: folder {folder} has two files for {split}, {self.files[split].name} "
                    f"and {path.name}; keep one of them"
                )
            self.files[split] = path
        if not self.files:
            raise DataError(f"data: folder {folder} has no split file (looked for {_EXPECTED})")
        self.splits: frozenset[Split] = frozenset(self.files)

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read the file of a split."""
        path = self.files[split]
        records = read_csv if path.suffix == ".csv" else read_jsonl
        return parse(records(path), split, str(path), columns, on_bad_row)


class ChallengeSource(FolderSource):
    """This repository's own dialogues that provoke; a test split only."""

    def __init__(self) -> None:
        super().__init__(_CHALLENGE)

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read the split; its columns are DialogSum's, whatever those of other data are called."""
        return super().read(split, ColumnNames(), on_bad_row)


class HubSource:
    """A data set on the Hugging Face hub, or in its local cache.

    Args:
        name: Hub id, for example ``knkarthick/dialogsum``.

    Raises:
        DataError: If it cannot be had.
    """

    def __init__(self, name: str) -> None:
        if problems := find_hub_problems(name):
            raise DataError("; ".join(problems) + f"; offline: --config {hub.OVERLAY}")
        self.name = name
        loaded = datasets.load_dataset(name)
        self.data = {_SPLITS[key]: value for key, value in loaded.items() if key in _SPLITS}
        self.splits: frozenset[Split] = frozenset(self.data)

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read a split; row numbers stand for line numbers."""
        where = f"{self.name}/{split}"
        records = enumerate(self.data[split], start=1)
        return parse(records, split, where, columns, on_bad_row)


def open_source(name: str) -> Source:
    """Find out what a source is: ``mini``, ``challenge``, a folder, or a hub id.

    A hub id is looked up only then.

    Raises:
        DataError: If there is no such folder, it has no split file, or the hub cannot give it.
    """
    if name == "mini":
        return MiniSource()
    if name == "challenge":
        return ChallengeSource()
    folder = expand(name)
    if folder.is_dir():
        return FolderSource(folder)
    if not _looks_like_hub_id(name):
        raise DataError(
            f"data: there is no folder {name!r}; name one, a hub id, 'mini' or 'challenge'"
        )
    # A cache with the plain files is read here: errors then name the file and the line.
    if not hub.reachable() and (snapshot := find_snapshot(name)) is not None:
        return FolderSource(snapshot)
    return HubSource(name)


def find_problems(name: str) -> list[str]:
    """Say why a source cannot be had, without reading any row of it; empty where it can."""
    if name in ("mini", "challenge"):
        return []
    if expand(name).is_dir() or not _looks_like_hub_id(name):
        try:
            open_source(name)
        except DataError as error:
            return [str(error)]
        return []
    return find_hub_problems(name)


def find_hub_problems(name: str) -> list[str]:
    """Say why neither the hub nor its cache can give a data set; quick without a network."""
    if _has_prepared(name) or find_snapshot(name) is not None:
        return []
    if not hub.reachable():
        return [
            f"data: data set {name!r} is not in the local hub cache "
            f"({constants.HF_HUB_CACHE}, {datasets.config.HF_DATASETS_CACHE})"
        ]
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=5)
    except huggingface_hub.errors.HfHubHTTPError as error:
        return [
            f"data: the hub has no readable data set {name!r} ({error.response.status_code}); "
            "check the name, or log in with `hf auth login` if it is gated"
        ]
    return []


def _looks_like_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _has_prepared(name: str) -> bool:
    """Whether ``datasets`` has loaded this data set before: <cache>/<owner>___<name>/*/*/*."""
    *owner, last = name.split("/")
    folder = "___".join([*owner, camelcase_to_snakecase(last)])
    return any(expand(datasets.config.HF_DATASETS_CACHE).glob(f"{folder}/*/*/*/"))


def find_snapshot(name: str) -> Path | None:
    """Find a data set's files in the hub cache, where they are jsonl or csv files of splits."""
    try:
        path = huggingface_hub.snapshot_download(name, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(path)
    return folder if any(_FILE.fullmatch(file.name) for file in folder.iterdir()) else None
