"""Merge an exported LoRA into its backbone: one model that plain ``from_pretrained`` loads.

    python -m alignsum merge runs/lora/export --out runs/lora/merged

The folder can be used wherever a model is named, for example as --model.backbone. The logits of the
merged model are compared with those of the adapter before anything is written.
"""

import logging
from collections.abc import Sequence

from alignsum.commands.options import make_module_parser
from common.exits import quieten_models, run, start_log

log = logging.getLogger("merge")


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    parser = make_module_parser("merge", __doc__)
    parser.add_argument("export", help="export folder of a LoRA run, such as runs/lora/export")
    parser.add_argument("--out", required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--backbone", type=str | None, help="where the backbone is now, if it moved"
    )
    settings = parser.parse_args(args)
    start_log()

    def work() -> None:
        quieten_models()
        from lightning_modules.exports import merge_export

        merge_export(settings.export, settings.out, settings.backbone)

    return run(work, log)
