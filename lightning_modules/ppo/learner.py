"""PPOLearner: what PPO does with rollouts, however they came about: its optimizer steps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.optimizer_step import clip_by_norm, gradient_norm, stop_if_not_finite
from lightning_modules.policy_module import PolicyModule
from lightning_modules.ppo import figures
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.update import (
    Experience,
    Sums,
    Update,
    minibatch_loss,
    minibatches,
    plan_cut,
)
from lightning_modules.ppo.value_head import ValueHead


class PPOLearner(PolicyModule):
    """A policy, with a value head if asked for, that learns from rollouts in minibatches.

    Where rollouts and their advantages come from is not its business: :class:`PPOPolicy` draws
    them, ``replay.py`` hands recorded ones to :meth:`update`.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        ppo: Settings of the loop; None takes the defaults.
        uses_values: Whether there is a value head.
        value_lr: Learning rate of the value head; None takes the policy's.
        **kwargs: See :class:`PolicyModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit the backbone.
    """

    def __init__(
        self,
        backbone: str,
        ppo: PPOConfig | None,
        uses_values: bool,
        value_lr: float | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if value_lr is not None and not value_lr > 0:
            raise ValueError(f"value_lr must be above 0, got {value_lr}")
        self.ppo = ppo or PPOConfig()
        self.uses_values = uses_values
        self.value_lr = value_lr
        self.batches_done = 0
        self.value_head: ValueHead | None = None
        # Several optimizer steps a batch of rollouts: Lightning's automatic one makes a single one.
        self.automatic_optimization = False

    def assemble(self, backbone: PreTrainedModel) -> None:
        """Make policy, reference and value head from the backbone."""
        super().assemble(backbone)
        if self.uses_values:
            self.value_head = ValueHead(self.model.config.d_model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the policy's weights and the value head's as two groups, each with its own rate."""
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.requires_grad]}
        ]
        if self.value_head is not None:
            value: dict[str, Any] = {"params": list(self.value_head.parameters())}
            groups.append(value if self.value_lr is None else value | {"lr": self.value_lr})
        return groups

    def update(self, experience: Experience, ids: Sequence[str] = ()) -> Update:
        """Take a step for every minibatch of every epoch, and move the learning rate on.

        Args:
            experience: Of a batch of rollouts.
            ids: Of its prompts, for the record of a fault; none where they are not known.

        Raises:
            FloatingPointError: If a loss or gradient is not finite.
        """
        generator = torch.Generator().manual_seed(self.shuffle_number())
        owner = experience.rollout.owner
        cut = plan_cut(
            *self.extremes_over_ranks(len(owner)),
            self.ppo.minibatch_size,
            self.ppo.microbatch_size,
        )
        logprobs = experience.rollout.logprobs.clone()
        total = torch.zeros(len(Sums._fields), device=self.device)
        every: list[Tensor] = []
        skipped, epochs = 0, 0
        for epoch in minibatches(owner, cut, self.ppo.epochs, generator):
            of_epoch = torch.zeros_like(total)
            for parts in epoch:
                sums, stepped = self.step(experience, parts, logprobs, ids)
                skipped += not stepped
                every.append(sums)
                of_epoch += sums
            total += of_epoch
            epochs += 1
            mean_kl = of_epoch[Sums._fields.index("approx_kl")] / of_epoch[-1]
            if self.ppo.stop_kl is not None and mean_kl > self.ppo.stop_kl:
                break
        self.step_schedule()
        counts = {"ppo/policy/skipped": float(skipped), "ppo/policy/epochs": float(epochs)}
        start = figures.start(Sums(*every[0]))
        return Update(figures.losses(Sums(*total)) | start | counts, logprobs)

    def step_schedule(self) -> None:
        """Move the learning rate on: once a batch of rollouts, learnt from or not."""
        scheduler: Any = self.lr_schedulers()
        self.half_updated = True
        scheduler.step()

    def step(
        self,
        experience: Experience,
        parts: tuple[Tensor, ...],
        logprobs: Tensor,
        ids: Sequence[str] = (),
    ) -> tuple[Tensor, bool]:
        """Take one optimizer step on a minibatch.

        Args:
            experience: Of the whole batch.
            parts: Row numbers of each micro-batch.
            logprobs: [B, T]; these rows of it are set to log pi(y_t) before the step.
            ids: See :meth:`update`.

        Returns:
            The sums over the minibatch's tokens on all ranks (see :class:`Sums`), and whether the
            step was taken: it is not where the mean ratio passes the guard.

        Raises:
            FloatingPointError: If the loss or the gradient is not finite, on any rank; the weights
                are left as they are.
        """
        optimizer: Any = self.optimizers()
        total, found = self.add_up(experience, parts)
        means, norm = Sums(*total), gradient_norm(optimizer)
        losses = means.loss + means.value_loss + means.kl_loss
        rows = torch.cat(parts)
        names = [ids[row] for row in experience.rollout.owner[rows].tolist() if ids]
        values = {"PPO's loss": losses, "the gradient's norm": norm}
        stop_if_not_finite(self, values, names, experience.rows(rows))
        for part, values in found:
            logprobs[part, : values.shape[1]] = values
        stepped = bool(means.ratio / means.tokens <= self.ppo.ratio_guard)
        if stepped:
            clip_by_norm(optimizer, self.ppo.max_grad_norm, norm)
            self.half_updated = True
            optimizer.step()
        return total, stepped

    def add_up(
        self, experience: Experience, parts: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Add up a minibatch's gradient over its micro-batches, or smaller passes where need be.

        Args:
            experience: Of the whole batch.
            parts: Row numbers of each micro-batch.

        Returns:
            The sums over the minibatch's tokens on all ranks, [7] in the order of :class:`Sums`;
            and for each pass its row numbers and log pi(y_t).
        """
        optimizer: Any = self.optimizers()
        tokens = self.sum_over_ranks(experience.rollout.mask[torch.cat(parts)].sum())
        total, logprobs = torch.zeros(len(Sums._fields), device=self.device), []
        optimizer.zero_grad()
        for part in parts:
            scored = experience.rows(part)
            loss, sums, found = self.as_forward(
                partial(minibatch_loss, self.model, self.value_head, scored, self.ppo)
            )
            logprobs.append((part, found))
            # DDP averages over ranks: times ranks, over all tokens, is the mean over all.
            self.manual_backward(loss * self.trainer.world_size / tokens)
            total += torch.stack(sums)
        return self.sum_over_ranks(total), logprobs

    def shuffle_number(self) -> int:
        """Give the seed of this batch's shuffles: the same when the update is done again."""
        source = (self.seed, self.global_rank, self.batches_done)
        return int(np.random.SeedSequence(source).generate_state(1)[0])

    def extremes_over_ranks(self, rows: int) -> tuple[int, int]:
        """Give the most and the fewest rows that a rank has."""
        if self.trainer.world_size == 1:
            return rows, rows
        count = torch.tensor(rows, device=self.device)
        reduce = self.trainer.strategy.reduce
        most, least = (int(reduce(count.clone(), reduce_op=op)) for op in ("max", "min"))
        return most, least
