"""Make a recorded PPO update again, and compare what it gives with what the run logged.

    python train.py fit --config configs/ppo.yaml --config configs/overlays/rollouts.yaml
    python replay.py runs/ppo --batch 3

Nothing is sampled and no reward model is asked: the rollouts, their scores and their advantages are
read from ``rollouts/``, the weights and the optimizer's state from the checkpoint before that
batch. On the machine of the run the figures are the same to the last bit; see docs/ppo_debugging.md
for what else it is good for.
"""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# First: see train.py.
import lightning as L  # isort: skip
import rich
import torch
import transformers
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table
from torch.utils.data import DataLoader

from callbacks.rollouts import RolloutFolder
from lightning_modules import PPOPolicy
from lightning_modules.ppo import figures
from lightning_modules.ppo.records import Recorded
from lightning_modules.ppo.rollout import encode
from run_folder import RunFolder

log = logging.getLogger("replay")

KEPT = ("accelerator", "precision", "deterministic", "benchmark")
"""Trainer settings of the run that an update depends on."""


class Replay(L.LightningModule):
    """Makes one update of a policy from a recorded batch, under a Trainer as the run's was.

    Args:
        policy: As the run built it.
        checkpoint: The run's state before the batch.
        folder: Where the batch lies.
        batch: Its number.

    Raises:
        ValueError: If the checkpoint is not of just before that batch.
    """

    def __init__(
        self, policy: PPOPolicy, checkpoint: Mapping[str, Any], folder: RolloutFolder, batch: int
    ) -> None:
        super().__init__()
        done = checkpoint.get("ppo", {}).get("batches_done")
        if done != batch:
            raise ValueError(
                f"this checkpoint was taken after {done} batches of rollouts; to replay batch "
                f"{batch} name the one after {batch}"
            )
        self.policy = policy
        self.checkpoint = checkpoint
        self.folder = folder
        self.batch = batch
        self.recorded: dict[str, float] = {}
        self.replayed: dict[str, float] = {}
        self.automatic_optimization = False

    def configure_model(self) -> None:
        """Load the policy as it was before the batch; its judges are not needed."""
        self.policy.terms.clear()
        self.policy.configure_model()
        self.policy.on_load_checkpoint(dict(self.checkpoint))
        self.policy.load_state_dict(self.checkpoint["state_dict"], strict=False)

    def configure_optimizers(self) -> Any:
        """Build the run's optimizer."""
        return self.policy.configure_optimizers()

    def on_train_start(self) -> None:
        """Give the optimizer its state, the learning rate of that batch included."""
        optimizer: Any = self.optimizers()
        optimizer.optimizer.load_state_dict(self.checkpoint["optimizer_states"][0])

    def train_dataloader(self) -> DataLoader[Recorded]:
        """Read this rank's rows."""
        padding = self.policy.tokenizer.pad_token_id
        recorded = self.folder.read(self.batch, self.trainer.global_rank, padding)
        return DataLoader([recorded], batch_size=None)  # type: ignore[arg-type]

    def training_step(self, recorded: Recorded, batch_idx: int) -> None:
        """Make the update."""
        policy, experience = self.policy, recorded.experience
        rollout = experience.rollout
        if policy.shares_encoder:
            with torch.no_grad():
                rollout = rollout._replace(encoded=encode(policy.model, rollout.prompts))
            experience = experience._replace(rollout=rollout)
        credit = policy.advantage(recorded.rewards, rollout.values, rollout.mask, recorded.samples)
        found = figures.estimates(rollout, credit) | policy.update(experience)
        policy.batches_done += 1
        self.recorded = recorded.figures
        self.replayed = {name: float(value) for name, value in found.items()}


def replay(
    policy: PPOPolicy, checkpoint: str | Path, run_dir: str | Path, batch: int, **trainer: Any
) -> dict[str, tuple[float, float]]:
    """Make the update of a recorded batch again; the policy has the weights of after it then.

    Args:
        policy: Built with the settings of the run.
        checkpoint: The run's state before that batch.
        run_dir: The run folder with the rollouts.
        batch: Number of the batch, from 0.
        **trainer: Settings of the Trainer: precision and accelerator as in the run.

    Returns:
        Each figure of the update, as it was recorded and as it is now.

    Raises:
        ValueError: If there is no such batch, or the checkpoint is not the one before it.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module = Replay(policy, state, RolloutFolder(run_dir), batch)
    defaults = {
        "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    ranks = module.folder.ranks(batch)
    several = {"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
    L.Trainer(**(defaults | several | trainer)).fit(module)
    return {name: (module.recorded[name], value) for name, value in module.replayed.items()}


def build_policy(config: Mapping[str, Any]) -> PPOPolicy:
    """Build the policy that a run's config.yaml describes."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(PPOPolicy, "model")
    return parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model


def find_difference(policy: PPOPolicy, checkpoint: Path) -> float | None:
    """Give the largest difference between a policy's trained weights and those of a checkpoint.

    Returns:
        None where there is no such checkpoint.
    """
    if not checkpoint.is_file():
        return None
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
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


def run(settings: Namespace) -> int:
    """Replay a batch as told on the command line.

    Returns:
        Exit code: 0 where all is as recorded, 1 where something differs.
    """
    folder = RolloutFolder(settings.run)
    batch, checkpoint = settings.batch, settings.checkpoint
    config = yaml.safe_load(RunFolder(settings.run).config.read_text(encoding="utf-8"))
    if checkpoint is None and not folder.checkpoint(batch).is_file():
        raise ValueError(
            f"there is no {folder.checkpoint(batch)}; name a checkpoint from just before batch "
            f"{batch} with --checkpoint, or run with --config configs/overlays/rollouts.yaml"
        )
    kept = {name: config["trainer"][name] for name in KEPT}
    policy = build_policy(config)
    found = replay(policy, checkpoint or folder.checkpoint(batch), settings.run, batch, **kept)
    gap = find_difference(policy, folder.checkpoint(batch + 1))
    if policy.trainer.is_global_zero:
        show(found, gap, f"{settings.run}, batch {batch}")
    return int(bool(gap) or any(recorded != replayed for recorded, replayed in found.values()))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 where the update is as recorded, 1 where it differs, 2 where it cannot be made.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    # PEFT's own use of transformers, and a loader of one batch, which needs no workers.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    transformers.logging.disable_progress_bar()
    parser = ArgumentParser(prog="replay.py", description="Make a recorded PPO update again.")
    parser.add_argument("run", help="run folder with rollouts/")
    parser.add_argument("--batch", type=int, required=True, help="number of the batch, from 0")
    parser.add_argument(
        "--checkpoint",
        type=str | None,
        help="state before that batch (default: rollouts/batch<N>.ckpt)",
    )
    try:
        return run(parser.parse_args(args))
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
