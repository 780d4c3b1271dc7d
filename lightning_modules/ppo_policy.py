"""PPOPolicy: rollout, rewards, advantages, update; see docs/ppo.md."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batching import Batch
from lightning_modules.backbones import Prompts, Sampling
from lightning_modules.optimizer_step import clip_by_norm, gradient_norm, stop_if_not_finite
from lightning_modules.policies.gate import pass_gate
from lightning_modules.policies.kinds import LoRAPolicy, PolicyKind
from lightning_modules.policies.module import PolicyModule
from lightning_modules.ppo import metrics
from lightning_modules.ppo.advantages import GAE, AdvantageEstimator, Credit, whiten
from lightning_modules.ppo.config import PPOConfig, find_trainer_problems
from lightning_modules.ppo.kl import ESTIMATORS, KLCoefficient
from lightning_modules.ppo.losses import token_weights
from lightning_modules.ppo.reward_terms import (
    RewardTerm,
    Texts,
    find_reward_problems,
    name_terms,
    weigh,
)
from lightning_modules.ppo.rewards import RunningMoments, ScoreShaping, shape_rewards
from lightning_modules.ppo.rollout import Rollout, roll_out
from lightning_modules.ppo.step import PPOStep
from lightning_modules.ppo.update import (
    MAX_RATIO,
    Experience,
    Sums,
    minibatch_loss,
    minibatches,
    plan_cut,
)
from lightning_modules.ppo.value_head import ValueHead

logger = logging.getLogger(__name__)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build AdamW with the epsilon that PPO's implementations share (N+ details): 1e-5."""
    return torch.optim.AdamW(parameters, lr=1e-4, eps=1e-5, weight_decay=0.0)


class PPOPolicy(PolicyModule):
    """A policy trained by PPO to raise its reward without leaving its reference.

    Policy, reference and value head share one backbone in memory if adapters allow it. Every
    dropout is 0, so that rollout and update compute the same function. A gate checks this before
    the first update.

    Ziegler et al. 2019; Ouyang et al. 2022; Huang et al. 2024, "The N+ Implementation Details of
    RLHF with PPO".

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        reward_model: The classifier that scores summaries: hub id, folder, or ``mini``; None uses
            ``extra_rewards`` only.
        reward_label: Label whose raw logit is the reward.
        reward_with_dialogue: Show it the dialogue too; see :class:`ClassifierReward`.
        extra_rewards: Further terms of the reward, by the names under which they are logged.
        adapter: Export folder of an adapter to start from; None starts a new one.
        policy: Which part of the backbone is trained.
        advantage: How advantages are estimated.
        ppo: Settings of the loop.
        optimizer: Builds the optimizer from the trained parameters.
        value_lr: Learning rate of the value head; None is the policy's.
        schedule: Schedule of the learning rate over the batches of rollouts.
        **kwargs: See :class:`PolicyModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit the backbone.
    """

    def __init__(
        self,
        backbone: str,
        reward_model: str | None,
        reward_label: str = "nothate",
        reward_with_dialogue: bool | None = None,
        extra_rewards: Mapping[str, RewardTerm] | None = None,
        adapter: str | None = None,
        policy: PolicyKind = LoRAPolicy(),  # noqa: B008 - never changed
        advantage: AdvantageEstimator = GAE(),  # noqa: B008 - never changed
        ppo: PPOConfig | None = None,
        optimizer: OptimizerCallable = adamw,
        value_lr: float | None = None,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone, policy, adapter, optimizer=optimizer, schedule=schedule,
            gradient_checkpointing=False, **kwargs,
        )  # fmt: skip
        self.ppo = ppo or PPOConfig()
        if value_lr is not None and not value_lr > 0:
            raise ValueError(f"value_lr must be above 0, got {value_lr}")
        if self.ppo.samples < advantage.least_samples:
            raise ValueError(
                f"advantage: {type(advantage).__name__} compares the rollouts of one prompt; set "
                f"model.ppo.samples to {advantage.least_samples} or more"
            )
        self.advantage = advantage
        self.value_lr = value_lr
        self.value_head: ValueHead | None = None
        self.terms = name_terms(reward_model, reward_label, reward_with_dialogue, extra_rewards)
        self.kl_coef = KLCoefficient(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)
        self.shaping = ScoreShaping(self.ppo.normalize_scores, self.ppo.unfinished_penalty)
        self.sampling = Sampling(self.ppo.max_new_tokens, self.ppo.temperature)
        self.batches_done = 0
        self.gate_passed = False
        # PPO takes several optimizer steps per batch of rollouts.
        self.automatic_optimization = False
        self._state_before_batch: dict[str, Any] | None = None

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        return [
            *super().find_problems(init_args, trainer),
            *find_reward_problems(init_args),
            *find_trainer_problems(trainer),
        ]

    # Construction -------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load backbone, adapters and reward models once."""
        if self.model is not None:
            return
        super().configure_model()
        for term in self.terms.values():
            term.load()

    def load_model(self) -> None:
        """Load policy and reference, and build the value head."""
        super().load_model()
        if self.advantage.uses_values:
            self.value_head = ValueHead(self.backbone.hidden_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights of policy and value head as two groups with separate rates."""
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.requires_grad]}
        ]
        if self.value_head is not None:
            value: dict[str, Any] = {"params": list(self.value_head.parameters())}
            groups.append(value if self.value_lr is None else value | {"lr": self.value_lr})
        return groups

    # One training step: rollout, rewards, advantages, update -------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Sample responses, reward them, estimate advantages, and update in minibatches.

        Returns:
            ``{"step": PPOStep}``; Lightning accepts nothing but tensors and mappings here.
        """
        self._state_before_batch = self.loop_state()
        times = [time.perf_counter()]
        rollout = self.rollout(batch)
        times.append(time.perf_counter())
        texts = self.read_texts(rollout, batch)
        terms = self.score(texts, batch["ids"])
        scores = weigh(self.terms, terms)
        shaped = self.shaping(scores, rollout.finished, self.sum_over_ranks)
        times.append(time.perf_counter())
        rewards = self.rewards(shaped, rollout)
        credit, experience = self.advantages(rewards, rollout)
        updated, new_logprobs = self.update(experience, batch["ids"])
        times.append(time.perf_counter())

        beta = self.kl_coef.beta
        found = metrics.rollout_metrics(
            rollout, terms, scores, shaped, credit, beta, self.sum_over_ranks
        )
        found |= updated | metrics.speed(rollout, times)
        for name, value in found.items():
            shown = name in ("objective/reward", "objective/kl")
            self.log(name, value, on_step=True, prog_bar=shown, sync_dist=True)
        rows = self.sum_over_ranks(torch.tensor(len(scores), device=self.device))
        self.kl_coef.update(float(found["objective/kl"]), int(rows))
        step = PPOStep(
            self.batches_done, rollout._replace(context=None), list(texts.summaries), terms, scores,
            shaped, rewards, experience.advantages, experience.returns, new_logprobs, beta, found,
        )  # fmt: skip
        self.batches_done += 1
        self._state_before_batch = None
        return {"step": step}

    def rollout(self, batch: Batch) -> Rollout:
        """Sample ``ppo.samples`` responses to each prompt, after the gate has passed once.

        Raises:
            GateError: If a check fails that must hold before the first update.
        """
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        with self.gathered():
            if not self.gate_passed:
                self.gate_figures = pass_gate(
                    self.backbone, self.open_reference, prompts, self.sampling,
                    self.ppo.minibatch_size, self.is_exact,
                )  # fmt: skip
                logger.info("%s", self.gate_figures.in_words())
                self.gate_passed = True
            return roll_out(
                self.backbone, self.open_reference, prompts, self.sampling, self.value_head,
                samples=self.ppo.samples,
                reuse_sampler=self.is_exact,
                chunk=self.ppo.microbatch_size or self.ppo.minibatch_size,
            )  # fmt: skip

    def read_texts(self, rollout: Rollout, batch: Batch) -> Texts:
        """Decode the B summaries, each with the dialogue and references of its prompt."""
        owner = rollout.owner.tolist()
        tokens = rollout.responses.masked_fill(~rollout.mask, self.backbone.pad_id)
        return Texts(
            self.backbone.decode(tokens),
            [batch["dialogues"][row] for row in owner],
            [batch["references"][row] for row in owner],
        )

    def score(self, texts: Texts, ids: list[str]) -> dict[str, Tensor]:
        """Score the summaries by each reward term, before its weight: [B] each.

        Raises:
            FloatingPointError: If a score, on any rank, is not finite.
        """
        scores = {name: term.score(texts, self.device) for name, term in self.terms.items()}
        sums = {f"the reward {name}": self.sum_over_ranks(s.sum()) for name, s in scores.items()}
        bad = (~torch.isfinite(torch.stack(list(scores.values())))).any(dim=0).nonzero()
        bad_ids = [ids[row // self.ppo.samples] for row in bad.flatten().tolist()]
        content = {"texts": texts._asdict(), "scores": scores, "ids": ids}
        stop_if_not_finite(self, sums, bad_ids, content)
        return scores

    def rewards(self, shaped: Tensor, rollout: Rollout) -> Tensor:
        """Compute each token's reward, [B, T]: the KL penalty, and the score on the last one."""
        beta = 0.0 if self.ppo.kl_in_loss else self.kl_coef.beta
        penalty = ESTIMATORS[self.ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        return shape_rewards(shaped, penalty, rollout.mask, beta)

    def advantages(self, rewards: Tensor, rollout: Rollout) -> tuple[Credit, Experience]:
        """Estimate advantages and returns, and collect the inputs of the update."""
        credit = self.advantage(rewards, rollout.values, rollout.mask, self.ppo.samples)
        advantages = credit.advantages
        if self.advantage.whiten:
            advantages = whiten(advantages, rollout.mask, self.sum_over_ranks)
        beta = self.kl_coef.beta if self.ppo.kl_in_loss else 0.0
        return credit, Experience(rollout, advantages, credit.returns, beta)

    def update(
        self, experience: Experience, ids: list[str]
    ) -> tuple[dict[str, Tensor | float], Tensor]:
        """Take one optimizer step per minibatch and epoch, then advance the learning rate.

        A minibatch whose mean ratio is out of all bounds takes no step.

        Args:
            experience: A batch of rollouts with advantages.
            ids: Ids of its prompts, for error messages.

        Returns:
            Means over tokens, to be logged; and log pi(y_t) in the last epoch, just before the step
            on its minibatch, [B, T].

        Raises:
            FloatingPointError: If a loss or gradient is not finite.
        """
        rollout = experience.rollout
        source = np.random.SeedSequence((self.seed, self.global_rank, self.batches_done))
        generator = torch.Generator().manual_seed(int(source.generate_state(1)[0]))
        most, least = self.extremes_over_ranks(len(rollout.owner))
        cut = plan_cut(most, least, self.ppo.minibatch_size, self.ppo.microbatch_size)
        logprobs, done, skipped = rollout.logprobs.clone(), [], 0
        for parts in minibatches(rollout.owner, cut, self.ppo.epochs, generator):
            sums = self.compute_gradients(experience, parts, logprobs, ids)
            if sums.ratio / sums.tokens <= MAX_RATIO:
                optimizer: Any = self.optimizers()
                optimizer.step()
            else:
                skipped += 1
            done.append(sums)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return metrics.update_metrics(done) | {"ppo/policy/skipped": float(skipped)}, logprobs

    def compute_gradients(
        self,
        experience: Experience,
        parts: tuple[Tensor, ...],
        logprobs: Tensor,
        ids: list[str],
    ) -> Sums:
        """Compute the clipped gradients of a minibatch.

        Args:
            experience: The whole batch.
            parts: Row indices of each micro-batch.
            logprobs: [B, T]; these rows of it are set to log pi(y_t).
            ids: Ids of the prompts of the whole batch.

        Returns:
            The sums over the minibatch's tokens on all ranks.

        Raises:
            FloatingPointError: If the loss or gradient is not finite on any rank.
        """
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        rows = torch.cat(parts)
        mask, ppo = experience.rollout.mask[rows], self.ppo
        _, weight = token_weights(mask, ppo.normalizer, ppo.max_new_tokens)
        weight = self.sum_over_ranks(weight)
        total = torch.zeros(len(Sums._fields), device=self.device)
        for part in parts:
            loss, sums, found = self.as_forward(
                partial(
                    minibatch_loss, self.backbone, self.value_head, experience.rows(part), self.ppo
                )
            )
            # DDP averages over ranks: times ranks, over the total weight, is the mean over all.
            self.manual_backward(loss * self.trainer.world_size / weight)
            total += torch.stack(sums)
            logprobs[part, : found.shape[1]] = found
        means = Sums(*self.sum_over_ranks(total))
        norm = gradient_norm(optimizer)
        values = {
            "PPO's loss": means.loss + means.value_loss + means.kl_loss,
            "the gradient's norm": norm,
        }
        names = [ids[row] for row in experience.rollout.owner[rows].tolist()]
        stop_if_not_finite(self, values, names, experience.rows(rows))
        clip_by_norm(optimizer, self.ppo.max_grad_norm, norm)
        return means

    def extremes_over_ranks(self, rows: int) -> tuple[int, int]:
        """Return the largest and the smallest number of rows that a rank has."""
        if self.trainer.world_size == 1:
            return rows, rows
        count, reduce = torch.tensor(rows, device=self.device), self.trainer.strategy.reduce
        most, least = (int(reduce(count.clone(), reduce_op=op)) for op in ("max", "min"))
        return most, least

    # What a run leaves --------------------------------------------------------------------------

    def loop_state(self) -> dict[str, Any]:
        """Return what the loop remembers from batch to batch."""
        return {
            "kl_coef": self.kl_coef.beta,
            "gate_passed": self.gate_passed,
            "batches_done": self.batches_done,
            "moments": asdict(self.shaping.moments),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the loop; within a batch, that from before the batch."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = self._state_before_batch or self.loop_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the loop."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["ppo"]
        self.kl_coef.beta = state["kl_coef"]
        self.gate_passed = state["gate_passed"]
        self.batches_done = state["batches_done"]
        self.shaping.moments = RunningMoments(**state["moments"])
