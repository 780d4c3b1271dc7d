"""Make a recorded PPO update again, and compare what it gives with what the run logged.

    python train.py fit --config configs/ppo.yaml --config configs/overlays/rollouts.yaml
    python replay.py runs/ppo --batch 3
    python replay.py runs/lora --fault step00000012

Nothing is sampled and no reward model is asked: the rollouts, their scores and their advantages are
read from ``rollouts/``, the weights and the optimizer's state from the last checkpoint before that
batch. On the machine of the run the figures are the same to the last bit; see docs/ppo_debugging.md
for what else it is good for. ``--fault`` meets something again that was not finite in a run of any
method: see docs/running.md.
"""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# First: see train.py.
import lightning as L  # isort: skip
import rich
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table
from torch.utils.data import DataLoader

from callbacks.checkpoint_files import load_checkpoint
from callbacks.rollouts import RolloutFolder
from command_line import quieten_models, run, start_log
from lightning_modules import PPOPolicy
from lightning_modules.base import BaseModule
from lightning_modules.ppo import figures
from lightning_modules.ppo.records import Recorded
from lightning_modules.ppo.token_scores import encode
from prediction.runs import read_config
from replay_fault import make_fault_table, replay_fault
from run_folder import RunFolder

log = logging.getLogger("replay")

KEPT = ("accelerator", "precision", "deterministic", "benchmark")
"""Trainer settings of the run that an update depends on."""


class Replay(L.LightningModule):
    """Makes updates of a policy from recorded batches, under a Trainer as the run's was.

    Args:
        policy: As the run built it.
        checkpoint: The run's state before the last batch, or before an earlier one.
        folder: Where the batches lie.
        last: Number of the last batch.

    Raises:
        ValueError: If the checkpoint is not from before that batch.
    """

    def __init__(
        self, policy: PPOPolicy, checkpoint: Mapping[str, Any], folder: RolloutFolder, last: int
    ) -> None:
        super().__init__()
        done = checkpoint.get("ppo", {}).get("batches_done", last + 1)
        if done > last:
            raise ValueError(
                f"this checkpoint is not from before batch {last}: it has learnt from {done} "
                f"batches; name one that has learnt from {last} or fewer"
            )
        self.policy = policy
        self.checkpoint = checkpoint
        self.folder = folder
        self.batches = range(done, last + 1)
        self.found: dict[str, tuple[float, float]] = {}
        self.automatic_optimization = False

    def configure_model(self) -> None:
        """Load the policy as it was before the first batch; its judges are not needed."""
        self.policy.terms.clear()
        self.policy.configure_model()
        self.policy.on_load_checkpoint(dict(self.checkpoint))
        self.policy.load_state_dict(self.checkpoint["state_dict"], strict=False)

    def configure_optimizers(self) -> Any:
        """Build the run's optimizer."""
        return self.policy.configure_optimizers()

    def on_train_start(self) -> None:
        """Give the optimizer its state."""
        self.trainer.optimizers[0].load_state_dict(self.checkpoint["optimizer_states"][0])

    def train_dataloader(self) -> DataLoader[Recorded]:
        """Read this rank's rows."""
        rank, padding = self.trainer.global_rank, self.policy.tokenizer.pad_token_id
        batches = [self.folder.read(number, rank, padding) for number in self.batches]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, recorded: Recorded, batch_idx: int) -> None:
        """Make the update."""
        groups = self.trainer.optimizers[0].param_groups
        # As recorded: the schedule of this Trainer is one of these few batches.
        for group, rate in zip(groups, recorded.learning_rates, strict=True):
            group["lr"] = rate
        policy, experience = self.policy, recorded.experience
        rollout = experience.rollout
        if policy.shares_encoder:
            with torch.no_grad():
                rollout = rollout._replace(
                    encoded=encode(policy.model, rollout.prompts, projects=True)
                )
            experience = experience._replace(rollout=rollout)
        credit = policy.advantage(recorded.rewards, rollout.values, rollout.mask, recorded.samples)
        found = figures.estimates(rollout, credit, policy.sum_over_ranks)
        found |= policy.update(experience).figures
        policy.batches_done += 1
        self.found = {name: (recorded.figures[name], float(value)) for name, value in found.items()}


def replay(
    policy: PPOPolicy, checkpoint: str | Path, run_dir: str | Path, batch: int, **trainer: Any
) -> dict[str, tuple[float, float]]:
    """Make the update of a recorded batch again; the policy has the weights of after it then.

    Args:
        policy: Built with the settings of the run.
        checkpoint: The run's state before that batch; or before an earlier one, and then the
            batches between are replayed first.
        run_dir: The run folder with the rollouts.
        batch: Number of the batch, from 0.
        **trainer: Settings of the Trainer: precision and accelerator as in the run.

    Returns:
        Each figure of the update, as it was recorded and as it is now.

    Raises:
        ValueError: If a batch is not there, or the checkpoint is not from before it.
    """
    folder = RolloutFolder(run_dir)
    ranks = folder.describe(batch)["ranks"]
    state = load_checkpoint(Path(checkpoint))
    module = Replay(policy, state, folder, batch)
    defaults = {
        "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto",
    }  # fmt: skip
    L.Trainer(**(defaults | trainer)).fit(module)
    return module.found


def read_settings(run: str | Path) -> dict[str, Any]:
    """Read a run's config.yaml.

    Raises:
        ValueError: If it is none of a run.
    """
    path = RunFolder(run).config
    config = read_config(path)
    for part in ("model", "trainer"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path} is no configuration of a run: it has no {part}")
    return config


def build_module(config: Mapping[str, Any]) -> Any:
    """Build the module that a run's config.yaml describes."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseModule, "model")
    return parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model


def find_difference(policy: PPOPolicy, checkpoint: Path) -> float | None:
    """Give the largest difference between a policy's trained weights and those of a checkpoint.

    Returns:
        None where there is no such checkpoint.
    """
    if not checkpoint.is_file():
        return None
    state = load_checkpoint(checkpoint)["state_dict"]
    own = policy.state_dict()
    return max(float((own[name].cpu() - value).abs().max()) for name, value in state.items())


def make_table(found: Mapping[str, tuple[float, float]], title: str) -> Table:
    """Lay the figures out side by side."""
    table = Table(title=title, title_justify="left")
    for name in ("figure", "recorded", "replayed", "difference"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, (recorded, replayed) in found.items():
        gap = "" if recorded == replayed else f"{replayed - recorded:.3g}"
        table.add_row(name, f"{recorded:.9g}", f"{replayed:.9g}", gap)
    return table


def show(found: Mapping[str, tuple[float, float]], gap: float | None, title: str) -> None:
    """Show the table, and how far the weights are from where the run had them."""
    console = rich.get_console()
    console.print(make_table(found, title))
    if gap is not None:
        console.print(f"largest difference of a weight to the run's after this batch: {gap:.3g}")


def replay_batch(settings: Namespace) -> int:
    """Replay a batch as told on the command line.

    Returns:
        Exit code: 0 where all is as recorded, 1 where something differs.
    """
    folder, batch = RolloutFolder(settings.run), settings.batch
    folder.describe(batch)  # says so if there is none
    checkpoint = settings.checkpoint or folder.find_checkpoint(batch)
    if checkpoint is None:
        raise ValueError(
            f"{folder.path} has no checkpoint from before batch {batch}; name one of the run with "
            "--checkpoint, or run with --config configs/overlays/rollouts.yaml"
        )
    config = read_settings(settings.run)
    policy = build_module(config)
    kept = {name: config["trainer"][name] for name in KEPT}
    found = replay(policy, checkpoint, settings.run, batch, **kept)
    gap = find_difference(policy, folder.checkpoint(batch + 1))
    if policy.trainer.is_global_zero:
        show(found, gap, f"{settings.run}, batch {batch}, from {checkpoint}")
    return int(bool(gap) or any(recorded != replayed for recorded, replayed in found.values()))


def meet_fault(settings: Namespace) -> int:
    """Meet a recorded fault again.

    Returns:
        Exit code: 0 where something is not finite, as recorded, 1 where all is now.
    """
    config = read_settings(settings.run)
    module, place = build_module(config), settings.fault
    found = replay_fault(module, settings.run, place, config["trainer"]["precision"])
    rich.get_console().print(make_fault_table(found, f"{settings.run}, {place}"))
    return int(not found.is_fault)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 where the update is as recorded, 1 where it differs, 2 where it cannot be made.
    """
    start_log()
    quieten_models()
    # A loader of one batch needs none.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    parser = ArgumentParser(
        prog="replay.py", description="Make a recorded PPO update, or a fault, again."
    )
    parser.add_argument("run", help="run folder with rollouts/")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--batch", type=int, help="number of a PPO batch, from 0")
    what.add_argument("--fault", help="name of a fault of any method, as in faults/")
    parser.add_argument(
        "--checkpoint",
        type=str | None,
        help="state of the run before that batch, or before an earlier one "
        "(default: the last one in rollouts/)",
    )
    settings = parser.parse_args(args)
    work = replay_batch if settings.fault is None else meet_fault
    return run(partial(work, settings), log)


if __name__ == "__main__":
    sys.exit(main())
