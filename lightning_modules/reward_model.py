"""RewardModel: a classifier with one output, trained on rankings."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.preferences import Format, PreferenceBatch
from lightning_modules.encoder import EncoderModule
from lightning_modules.preference_losses import pairwise_loss
from lightning_modules.reward_scorer import FORMAT


class RewardModel(EncoderModule):
    """A classifier with one output, trained so that preferred completions score higher.

    The pairwise loss of Bradley and Terry, -log sigmoid(r_j - r_k) for y_j preferred to y_k
    (Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
    equation 1). All pairs of a ranking come from one forward pass over its completions, and their
    weights sum to 1, so that long rankings do not dominate.

    Completions are scored alone or with their dialogue, as the data module provides them. The
    export records which, so that PPO does the same. If the data module has reference summaries,
    their mean reward in exports and tests is 0.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``.
        margin: Difference of rewards to aim at, per rank between two completions: the loss is
            -log sigmoid(r_j - r_k - margin * distance).
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, backbone: str, margin: float = 0.0, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if margin < 0:
            raise ValueError(f"margin must be 0 or more, got {margin}")
        self.margin = margin

    def head_config(self) -> dict[str, Any]:
        """Ask for one output."""
        return {"num_labels": 1}

    def scores(self, batch: PreferenceBatch) -> Tensor:
        """Compute the rewards of all completions of a batch of rankings: fp32 [N]."""
        return super().scores(batch).squeeze(-1)

    def loss(self, scores: Tensor, batch: PreferenceBatch) -> Tensor:
        """Sum the pairwise losses of a batch, with weight 1 for each ranking: a scalar."""
        return pairwise_loss(
            scores, batch["pairs"], batch["weights"], batch["distances"], self.margin
        )

    def outputs(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Any]:
        """Return "rewards": one list per ranking."""
        sizes = [len(ranking.completions) for ranking in batch["rankings"]]
        return {"rewards": [part.tolist() for part in scores.split(sizes)]}

    def on_test_start(self) -> None:
        """Shift the rewards of a checkpoint as an export shifts them."""
        super().on_test_start()
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> dict[str, float]:
        """Shift the rewards so that the data module's references, if any, have a mean of 0.

        Only differences of rewards are trained, so their level is arbitrary (Stiennon et al. 2020,
        "Learning to summarize from human feedback", arXiv 2009.01325, appendix B.1).

        Returns:
            The number of "references", their "mean_before" and the "std" of their rewards.

        Raises:
            ValueError: If the model's output layer has no bias.
        """
        data: Any = getattr(self.attached_trainer, "datamodule", None)
        batches = list(data.reference_batches()) if hasattr(data, "reference_batches") else []
        if not batches:
            return {}
        layers = [part for part in self.model.modules() if isinstance(part, nn.Linear)]
        if (bias := layers[-1].bias) is None:
            raise ValueError(
                f"{type(self.model).__name__} has no output bias to shift; set data.references to "
                "null, or use an encoder such as roberta-base"
            )
        was_training = self.model.training
        self.model.eval()
        with self.gathered(), torch.autocast(self.device.type, enabled=False):
            inputs = [{name: v.to(self.device) for name, v in each.items()} for each in batches]
            rewards = torch.cat([self.model(**each).logits.squeeze(-1) for each in inputs]).double()
        self.model.train(was_training)
        mean, std = float(rewards.mean()), float(rewards.std(unbiased=False))
        bias.sub_(mean)
        return {"references": len(rewards), "mean_before": mean, "std": std}

    def export(self, path: str | Path) -> dict[str, Any]:
        """Write the shifted model; its config records the expected input and the scale.

        Returns:
            That record under "reward", for the run's summary.
        """
        about: dict[str, Any] = {}
        data = getattr(self.attached_trainer, "datamodule", None)
        if (asked := getattr(data, "format", None)) is not None:
            about = Format(*asked)._asdict()
            self.tokenizer.model_max_length = about["max_length"]
        about |= self.normalize()
        setattr(self.model.config, FORMAT, about)
        super().export(path)
        return {"reward": about}
