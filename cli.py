"""The command line: LightningCLI with a run folder, overlays, and checks before anything starts."""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import hub
from callbacks.export import ExportCallback
from callbacks.loggers import ResumeMetrics, RunCSVLogger
from callbacks.plots import PlotCallback
from callbacks.progress import RunProgress
from callbacks.rouge import RougeCallback
from callbacks.samples import SampleTexts
from callbacks.summary import SummaryCallback
from callbacks.toxicity import ToxicityCallback
from lightning_modules.backbones import find_precision_problem, resolve_model
from overlays import first_config
from run_folder import RunFolder

logger = logging.getLogger(__name__)


class SettingsError(ValueError):
    """What was asked for cannot be run; all that is wrong with it, in one message."""


class RunConfig(SaveConfigCallback):
    """Save the whole configuration: ``config.yaml``, or ``config.test.yaml`` beside a fit's.

    Lightning saves it before the model is built; here it is saved once that went well, so that a
    setting which the model refuses leaves no run folder behind.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for the start."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save as ``config.yaml``."""
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this validation is a part of a fit."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._save_beside(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save under a name that is free."""
        self._save_beside(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save under a name that is free."""
        self._save_beside(trainer, pl_module, "predict")

    def _save_beside(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if RunFolder(trainer.default_root_dir).config.exists():
            self.config_filename = f"config.{stage}.yaml"
        super().setup(trainer, pl_module, stage)


class AlignsumCLI(LightningCLI):
    """Fit, validate, test or predict; one run, one folder.

    Args:
        arguments: The command line, overlays already chosen.
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
            save_config_kwargs={"overwrite": True},
            # The datamodule deals the rows out to the ranks itself, each exactly once.
            trainer_defaults={"use_distributed_sampler": False},
            args=self.arguments,
        )

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
            help="fit: go on from a checkpoint; 'auto' takes the run folder's last one.",
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
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/rougeL",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    # Before anything is loaded ------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The settings of the subcommand at hand."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Name the run folder, and refuse in one message everything that cannot work."""
        settings = self.settings
        config = first_config(self.arguments)
        name = config.stem if config else settings.model.class_path.rsplit(".", 1)[-1].lower()
        folder = RunFolder(settings.run_dir or Path("runs") / name)
        settings.run_dir = str(folder.path)
        settings.trainer.default_root_dir = str(folder.path)
        settings.checkpoint.dirpath = str(folder.checkpoints)
        problems = [*self.find_folder_problems(folder), *self.find_setting_problems()]
        if problems:
            raise SettingsError(
                f"nothing was started, for {len(problems)} reason(s):\n- " + "\n- ".join(problems)
            )
        if settings.overwrite and getattr(rank_zero_only, "rank", 0) == 0:
            self.make_room(folder)

    def find_setting_problems(self) -> list[str]:
        """List what cannot be had or cannot work: models, data, precision."""
        settings = self.settings
        problems = [find_precision_problem(settings.trainer.precision)]
        data = settings.data
        model = settings.model
        roles: tuple[tuple[str, str | None, Any], ...] = (
            ("backbone", model.init_args.get("backbone"), import_class(model.class_path).kind),
            ("reward model", model.init_args.get("reward_model"), "classifier"),
            ("toxicity classifier", settings.toxicity.get("model"), "classifier"),
        )
        for what, name, kind in roles:
            if name is not None:
                problems.append(hub.find_model_problem(resolve_model(name, kind), what))
        problems += import_class(data.class_path).find_problems(data.init_args)
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if any("hub cache" in problem for problem in found):
            found.append(
                f"the hub at {hub.constants.ENDPOINT} does not answer; connect, or name folders "
                f"in place of hub ids, or add the offline overlay: --config {hub.OVERLAY}"
            )
        elif not hub.reachable():
            hub.use_cache_only()
        return found

    def find_folder_problems(self, folder: RunFolder) -> list[str]:
        """List what keeps this command from writing into its run folder, and choose its weights."""
        settings, overwrite = self.settings, self.settings.overwrite
        if getattr(rank_zero_only, "rank", 0) > 0:
            return []  # rank 0 has looked, and may have begun to write
        if self.subcommand == "fit":
            if settings.resume:
                return self.resume(folder)
            if folder.holds_run() and not overwrite:
                return [
                    f"run folder {folder.path} holds another run; name another with --run_dir, go "
                    "on with it by --resume auto, or replace it by --overwrite true"
                ]
            return []
        problems = []
        if self.subcommand == "test" and folder.predictions.exists() and not overwrite:
            problems.append(
                f"{folder.predictions} holds the results of an earlier test; replace them by "
                "--overwrite true, or name another folder with --run_dir"
            )
        best = folder.checkpoints / "best.ckpt"
        if settings.ckpt_path is None and best.is_file():
            settings.ckpt_path = str(best)
        elif settings.ckpt_path is None and self.needs_training():
            problems.append(
                f"there is no trained model in {folder.path} ({best.name} was looked for); run "
                "`fit` with this --run_dir first, or name a checkpoint with --ckpt_path"
            )
        return problems

    def resume(self, folder: RunFolder) -> list[str]:
        """Choose the checkpoint that a fit goes on from; list what is wrong with it."""
        wanted = self.settings.resume
        path = folder.checkpoints / "last.ckpt" if wanted == "auto" else Path(wanted)
        if not path.is_file():
            return [f"--resume {wanted}: there is no checkpoint {path}"]
        logger.info("Resuming from %s", path)
        self.settings.ckpt_path = str(path)
        return []

    def needs_training(self) -> bool:
        """Whether the method is of use only with trained weights."""
        return import_class(self.settings.model.class_path).needs_training

    def make_room(self, folder: RunFolder) -> None:
        """Remove what the command was told to replace, and nothing else."""
        if self.subcommand == "fit":
            folder.clear()
        elif self.subcommand == "test":
            folder.predictions.unlink(missing_ok=True)

    # The Trainer --------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give every run its CSV log and run-folder callbacks, whatever the config adds."""
        run_dir = self.settings.run_dir
        configured = self._get(self.config_init, "trainer")["logger"]
        extra = configured if isinstance(configured, list) else [configured]
        loggers = [RunCSVLogger(run_dir), *(log for log in extra if log not in (None, True, False))]
        always = [
            RunProgress(),
            ResumeMetrics(),
            SummaryCallback(command=f"python train.py {' '.join(self.arguments)}"),
            ExportCallback(),
            PlotCallback(),
        ]
        config = self._get(self.config_init, "trainer")
        config["callbacks"] = [*(config["callbacks"] or []), *always]
        if not self.model.generates:
            # Callbacks that score texts have nothing to do with a model that writes none.
            for key in ("rouge", "toxicity", "samples"):
                self._parser(self.subcommand).callback_keys.remove(key)
        return super().instantiate_trainer(logger=loggers, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Lightning's default for a local checkpoint is a full unpickling, which runs code.
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def import_class(path: str) -> Any:
    """Import a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
