"""SummarizationModule: teacher forcing, generation and evaluation, shared by all methods."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.batching import IGNORED_LABEL, Batch
from lightning_modules.base import BaseModule


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


class SummarizationModule(BaseModule):
    """An encoder-decoder that summarises dialogues; subclasses say what of it is trained.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        decoding: How summaries are generated in validation, test and predict.
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    generates: ClassVar[bool] = True

    def __init__(self, backbone: str, decoding: Decoding | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.decoding = decoding or Decoding()

    def sum_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn by teacher forcing, each token of the references counting the same."""
        return self.token_loss(batch)

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
