"""What every command line that generates has around its work."""

import logging
import warnings
from collections.abc import Callable

import torch
import transformers
from rich.console import Console
from rich.logging import RichHandler

import hub


def run(work: Callable[[Console], None], log: logging.Logger) -> int:
    """Do some work, and turn what goes wrong into one message and an exit code.

    Args:
        work: Is given the console for its progress.
        log: Where messages go.

    Returns:
        Exit code: 0; 2 where something cannot be had or done; 130 where it was interrupted.
    """
    console = Console(stderr=True)
    lines = RichHandler(console=console, show_path=False) if console.is_terminal else None
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[lines or logging.StreamHandler()]
    )
    transformers.logging.disable_progress_bar()
    # PEFT's own use of transformers, not ours.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")
    try:
        if not hub.reachable():
            hub.use_cache_only()
        work(console)
    except KeyboardInterrupt:
        log.error("Interrupted; the same command goes on where it broke off")
        return 130
    except torch.OutOfMemoryError as error:
        log.error("%s\nTry a smaller --batch_size; what is written stays", error)
        return 2
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        return 2
    return 0
