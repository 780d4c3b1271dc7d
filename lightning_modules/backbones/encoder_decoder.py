"""EncoderDecoder: the backbone interface through an encoder-decoder's own forward pass.

Every logit comes from ``model(encoder_outputs=..., decoder_input_ids=...).logits``, so embedding
scales, output heads, soft-capping, logit biases and masks are the model's own.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from datamodules.batching import IGNORED_LABEL
from lightning_modules.backbones.interface import (
    Backbone,
    Prompts,
    Samples,
    Sampling,
    TokenScores,
    ValueHead,
    select_rows,
)
from lightning_modules.backbones.passes import forward_at, token_scores
from lightning_modules.backbones.plain import plain_distribution
from lightning_modules.backbones.sampling import sample_responses


class Encoded(NamedTuple):
    """Encoder output for P prompts: hidden [P, S, d] and attention_mask [P, S].

    S counts the virtual tokens of a soft prompt too, which precede the prompt's own. kind: class of
    the encoder's output, which some models look into (mixtures of experts).
    """

    hidden: Float[Tensor, "P S d"]
    attention_mask: Int[Tensor, "P S"]
    kind: type = BaseModelOutput

    def rows(self, index: Tensor) -> "Encoded":
        """Select rows, and trim the padding to the longest of them."""
        hidden, mask = select_rows(self.hidden, self.attention_mask, index)
        return self._replace(hidden=hidden, attention_mask=mask)


class EncoderDecoder(Backbone):
    """An encoder-decoder such as T5, BART or Marian; see :class:`Backbone`."""

    @cached_property
    def prefix(self) -> list[int]:
        """Tokens that the decoder reads before a response: the start token, and a forced BOS.

        ``forced_bos_token_id`` (the language token of mBART-50, M2M100 and NLLB, ``<s>`` of
        bart-large-cnn) is not a choice of the policy. It therefore belongs to the prefix, where
        sampler and scorer read it and neither scores it.
        """
        forced = self.base.generation_config.forced_bos_token_id
        return [self.start_id] if forced is None else [self.start_id, int(forced)]

    @cached_property
    def start_id(self) -> int:
        """Token that every decoder input starts with, in supervised training and sampling alike.

        The config's ``decoder_start_token_id`` or, without one, what the model's own label shift
        puts in front (T5Gemma: BOS; mBART: the last token of the target, which is EOS).

        Raises:
            ValueError: If the model says neither.
        """
        for config in (self.base.generation_config, self.base.config):
            if (token := getattr(config, "decoder_start_token_id", None)) is not None:
                return int(token)
        shift = getattr(self.base, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            raise ValueError(
                f"{type(self.base).__name__} has no decoder_start_token_id; add it to the model's "
                "generation_config.json"
            )
        return int(shift(torch.tensor([[self.eos_id]], device=self.base.device))[0, 0])

    @property
    def generation_arguments(self) -> dict[str, Any]:
        """Start every generated text from the token that training starts from."""
        return {"decoder_start_token_id": self.start_id}

    @property
    def reader(self) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = self.base.get_encoder()
        return encoder

    def read(self, prompts: Prompts) -> Encoded:
        """Run the encoder once for each prompt."""
        ids, mask = prompts
        if self.has_soft_prompt:
            virtual = self.model.active_peft_config.num_virtual_tokens
            embedded = self.base.get_input_embeddings()(ids)
            start = self.model.get_prompt(len(ids))[:, :virtual].to(embedded.dtype)
            mask = torch.cat([mask.new_ones(start.shape[:2]), mask], dim=1)
            inputs = {"inputs_embeds": torch.cat([start, embedded], dim=1)}
        else:
            inputs = {"input_ids": ids}
        output = self.reader(**inputs, attention_mask=mask, return_dict=True)
        return Encoded(output.last_hidden_state, mask, type(output))

    def score(
        self,
        context: Encoded,
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        temperature: float = 1.0,
        value_head: ValueHead | None = None,
        with_entropy: bool = False,
    ) -> TokenScores:
        """Score given responses in one decoder pass, with the softmax in fp32."""
        before = responses.new_tensor(self.prefix).expand(len(responses), -1)
        inputs = torch.cat([before, responses[:, :-1]], dim=1)
        places = F.pad(mask, (len(self.prefix) - 1, 0))
        logits, hidden = self._decode(context, inputs, places)
        return token_scores(logits, hidden, responses, mask, temperature, value_head, with_entropy)

    @torch.no_grad()
    def sample(
        self, context: Encoded, settings: Sampling, value_head: ValueHead | None = None
    ) -> Samples:
        """Sample one response for each row of a context from the full distribution."""
        decoder = CachedDecoder(self, context)
        *before, last = (
            context.attention_mask.new_full((len(context.hidden),), t) for t in self.prefix
        )
        for tokens in before:
            decoder.step(tokens)
        never = None if self.pad_is_token else self.pad_id
        return sample_responses(
            decoder, last, settings, self.eos_id, self.pad_id, value_head, never
        )

    def token_loss(self, batch: Mapping[str, Any]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Sum the cross-entropy over the labels that are not padding.

        The decoder reads [start, y1..y_{n-1}] for every architecture, as in sampling. mBART's own
        shift rule agrees where targets end with the start token, its language token.
        """
        labels = batch["labels"]
        places = labels != IGNORED_LABEL
        start = torch.full_like(labels[:, :1], self.start_id)
        filled = labels.masked_fill(~places, self.pad_id)
        inputs = torch.cat([start, filled[:, :-1]], dim=1)
        context = self.read(Prompts(batch["input_ids"], batch["attention_mask"]))
        logits, _ = self._decode(context, inputs, places)
        loss_sum = F.cross_entropy(logits.float(), labels[places], reduction="sum")
        return loss_sum, places.sum()

    def plain_distribution(
        self, prompts: Prompts, responses: Int[Tensor, "B T"], temperature: float = 1.0
    ) -> Float[Tensor, "B T V"]:
        """Return log pi(. | y_<t) by one call of the model, without the code of :meth:`score`."""
        return plain_distribution(self.model, prompts, responses, self.prefix, temperature)

    def strip_prefix(
        self, responses: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Remove a forced BOS that the tokenizer put in front of every response."""
        forced = self.prefix[1:]
        if forced and bool((responses[:, 0] == forced[0]).all()):
            return responses[:, 1:], mask[:, 1:]
        return responses, mask

    @cached_property
    @torch.no_grad()
    def pad_is_token(self) -> bool:
        """Whether a sampled pad token is read like any other token.

        It is in T5, BART and Marian. M2M100's positions and T5Gemma's default mask skip padding in
        a full pass and not over a cache, so that no response with a pad inside has one well-defined
        probability; there the sampler draws again.
        """
        device = self.base.device
        prompts = Prompts(*torch.full((2, 1, 4), self.eos_id, device=device))
        context = self.read(Prompts(prompts.input_ids, torch.ones_like(prompts.input_ids)))
        tokens = torch.tensor([[*self.prefix, self.pad_id, self.eos_id]], device=device)
        whole, _ = self._decode(context, tokens, torch.ones_like(tokens).bool())
        decoder = CachedDecoder(self, context)
        last = [decoder.step(token)[0] for token in tokens.T][-1]
        scale = float(whole.abs().max())
        return bool((whole[-1:] - last).abs().max() <= 1e-3 * max(scale, 1.0))

    def _decode(
        self, context: Encoded, inputs: Tensor, places: Tensor, cache: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model's forward pass after its encoder.

        Args:
            context: Encoder output, one row for each row of ``inputs``.
            inputs: Decoder input ids, [B, T].
            places: True where logits and hidden states are wanted, N of them, [B, T].
            cache: Keys and values of the tokens before, extended in place; None is without.

        Returns:
            Logits [N, V] and last hidden states [N, d].
        """
        # A decoder that is itself a language model (EncoderDecoderModel) keeps a body inside.
        decoder = self.base.get_decoder()
        body = getattr(decoder, "base_model", decoder)
        return forward_at(
            self.base,
            body,
            places,
            encoder_outputs=context.kind(last_hidden_state=context.hidden),
            attention_mask=context.attention_mask,
            decoder_input_ids=inputs,
            past_key_values=cache,
            use_cache=cache is not None,
        )


class CachedDecoder:
    """Decodes one token at a time, by the model's own forward pass and cache.

    Args:
        backbone: The model.
        context: Encoder output, one row for each response.
    """

    def __init__(self, backbone: EncoderDecoder, context: Encoded) -> None:
        self.backbone = backbone
        self.context = context
        # Built here because some models build none themselves in training mode.
        config = backbone.base.config.get_text_config(decoder=True)
        # Cross-attention sees the whole prompt even where self-attention has a sliding window.
        self.cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache())

    def step(self, tokens: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Read one token of each row; return logits [B, V] and hidden states [B, d]."""
        places = torch.ones_like(tokens[:, None], dtype=torch.bool)
        return self.backbone._decode(self.context, tokens[:, None], places, self.cache)

    def keep(self, rows: Tensor) -> None:
        """Continue with some of the rows only."""
        self.cache.batch_select_indices(rows)
        hidden, mask = self.context.hidden[rows], self.context.attention_mask[rows]
        self.context = self.context._replace(hidden=hidden, attention_mask=mask)
