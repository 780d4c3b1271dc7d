"""LightningCLI with a run folder, overlays, and all checks in one message before a run starts."""

import logging
from collections.abc import Sequence
from typing import Any

# Before anything else that may spell the type Optional[Union[float, int]]: Python caches the first
# spelling, and with it `--trainer.limit_test_batches 1` would mean 1.0, all batches.
import lightning  # isort: skip
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported so that `class_path: LoRA` is enough in a config.
import lightning_modules
from alignsum.early_check import choose_folder
from alignsum.option_errors import explain
from alignsum.overlays import first_config
from alignsum.run_rules import choose_weights, find_login_problem, warn_of_minibatches
from callbacks import default_callbacks
from callbacks.checkpoint import RunCheckpoint
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.closing import show_scores
from callbacks.kl import KLCallback
from callbacks.loggers import RunCSVLogger
from callbacks.monitor import PPOMonitor
from callbacks.rouge import RougeCallback
from callbacks.run_config import RunConfig
from callbacks.samples import SampleTexts
from callbacks.summary import last_metrics
from callbacks.toxicity import ToxicityCallback
from common import hub
from common.exits import AlignsumError
from common.imports import import_object
from common.run_folder import expand
from datamodules import *  # noqa: F403 - imports every class, unlike `import datamodules`
from lightning_modules.base import BaseModule

__all__ = ["AlignsumCLI", "lightning", "lightning_modules"]

logger = logging.getLogger(__name__)

CALLBACKS: dict[str, type[Callback]] = {
    "rouge": RougeCallback,
    "toxicity": ToxicityCallback,
    "samples": SampleTexts,
    "monitor": PPOMonitor,
    "checkpoint": RunCheckpoint,
}
"""Callbacks of every run that have a section of settings."""

FOR_TEXTS = ("rouge", "toxicity", "samples")
"""Callbacks of modules that generate texts."""


class AlignsumCLI(LightningCLI):
    """Fit, validate, test or predict: one run, one folder.

    Args:
        arguments: The command line as it was typed, without the program's name.
        prepared: The same after :func:`alignsum.overlays.prepare_configs`.

    Raises:
        AlignsumError: If the configuration cannot work; lists all problems.
    """

    def __init__(self, arguments: Sequence[str], prepared: Sequence[str]) -> None:
        self.arguments = list(arguments)
        quiet = {"exit_on_error": False}  # errors become exceptions, without 90 lines of usage
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_callback=None,  # added in instantiate_trainer
            # The datamodule distributes the rows over the ranks itself, each row exactly once.
            # BaseModule logs what it trains in one line.
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            parser_kwargs={**quiet, **{name: dict(quiet) for name in self.subcommands()}},
            args=list(prepared),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Build only the parser of the command that is run: each takes most of a second."""
        known = super().subcommands()
        name = self.arguments[0] if self.arguments else ""
        return {name: known[name]} if name in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder and the callbacks of every run."""
        self.command_parser = parser
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for all files of the run (default: runs/<name of the first config>).",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            nargs="?",
            const="auto",
            default=None,
            help="fit: continue from a checkpoint; 'auto' takes the newest of the run folder.",
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Replace the run in the run folder (fit), or its test results (test, predict).",
        )
        parser.add_argument(
            "--validate_first",
            type=bool,
            default=False,
            help="fit: validate before the first update, so that curves start where the run does.",
        )
        for name, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, name)
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer")
        # Only classifiers have labels; jsonargparse skips the link for other classes.
        parser.link_arguments("model.init_args.labels", "data.init_args.labels")
        # Lightning also accepts True (draw a seed) and False; the order of the data needs a number.
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, and keep Lightning from reading settings from a checkpoint.

        Raises:
            AlignsumError: If an option or value is not accepted.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            help = "all options: python train.py fit --help"
            raise AlignsumError(f"{explain(str(error))}\n{help}") from error
        # Settings stored in a checkpoint would silently override those of the command line.
        self.checkpoint = self.settings.ckpt_path
        self.settings.ckpt_path = None

    # Before anything is loaded ------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The settings of the command that is run."""
        return self.config[self.config.subcommand]

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and the weights; report all problems in one message.

        Raises:
            AlignsumError: If there are any.
        """
        settings = self.settings
        settings.ckpt_path = self.checkpoint
        settings.weights_only = True  # Lightning would unpickle a local checkpoint, and run code
        if self.subcommand in ("test", "validate"):
            settings.verbose = False  # our own table shows the scores
        for option in ("resume", "ckpt_path"):
            if settings.get(option):
                settings[option] = str(expand(settings[option]))
        config = first_config(self.arguments)
        folder = choose_folder(settings.run_dir, config, settings.model.class_path)
        settings.run_dir = str(folder.path)
        settings.trainer.default_root_dir = str(folder.path)
        settings.checkpoint.dirpath = str(folder.checkpoints)
        problems = choose_weights(self.subcommand, settings, folder, self.model_type)
        problems += self.find_setting_problems()
        warn_of_minibatches(settings)
        if len(problems) == 1:
            raise AlignsumError(f"nothing was started: {problems[0]}")
        if problems:
            lines = "\n- ".join(problems)
            raise AlignsumError(f"nothing was started, for {len(problems)} reason(s):\n- {lines}")

    def find_setting_problems(self) -> list[str]:
        """List settings, models and data that cannot work, without loading them."""
        settings = self.settings
        if not hub.reachable():
            hub.use_cache_only()
        problems: list[str | None] = [
            find_login_problem([x for x in as_list(settings.trainer.logger) if hasattr(x, "get")]),
            *self.model_type.find_problems(settings.model.init_args, settings.trainer),
            *import_object(settings.data.class_path).find_problems(settings.data.init_args),
        ]
        if (classifier := settings.toxicity.get("model")) is not None:
            classifier = hub.resolve_model(classifier, "classifier")
            problems.append(hub.find_model_problem(classifier, "toxicity classifier"))
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if any(isinstance(problem, hub.NotCached) for problem in found):
            found.append(
                "the Hugging Face hub does not answer: connect, use local folders, or add the "
                f"offline overlay: --config {hub.OVERLAY}"
            )
        return found

    @property
    def model_type(self) -> type[BaseModule]:
        """The class of the model.

        Raises:
            AlignsumError: If it does not derive from BaseModule.
        """
        found = import_object(self.settings.model.class_path)
        if not issubclass(found, BaseModule):
            raise AlignsumError(
                f"model: {found.__name__} does not derive from BaseModule "
                "(lightning_modules/base.py), whose checks, checkpoints and export a run relies on"
            )
        return found

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer.

        Raises:
            AlignsumError: If a constructor refuses its settings.
        """
        try:
            super().instantiate_classes()
        except (ArgumentError, ValueError) as error:
            raise AlignsumError(explain(str(error))) from error

    # The Trainer --------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the CSV log and the callbacks of every run.

        Raises:
            AlignsumError: If Lightning refuses the devices or lacks a package for them.
        """
        settings = self.config_init[self.subcommand]
        config = {**vars(settings.trainer), **kwargs}
        loggers = [each for each in as_list(config["logger"]) if not isinstance(each, bool)]
        config["logger"] = [RunCSVLogger(settings.run_dir), *loggers]
        config["plugins"] = as_list(config["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in config["plugins"]):
            config["plugins"].append(AtomicCheckpointIO())
        config["callbacks"] = self.make_callbacks(settings, config)
        try:
            return Trainer(**config)
        except MisconfigurationException as error:
            has_choice = config["accelerator"] in ("auto", "cpu")
            remedy = "" if has_choice else " (--trainer.accelerator auto takes what there is)"
            raise AlignsumError(f"trainer: {error}{remedy}") from error
        except (TypeError, ModuleNotFoundError) as error:
            raise AlignsumError(f"trainer: {error}") from error

    def make_callbacks(self, settings: Any, trainer: dict[str, Any]) -> list[Callback]:
        """Return the callbacks of a run in their order; drop those with nothing to observe."""
        unused = set() if self.model.generates else set(FOR_TEXTS)
        is_ppo = isinstance(self.model, lightning_modules.PPOPolicy)
        if not is_ppo:
            unused.add("monitor")
        if trainer["enable_checkpointing"] is False:
            unused.add("checkpoint")
        configured = [settings[name] for name in CALLBACKS if name not in unused]
        callbacks = default_callbacks(
            [*as_list(trainer["callbacks"]), *configured, *([KLCallback()] if is_ppo else [])],
            generates=self.model.generates,
            checkpointing=trainer["enable_checkpointing"] is not False,
            progress_bar=trainer["enable_progress_bar"] is not False,
            command=["python", "train.py", *self.arguments],
        )
        fits = self.subcommand == "fit"
        saver = RunConfig(self.command_parser, self.settings, save_to_log_dir=False, fits=fits)
        return [*callbacks, saver]

    def after_validate(self) -> None:
        """Show the scores as after a test; nothing is recorded."""
        scores = {name: {"value": value} for name, value in last_metrics(self.trainer).items()}
        if self.trainer.is_global_zero:
            show_scores(scores, "val", f"Validation of {self.settings.run_dir}")

    def before_fit(self) -> None:
        """Validate the start of a run, but not that of a resumed one."""
        if self.settings.validate_first and self.settings.ckpt_path is None:
            self.trainer.validate(self.model, self.datamodule, verbose=False)


def as_list(value: Any) -> list[Any]:
    """Return a list setting of Lightning, which also accepts None or a single object."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
