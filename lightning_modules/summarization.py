"""SummarizationModule: teacher forcing, generation and evaluation, shared by all methods."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.batching import IGNORED_LABEL, Batch
from lightning_modules.base import BaseModule

# Of ``Decoding``: what does nothing without sampling, and without beams.
_SAMPLING = ("temperature", "top_k", "top_p")
_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True)
class Decoding:
    """How summaries are generated for evaluation; the names are those of ``generate``.

    Greedy by default. ``num_beams`` above 1 is a beam search, ``do_sample`` is sampling, and both
    together sample the beams.

    Args:
        max_new_tokens: Longest summary, in tokens, EOS included.
        min_new_tokens: Shortest summary, in tokens, EOS left out.
        no_repeat_ngram_size: No sequence of so many tokens comes twice in a summary; 0 allows all.
        num_beams: Beams of the beam search; 1 is none.
        length_penalty: Beams are scored by their log-probability over length to this power: above
            0 the long ones gain, below 0 the short ones.
        early_stopping: Stop as soon as there are ``num_beams`` complete summaries.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits when sampling.
        top_k: Sample among the k likeliest tokens; 0 is among all.
        top_p: Sample among the likeliest tokens that hold this much probability; 1 is among all.

    Raises:
        ValueError: If a value is out of range, or a setting is given that would change nothing.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {rule}, got {getattr(self, name)}"
            for name, rule, good in (
                ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
                (
                    "min_new_tokens",
                    "from 0 to max_new_tokens",
                    0 <= self.min_new_tokens <= max(1, self.max_new_tokens),
                ),
                ("no_repeat_ngram_size", "0 or more", self.no_repeat_ngram_size >= 0),
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
        if not self.do_sample and (idle := self._changed(_SAMPLING)):
            problems.append(f"{idle} would change nothing without do_sample: true")
        if self.num_beams <= 1 and (idle := self._changed(_BEAMS)):
            problems.append(f"{idle} would change nothing without num_beams above 1")
        if problems:
            raise ValueError("decoding: " + "; ".join(problems))

    def _changed(self, names: Sequence[str]) -> str:
        """Name the settings that are not at their defaults."""
        return ", ".join(name for name in names if getattr(self, name) != getattr(Decoding, name))

    def arguments(self) -> dict[str, Any]:
        """Give the keyword arguments for ``generate``, the defaults of the model overruled.

        Unless told otherwise ``generate`` samples among the 50 likeliest tokens only, stops after
        20, and takes what else the backbone's ``generation_config.json`` says: so all settings
        that have a part in this decoding are always passed.
        """
        idle = {*(() if self.do_sample else _SAMPLING), *(() if self.num_beams > 1 else _BEAMS)}
        return {name: value for name, value in asdict(self).items() if name not in idle}


@contextmanager
def head_at(model: Any, places: Tensor) -> Iterator[None]:
    """Let a model compute its logits at some places only, as [N, V] in place of [B, T, V].

    Logits where a label is padding enter no loss; with a vocabulary of 32,128 they cost.

    Args:
        model: An encoder-decoder, bare or with an adapter.
        places: [N] int64, positions in the decoder's output flattened to [B * T].
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda head, inputs: (inputs[0].flatten(0, 1).index_select(0, places),)
    )
    try:
        yield
    finally:
        hook.remove()


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
        self.log_mean(f"{stage}/loss", loss, int(tokens))
        return {"loss": loss, "predictions": self.generate(batch)}

    def token_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the labels that are no padding.

        Returns:
            The sum (nats, fp32 scalar) and the number of tokens in it (scalar).
        """
        labels = batch["labels"].flatten()
        places = (labels != IGNORED_LABEL).nonzero().squeeze(1)
        with head_at(self.model, places):
            logits = self.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(batch["labels"]),
                use_cache=False,
            ).logits
        loss_sum = F.cross_entropy(logits.float(), labels[places], reduction="sum")
        return loss_sum, labels.new_tensor(len(places))

    def generate(self, batch: Batch, model: Any = None) -> list[str]:
        """Generate one summary for each row of a batch, with the settings of ``decoding``.

        Args:
            batch: The rows.
            model: Who generates; None is the model that is trained.
        """
        model = self.model if model is None else model
        return generate_texts(
            model, self.tokenizer, batch["input_ids"], batch["attention_mask"], self.decoding
        )

    def decode(self, tokens: Tensor) -> list[str]:
        """Turn token ids [B, T] into texts, special tokens and outer white space left out."""
        return decode_texts(self.tokenizer, tokens)


@torch.no_grad()
def generate_texts(
    model: Any, tokenizer: Any, input_ids: Tensor, attention_mask: Tensor, decoding: Decoding
) -> list[str]:
    """Generate a text for each of B prompts [B, S]."""
    tokens = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, **decoding.arguments()
    )
    return decode_texts(tokenizer, tokens)


def decode_texts(tokenizer: Any, tokens: Tensor) -> list[str]:
    """Turn token ids [B, T] into texts, special tokens and outer white space left out."""
    texts = tokenizer.batch_decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]
