"""Where data comes from: a file, a folder, the hub, or this repository.

`mini` is the synthetic miniature and `challenge` a test set of rude dialogues; both are plain
folders under ``assets``.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from common import hub
from common.run_folder import expand
from datamodules.reading import (
    ColumnNames,
    DataError,
    OnBadRow,
    Row,
    Split,
    parse_rows,
    read_records,
)

Kind = Literal["dialogues", "rankings", "labelled"]
"""What the rows of a source are: dialogues with references, rankings, or labelled texts."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FILE = re.compile(rf"(?:.*[._-])?({'|'.join(_SPLIT_NAMES)})\.(jsonl|csv)")
_EXPECTED = "{train,validation|dev|val,test}.{jsonl,csv}, a prefix such as 'dialogsum.' is allowed"
_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_BUILT_IN: dict[tuple[str, Kind], Path] = {
    ("mini", "dialogues"): _ASSETS / "mini",
    ("mini", "rankings"): _ASSETS / "mini" / "rankings",
    ("mini", "labelled"): _ASSETS / "mini" / "labelled",
    ("challenge", "dialogues"): _ASSETS / "challenge",
}


class LocalSource:
    """A folder with one file per split, or a single file that is split by a hash.

    Args:
        path: The folder or file.
        is_built_in: Whether it is part of this repository: its columns have the default names.

    Raises:
        DataError: If the folder has no split file, or two files for one split, or if there is no
            such folder or JSON lines or CSV file.
    """

    def __init__(self, path: Path, is_built_in: bool = False) -> None:
        self.path = path
        self.is_built_in = is_built_in
        self.is_single_file = path.is_file() and path.suffix in (".jsonl", ".csv")
        self.files: dict[Split, Path] = {}
        if self.is_single_file:
            self.files = dict.fromkeys(_SPLITS, path)
        elif path.is_dir():
            self.files = find_split_files(path)
        else:
            raise DataError(f"data: {str(path)!r} is neither a folder nor a .jsonl or .csv file")
        self.splits: frozenset[Split] = frozenset(self.files)

    def find(self, splits: Iterable[Split]) -> dict[Split, Path]:
        """Return the files of some splits.

        Raises:
            DataError: If a split is missing.
        """
        if missing := [split for split in splits if split not in self.files]:
            raise DataError(
                f"data: {self.path} has no {' and no '.join(missing)} split (it has "
                f"{', '.join(sorted(self.files))}); to split a single file automatically, use "
                "the file itself as data.source"
            )
        return {split: self.files[split] for split in splits}

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read the dialogues in a split's file; of a single file, all of them."""
        path = self.files[split]
        columns = ColumnNames() if self.is_built_in else columns
        return parse_rows(read_records(path), split, str(path), columns, on_bad_row)


class HubSource:
    """A data set on the Hugging Face hub, or in its local cache.

    Args:
        name: Hub id, for example ``knkarthick/dialogsum``.

    Raises:
        DataError: If it is not available.
    """

    is_single_file = False

    def __init__(self, name: str) -> None:
        import datasets  # takes a second to import

        if problems := find_hub_problems(name):
            raise DataError("; ".join(problems) + f"; offline: --config {hub.OVERLAY}")
        self.name = name
        loaded = datasets.load_dataset(name)
        self.data = {_SPLIT_NAMES[key]: rows for key, rows in loaded.items() if key in _SPLIT_NAMES}
        self.splits: frozenset[Split] = frozenset(self.data)

    def read(self, split: Split, columns: ColumnNames, on_bad_row: OnBadRow) -> list[Row]:
        """Read a split; row numbers take the place of line numbers."""
        records = enumerate(self.data[split], start=1)
        return parse_rows(records, split, f"{self.name}/{split}", columns, on_bad_row)


def open_source(name: str) -> LocalSource | HubSource:
    """Open a source of dialogues: built-in, a folder, a file, or a hub id.

    Raises:
        DataError: If it does not exist, has no split, or is not available from the hub.
    """
    if (name, "dialogues") in _BUILT_IN or expand(name).exists() or not _looks_like_hub_id(name):
        return open_local(name, "dialogues")
    # A cached snapshot of plain files is read directly, so that errors name the file and the line.
    if not hub.reachable() and (snapshot := find_snapshot(name)) is not None:
        return LocalSource(snapshot)
    return HubSource(name)


def open_local(name: str, kind: Kind) -> LocalSource:
    """Open a built-in source, a folder, or a file.

    Raises:
        DataError: As for `LocalSource`.
    """
    if (built_in := _BUILT_IN.get((name, kind))) is not None:
        return LocalSource(built_in, is_built_in=True)
    path = expand(name)
    if not path.exists():
        names = ", ".join(f"'{built_in}'" for built_in, what in _BUILT_IN if what == kind)
        hub_id = "a hub id, " if kind == "dialogues" else ""
        raise DataError(
            f"data: there is no file or folder {name!r}; use a .jsonl or .csv file of {kind}, a "
            f"folder with {_EXPECTED}, {hub_id}or {names}"
        )
    return LocalSource(path)


def find_problems(name: str, kind: Kind = "dialogues") -> list[str]:
    """Return why a source is not available, without reading any row."""
    is_hub_id = kind == "dialogues" and _looks_like_hub_id(name) and not expand(name).exists()
    if is_hub_id and (name, kind) not in _BUILT_IN:
        return find_hub_problems(name)
    try:
        open_local(name, kind)
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


def find_hub_problems(name: str) -> list[str]:
    """Return why neither the hub nor its cache has a data set; fast without a network."""
    import datasets
    import huggingface_hub

    if find_snapshot(name) is not None:
        return []
    if not hub.reachable():
        if _is_prepared(name):
            return []
        return [
            hub.NotCached(
                f"data: data set {name!r} is not in the local hub cache "
                f"({huggingface_hub.constants.HF_HUB_CACHE}, {datasets.config.HF_DATASETS_CACHE})"
            )
        ]
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=5)
    except huggingface_hub.errors.HfHubHTTPError as error:
        return [
            f"data: the hub has no readable data set {name!r} ({error.response.status_code}); "
            "check the name, or log in with `hf auth login` if it is gated"
        ]
    return []


def find_snapshot(name: str) -> Path | None:
    """Find the data set's split files in the hub cache; None if they are not there."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = huggingface_hub.snapshot_download(name, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(path)
    return folder if any(_FILE.fullmatch(file.name) for file in folder.iterdir()) else None


def _is_prepared(name: str) -> bool:
    """Whether ``datasets`` has this data set in its own cache, ready to load offline."""
    import datasets

    config = datasets.DownloadConfig(local_files_only=True)
    try:
        datasets.load_dataset_builder(name, download_config=config)
    except (OSError, ValueError):
        return False
    return True


def _looks_like_hub_id(name: str) -> bool:
    is_file_name = name.endswith((".jsonl", ".csv"))
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and not is_file_name
