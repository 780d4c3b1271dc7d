"""DPO: a policy trained on preferred completions directly, without a reward model."""

import logging
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.dpo import ComparisonBatch
from lightning_modules.backbones import Prompts, Sampling
from lightning_modules.policies.gate import GateError, count_mask_errors, pass_gate
from lightning_modules.policies.kinds import LoRAPolicy, PolicyKind
from lightning_modules.policies.module import PolicyModule
from lightning_modules.preference_losses import dpo_loss

logger = logging.getLogger(__name__)

GATE_TOKENS = 16
"""Longest response that the gate samples."""

START_TOLERANCE = 1e-4
"""Largest difference of a token's log-probability between policy and reference at the start."""

MEASURES = (
    "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy",
    "logps/chosen", "logps/rejected",
)  # fmt: skip
"""Metrics of a training batch, each a mean over its dialogues."""


class Scores(NamedTuple):
    """Log-probabilities of N completions, nats.

    policy [N]: under the policy, summed over the tokens, with gradient. reference [N]: under the
    reference. ratios [N, T]: log pi - log pi_ref of each token, without gradient, 0 on padding.
    """

    policy: Tensor
    reference: Tensor
    ratios: Tensor


class DPO(PolicyModule):
    """A policy trained to prefer the completions that people or scores preferred.

    Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): the policy's own
    log-probabilities stand for the reward, r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)), and
    the loss is the pairwise loss of a reward model. Policy kinds and references are those of PPO.
    All dialogues have the same total weight, however many pairs they have.

    Before the first update policy and reference are equal and all these rewards are 0; otherwise
    the run stops.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        adapter: Export folder of an adapter to start from; None starts a new one.
        policy: Which part of the backbone is trained.
        beta: Strength of the constraint to the reference; smaller values allow larger changes.
        label_smoothing: Probability, below 0.5, that the preference of a pair is wrong.
        optimizer: Builds the optimizer from the trained parameters.
        schedule: Schedule of the learning rate after the warm-up.
        **kwargs: See :class:`PolicyModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit the backbone.
    """

    def __init__(
        self,
        backbone: str,
        adapter: str | None = None,
        policy: PolicyKind = LoRAPolicy(),  # noqa: B008 - never changed
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Literal["constant", "linear", "cosine"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone, policy, adapter, optimizer=optimizer, schedule=schedule, **kwargs
        )
        if not beta > 0 or not 0 <= label_smoothing < 0.5:
            raise ValueError(
                "beta must be above 0 and label_smoothing in [0, 0.5), "
                f"got {beta} and {label_smoothing}"
            )
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.gate_passed = False
        self._measured: dict[str, Tensor] = {}

    # One training step: gate, scores, loss ------------------------------------------------------

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Any:
        """Pass the gate before the first update, compute the loss and log what it consists of."""
        if self.global_step == 0 and not self.gate_passed:
            with self.gathered(), torch.no_grad():
                if batch["ids"]:
                    self.pass_gate(batch)
            self.gate_passed = True
        one = torch.ones((), device=self.device)
        self._measured = dict.fromkeys(MEASURES, 0 * one)
        loss = super().training_step(batch, batch_idx)
        # Weighted by dialogues: ranks have different numbers of them, and may have none.
        sums = torch.stack([*self._measured.values(), one]) * len(batch["ids"])
        *totals, count = self.sum_over_ranks(sums)
        for name, total in zip(MEASURES, totals, strict=True):
            self.log(name, total / count, on_step=True, on_epoch=False, batch_size=1)
        return loss

    def pass_gate(self, batch: ComparisonBatch) -> None:
        """Check policy and reference on sampled and on given completions.

        Raises:
            GateError: If policy and reference differ, or scores are not the model's own.
        """
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        settings = Sampling(min(GATE_TOKENS, self.decoding.max_new_tokens))
        found = pass_gate(self.backbone, self.open_reference, prompts, settings, 4, self.is_exact)
        difference = float(self.score(batch).ratios.abs().max())
        errors = count_mask_errors(batch["responses"], batch["mask"], self.backbone.eos_id)
        if errors or not difference <= START_TOLERANCE:
            raise GateError(
                "DPO stopped before its first update: on the given completions policy and "
                f"reference differ by {difference:.3g} nats on a token (at most "
                f"{START_TOLERANCE:g}), and the mask differs from y1..EOS in {errors} places"
            )
        logger.info("%s", found.in_words())

    def sum_losses(self, batch: ComparisonBatch) -> tuple[Tensor, Tensor]:
        """Sum the losses, with weight 1 for each dialogue, and count the dialogues."""
        scores = self.score(batch)
        self._measured = self.measure(scores, batch)
        loss = self.loss(scores, batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def score(self, batch: ComparisonBatch) -> Scores:
        """Score the completions of a batch under the policy and under the reference."""
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        responses, mask = self.backbone.strip_prefix(batch["responses"], batch["mask"])
        with torch.no_grad(), self.open_reference() as start:
            context = start.read(prompts)
            reference = start.score(context.rows(batch["owner"]), responses, mask).logprobs
        if self.backbone.trains_context:
            context = self.backbone.read(prompts)
        policy = self.backbone.score(context.rows(batch["owner"]), responses, mask).logprobs
        return Scores(policy.sum(dim=1), reference.sum(dim=1), policy.detach() - reference)

    def loss(self, scores: Scores, batch: ComparisonBatch) -> Tensor:
        """Sum the losses of a batch, with weight 1 for each dialogue: a scalar."""
        return dpo_loss(
            scores.policy - scores.reference, batch["pairs"], batch["weights"], self.beta,
            self.label_smoothing,
        )  # fmt: skip

    def measure(self, scores: Scores, batch: ComparisonBatch) -> dict[str, Tensor]:
        """Compute rewards, accuracy and log-probabilities, as means over dialogues.

        Returns:
            The implicit rewards of preferred and rejected completions, their difference ``margin``,
            how often it is positive, and the policy's log-probabilities of both. If both
            log-probabilities fall, the policy learns what to avoid rather than what to say.
        """
        policy = scores.policy.detach()
        rewards = self.beta * (policy - scores.reference)
        chosen, rejected = batch["pairs"].unbind(dim=1)
        lead = rewards[chosen] - rewards[rejected]
        # A tie counts as half, the expected accuracy of a coin.
        right = (lead > 0).float() + 0.5 * (lead == 0).float()
        values = (
            rewards[chosen], rewards[rejected], lead, right, policy[chosen], policy[rejected]
        )  # fmt: skip
        count = len(batch["ids"])
        return {
            name: (batch["weights"] * value).sum() / count
            for name, value in zip(MEASURES, values, strict=True)
        }

    # Evaluation ---------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Evaluate a batch of pairs, or generate for a batch of dialogues."""
        if "pairs" in batch:
            return self.evaluate_pairs(batch, "val")
        return {"predictions": self.generate(batch)}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Evaluate a batch of pairs, or generate before and after for a batch of dialogues."""
        if "pairs" in batch:
            return self.evaluate_pairs(batch, "test")
        return {
            "predictions": self.generate(batch),
            "predictions_before": self.generate_before(batch, batch_idx),
        }

    def evaluate_pairs(self, batch: ComparisonBatch, stage: str) -> None:
        """Log loss, accuracy and margin of held-out pairs."""
        scores, count = self.score(batch), len(batch["ids"])
        found = self.measure(scores, batch)
        values = {
            "loss": self.loss(scores, batch) / count,
            "accuracy": found["rewards/accuracy"],
            "margin": found["rewards/margin"],
        }
        for name, value in values.items():
            shown = f"{stage}/{name}" == "val/accuracy"
            self.log_mean(f"{stage}/{name}", value, count, add_dataloader_idx=False, prog_bar=shown)
