"""BestOfN: sample several summaries and keep the best; nothing is trained."""

from collections.abc import Mapping
from itertools import combinations
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.batching import Batch
from lightning_modules.backbones import Decoding, Prompts, Sampling
from lightning_modules.in_context import InContext
from lightning_modules.policies.adapters import load_adapter
from lightning_modules.ppo.reward_terms import (
    RewardTerm,
    Texts,
    find_reward_problems,
    name_terms,
    weigh,
)
from metrics.rouge_scores import make_scorer


class BestOfN(InContext):
    """Best-of-n sampling by a reward, or minimum-Bayes-risk decoding without one.

    With a reward, the summary with the largest one is kept: the yardstick for what PPO gains at the
    same KL, which is at most log n - (n - 1) / n nats (Stiennon et al. 2020, arXiv 2009.01325;
    Beirami et al. 2024, arXiv 2401.01879) and logged as ``test/kl_bound``. Without one, the summary
    that agrees best with the others is kept, by its mean ROUGE-L (Kumar and Byrne 2004). A test
    compares it with the texts that ``decoding`` gives.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        adapter: Export folder of an adapter to sample from; None samples from the backbone.
        samples: n.
        reward_model: The classifier that scores summaries; see :class:`PPOPolicy`.
        reward_label: Label whose raw logit is the reward.
        reward_with_dialogue: Show it the dialogue too.
        extra_rewards: Further terms of the reward, by name.
        temperature: Divides the logits.
        decoding: How the summaries before are generated; ``max_new_tokens`` is also the longest
            sample.
        acceleration: See :class:`BaseModule`.

    Raises:
        ValueError: If ``samples`` is below 2.
    """

    def __init__(
        self,
        backbone: str,
        adapter: str | None = None,
        samples: int = 8,
        reward_model: str | None = None,
        reward_label: str = "nothate",
        reward_with_dialogue: bool | None = None,
        extra_rewards: Mapping[str, RewardTerm] | None = None,
        temperature: float = 1.0,
        decoding: Decoding | None = None,
        acceleration: bool = True,
    ) -> None:
        super().__init__(backbone, decoding, acceleration)
        if samples < 2 or not temperature > 0:
            raise ValueError(
                f"samples must be at least 2 and temperature above 0, got {samples}, {temperature}"
            )
        self.adapter = adapter
        self.samples = samples
        self.sampling = Sampling(self.decoding.max_new_tokens, temperature)
        self.terms: dict[str, RewardTerm] = {}
        if reward_model is not None or extra_rewards:
            self.terms = name_terms(reward_model, reward_label, reward_with_dialogue, extra_rewards)

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        return [*super().find_problems(init_args, trainer), *find_reward_problems(init_args)]

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Attach the adapter, if there is one, and freeze everything."""
        model: Any = backbone if self.adapter is None else load_adapter(backbone, self.adapter)
        for term in self.terms.values():
            term.load()
        return model.requires_grad_(False)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measure the loss, and return the best summaries and those of ordinary decoding."""
        found = super().test_step(batch, batch_idx)
        before = self.backbone.generate(batch, self.decoding)
        if self.terms:
            bound = torch.tensor(log(self.samples) - (self.samples - 1) / self.samples)
            self.log_mean("test/kl_bound", bound, len(before))
        return found | {"predictions_before": before}

    def generate(self, batch: Batch) -> list[str]:
        """Return the best of n sampled summaries for each row of a batch."""
        prompts = Prompts(batch["input_ids"], batch["attention_mask"])
        count = len(prompts.input_ids)
        owner = torch.arange(count, device=self.device).repeat_interleave(self.samples)
        with torch.no_grad():
            context = self.backbone.read(prompts).rows(owner)
            summaries = self.backbone.decode(self.backbone.sample(context, self.sampling).responses)
        groups = [summaries[i : i + self.samples] for i in range(0, len(owner), self.samples)]
        scores = self.score(groups, batch) if self.terms else consensus(groups)
        best = scores.argmax(dim=1).tolist()
        return [group[place] for group, place in zip(groups, best, strict=True)]

    def score(self, groups: list[list[str]], batch: Batch) -> Float[Tensor, "P n"]:
        """Return the reward of each summary; references are not shown to it."""
        summaries = [text for group in groups for text in group]
        dialogues = [text for text in batch["dialogues"] for _ in range(self.samples)]
        texts = Texts(summaries, dialogues, [[]] * len(summaries))
        scores = {name: term.score(texts, self.device) for name, term in self.terms.items()}
        return weigh(self.terms, scores).view(-1, self.samples)


def consensus(groups: list[list[str]]) -> Float[Tensor, "P n"]:
    """Return the mean ROUGE-L F1 of each summary with the others of its group."""
    scorer = make_scorer(["rougeL"])
    scores = torch.zeros(len(groups), len(groups[0]), dtype=torch.double)
    for row, group in zip(scores, groups, strict=True):
        for (i, one), (j, other) in combinations(enumerate(group), 2):
            # F1 is the same in both directions.
            row[[i, j]] += scorer.score(one, other)["rougeL"].fmeasure
    return (scores / (scores.shape[1] - 1)).float()
