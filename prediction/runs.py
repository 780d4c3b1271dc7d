"""What a run left for others to use: its model, and the settings that it was tested with."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from common.hub import resolve_model
from common.run_folder import RunFolder, expand
from lightning_modules.adapters import read_adapter_config
from prediction.summarizer import Precision

_PRECISIONS: dict[str, Precision] = {
    "32": "32-true", "32-true": "32-true", "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed",
}  # fmt: skip
_DATA = ("prompt", "max_source_length", "shots")


def find_export(path: str | Path) -> Path:
    """Find the folder of the model: a run folder's ``export``, or the folder itself."""
    folder = RunFolder(expand(path))
    return folder.export if folder.export.is_dir() else folder.path


def read_settings(export: Path) -> dict[str, Any]:
    """Read what the run of an export was tested with, from the ``config.yaml`` beside it.

    Returns:
        The settings of ``decoding``, ``prompt``, ``max_source_length``, ``shots``, ``batch_size``
        and ``precision`` as far as the run has them, as they stand in the file; empty for a folder
        of no run.

    Raises:
        ValueError: If the file is not a run's configuration.
    """
    config = find_config(export)
    if config is None:
        return {}
    content = read_config(config)
    try:
        model, data = (content[part]["init_args"] for part in ("model", "data"))
        found = {name: data.get(name) for name in _DATA}
        found["batch_size"] = data.get("eval_batch_size") or data.get("batch_size")
        found["precision"] = _PRECISIONS.get(str((content.get("trainer") or {}).get("precision")))
        found |= model.get("decoding") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{config} is no configuration of a run ({error!r})") from error
    return {name: value for name, value in found.items() if value is not None}


def find_config(export: Path) -> Path | None:
    """Find the ``config.yaml`` of the run that an export lies in."""
    config = RunFolder(export.resolve().parent).config
    return config if export.resolve().name == "export" and config.is_file() else None


def read_config(config: Path) -> dict[str, Any]:
    """Read a run's configuration.

    Raises:
        ValueError: If it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{config} is no configuration of a run")
    return content


def hash_model(export: Path, backbone: str | None = None) -> str:
    """Hash the files of an export, and those of the backbone that an adapter sits on.

    A backbone from the hub counts with its name, a folder wherever it is with its files.

    Args:
        export: Folder of the model.
        backbone: Where the backbone is, if not where the adapter says.
    """
    digest = hashlib.sha256()
    folders = [export]
    if adapter := read_adapter_config(export):
        base = resolve_model(backbone or str(adapter.get("base_model_name_or_path")))
        if Path(base).is_dir():
            folders.append(Path(base))
        else:
            digest.update(base.encode())
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
