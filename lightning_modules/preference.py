"""PreferenceModule: a policy trained on preferred completions, without a reward model."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.dpo import ComparisonBatch
from lightning_modules.backbones import Backbone, Prompts, Sampling
from lightning_modules.policies.gate import GateError, count_mask_errors, pass_gate
from lightning_modules.policies.kinds import LoRAPolicy, PolicyKind
from lightning_modules.policies.module import PolicyModule
from lightning_modules.preference_losses import LOSSES, Pairs

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
    reference; 0 for losses without one. ratios [N, T]: log pi - log pi_ref of each token, without
    gradient, 0 on padding. lengths [N]: tokens, EOS included. kl: KTO's z_0.
    """

    policy: Tensor
    reference: Tensor
    ratios: Tensor
    lengths: Tensor
    kl: Tensor | float = 0.0


class PreferenceModule(PolicyModule):
    """A policy trained to prefer the completions that people or scores preferred.

    With the default loss this is direct preference optimization (Rafailov et al. 2023, arXiv
    2305.18290): the policy's own log-probabilities stand for the reward, r(x, y) =
    beta (log pi(y | x) - log pi_ref(y | x)), and the loss is the pairwise loss of a reward model.
    The other losses are in ``preference_losses.py``. Policy kinds and references are those of PPO.
    All dialogues have the same total weight, however many pairs they have.

    Before the first update policy and reference are equal and all these rewards are 0; otherwise
    the run stops. Losses without a reference (slic, simpo, cpo, orpo) keep no second model in
    memory; a fully trained policy then has no summaries before training to compare with.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        adapter: Export folder of an adapter to start from; None starts a new one.
        policy: Which part of the backbone is trained.
        loss: Loss of a pair.
        beta: Strength of the constraint to the reference, or scale of the loss; None is the loss's
            default. With a reference, smaller values allow larger changes.
        margin: Lead that slic and simpo ask for; None is the loss's default.
        label_smoothing: sigmoid and robust: probability, below 0.5, that the preference of a pair
            is wrong; None is the loss's default.
        length_normalized: Take means over tokens in place of sums; simpo and orpo always do.
        sft_weight: Weight of the cross-entropy of preferred completions, a mean over their tokens,
            that is added to the loss; None is the loss's default.
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
        loss: Literal[
            "sigmoid", "robust", "hinge", "ipo", "kto", "slic", "simpo", "cpo", "orpo"
        ] = "sigmoid",
        beta: float | None = None,
        margin: float | None = None,
        label_smoothing: float | None = None,
        length_normalized: bool = False,
        sft_weight: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Literal["constant", "linear", "cosine"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone, policy, adapter, optimizer=optimizer, schedule=schedule, **kwargs
        )
        self.loss_name, self.loss = loss, LOSSES[loss]
        self.settings = choose_settings(loss, beta, margin, label_smoothing)
        if length_normalized and self.loss.per_token:
            raise ValueError(f"length_normalized would have no effect with the loss {loss}")
        self.per_token = length_normalized or self.loss.per_token
        self.sft_weight = self.loss.sft_weight if sft_weight is None else sft_weight
        if not self.sft_weight >= 0:
            raise ValueError(f"sft_weight must be 0 or more, got {sft_weight}")
        self.needs_reference = self.loss.needs_reference
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
        found = pass_gate(self.backbone, self.open_start, prompts, settings, 4, self.is_exact)
        difference = float(self.score(batch).ratios.abs().max())
        errors = count_mask_errors(batch["responses"], batch["mask"], self.backbone.eos_id)
        if errors or not difference <= START_TOLERANCE:
            raise GateError(
                "training stopped before its first update: on the given completions policy and "
                f"reference differ by {difference:.3g} nats on a token (at most "
                f"{START_TOLERANCE:g}), and the mask differs from y1..EOS in {errors} places"
            )
        self.gate_figures = found
        logger.info("%s", found.in_words())

    def sum_losses(self, batch: ComparisonBatch) -> tuple[Tensor, Tensor]:
        """Sum the losses, with weight 1 for each dialogue, and count the dialogues."""
        scores = self.score(batch)
        self._measured = self.measure(scores, batch)
        loss = self.compute_loss(scores, batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def open_start(self) -> AbstractContextManager[Backbone]:
        """Open the reference, or the policy itself if the loss needs no reference."""
        return self.open_reference() if self.needs_reference else nullcontext(self.backbone)

    def score(self, batch: ComparisonBatch) -> Scores:
        """Score the completions of a batch under the policy and under the reference."""
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        responses, mask = self.backbone.strip_prefix(batch["responses"], batch["mask"])
        owner, lengths = batch["owner"], mask.sum(dim=1)
        # KTO's z_0 is the mean log-ratio of completions to other prompts; 0 if there is none.
        other = (owner + 1) % len(batch["ids"])
        needs_kl = self.loss.needs_kl and len(batch["ids"]) > 1

        def logprobs(model: Backbone, context: Any, rows: Tensor) -> Tensor:
            return model.score(context.rows(rows), responses, mask).logprobs

        if not self.needs_reference:
            policy = logprobs(self.backbone, self.backbone.read(prompts), owner)
            nothing = torch.zeros_like(policy)
            return Scores(policy.sum(dim=1), nothing.sum(dim=1), nothing, lengths)
        with torch.no_grad(), self.open_reference() as start:
            context = start.read(prompts)
            reference = logprobs(start, context, owner)
            moved_reference = logprobs(start, context, other) if needs_kl else None
        if self.backbone.trains_context:
            context = self.backbone.read(prompts)
        policy = logprobs(self.backbone, context, owner)
        kl: Tensor | float = 0.0
        if moved_reference is not None:
            with torch.no_grad():
                moved = logprobs(self.backbone, context, other)
            kl = (moved - moved_reference).sum(dim=1).mean().clamp(min=0)
        ratios = policy.detach() - reference
        return Scores(policy.sum(dim=1), reference.sum(dim=1), ratios, lengths, kl)

    def sizes(self, scores: Scores) -> Tensor:
        """Return what log-probabilities are divided by, [N]: tokens, or 1 for sums."""
        return scores.lengths if self.per_token else torch.ones_like(scores.lengths)

    def compute_loss(self, scores: Scores, batch: ComparisonBatch) -> Tensor:
        """Sum the losses of a batch, with weight 1 for each dialogue: a scalar."""
        chosen, rejected = batch["pairs"].unbind(dim=1)
        sizes = self.sizes(scores)
        policy, reference = scores.policy / sizes, scores.reference / sizes
        pairs = Pairs(
            policy[chosen], policy[rejected], reference[chosen], reference[rejected], scores.kl
        )
        losses = self.loss.compute(pairs, **self.settings)
        if self.sft_weight:
            losses = losses - self.sft_weight * (scores.policy / scores.lengths)[chosen]
        return (batch["weights"] * losses).sum()

    def measure(self, scores: Scores, batch: ComparisonBatch) -> dict[str, Tensor]:
        """Compute rewards, accuracy and log-probabilities, as means over dialogues.

        Returns:
            The implicit rewards of preferred and rejected completions (without a reference, their
            scaled log-probabilities), their difference ``margin``, how often it is positive, and
            the policy's log-probabilities of both. If both log-probabilities fall, the policy
            learns what to avoid rather than what to say.
        """
        policy = scores.policy.detach()
        ratios = (policy - scores.reference) / self.sizes(scores)
        rewards = self.settings.get("beta", 1.0) * ratios
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
        return {"predictions": self.generate(batch), **self.before(batch, batch_idx)}

    def evaluate_pairs(self, batch: ComparisonBatch, stage: str) -> None:
        """Log loss, accuracy and margin of held-out pairs."""
        scores, count = self.score(batch), len(batch["ids"])
        found = self.measure(scores, batch)
        values = {
            "loss": self.compute_loss(scores, batch) / count,
            "accuracy": found["rewards/accuracy"],
            "margin": found["rewards/margin"],
        }
        for name, value in values.items():
            shown = f"{stage}/{name}" == "val/accuracy"
            self.log_mean(f"{stage}/{name}", value, count, add_dataloader_idx=False, prog_bar=shown)


def choose_settings(
    loss: str, beta: float | None, margin: float | None, label_smoothing: float | None
) -> dict[str, float]:
    """Return the settings of a loss: those that are given, otherwise its defaults.

    Raises:
        ValueError: If one is out of range or the loss has none of that name.
    """
    given = {"beta": beta, "margin": margin, "label_smoothing": label_smoothing}
    chosen = {name: value for name, value in given.items() if value is not None}
    known = LOSSES[loss].defaults()
    if idle := [name for name in chosen if name not in known]:
        raise ValueError(f"{', '.join(idle)} would have no effect with the loss {loss}")
    rules = {
        "beta": ("above 0", lambda x: x > 0),
        "margin": ("0 or more", lambda x: x >= 0),
        "label_smoothing": ("in [0, 0.5)", lambda x: 0 <= x < 0.5),
    }
    for name, value in chosen.items():
        rule, holds = rules[name]
        if not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value}")
    return known | chosen
