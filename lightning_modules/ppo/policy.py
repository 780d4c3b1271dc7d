"""PPOPolicy: the loop of PPO over an encoder-decoder with adapters."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.batching import Batch
from lightning_modules.adapters import (
    attach_lora,
    attach_trained_lora,
    count_parameters,
    disable_dropout,
    find_adapter_problem,
    reference_policy,
)
from lightning_modules.base import Decoding, SummarizationModule
from lightning_modules.ppo import invariants
from lightning_modules.ppo.advantages import gae, whiten
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.kl import KLCoefficient, k1, k3, per_sequence
from lightning_modules.ppo.losses import explained_variance, policy_loss, value_loss
from lightning_modules.ppo.rewards import penalise_unfinished, shape_rewards
from lightning_modules.ppo.rollout import (
    Prompts,
    Rollout,
    encode,
    response_mask,
    sample,
    score_tokens,
)
from lightning_modules.ppo.value_head import ValueHead
from lightning_modules.reward_model import RewardScorer

GATE_ROWS = 8
"""Prompts that the gate before the first update looks at."""


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build AdamW with the epsilon that PPO's implementations share (N+ details): 1e-5."""
    return torch.optim.AdamW(parameters, lr=1e-4, eps=1e-5, weight_decay=0.0)


@dataclass(frozen=True)
class LoRAShape:
    """Shape of a fresh LoRA policy; a policy that starts from an adapter has that adapter's.

    Args:
        r: Rank of the updates.
        alpha: Numerator of their scale alpha / r.
        target_modules: Ends of the names of the linear layers that get one.
    """

    r: int = 32
    alpha: int = 32
    target_modules: Sequence[str] = ("q", "v")


class PPOPolicy(SummarizationModule):
    """A LoRA policy trained by PPO against a frozen reward model, held near its starting point.

    Policy, reference and value head share one backbone in memory. The reference is the policy's
    starting point: the given adapter, frozen, or the backbone with adapters off. Every dropout is
    0, so that rollout and update see one function. A gate measures this before the first update.

    Ziegler et al. 2019; Ouyang et al. 2022; Huang et al. 2024, "The N+ Implementation Details of
    RLHF with PPO".

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        reward_model: The classifier that scores summaries: hub id, folder, or ``mini``.
        reward_label: Label whose raw logit is the reward.
        adapter: Export folder of a LoRA run to start from; None starts a fresh LoRA.
        lora: Shape of a fresh LoRA.
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
        reward_model: str,
        reward_label: str = "nothate",
        adapter: str | None = None,
        lora: LoRAShape | None = None,
        ppo: PPOConfig | None = None,
        optimizer: OptimizerCallable = adamw,
        value_lr: float | None = None,
        schedule: str = "constant",
        warmup_fraction: float = 0.0,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(
            backbone, optimizer, schedule, warmup_fraction, decoding  # type: ignore[arg-type]
        )
        if adapter is not None and (problem := find_adapter_problem(adapter, backbone)):
            raise ValueError(problem)
        self.reward_model_name = reward_model
        self.reward_label = reward_label
        self.adapter = None if adapter is None else str(Path(adapter).resolve())
        self.lora = lora or LoRAShape()
        self.ppo = ppo or PPOConfig()
        self.value_lr = value_lr
        self.kl_coef = KLCoefficient(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)
        self.gate_passed = False
        # Several optimizer steps a batch of rollouts: Lightning's automatic one makes a single one.
        self.automatic_optimization = False

    # Construction -------------------------------------------------------------------------------

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Put the policy's adapter, and the reference's if there is one, on the backbone."""
        if self.adapter is None:
            shape = self.lora
            model = attach_lora(backbone, shape.r, shape.alpha, 0.0, list(shape.target_modules))
        else:
            model = attach_trained_lora(backbone, self.adapter)
        disable_dropout(model)
        return model

    def configure_model(self) -> None:
        """Load backbone, adapters and reward model, and make the value head; does so once."""
        if self.model is not None:
            return
        super().configure_model()
        self.value_head = ValueHead(self.model.config.d_model)
        self.scorer = RewardScorer(self.reward_model_name, self.reward_label)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the policy's weights and the value head's as two groups, each with its own rate."""
        value: dict[str, Any] = {"params": list(self.value_head.parameters())}
        if self.value_lr is not None:
            value["lr"] = self.value_lr
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}, value]

    def count_parameters(self) -> tuple[int, int]:
        """Count policy and value head; the reward model is a judge, not a part of the model."""
        policy, head = count_parameters(self.model), count_parameters(self.value_head)
        return policy[0] + head[0], policy[1] + head[1]

    def on_fit_start(self) -> None:
        """Give every rank its own random numbers: the same ones would sample the same texts."""
        if self.global_rank:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    # The loop -----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Roll out, score, shape the rewards, estimate advantages, and update in minibatches.

        Returns:
            What callbacks may watch, one value a rollout, [B]: kl (k1, nats), score, length.
        """
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        if not self.gate_passed:
            self.pass_gate(prompts)
        started = time.perf_counter()
        rollout = self.roll_out(prompts)
        rolled_out = time.perf_counter()
        scores = self.score(rollout, batch["ids"])
        scored = time.perf_counter()

        kl = k1(rollout.logprobs, rollout.ref_logprobs) * rollout.mask
        rewards = shape_rewards(scores, kl, rollout.mask, self.kl_coef.beta)
        if self.ppo.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, keep_mean=True, sum_over_ranks=self.sum_over_ranks)
        advantages, returns = gae(
            rewards, rollout.values, rollout.mask, self.ppo.gamma, self.ppo.lam
        )
        advantages = whiten(advantages, rollout.mask, sum_over_ranks=self.sum_over_ranks)
        update = self.update(rollout, advantages, returns)

        seconds = {
            "time/rollout": rolled_out - started,
            "time/score": scored - rolled_out,
            "time/update": time.perf_counter() - scored,
        }
        self.log_objective(rollout, scores)
        self.log_step(update | seconds | self.throughput(rollout, seconds))
        self.log_step({
            "ppo/returns/mean": masked_mean(returns, rollout.mask),
            "ppo/advantages/mean": masked_mean(advantages, rollout.mask),
            "ppo/val/explained_variance": explained_variance(
                rollout.values, returns, rollout.mask
            ),
        })  # fmt: skip
        sequence_kl = per_sequence(kl, rollout.mask)
        self.adapt_kl_coef(sequence_kl)
        return {"kl": sequence_kl, "score": scores, "length": rollout.mask.sum(dim=1)}

    @torch.no_grad()
    def roll_out(self, prompts: Prompts) -> Rollout:
        """Sample a response to each prompt and score its tokens under policy and reference.

        The policy's encoder runs once for the sampler and its log-probabilities. The latter come
        from a teacher-forced pass as in the update, not from the sampler, whose cached passes round
        differently under bf16.
        """
        encoded = encode(self.model, prompts)
        responses, _ = self.sample(prompts, encoded)
        mask, finished = response_mask(responses, self.tokenizer.eos_token_id)
        old = score_tokens(
            self.model, prompts, responses, self.ppo.temperature, self.value_head, encoded
        )
        with reference_policy(self.model):
            reference = score_tokens(self.model, prompts, responses, self.ppo.temperature)
        assert old.values is not None  # noqa: S101 (for the type checker: a head was given)
        return Rollout(
            prompts, responses, mask, finished,
            old.logprobs, reference.logprobs, old.values, old.entropy,
        )  # fmt: skip

    def sample(self, prompts: Prompts, encoded: Any) -> tuple[Tensor, list[Tensor]]:
        """Sample responses [B, T] with the settings of the loop."""
        return sample(
            self.model.get_base_model(), prompts, encoded,
            self.ppo.max_new_tokens, self.ppo.temperature,
        )  # fmt: skip

    def score(self, rollout: Rollout, ids: Sequence[str]) -> Tensor:
        """Give each response, as text and by itself, the reward model's raw logit: [B].

        Raises:
            FloatingPointError: If a score is not finite, with the text that got it.
        """
        texts = self.decode(rollout.responses.masked_fill(~rollout.mask, self.tokenizer.pad_token_id))
        scores = self.scorer.logits(texts)
        if not torch.isfinite(scores).all():
            row = int((~torch.isfinite(scores)).nonzero()[0])
            raise FloatingPointError(
                f"the reward model gave {scores[row].item()} to the summary of {ids[row]}: "
                f"{texts[row]!r}; the last checkpoint is untouched"
            )
        return penalise_unfinished(scores, rollout.finished, self.ppo.unfinished_penalty)

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, Any]:
        """Take one optimizer step for every minibatch of every epoch; give the means to log."""
        optimizer: Any = self.optimizers()
        totals = torch.zeros(5, device=self.device)  # policy, ratio, clipped, approx_kl, value
        all_tokens, skipped = torch.zeros((), device=self.device), 0
        for rows in self.minibatches(len(advantages)):
            part = rollout.rows(rows)
            new = score_tokens(
                self.model, part.prompts, part.responses, self.ppo.temperature, self.value_head
            )
            assert new.values is not None  # noqa: S101 (for the type checker: a head was given)
            policy = policy_loss(
                new.logprobs, part.logprobs, advantages[rows], part.mask, self.ppo.clip
            )
            value = value_loss(
                new.values, part.values, returns[rows], part.mask, self.ppo.value_clip
            )
            sums = torch.stack([*policy, value]).detach()
            *sums, tokens = self.sum_over_ranks(torch.cat([sums, part.mask.sum()[None]]))
            totals += torch.stack(sums)
            all_tokens += tokens
            if sums[1] / tokens > self.ppo.ratio_guard:
                skipped += 1
                continue
            loss = (policy.loss + self.ppo.value_weight * value) * self.trainer.world_size / tokens
            self.step(optimizer, loss)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        means = totals / all_tokens
        names = ("policy/loss", "policy/ratio", "policy/clipfrac", "policy/approxkl", "val/loss")
        return {f"ppo/{name}": mean for name, mean in zip(names, means, strict=True)} | {
            "ppo/policy/skipped": float(skipped)
        }

    def minibatches(self, rows: int) -> Iterator[Tensor]:
        """Cut the rows into shuffled minibatches, anew in every epoch.

        Every rank cuts as many as the fullest one, since each is a step that all take together.
        """
        fullest = rows
        if self.trainer.world_size > 1:
            count = torch.tensor(rows, device=self.device)
            fullest = int(self.trainer.strategy.reduce(count, reduce_op="max"))
        parts = -(-fullest // self.ppo.minibatch_size)
        for _ in range(self.ppo.epochs):
            yield from torch.randperm(rows, device=self.device).tensor_split(parts)

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """Take one optimizer step with clipped gradients.

        Raises:
            FloatingPointError: If the loss is not finite; the weights are untouched then.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"PPO's loss is {loss.item()} at step {self.global_step}; the last checkpoint is "
                "untouched. Try a lower learning rate, or precision 32-true"
            )
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, self.ppo.max_grad_norm, "norm")
        optimizer.step()

    def adapt_kl_coef(self, sequence_kl: Tensor) -> None:
        """Lead the coefficient towards its target by the KL of this batch over all ranks."""
        total, rows = self.sum_over_ranks(
            torch.stack([sequence_kl.sum(), sequence_kl.new_tensor(len(sequence_kl))])
        )
        self.kl_coef.update(float(total / rows), int(rows))

    @torch.no_grad()
    def pass_gate(self, prompts: Prompts) -> None:
        """Measure on a few prompts what must hold before the first update, and stop if it does not.

        Raises:
            GateError: With the figures.
        """
        few = prompts.rows(torch.arange(min(GATE_ROWS, len(prompts.input_ids)), device=self.device))
        rollout = self.roll_out(few)
        again = score_tokens(self.model, few, rollout.responses, self.ppo.temperature)
        responses, logits = self.sample(few, encode(self.model, few))
        mask, _ = response_mask(responses, self.tokenizer.eos_token_id)
        scored = score_tokens(self.model, few, responses, self.ppo.temperature)
        filtered, gap = invariants.sampler_figures(logits, responses, mask, scored.logprobs)
        kl = per_sequence(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask).mean()
        figures = invariants.StepZero(
            kl=float(kl),
            log_ratio=float((again.logprobs - rollout.logprobs).abs()[rollout.mask].max()),
            mask_errors=invariants.count_mask_errors(
                rollout.responses, rollout.mask, self.tokenizer.eos_token_id
            ),
            filtered=filtered,
            sampler_gap=gap,
        )
        exact = str(self.trainer.precision).startswith(("32", "64"))
        invariants.check(figures, invariants.FP32 if exact else invariants.BF16)
        invariants.logger.info("PPO's gate is passed: %s", figures)
        self.gate_passed = True

    # Logging ------------------------------------------------------------------------------------

    def log_objective(self, rollout: Rollout, scores: Tensor) -> None:
        """Log what PPO is after (means over the batch) and the shape of its rollouts."""
        kl = per_sequence(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask).mean()
        score = scores.mean()
        self.log_step({
            "objective/kl": kl,
            "objective/kl_k3": per_sequence(
                k3(rollout.logprobs, rollout.ref_logprobs), rollout.mask
            ).mean(),
            "objective/reward": score,
            "objective/rlhf_reward": score - self.kl_coef.beta * kl,
            "objective/entropy": masked_mean(rollout.entropy, rollout.mask),
            "objective/kl_coef": self.kl_coef.beta,
            "rollout/length": rollout.mask.sum(dim=1).float().mean(),
            "rollout/eos_rate": rollout.finished.float().mean(),
        })  # fmt: skip

    def throughput(self, rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
        """Give rollouts and response tokens a second of this step, on this rank."""
        total = sum(seconds.values())
        return {
            "perf/samples_per_s": len(rollout.responses) / total,
            "perf/tokens_per_s": float(rollout.mask.sum()) / total,
        }

    def log_step(self, values: dict[str, Any]) -> None:
        """Log scalars of this training step, averaged over ranks; reward and KL on the bar."""
        shown = ("objective/reward", "objective/kl")
        for name, value in values.items():
            self.log(name, value, on_step=True, prog_bar=name in shown, sync_dist=True)

    # Evaluation and checkpoints -----------------------------------------------------------------

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Generate with the policy, and with the reference for the comparison before and after."""
        output = super().test_step(batch, batch_idx)
        with reference_policy(self.model):
            output["predictions_before"] = self.generate(batch)
        return output

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the loop itself remembers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {"kl_coef": self.kl_coef.beta, "gate_passed": self.gate_passed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the loop where it was."""
        super().on_load_checkpoint(checkpoint)
        self.kl_coef.beta = checkpoint["ppo"]["kl_coef"]
        self.gate_passed = checkpoint["ppo"]["gate_passed"]

    def export(self, path: str | Path) -> None:
        """Write the policy's adapter; the reference and the value head stay behind."""
        self.model.save_pretrained(path, selected_adapters=["default"])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average [B, T] over the real tokens."""
    return (values * mask).sum() / mask.sum()
