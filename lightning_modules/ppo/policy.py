"""PPOPolicy: the loop of PPO over an encoder-decoder."""

import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batching import Batch
from lightning_modules.optimizer_step import stop_if_not_finite
from lightning_modules.ppo import figures, invariants
from lightning_modules.ppo.advantages import GAE, AdvantageEstimator, Credit, whiten
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.kl import ESTIMATORS, KLCoefficient, k1, per_sequence
from lightning_modules.ppo.learner import PPOLearner
from lightning_modules.ppo.policy_kinds import LoRAPolicy, PolicyKind
from lightning_modules.ppo.reward_terms import (
    ClassifierReward,
    RewardTerm,
    Texts,
    find_reward_problems,
    name_terms,
    weigh,
)
from lightning_modules.ppo.rewards import shape_rewards
from lightning_modules.ppo.rollout import Rollout, roll_out
from lightning_modules.ppo.sampling import Sampling
from lightning_modules.ppo.token_scores import Prompts
from lightning_modules.ppo.update import Experience
from lightning_modules.summarization import Decoding

logger = logging.getLogger(__name__)

GATE_ROWS = 8
"""Prompts that the gate before the first update looks at."""


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build AdamW with the epsilon that PPO's implementations share (N+ details): 1e-5."""
    return torch.optim.AdamW(parameters, lr=1e-4, eps=1e-5, weight_decay=0.0)


class PPOPolicy(PPOLearner):
    """A policy trained by PPO for what it is rewarded for, held near its starting point.

    Policy, reference and value head share one backbone in memory wherever adapters allow it. Every
    dropout is 0, so that rollout and update see one function. A gate measures this before the first
    update.

    Ziegler et al. 2019; Ouyang et al. 2022; Huang et al. 2024, "The N+ Implementation Details of
    RLHF with PPO".

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        reward_model: The classifier that scores summaries: hub id, folder, or ``mini``; None where
            ``extra_rewards`` are all.
        reward_label: Label whose raw logit is the reward.
        reward_with_dialogue: Let it see the dialogue too; see :class:`ClassifierReward`.
        extra_rewards: Further terms of the reward by the names under which they are logged.
        adapter: Export folder of an adapter to start from; None starts afresh.
        policy: What of the backbone is trained.
        advantage: How advantages are estimated.
        ppo: Settings of the loop.
        optimizer: Builds the optimizer from the trained parameters.
        value_lr: Learning rate of the value head; None takes the policy's.
        schedule: Course of the learning rate over the batches of rollouts.
        warmup_fraction: Share of the batches in which the learning rate rises from 0.
        decoding: How summaries are generated in validation, test and predict.

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
        warmup_fraction: float = 0.0,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(
            backbone,
            ppo,
            advantage.uses_values,
            value_lr,
            policy=policy,
            adapter=adapter,
            decoding=decoding,
            optimizer=optimizer,
            schedule=schedule,
            warmup_fraction=warmup_fraction,
        )
        if problem := self._find_sample_problem(advantage):
            raise ValueError(problem)
        self.advantage = advantage
        self.terms = name_terms(reward_model, reward_label, reward_with_dialogue, extra_rewards)
        self.kl_coef = KLCoefficient(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)
        self.shaping = self.ppo.score_shaping()
        self.gate_passed = False
        self._at_batch_start: dict[str, Any] | None = None
        self._logged: list[str] = []

    def _find_sample_problem(self, advantage: AdvantageEstimator) -> str | None:
        if self.ppo.samples >= advantage.least_samples:
            return None
        return (
            f"advantage: {type(advantage).__name__} compares the rollouts to one prompt with each "
            f"other; set model.ppo.samples to {advantage.least_samples} or more"
        )

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List, before anything is loaded, what cannot work; None stands for what can."""
        problems = super().find_problems(init_args, trainer)
        problems += find_reward_problems(init_args)
        if trainer.max_steps not in (-1, None):
            problems.append(
                "trainer.max_steps counts PPO's optimizer steps, many for each batch of rollouts; "
                "set trainer.max_epochs and trainer.limit_train_batches, which count batches"
            )
        if trainer.gradient_clip_val is not None or trainer.accumulate_grad_batches != 1:
            problems.append(
                "PPO takes its optimizer steps itself: in place of trainer.gradient_clip_val and "
                "trainer.accumulate_grad_batches set model.ppo.max_grad_norm and microbatch_size"
            )
        return problems

    # Construction -------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load backbone, adapters and reward models; does so once."""
        if self.model is not None:
            return
        super().configure_model()
        for term in self.terms.values():
            if isinstance(term, ClassifierReward):
                term.load()

    # The loop -----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Roll out, score, shape the rewards, estimate advantages, and update in minibatches.

        Returns:
            What callbacks may watch: kl (k1, nats), score (the weighted sum of the terms), shaped
            (what was made of it) and length of each rollout, [B] each; the experience that was
            learnt from; rewards [B, T]; new_logprobs [B, T], see :class:`Update`; terms, each
            term's scores [B]; texts, the B summaries; beta; figures, all that was logged, times and
            speed of this rank; and batch, the number of batches of rollouts before this one.
        """
        self._at_batch_start = self._loop_state()
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        with self.gathered():
            self.pass_gate(prompts)
            times = [time.perf_counter()]
            rollout = self.roll_out(prompts)
        times.append(time.perf_counter())

        texts = self.read(rollout, batch)
        terms = self.score(texts, batch)
        scores, lengths = weigh(self.terms, terms), rollout.mask.sum(dim=1)
        shaped = self.shaping(scores, rollout.finished, lengths, self.sum_over_ranks)
        times.append(time.perf_counter())

        beta = self.kl_coef.beta
        rewards = self.shape_rewards(shaped, rollout)
        credit, experience = self.estimate_advantages(rewards, rollout)
        update = self.update(experience, batch["ids"])
        times.append(time.perf_counter())

        found = figures.objective(rollout, scores, shaped, beta, terms, self.sum_over_ranks)
        found |= figures.estimates(rollout, credit, self.sum_over_ranks) | update.figures
        found |= figures.speed(rollout, times)
        self.log_step(found)
        kl = per_sequence(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask)
        self.adapt_kl_coef(kl)
        return {
            "kl": kl, "score": scores, "shaped": shaped, "length": lengths,
            "experience": experience, "rewards": rewards, "new_logprobs": update.logprobs,
            "terms": terms, "texts": texts.summaries, "beta": beta, "figures": found,
            "batch": self.finish_batch(),
        }  # fmt: skip

    @property
    def sampling(self) -> Sampling:
        """How rollouts are drawn."""
        return Sampling(
            self.ppo.max_new_tokens, self.ppo.temperature, self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id, self.ppo.compile_decoding,
        )  # fmt: skip

    @property
    def is_exact(self) -> bool:
        """Whether the run computes in fp32 or better."""
        return str(self.trainer.precision).startswith(("32", "64"))

    def roll_out(self, prompts: Prompts) -> Rollout:
        """Sample ``ppo.samples`` responses to each prompt, and score their tokens."""
        reuse = self.ppo.reuse_sampler
        return roll_out(
            self.model, prompts, self.sampling, self.value_head, self.reference,
            samples=self.ppo.samples,
            shared_encoder=self.shares_encoder,
            reuse_sampler=self.is_exact if reuse is None else reuse,
            chunk=self.ppo.microbatch_size or self.ppo.minibatch_size,
        )  # fmt: skip

    def pass_gate(self, prompts: Prompts) -> None:
        """Before the first update, measure what must hold then, and stop the run if it does not.

        Raises:
            GateError: With the figures.
        """
        if self.gate_passed:
            return
        few = prompts.rows(torch.arange(min(GATE_ROWS, len(prompts.input_ids)), device=self.device))
        found = invariants.measure(
            self.model, few, self.sampling, self.reference, self.shares_encoder,
            self.ppo.minibatch_size,
        )  # fmt: skip
        invariants.check(found, invariants.FP32 if self.is_exact else invariants.BF16)
        logger.info("PPO's gate is passed: %s", found)
        self.gate_passed = True

    def read(self, rollout: Rollout, batch: Batch) -> Texts:
        """Give the B summaries as texts, each with the dialogue and references of its prompt."""
        padding = self.tokenizer.pad_token_id
        owner = rollout.owner.tolist()
        return Texts(
            self.decode(rollout.responses.masked_fill(~rollout.mask, padding)),
            [batch["dialogues"][row] for row in owner],
            [batch["references"][row] for row in owner],
        )

    def score(self, texts: Texts, batch: Batch) -> dict[str, Tensor]:
        """Give each term's scores, before its weight: [B] each.

        Raises:
            FloatingPointError: If a score, on any rank, is not finite.
        """
        scores = {name: term.score(texts, self.device) for name, term in self.terms.items()}
        sums = {f"the reward {name}": self.sum_over_ranks(s.sum()) for name, s in scores.items()}
        bad = (~torch.isfinite(torch.stack(list(scores.values())))).any(dim=0).nonzero()
        ids = [batch["ids"][row // self.ppo.samples] for row in bad.flatten().tolist()]
        content = {"texts": texts._asdict(), "scores": scores, "ids": batch["ids"]}
        stop_if_not_finite(self, sums, ids, content)
        return scores

    def shape_rewards(self, shaped: Tensor, rollout: Rollout) -> Tensor:
        """Give each token its reward, [B, T]: the KL's penalty, and the score on the last one."""
        beta = 0.0 if self.ppo.kl_in_loss else self.kl_coef.beta
        penalty = ESTIMATORS[self.ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        rewards = shape_rewards(shaped, penalty, rollout.mask, beta)
        if self.ppo.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, True, self.sum_over_ranks)
        return rewards

    def estimate_advantages(self, rewards: Tensor, rollout: Rollout) -> tuple[Credit, Experience]:
        """Estimate advantages and returns, and give with them what there is to learn from."""
        credit = self.advantage(rewards, rollout.values, rollout.mask, self.ppo.samples)
        advantages = credit.advantages
        if self.advantage.whiten:
            advantages = whiten(advantages, rollout.mask, False, self.sum_over_ranks)
        beta = self.kl_coef.beta if self.ppo.kl_in_loss else 0.0
        return credit, Experience(rollout, advantages, credit.returns, beta)

    def finish_batch(self) -> int:
        """Count a batch of rollouts as done, and give its number, from 0."""
        self.batches_done += 1
        self._at_batch_start = None
        return self.batches_done - 1

    def adapt_kl_coef(self, sequence_kl: Tensor) -> None:
        """Lead the coefficient towards its target by the KL of this batch over all ranks."""
        count = sequence_kl.new_tensor(len(sequence_kl))
        total, rows = self.sum_over_ranks(torch.stack([sequence_kl.sum(), count]))
        self.kl_coef.update(float(total / rows), int(rows))

    def log_step(self, values: Mapping[str, Any]) -> None:
        """Log scalars of this training step, those of a rank averaged; reward and KL on the bar."""
        shown = ("objective/reward", "objective/kl")
        self._logged = list(values)
        for name, value in values.items():
            self.log(name, value, on_step=True, prog_bar=name in shown, sync_dist=True)

    # What a run leaves --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the loop itself remembers: of a batch that is under way, from before it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = self._at_batch_start or self._loop_state()

    def _loop_state(self) -> dict[str, Any]:
        moments = self.shaping.moments
        return {
            "kl_coef": self.kl_coef.beta,
            "gate_passed": self.gate_passed,
            "batches_done": self.batches_done,
            "logged": self._logged,
            "moments": [moments.count, moments.mean, moments.squares],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the loop where it was."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["ppo"]
        self.kl_coef.beta = state["kl_coef"]
        self.gate_passed = state["gate_passed"]
        self.batches_done = state["batches_done"]
        self._logged = state["logged"]
        moments = self.shaping.moments
        moments.count, moments.mean, moments.squares = state["moments"]
