"""Merge an exported LoRA into its backbone: one whole model, for plain ``from_pretrained``.

    python merge.py runs/lora/export --out runs/lora/merged

The folder can be used wherever a model is named, for example as --model.backbone.
"""

import logging
import sys
from collections.abc import Sequence

import lightning  # isort: skip  (first: see train.py)
from jsonargparse import ArgumentParser

from common.exits import quieten_models, run, start_log
from lightning_modules.exports import merge_export

__all__ = ["lightning", "main"]

log = logging.getLogger("merge")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes the process's own.

    Returns:
        Exit code: see :func:`command_line.run`.
    """
    start_log()
    quieten_models()
    parser = ArgumentParser(
        prog="merge.py", description="Merge an exported LoRA into its backbone."
    )
    parser.add_argument("export", help="export folder of a LoRA run, such as runs/lora/export")
    parser.add_argument("--out", required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--backbone", type=str | None, help="where the backbone is now, if it has moved since"
    )
    settings = parser.parse_args(args)

    def work() -> None:
        merge_export(settings.export, settings.out, settings.backbone)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(main())
