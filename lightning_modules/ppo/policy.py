"""PPOPolicy: the loop of PPO over an encoder-decoder."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from transformers import PreTrainedModel

from datamodules.batching import Batch
from lightning_modules.compiling import find_compile_problem
from lightning_modules.faults import Fault, name_not_finite
from lightning_modules.gradients import clip_by_norm, gradient_norm
from lightning_modules.policy_module import PolicyModule, instantiate
from lightning_modules.ppo import figures, invariants
from lightning_modules.ppo.advantages import GAE, AdvantageEstimator, whiten
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.faults import score_fault, update_fault
from lightning_modules.ppo.kl import ESTIMATORS, KLCoefficient, k1, per_sequence
from lightning_modules.ppo.policy_kinds import LoRAPolicy, PolicyKind
from lightning_modules.ppo.reward_terms import ClassifierReward, RewardTerm, Texts
from lightning_modules.ppo.rewards import shape_rewards
from lightning_modules.ppo.rollout import Prompts, Rollout, roll_out
from lightning_modules.ppo.sampling import Sampling
from lightning_modules.ppo.update import (
    Experience,
    Sums,
    Update,
    minibatch_loss,
    minibatches,
    plan_cut,
)
from lightning_modules.ppo.value_head import ValueHead
from lightning_modules.randomness import put_state, take_state
from lightning_modules.sharding import as_forward, whole
from lightning_modules.strategies import find_strategy_problem, name_strategy, shard
from lightning_modules.summarization import Decoding

logger = logging.getLogger(__name__)

GATE_ROWS = 8
"""Prompts that the gate before the first update looks at."""

MAIN_REWARD = "reward_model"
"""Name of the term that ``reward_model`` gives, beside those of ``extra_rewards``."""


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build AdamW with the epsilon that PPO's implementations share (N+ details): 1e-5."""
    return torch.optim.AdamW(parameters, lr=1e-4, eps=1e-5, weight_decay=0.0)


class PPOPolicy(PolicyModule):
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
        compile: See :class:`BaseModule`; ``ppo.compile_decoding`` is for the rollouts.
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
        compile: str | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(
            backbone,
            policy,
            adapter,
            decoding,
            optimizer=optimizer,
            schedule=schedule,
            warmup_fraction=warmup_fraction,
            compile=compile,
        )
        self.ppo = ppo or PPOConfig()
        if problem := self._find_sample_problem(advantage):
            raise ValueError(problem)
        self.terms: dict[str, RewardTerm] = dict(extra_rewards or {})
        if reward_model is not None:
            if MAIN_REWARD in self.terms:
                raise ValueError(
                    f"extra_rewards: {MAIN_REWARD!r} is the name of model.reward_model's term; "
                    "choose another, or set model.reward_model to null"
                )
            main = ClassifierReward(reward_model, reward_label, reward_with_dialogue)
            self.terms = {MAIN_REWARD: main} | self.terms
        if not self.terms:
            raise ValueError("PPO needs a reward: set model.reward_model or model.extra_rewards")
        if value_lr is not None and not value_lr > 0:
            raise ValueError(f"value_lr must be above 0, got {value_lr}")
        self.advantage = advantage
        self.value_lr = value_lr
        self.kl_coef = KLCoefficient(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)
        self.shaping = self.ppo.score_shaping()
        self.gate_passed = False
        self.batches_done = 0
        self._at_batch_start: dict[str, Any] | None = None
        self._ids: list[str] = []
        self._logged: list[str] = []
        self.value_head: ValueHead | None = None
        # Several optimizer steps a batch of rollouts: Lightning's automatic one makes a single one.
        self.automatic_optimization = False

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
        backend = (init_args.ppo or {}).get("compile_decoding")
        problems.append(
            find_compile_problem("model.ppo.compile_decoding", backend, trainer.accelerator)
            or find_strategy_problem(name_strategy(trainer), backend is not None)
        )
        terms: list[RewardTerm] = []
        for name, term in (init_args.extra_rewards or {}).items():
            try:
                terms.append(instantiate(term))
            except ValueError as error:
                problems.append(f"extra_rewards.{name}: {error}")
        if init_args.reward_model is not None:
            terms.append(
                ClassifierReward(
                    init_args.reward_model, init_args.reward_label, init_args.reward_with_dialogue
                )
            )
        for term in terms:
            problems += term.find_problems()
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
                shard(self, term.load().model)

    def assemble(self, backbone: PreTrainedModel) -> None:
        """Make policy, reference and value head from the backbone."""
        super().assemble(backbone)
        if self.advantage.uses_values:
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

    # The loop -----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Roll out, score, shape the rewards, estimate advantages, and update in minibatches.

        Returns:
            What callbacks may watch: kl (k1, nats), score (the weighted sum of the terms), shaped
            (what was made of it) and length of each rollout, [B] each; the experience that was
            learnt from; rewards [B, T]; new_logprobs [B, T], see :class:`Update`; terms, each
            term's scores [B]; texts, the B summaries; beta; figures, all that was logged, times and
            speed of this rank; and batch, the number of batches of rollouts before this one. None
            where the batch was skipped.
        """
        self._at_batch_start, self._ids = self._loop_state(), batch["ids"]
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        with whole(self):
            self.pass_gate(prompts)
            times = [time.perf_counter()]

            rollout = self.roll_out(prompts)
        times.append(time.perf_counter())

        texts = self.read(rollout, batch)
        terms = self.score(texts, batch)
        if terms is None:
            # Or Lightning would log the figures of the batch before once more.
            self.log_step(dict.fromkeys(self._logged, torch.nan))
            self.step_schedule()
            self.finish_batch()
            return None
        scores = torch.stack(
            [self.terms[name].weight * values for name, values in terms.items()]
        ).sum(dim=0)
        lengths = rollout.mask.sum(dim=1)
        shaped = self.shaping(scores, rollout.finished, lengths, self.sum_over_ranks)
        times.append(time.perf_counter())

        beta = self.kl_coef.beta
        kl = k1(rollout.logprobs, rollout.ref_logprobs)
        penalty = ESTIMATORS[self.ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        rewards = shape_rewards(shaped, penalty, rollout.mask, 0.0 if self.ppo.kl_in_loss else beta)
        if self.ppo.whiten_rewards:
            rewards = self.whiten(rewards, rollout.mask, keep_mean=True)
        credit = self.advantage(rewards, rollout.values, rollout.mask, self.ppo.samples)
        advantages = credit.advantages
        if self.advantage.whiten:
            advantages = self.whiten(advantages, rollout.mask)

        experience = Experience(
            rollout, advantages, credit.returns, beta if self.ppo.kl_in_loss else 0.0
        )
        update = self.update(experience)
        times.append(time.perf_counter())

        found = figures.objective(rollout, scores, shaped, beta, terms, self.sum_over_ranks)
        found |= figures.estimates(rollout, credit, self.sum_over_ranks) | update.figures
        found |= figures.speed(rollout, times)
        self._logged = list(found)
        self.log_step(found)
        sequence_kl = per_sequence(kl, rollout.mask)
        self.adapt_kl_coef(sequence_kl)
        return {
            "kl": sequence_kl, "score": scores, "shaped": shaped, "length": lengths,
            "experience": experience, "rewards": rewards, "new_logprobs": update.logprobs,
            "terms": terms,
            "texts": texts.summaries, "beta": beta, "figures": found,
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
        reuse, before = self.ppo.reuse_sampler, take_state(self.device)

        def go(chunk: int) -> Rollout:
            put_state(before, self.device)
            return roll_out(
                self.model, prompts, self.sampling, self.value_head, self.reference,
                samples=self.ppo.samples,
                shared_encoder=self.shares_encoder,
                reuse_sampler=self.is_exact if reuse is None else reuse,
                chunk=chunk,
            )  # fmt: skip

        return self.in_passes(go, self.microbatch_size or self.ppo.minibatch_size)

    @property
    def microbatch_size(self) -> int | None:
        """Rollouts in one pass at most: as set, or fewer where these did not fit the memory."""
        sizes = [size for size in (self.ppo.microbatch_size, self.room) if size is not None]
        return min(sizes, default=None)

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

    def score(self, texts: Texts, batch: Batch) -> dict[str, Tensor] | None:
        """Give each term's scores, before its weight: [B] each.

        Returns:
            None where a score, on any rank, is not finite and ``on_fault`` has the batch skipped.

        Raises:
            FloatingPointError: If it does not, with the text that got it.
        """
        scores = {name: term.score(texts, self.device) for name, term in self.terms.items()}
        bad = ~torch.isfinite(torch.stack(list(scores.values())))
        if self.sum_over_ranks(bad.sum()) == 0:
            return scores
        ids = [batch["ids"][row // self.ppo.samples] for row in range(len(texts.summaries))]
        self.on_fault(score_fault(scores, texts, ids, self.batches_done))
        return None

    def whiten(self, values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
        """Whiten [B, T] over the real tokens of all ranks."""
        return whiten(values, mask, keep_mean, self.sum_over_ranks)

    def update(self, experience: Experience) -> Update:
        """Take a step for every minibatch of every epoch."""
        generator = torch.Generator().manual_seed(self.shuffle_number())
        owner = experience.rollout.owner
        cut = plan_cut(
            *self.extremes_over_ranks(len(owner)),
            self.ppo.minibatch_size,
            self.ppo.microbatch_size,
        )
        logprobs = experience.rollout.logprobs.clone()
        total = torch.zeros(len(Sums._fields), device=self.device)
        first: Tensor | None = None
        skipped, epochs = 0, 0
        for epoch in minibatches(owner, cut, self.ppo.epochs, generator):
            of_epoch = torch.zeros_like(total)
            for parts in epoch:
                sums, stepped = self.step(experience, parts, logprobs)
                skipped += not stepped
                if sums is not None:
                    first = sums if first is None else first
                    of_epoch += sums
            total += of_epoch
            epochs += 1
            mean_kl = of_epoch[Sums._fields.index("approx_kl")] / of_epoch[-1]
            if self.ppo.stop_kl is not None and mean_kl > self.ppo.stop_kl:
                break
        self.step_schedule()
        if first is None:
            raise FloatingPointError(
                f"batch {self.batches_done}: none of its minibatches is finite; the last "
                "checkpoint is untouched"
            )
        counts = {"ppo/policy/skipped": float(skipped), "ppo/policy/epochs": float(epochs)}
        start = figures.start(Sums(*first))
        return Update(figures.losses(Sums(*total)) | start | counts, logprobs)

    def step_schedule(self) -> None:
        """Move the learning rate on: once a batch of rollouts, learnt from or not."""
        scheduler: Any = self.lr_schedulers()
        self.half_updated = True
        scheduler.step()

    def finish_batch(self) -> int:
        """Count a batch of rollouts as done, and give its number, from 0."""
        self.batches_done += 1
        self._at_batch_start = None
        return self.batches_done - 1

    def step(
        self, experience: Experience, parts: tuple[Tensor, ...], logprobs: Tensor
    ) -> tuple[Tensor | None, bool]:
        """Take one optimizer step on a minibatch, its gradient added up over micro-batches.

        Args:
            experience: Of the whole batch.
            parts: Row numbers of each micro-batch.
            logprobs: [B, T]; these rows of it are set to log pi(y_t) before the step.

        Returns:
            The sums over the minibatch's tokens on all ranks (see :class:`Sums`), and whether the
            step was taken: it is not where the mean ratio passes the guard, nor where something is
            not finite and ``on_fault`` has the minibatch skipped; then there are no sums either.

        Raises:
            FloatingPointError: If the loss or the gradient is not finite, on any rank, and the
                minibatch is not to be skipped; it leaves the weights as they are.
        """
        optimizer: Any = self.optimizers()
        rows, mask = torch.cat(parts), experience.rollout.mask
        tokens = self.sum_over_ranks(mask[rows].sum())

        logprobs_now: list[tuple[Tensor, Tensor]] = []

        def go(size: int) -> Tensor:
            total = torch.zeros(len(Sums._fields), device=self.device)
            optimizer.zero_grad()
            logprobs_now.clear()
            for part in parts if size >= longest else rows.tensor_split(-(-len(rows) // size)):
                scored = experience.rows(part)
                loss, sums, found = as_forward(
                    self.model,
                    partial(minibatch_loss, self.model, self.value_head, scored, self.ppo),
                )
                logprobs_now.append((part, found))
                # DDP averages over ranks: times ranks, over all tokens, is the mean over all.
                self.manual_backward(loss * self.trainer.world_size / tokens)
                total += torch.stack(sums)
            return total

        longest = max(map(len, parts))
        total = self.sum_over_ranks(self.in_passes(go, min(longest, self.room or longest)))
        means, norm = Sums(*total), gradient_norm(optimizer)
        losses = means.loss + means.value_loss + means.kl_loss
        if what := name_not_finite({"PPO's loss": losses, "the gradient's norm": norm}):
            self.on_fault(self._make_minibatch_fault(what, experience, rows))
            return None, False
        for part, found in logprobs_now:
            logprobs[part, : found.shape[1]] = found
        stepped = bool(means.ratio / tokens <= self.ppo.ratio_guard)
        if stepped:
            clip_by_norm(optimizer, self.ppo.max_grad_norm, norm)
            self.half_updated = True
            optimizer.step()
        return total, stepped

    def _make_minibatch_fault(self, what: str, experience: Experience, rows: Tensor) -> Fault:
        ids = [self._ids[row] for row in experience.rollout.owner[rows].tolist() if self._ids]
        return update_fault(
            what, experience.rows(rows), ids, self.decode, self.batches_done, self.global_step
        )

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

    def adapt_kl_coef(self, sequence_kl: Tensor) -> None:
        """Lead the coefficient towards its target by the KL of this batch over all ranks."""
        count = sequence_kl.new_tensor(len(sequence_kl))
        total, rows = self.sum_over_ranks(torch.stack([sequence_kl.sum(), count]))
        self.kl_coef.update(float(total / rows), int(rows))

    def log_step(self, values: Mapping[str, Any]) -> None:
        """Log scalars of this training step, those of a rank averaged; reward and KL on the bar."""
        shown = ("objective/reward", "objective/kl")
        for name, value in values.items():
            self.log(name, value, on_step=True, prog_bar=name in shown, sync_dist=True)

    # What a run leaves --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the loop itself remembers: of a batch that is under way, from before it."""
        super().on_save_checkpoint(checkpoint)
        state = self._at_batch_start or self._loop_state()
        checkpoint["ppo"] = state

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
