"""The one interface through which every method talks to a language model.

A backbone reads prompts into a context, scores given responses, samples new ones, and generates
text. Nothing outside this package knows whether the model is an encoder-decoder or a decoder, how
it shifts labels, or where its output head is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers.generation import BaseStreamer

from lightning_modules.backbones.decoding import Decoding

ValueHead = Callable[[Tensor], Tensor]
"""Maps hidden states [..., d] to values [...]."""


class Prompts(NamedTuple):
    """Tokenized prompts: input_ids [P, S] and attention_mask [P, S], right-padded."""

    input_ids: Int[Tensor, "P S"]
    attention_mask: Int[Tensor, "P S"]

    def rows(self, index: Tensor) -> "Prompts":
        """Select rows, and trim the padding to the longest of them."""
        return Prompts(*select_rows(self.input_ids, self.attention_mask, index))


class Context(Protocol):
    """What a model has read of P prompts: encoder states, or a decoder's prompt and its cache."""

    def rows(self, index: Tensor) -> Any:
        """Select rows, one for each entry of ``index``; an entry may occur several times."""


class TokenScores(NamedTuple):
    """What a model says about given response tokens, each [B, T] and 0 outside the mask.

    logprobs: log pi(y_t) in nats, at the sampling temperature. entropy: entropy in nats of the
    distribution of y_t, without gradient. values: value of the state before y_t.
    """

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]


class Sampling(NamedTuple):
    """How responses are sampled: from the full distribution, at a temperature.

    max_new_tokens: longest response in tokens, EOS included. temperature: divides the logits.
    """

    max_new_tokens: int
    temperature: float = 1.0


class Samples(NamedTuple):
    """B sampled responses, each tensor [B, T].

    responses: token ids after the decoder's prefix, pad after EOS. logprobs, entropy, values: as in
    :class:`TokenScores`, from the cached passes in which the tokens were drawn.
    """

    responses: Int[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]


class Backbone(ABC):
    """A language model with its tokenizer, behind the calls that training needs.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def with_model(self, model: Any) -> Self:
        """Return the same backbone around another model, such as the reference policy."""
        other = copy(self)
        other.model = model
        return other

    @property
    def base(self) -> Any:
        """The transformers model itself; LoRA layers live in it, a soft prompt does not."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states that a value head reads."""
        return int(self.base.config.get_text_config(decoder=True).hidden_size)

    @cached_property
    def eos_id(self) -> int:
        """Token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def pad_id(self) -> int:
        """Token that fills rows up."""
        return int(self.tokenizer.pad_token_id)

    @abstractmethod
    def read(self, prompts: Prompts) -> Context:
        """Read P prompts once, with whatever adapter is active."""

    @abstractmethod
    def score(
        self,
        context: Any,
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        temperature: float = 1.0,
        value_head: ValueHead | None = None,
        with_entropy: bool = False,
    ) -> TokenScores:
        """Score given responses in one forward pass.

        Args:
            context: What the model has read, one row for each response.
            responses: Token ids after the decoder's prefix, [B, T].
            mask: True at y1..EOS, [B, T].
            temperature: Divides the logits, as in the sampler.
            value_head: Reads the last hidden states; without one the values are 0.
            with_entropy: Compute the entropy too; otherwise it is 0.
        """

    @abstractmethod
    def sample(
        self, context: Any, settings: Sampling, value_head: ValueHead | None = None
    ) -> Samples:
        """Sample one response for each row of a context from the full distribution."""

    @abstractmethod
    def token_loss(self, batch: Mapping[str, Any]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Sum the cross-entropy of the reference responses by teacher forcing.

        Returns:
            The sum in nats (fp32 scalar) and the number of tokens in it (scalar).
        """

    @abstractmethod
    def plain_distribution(
        self, prompts: Prompts, responses: Int[Tensor, "B T"], temperature: float = 1.0
    ) -> Float[Tensor, "B T V"]:
        """Return log pi(. | y_<t) by one call of the model, without the code of :meth:`score`."""

    @property
    @abstractmethod
    def reader(self) -> nn.Module:
        """The part of the model that reads a prompt: the encoder or, without one, the decoder."""

    @property
    def trains_context(self) -> bool:
        """Whether anything that :meth:`read` depends on is trained."""
        return self.has_soft_prompt or any(p.requires_grad for p in self.reader.parameters())

    @property
    def has_soft_prompt(self) -> bool:
        """Whether the active adapter is a soft prompt, which precedes what is read."""
        is_adapted = isinstance(self.model, PeftModel)
        return is_adapted and bool(self.model.active_peft_config.is_prompt_learning)

    def strip_prefix(
        self, responses: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Remove from tokenized responses what the decoder's prefix already contains."""
        return responses, mask

    @torch.no_grad()
    def generate(
        self, batch: Mapping[str, Any], decoding: Decoding, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """Generate one text for each row of a batch by the model's own ``generate``.

        The settings of ``decoding`` override the model's generation config. What else that config
        prescribes, such as ``forced_bos_token_id`` or ``suppress_tokens``, stays in effect. A
        streamer of transformers gets the tokens of a single row as they come, without beams.
        """
        tokens = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **self.generation_arguments,
            **decoding.arguments(),
            **({} if streamer is None else {"streamer": streamer}),  # beams refuse even None
        )
        return self.decode(tokens)

    @property
    def generation_arguments(self) -> dict[str, Any]:
        """Further arguments that ``generate`` needs to start as training does."""
        return {}

    def decode(self, tokens: Int[Tensor, "B T"]) -> list[str]:
        """Turn token ids into texts without special tokens and outer white space."""
        texts = self.tokenizer.batch_decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]


def select_rows(values: Tensor, mask: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Select rows of right-padded values [P, S, ...] and their mask, without needless padding."""
    mask = mask[index]
    width = int(mask.sum(dim=1).max())
    return values[index, :width], mask[:, :width]
