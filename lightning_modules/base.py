"""SummarizationModule: what prompting, tuning and PPO have in common."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, get_scheduler

from datamodules.batching import Batch
from lightning_modules.adapters import POLICY, count_parameters
from lightning_modules.backbones import find_precision_problem, load_backbone, load_tokenizer

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
"""Label of a position that is padding: it has no part in any loss."""


@dataclass(frozen=True)
class Decoding:
    """How summaries are generated for evaluation.

    Args:
        max_new_tokens: Longest summary, in tokens, EOS included.
        num_beams: Beams of the beam search; 1 is none.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits when sampling.
        top_k: Sample among the k likeliest tokens; 0 is among all.
        top_p: Sample among the likeliest tokens that hold this much probability; 1 is among all.

    Raises:
        ValueError: If a value is out of range, or a sampling setting is given without sampling.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {rule}, got {getattr(self, name)}"
            for name, rule, good in (
                ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
                ("num_beams", "at least 1", self.num_beams >= 1),
                (
                    "temperature",
                    "above 0 (for greedy decoding: do_sample false)",
                    self.temperature > 0,
                ),
                ("top_k", "0 or more", self.top_k >= 0),
                ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            )
            if not good
        ]
        if not self.do_sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            problems.append("temperature, top_k and top_p change nothing without do_sample: true")
        if problems:
            raise ValueError("decoding: " + "; ".join(problems))

    def arguments(self) -> dict[str, Any]:
        """Give the keyword arguments for ``generate``, the defaults of the model overruled.

        Unless told otherwise ``generate`` samples among the 50 likeliest tokens only and stops
        after 20: so all of them are always passed.
        """
        arguments = asdict(self)
        if not self.do_sample:
            for name in ("temperature", "top_k", "top_p"):
                del arguments[name]
        return arguments


class SummarizationModule(L.LightningModule):
    """An encoder-decoder that summarises dialogues; subclasses say what of it is trained.

    A subclass overrides :meth:`attach` (and little else). The backbone is loaded in
    ``configure_model``, once the Trainer has checked everything else, so that building the module
    costs nothing.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        optimizer: Builds the optimizer from the trained parameters.
        schedule: Course of the learning rate after the warm-up, over the whole fit.
        warmup_fraction: Share of the steps in which the learning rate rises from 0.
        decoding: How summaries are generated in validation, test and predict.
        dropout: Dropout rate in the backbone; None keeps the backbone's own.

    Raises:
        ValueError: If a setting is out of range.
    """

    needs_training: ClassVar[bool] = True
    """Whether the method is of use only once it was trained."""

    def __init__(
        self,
        backbone: str,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Literal["constant", "linear", "cosine"] = "linear",
        warmup_fraction: float = 0.0,
        decoding: Decoding | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.backbone_name = backbone
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_fraction = warmup_fraction
        self.decoding = decoding or Decoding()
        self.dropout = dropout
        # A checkpoint holds what is trained and nothing else: see on_save_checkpoint.
        self.strict_loading = False
        self.model: Any = None
        self.tokenizer: Any = None

    # What a subclass says -----------------------------------------------------------------------

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Make the model to train from the backbone; trained parameters need gradients."""
        raise NotImplementedError

    # Construction -------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse a precision in which the model cannot work."""
        if problem := find_precision_problem(self.trainer.precision):
            raise ValueError(problem)

    def configure_model(self) -> None:
        """Load the tokenizer and the backbone, and attach what is trained; does so once."""
        if self.model is not None:
            return
        self.tokenizer = load_tokenizer(self.backbone_name)
        self.model = self.attach(load_backbone(self.backbone_name, self.dropout))
        # from_pretrained leaves a model in eval mode and Lightning keeps modes as it finds them:
        # without this, dropout would never be on, nor gradient checkpointing.
        self.model.train()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the trained parameters, and its schedule by steps."""
        trainable, total = self.count_parameters()
        logger.info(
            "%s on %s trains %s of %s parameters (%.2f %%)",
            type(self).__name__, self.backbone_name, f"{trainable:,}", f"{total:,}",
            100 * trainable / total,
        )  # fmt: skip
        optimizer = self.optimizer(self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(
            self.schedule, optimizer, round(self.warmup_fraction * steps), steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the trained parameters in the groups that the optimizer takes."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def count_parameters(self) -> tuple[int, int]:
        """Count the parameters that are trained, and all that the model has."""
        return count_parameters(self.model)

    # Steps --------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take one step of teacher-forced cross-entropy."""
        loss_sum, tokens = self.token_loss(batch)
        self.log("train/loss", loss_sum.detach() / tokens, prog_bar=True, batch_size=int(tokens))
        # DDP averages the gradients of the ranks: times ranks, over all tokens, makes each token
        # count the same however the rows were dealt out.
        all_tokens = self.sum_over_ranks(tokens)
        loss = loss_sum * self.trainer.world_size / all_tokens
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"train/loss is {loss.item()} at step {self.global_step}, on rows "
                f"{', '.join(batch['ids'][:8])}; the last checkpoint is untouched. "
                "Try a lower learning rate, or precision 32-true"
            )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measure the loss and generate the summaries that callbacks score."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measure the loss and generate the summaries that callbacks score."""
        return self.evaluation_step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Generate a summary for each dialogue."""
        return self.generate(batch)

    def evaluation_step(self, batch: Batch, stage: Literal["val", "test"]) -> dict[str, Any]:
        """Give ``{"loss": scalar, "predictions": one text a row}`` and log ``<stage>/loss``.

        The loss is the mean over the reference's tokens, of all batches and ranks together.
        """
        loss_sum, tokens = self.token_loss(batch)
        loss = loss_sum / tokens
        self.log(f"{stage}/loss", loss, batch_size=int(tokens), sync_dist=True)
        return {"loss": loss, "predictions": self.generate(batch)}

    def token_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the labels that are no padding.

        Returns:
            The sum (nats, fp32 scalar) and the number of tokens in it (scalar).
        """
        labels = batch["labels"]
        output = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        )
        loss_sum = F.cross_entropy(
            output.logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        return loss_sum, (labels != IGNORED_LABEL).sum()

    @torch.no_grad()
    def generate(self, batch: Batch) -> list[str]:
        """Generate one summary for each row of a batch, with the settings of ``decoding``."""
        tokens = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **self.decoding.arguments(),
        )
        return self.decode(tokens)

    def decode(self, tokens: Tensor) -> list[str]:
        """Turn token ids [B, T] into texts, special tokens and outer white space left out."""
        texts = self.tokenizer.batch_decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks; without gradient."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.detach().clone(), reduce_op="sum")

    # What a run leaves --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trained weights: frozen ones are where the backbone's name says."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}
        checkpoint["alignsum"] = {"method": type(self).__name__, "backbone": self.backbone_name}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that is not of this method, backbone and shape.

        Raises:
            ValueError: If it belongs to another method or backbone, or lacks trained weights.
        """
        origin: Mapping[str, str] = checkpoint.get("alignsum", {})
        mine = {"method": type(self).__name__, "backbone": self.backbone_name}
        if dict(origin) != mine:
            raise ValueError(
                f"this checkpoint is of {dict(origin) or 'another program'}, this run is {mine}; a "
                "checkpoint resumes or tests its own run. To start from another run's result, "
                "name its export folder (model.backbone or model.adapter)"
            )
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        if differing := trained.symmetric_difference(checkpoint["state_dict"]):
            raise ValueError(
                f"the checkpoint and this model train different weights ({len(differing)} of them, "
                f"such as {min(differing)}); use the settings in the run folder's config.yaml"
            )

    def export(self, path: str | Path) -> None:
        """Write the model in the Hugging Face format, for a plain ``from_pretrained``.

        An adapter's folder holds the trained adapter alone and names its backbone; a whole model
        comes with its tokenizer.
        """
        if isinstance(self.model, PeftModel):
            # The adapters never touch the embeddings; PEFT would ask the hub whether they did.
            self.model.save_pretrained(
                path, selected_adapters=[POLICY], save_embedding_layers=False
            )
        else:
            self.model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)
