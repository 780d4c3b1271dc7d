"""Fit, validate, test or predict with alignsum.

    python train.py fit --config configs/lora.yaml
    python train.py test --config configs/lora.yaml
    python train.py fit --config configs/ppo.yaml --model.adapter runs/lora/export

The same offline on two CPU cores, on the embedded miniature: add
``--config configs/overlays/mini.yaml``. A run writes one folder, ``runs/<config's name>`` or
``--run_dir``; ``python report.py compare RUN...`` compares them.
"""

import sys
import warnings
from collections.abc import Sequence

# Before anything else that may spell the type Optional[Union[float, int]]: Python keeps the first
# spelling for all, and with it `--trainer.limit_test_batches 1` would mean 1.0, all batches.
import lightning  # isort: skip
from rich.console import Console
from rich.logging import RichHandler

# Imported so that `class_path: LoRA` is enough in a config.
import datamodules
import lightning_modules
from alignsum.cli import AlignsumCLI
from alignsum.endings import in_words
from common.exits import quieten_models, start_log

__all__ = ["datamodules", "lightning", "lightning_modules", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes the process's own.
    """
    handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
    start_log(handler)
    quieten_models()
    # Lightning's own use of torch's pytree, not ours.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    with in_words():
        AlignsumCLI(sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    main()
