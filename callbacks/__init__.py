"""Callbacks: evaluation, checkpoints, logging, and what a run folder contains.

callbacks = default_callbacks()
trainer = Trainer(default_root_dir="runs/lora", callbacks=callbacks, plugins=[AtomicCheckpointIO()])

The package is larger than its budget of 1,600 lines: the exact resume takes more than 500 of them
(`checkpoint`, `checkpoint_io`, `signals`, `loggers`), because Lightning restores its loops exactly
from a few places only.
"""

from collections.abc import Sequence
from typing import Any


def default_callbacks(
    own: Sequence[Any] = (),
    *,
    generates: bool = True,
    checkpointing: bool = True,
    progress_bar: bool = True,
    quiet: bool = True,
    command: Sequence[str] | None = None,
) -> list[Any]:
    """Build the callbacks of a run; ``train.py`` uses them too.

    Args:
        own: Callbacks of the caller; each replaces the default of its class.
        generates: Whether the module generates summaries, so that they are scored. A reward model
            or a classifier does not.
        checkpointing: Whether to keep checkpoints; False for ``enable_checkpointing=False``.
        progress_bar: Whether to show progress; False for ``enable_progress_bar=False``.
        quiet: Whether to hide what Lightning, transformers and PEFT report about themselves: tips,
            deprecations, progress bars of loading.
        command: The command line to record in summary.json; None takes the process's own.

    Returns:
        All callbacks, ``own`` included, in the order in which a Trainer should call them.
    """
    import rich
    from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

    from callbacks.checkpoint import RunCheckpoint
    from callbacks.closing import ClosingWords
    from callbacks.export import ExportCallback
    from callbacks.faithfulness import FaithfulnessCallback
    from callbacks.loggers import StepAxis
    from callbacks.plots import PlotCallback
    from callbacks.progress import LineProgress
    from callbacks.rouge import RougeCallback
    from callbacks.samples import SampleTexts
    from callbacks.signals import GracefulStop
    from callbacks.summary import SummaryCallback
    from callbacks.text_metric import PredictionWriter
    from callbacks.text_statistics import TextStatisticsCallback
    from common.exits import quieten_models

    def missing(*kinds: type) -> list[Any]:
        return [kind() for kind in kinds if not any(isinstance(each, kind) for each in own)]

    if quiet:
        quieten_models()
    callbacks = [*missing(GracefulStop, StepAxis), *own]
    if generates:
        metrics = (RougeCallback, FaithfulnessCallback, TextStatisticsCallback)
        callbacks += missing(*metrics, SampleTexts, PredictionWriter)
    if not any(isinstance(each, SummaryCallback) for each in own):
        callbacks.append(SummaryCallback(command))
    callbacks += missing(ExportCallback, PlotCallback)
    if progress_bar and not any(isinstance(each, ProgressBar) for each in own):
        console = rich.get_console()
        if console.is_jupyter:
            callbacks.append(TQDMProgressBar(refresh_rate=50))
        else:
            bar = RichProgressBar(refresh_rate=10) if console.is_terminal else LineProgress()
            callbacks.append(bar)
    callbacks += missing(ClosingWords)  # after the bar has ended
    if checkpointing:
        callbacks += missing(RunCheckpoint)
    return callbacks
