"""PPOPolicy: the loop of PPO over an encoder-decoder with adapters."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel

import hub
from datamodules.batching import Batch
from lightning_modules.adapters import (
    LoRASettings,
    attach_lora,
    attach_trained_lora,
    count_parameters,
    find_adapter_problem,
    reference_policy,
)
from lightning_modules.backbones import set_dropout
from lightning_modules.ppo import figures, invariants
from lightning_modules.ppo.advantages import gae, whiten
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.kl import KLCoefficient, k1, per_sequence
from lightning_modules.ppo.losses import policy_loss, value_loss
from lightning_modules.ppo.rewards import penalise_unfinished, shape_rewards
from lightning_modules.ppo.rollout import Prompts, Rollout, Sampling, roll_out, score_tokens
from lightning_modules.ppo.value_head import ValueHead
from lightning_modules.reward_model import RewardScorer, find_label_problem
from lightning_modules.summarization import Decoding, SummarizationModule

logger = logging.getLogger(__name__)

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
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_fraction: float = 0.0,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(
            backbone,
            decoding,
            optimizer=optimizer,
            schedule=schedule,
            warmup_fraction=warmup_fraction,
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

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List, before anything is loaded, what cannot work; None stands for what can."""
        judge = hub.resolve_model(init_args.reward_model, "classifier")
        problems = super().find_problems(init_args, trainer)
        problems.append(
            hub.find_model_problem(judge, "reward model")
            or find_label_problem(judge, init_args.reward_label)
        )
        if init_args.adapter is not None:
            problems.append(find_adapter_problem(init_args.adapter, init_args.backbone))
        if trainer.max_steps not in (-1, None):
            problems.append(
                "trainer.max_steps counts PPO's optimizer steps, many for each batch of rollouts; "
                "set trainer.max_epochs and trainer.limit_train_batches, which count batches"
            )
        if trainer.gradient_clip_val is not None or trainer.accumulate_grad_batches != 1:
            problems.append(
                "PPO takes its optimizer steps itself: in place of trainer.gradient_clip_val and "
                "trainer.accumulate_grad_batches set model.ppo.max_grad_norm and minibatch_size"
            )
        return problems

    # Construction -------------------------------------------------------------------------------

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Put the policy's adapter, and the reference's if there is one, on the backbone."""
        if self.adapter is None:
            shape = self.lora
            settings = LoRASettings(shape.r, shape.alpha, 0.0, shape.target_modules)
            model = attach_lora(backbone, settings)
        else:
            model = attach_trained_lora(backbone, self.adapter)
        set_dropout(model, 0.0)
        return model

    def configure_model(self) -> None:
        """Load backbone, adapters and reward model, and make the value head; does so once."""
        if self.model is not None:
            return
        super().configure_model()
        policy: Any = self.model
        self.value_head = ValueHead(policy.config.d_model)
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

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Roll out, score, shape the rewards, estimate advantages, and update in minibatches.

        Returns:
            What callbacks may watch, one value a rollout, [B]: kl (k1, nats), score, length.
        """
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        self.pass_gate(prompts)
        times = [time.perf_counter()]

        rollout, _ = roll_out(self.model, self.value_head, prompts, self.sampling)
        times.append(time.perf_counter())

        scores = self.score(rollout, batch["ids"])
        times.append(time.perf_counter())

        kl = k1(rollout.logprobs, rollout.ref_logprobs) * rollout.mask
        rewards = shape_rewards(scores, kl, rollout.mask, self.kl_coef.beta)
        if self.ppo.whiten_rewards:
            rewards = self.whiten(rewards, rollout.mask, keep_mean=True)

        advantages, returns = gae(
            rewards, rollout.values, rollout.mask, self.ppo.gamma, self.ppo.lam
        )
        losses = self.update(rollout, self.whiten(advantages, rollout.mask), returns)
        times.append(time.perf_counter())

        self.log_step(figures.objective(rollout, scores, self.kl_coef.beta))
        self.log_step(figures.estimates(rollout, advantages, returns))
        self.log_step(losses | figures.speed(rollout, times))
        sequence_kl = per_sequence(kl, rollout.mask)
        self.adapt_kl_coef(sequence_kl)
        return {"kl": sequence_kl, "score": scores, "length": rollout.mask.sum(dim=1)}

    @property
    def sampling(self) -> Sampling:
        """How rollouts are drawn."""
        return Sampling(self.ppo.max_new_tokens, self.ppo.temperature, self.tokenizer.eos_token_id)

    def pass_gate(self, prompts: Prompts) -> None:
        """Before the first update, measure what must hold then, and stop the run if it does not.

        Raises:
            GateError: With the figures.
        """
        if self.gate_passed:
            return
        few = prompts.rows(torch.arange(min(GATE_ROWS, len(prompts.input_ids)), device=self.device))
        found = invariants.measure(
            self.model, self.value_head, few, self.sampling, self.ppo.minibatch_size
        )
        exact = str(self.trainer.precision).startswith(("32", "64"))
        invariants.check(found, invariants.FP32 if exact else invariants.BF16)
        logger.info("PPO's gate is passed: %s", found)
        self.gate_passed = True

    def score(self, rollout: Rollout, ids: Sequence[str]) -> Tensor:
        """Give each response, as text and by itself, the reward model's raw logit: [B].

        Raises:
            FloatingPointError: If a score is not finite, with the text that got it.
        """
        padding = self.tokenizer.pad_token_id
        texts = self.decode(rollout.responses.masked_fill(~rollout.mask, padding))
        scores = self.scorer.logits(texts)
        if not torch.isfinite(scores).all():
            row = int((~torch.isfinite(scores)).nonzero()[0])
            raise FloatingPointError(
                f"the reward model gave {scores[row].item()} to the summary of {ids[row]}: "
                f"{texts[row]!r}; the last checkpoint is untouched"
            )
        return penalise_unfinished(scores, rollout.finished, self.ppo.unfinished_penalty)

    def whiten(self, values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
        """Whiten [B, T] over the real tokens of all ranks."""
        return whiten(values, mask, keep_mean, self.sum_over_ranks)

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, Any]:
        """Take a step for every minibatch of every epoch; give the means over tokens to log."""
        optimizer: Any = self.optimizers()
        names = ("policy/loss", "policy/ratio", "policy/clipfrac", "policy/approxkl", "val/loss")
        totals = torch.zeros(len(names) + 1, device=self.device)
        skipped = 0
        for rows in self.minibatches(len(advantages)):
            part = rollout.rows(rows)
            new = score_tokens(
                self.model, part.prompts, part.responses, self.ppo.temperature, self.value_head
            )
            policy = policy_loss(
                new.logprobs, part.logprobs, advantages[rows], part.mask, self.ppo.clip
            )
            value = value_loss(
                new.values, part.values, returns[rows], part.mask, self.ppo.value_clip
            )
            sums = torch.stack([*policy, value, part.mask.sum()]).detach()
            sums = self.sum_over_ranks(sums)
            totals += sums
            tokens = sums[-1]
            if sums[names.index("policy/ratio")] / tokens > self.ppo.ratio_guard:
                skipped += 1
                continue
            # DDP averages over ranks: times ranks, over all tokens, is the mean over all tokens.
            loss = (policy.loss + self.ppo.value_weight * value) * self.trainer.world_size / tokens
            self.step(optimizer, loss)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        means = dict(zip(names, totals[:-1] / totals[-1], strict=True))
        return {f"ppo/{name}": mean for name, mean in means.items()} | {
            "ppo/policy/skipped": float(skipped)
        }

    def minibatches(self, rows: int) -> Iterator[Tensor]:
        """Cut the rows into shuffled minibatches, anew in every epoch.

        Every rank cuts as many, since each is a step that all take together: as many as the fullest
        rank needs, but no more than the emptiest has rows.
        """
        most = least = rows
        if self.trainer.world_size > 1:
            count = torch.tensor(rows, device=self.device)
            most = int(self.trainer.strategy.reduce(count.clone(), reduce_op="max"))
            least = int(self.trainer.strategy.reduce(count.clone(), reduce_op="min"))
        parts = min(-(-most // self.ppo.minibatch_size), least)
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
        count = sequence_kl.new_tensor(len(sequence_kl))
        total, rows = self.sum_over_ranks(torch.stack([sequence_kl.sum(), count]))
        self.kl_coef.update(float(total / rows), int(rows))

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
