"""The command line: LightningCLI with a run folder, overlays, and checks before anything starts."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignsum.overlays import choose_sections, first_config
from callbacks.checkpoint import RunCheckpoint
from callbacks.checkpoint_files import (
    AtomicCheckpointIO,
    choose_checkpoint,
    describe_checkpoint,
    find_checkpoint_problem,
)
from callbacks.early_stopping import RunEarlyStopping
from callbacks.export import ExportCallback
from callbacks.faithfulness import FaithfulnessCallback
from callbacks.loggers import RunCSVLogger
from callbacks.plots import PlotCallback
from callbacks.progress import RunProgress
from callbacks.resume import ExactResume
from callbacks.rouge import RougeCallback
from callbacks.run_config import RunConfig
from callbacks.samples import SampleTexts
from callbacks.signals import GracefulStop
from callbacks.summary import SummaryCallback
from callbacks.text_statistics import TextStatisticsCallback
from callbacks.toxicity import ToxicityCallback
from callbacks.watch import PPOWatch
from common import hub
from common.imports import import_object
from common.paths import expand
from common.run_folder import RunFolder
from lightning_modules.backbones import find_precision_problem
from lightning_modules.base import BaseModule
from lightning_modules.ppo.policy import PPOPolicy

logger = logging.getLogger(__name__)


class SettingsError(ValueError):
    """What was asked for cannot be run; all that is wrong with it, in one message."""


class AlignsumCLI(LightningCLI):
    """Fit, validate, test or predict; one run, one folder.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            # The datamodule deals the rows out to the ranks itself, each exactly once.
            trainer_defaults={"use_distributed_sampler": False},
            args=choose_sections(self.arguments),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Build the parser of the command at hand alone: each of the four takes its time."""
        known = super().subcommands()
        asked = self.arguments[0] if self.arguments else ""
        return {asked: known[asked]} if asked in known else known

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint, which would win over those of the command line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given, whatever the process's own are."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder's options and the callbacks that every run has."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for everything of this run (default: runs/<name of the first config>).",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="fit: go on from a checkpoint; 'auto' takes the run folder's last good one.",
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Replace what an earlier run left in the run folder (fit), or its test (test).",
        )
        parser.add_lightning_class_args(RougeCallback, "rouge")
        parser.add_lightning_class_args(ToxicityCallback, "toxicity")
        parser.add_lightning_class_args(SampleTexts, "samples")
        parser.add_lightning_class_args(RunEarlyStopping, "early_stopping")
        parser.add_lightning_class_args(PPOWatch, "watch")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/rougeL",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.save_on_exception": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("checkpoint.monitor", "early_stopping.monitor")
        parser.link_arguments("checkpoint.mode", "early_stopping.mode")
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer")
        # Of a classifier alone; where a class has no labels the link is passed over.
        parser.link_arguments("model.init_args.labels", "data.init_args.labels")
        # True (draw a seed) and False are legal for Lightning; the data's order wants a number.
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    # Before anything is loaded ------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The settings of the subcommand at hand."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Name the run folder, and refuse in one message everything that cannot work."""
        settings = self.settings
        self.refuse_empty_sections()
        config = first_config(self.arguments)
        name = config.stem if config else settings.model.class_path.rsplit(".", 1)[-1].lower()
        for option in ("run_dir", "resume", "ckpt_path"):
            if settings.get(option) == "":
                raise SettingsError(
                    f"--{option} is empty (a variable that is not set?); name something, or leave "
                    "the option out"
                )
            if settings.get(option):
                settings[option] = str(expand(settings[option]))
        folder = RunFolder(settings.run_dir or Path("runs") / name)
        settings.run_dir = str(folder.path)
        settings.trainer.default_root_dir = str(folder.path)
        settings.checkpoint.dirpath = str(folder.checkpoints)
        problems = self.find_folder_problems(folder)
        problems += self.find_setting_problems()
        if problems:
            raise SettingsError(
                f"nothing was started, for {len(problems)} reason(s):\n- " + "\n- ".join(problems)
            )

    def refuse_empty_sections(self) -> None:
        """Refuse a config that sets a whole section to null, and with it all of its defaults.

        Raises:
            SettingsError: If one does.
        """
        names = ["trainer", "model", "data", *self._parser(self.subcommand).callback_keys]
        if empty := [name for name in names if self.settings.get(name) is None]:
            raise SettingsError(
                f"nothing was started: {', '.join(empty)} is not set, or null; leave the section "
                "out of the config for its defaults, and name what is to change in it"
            )

    def find_setting_problems(self) -> list[str]:
        """List what cannot work, or cannot be had: precision, models, data."""
        settings = self.settings
        if not hub.reachable():
            hub.use_cache_only()
        problems = [
            find_precision_problem(settings.trainer.precision),
            find_debug_problem(settings.trainer),
            *find_number_problems(settings.trainer),
            *self.model_type.find_problems(settings.model.init_args, settings.trainer),
        ]
        if (judge := settings.toxicity.get("model")) is not None:
            judge = hub.resolve_model(judge, "classifier")
            problems.append(hub.find_model_problem(judge, "toxicity classifier"))
        data_type = import_object(settings.data.class_path)
        problems += data_type.find_problems(settings.data.init_args)
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if any("hub cache" in problem for problem in found):
            found.append(
                f"the hub at {hub.constants.ENDPOINT} does not answer; connect, or name folders "
                f"in place of hub ids, or add the offline overlay: --config {hub.OVERLAY}"
            )
        return found

    @property
    def model_type(self) -> type[BaseModule]:
        """The class of the model that is asked for.

        Raises:
            SettingsError: If it is none of ours.
        """
        found = import_object(self.settings.model.class_path)
        if not issubclass(found, BaseModule):
            raise SettingsError(
                f"model: {found.__name__} is no BaseModule of lightning_modules/base.py, "
                "which says what a run asks of a model; derive from it"
            )
        return found

    def find_folder_problems(self, folder: RunFolder) -> list[str]:
        """List what keeps this command from writing into its run folder, and choose its weights."""
        settings = self.settings
        if self.subcommand == "fit":
            problems = self.find_fit_problems(folder)
        else:
            problems = self.find_evaluation_problems(folder)
        if not settings.resume and settings.ckpt_path and Path(settings.ckpt_path).is_file():
            problems += filter(None, [find_checkpoint_problem(Path(settings.ckpt_path))])
        if settings.resume and (self.subcommand != "fit" or settings.overwrite):
            problems.append(
                "--resume goes on with a fit: it has no part in other commands, nor beside "
                "--overwrite true, which would remove what it goes on from"
            )
        return problems

    def find_fit_problems(self, folder: RunFolder) -> list[str]:
        """List what keeps a fit from its folder; choose the checkpoint that it goes on from."""
        if wanted := self.settings.resume:
            path, problems = choose_checkpoint(wanted, folder.checkpoints)
            if path is None:
                return [f"--resume {wanted}: {'; '.join(problems)}"]
            for problem in problems:
                logger.warning("%s; going on from %s instead", problem, path)
            logger.info("Resuming from %s", describe_checkpoint(path))
            self.settings.ckpt_path = str(path)
        elif self.settings.overwrite:
            return [
                f"--overwrite true would remove {name}, which this run starts from; name another "
                "folder with --run_dir"
                for name in self.find_inputs_in(folder)
            ]
        elif folder.holds_run() and is_first_rank():
            return [
                f"run folder {folder.path} holds another run; name another with --run_dir, go on "
                "with it by --resume auto, or replace it by --overwrite true"
            ]
        return []

    def find_inputs_in(self, folder: RunFolder) -> list[str]:
        """List what this fit reads from the run folder that it was told to replace."""
        model = self.settings.model.init_args
        roles = ("backbone", "adapter", "reward_model")
        names = [self.settings.ckpt_path, *(model.get(role) for role in roles)]
        entries = [entry.resolve() for entry in folder.entries]
        return [
            name
            for name in names
            if name and any(Path(name).resolve().is_relative_to(entry) for entry in entries)
        ]

    def find_evaluation_problems(self, folder: RunFolder) -> list[str]:
        """List what keeps a test or its like from its folder; choose the checkpoint to load."""
        settings = self.settings
        problems = []
        writes = self.subcommand in ("test", "predict")
        if writes and folder.predictions.exists() and not settings.overwrite and is_first_rank():
            problems.append(
                f"{folder.predictions} holds the results of an earlier test; replace them by "
                "--overwrite true, or name another folder with --run_dir"
            )
        best = folder.checkpoints / "best.ckpt"
        if settings.ckpt_path is None and best.is_file():
            settings.ckpt_path = str(best)
        elif settings.ckpt_path is None and self.model_type.needs_training:
            last = folder.checkpoints / "last.ckpt"
            remedy = "run `fit` with this --run_dir first, or name a checkpoint with --ckpt_path"
            if last.is_file():
                remedy = f"no validation has ended yet; test the last weights: --ckpt_path {last}"
            problems.append(
                f"there is no trained model in {folder.path} ({best} was looked for); {remedy}"
            )
        return problems

    # The Trainer --------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give every run its CSV log and run-folder callbacks, whatever the config adds."""
        run_dir = self.settings.run_dir
        configured = self._get(self.config_init, "trainer")["logger"]
        extra = configured if isinstance(configured, list) else [configured]
        loggers = [RunCSVLogger(run_dir), *(log for log in extra if log not in (None, True, False))]
        always = [
            RunProgress(),
            SummaryCallback(["python", "train.py", *self.arguments]),
            ExportCallback(),
            PlotCallback(),
        ]
        if self.model.generates:
            always += [FaithfulnessCallback(), TextStatisticsCallback()]
        config = self._get(self.config_init, "trainer")
        configured = config["callbacks"] or []  # Lightning takes a single one too
        configured = configured if isinstance(configured, list) else [configured]
        config["callbacks"] = [ExactResume(), GracefulStop(), *configured, *always]
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        # What has nothing to look at: scores of texts where none are written, a watch without PPO.
        idle = [] if self.model.generates else ["rouge", "toxicity", "samples"]
        idle += [] if isinstance(self.model, PPOPolicy) else ["watch"]
        for key in idle:
            self._parser(self.subcommand).callback_keys.remove(key)
        try:
            return super().instantiate_trainer(logger=loggers, **kwargs)
        # So says Lightning of devices that are none, and of accelerators without their package.
        except (TypeError, ModuleNotFoundError) as error:
            raise SettingsError(f"trainer: {error}") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Lightning's default for a local checkpoint is a full unpickling, which runs code.
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def find_debug_problem(trainer: Any) -> str | None:
    """Say that Lightning's dry run, which writes half of a run folder, is not for us."""
    if not trainer.fast_dev_run:
        return None
    return (
        "trainer.fast_dev_run keeps no checkpoint, no log and no config, and a run folder has them "
        "all; for a few batches of everything add --config configs/overlays/debug.yaml"
    )


def find_number_problems(trainer: Any) -> list[str]:
    """List settings of the Trainer that are out of range, and that Lightning takes all the same."""
    least = {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "check_val_every_n_epoch": 1}
    problems = [
        f"trainer.{name} must be {low} or more, got {value}"
        for name, low in least.items()
        if isinstance(value := trainer.get(name), int | float) and not value >= low
    ]
    if (every := trainer.val_check_interval) == 0:
        problems.append(
            f"trainer.val_check_interval must be above 0, got {every}; to leave validation out set "
            "trainer.limit_val_batches to 0"
        )
    return problems


def is_first_rank() -> bool:
    """Whether this is rank 0. The other ranks start when it has looked, and may have written."""
    return getattr(rank_zero_only, "rank", 0) == 0
