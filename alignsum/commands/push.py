"""Upload a run's export with its model card to the Hugging Face hub.

    python -m alignsum push runs/ppo --to user/name --private true

The token is that of `hf auth login` or of the variable HF_TOKEN. Only `export/` is uploaded.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

from alignsum.commands.options import make_module_parser
from common import hub
from common.exits import run, start_log
from common.run_folder import RunFolder, expand

log = logging.getLogger("push")


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    parser = make_module_parser("push", __doc__)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--to", required=True, help="repository on the hub: user/name")
    parser.add_argument("--private", type=bool, default=False, help="make a new repository private")
    settings = parser.parse_args(args)
    start_log()
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it reports every request
    return run(lambda: push(settings.run, settings.to, settings.private), log)


def push(path: str, to: str, private: bool = False) -> None:
    """Create a repository if it does not exist, and upload the export of a run to it.

    Raises:
        ValueError: If there is no export, no token or no such name, or the hub refuses.
    """
    # Imported late: --help and mistakes need none of it.
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = RunFolder(expand(path))
    if not (folder.export / "README.md").is_file():
        raise ValueError(f"{folder.path} has no export with a model card; finish its fit first")
    if to.count("/") != 1:
        raise ValueError(f"--to {to}: name the repository as user/name")
    if get_token() is None:
        raise ValueError("there is no token: run `hf auth login`, or set HF_TOKEN")
    if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0"):
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not hub.reachable():
        raise ValueError("the hub does not answer; connect, or try again later")
    from callbacks.model_card import is_adapter_export, is_local_model, make_card  # takes seconds

    backbone = str(folder.read_summary().get("backbone"))
    if is_adapter_export(folder) and is_local_model(backbone):
        log.warning(
            "the adapter's backbone is the local model %s, which others do not have; for a "
            "complete model run `python -m alignsum merge %s --out FOLDER`",
            backbone, folder.export,
        )  # fmt: skip
    files: dict[str, Any] = {
        str(file.relative_to(folder.export)): file
        for file in sorted(folder.export.rglob("*"))
        if file.is_file()
    }
    files["README.md"] = make_card(folder, to).encode()  # its example loads from the hub
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    api = HfApi()
    try:
        url = api.create_repo(to, private=private, exist_ok=True)
        api.create_commit(to, added, commit_message=f"Upload {folder.path.name}")
    except HFValidationError as error:
        raise ValueError(f"--to {to}: {error}") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses {to}: {error.server_message or error}") from error
    log.info("Uploaded %s to %s", folder.export, url)
