"""DecoderOnly: the backbone interface through a decoder-only model's own forward pass.

Prompt and response share one row. A prompt is read up to its last token; the response is decoded
after [last, y1..y_{n-1}], either over the keys and values of the prompt, which all responses to it
share, or in one pass over the whole row. Both are the same function.
"""

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer
from transformers.generation import BaseStreamer

from datamodules.batching import IGNORED_LABEL
from lightning_modules.backbones.decoding import Decoding
from lightning_modules.backbones.interface import (
    Backbone,
    Prompts,
    Samples,
    Sampling,
    TokenScores,
    ValueHead,
)
from lightning_modules.backbones.passes import forward_at, token_scores
from lightning_modules.backbones.sampling import sample_responses


class Prefix(NamedTuple):
    """P prompts up to their last tokens, left-padded, so that responses follow without a gap.

    inputs [P, S]: token ids or, with a soft prompt, embeddings [P, S, d] of its virtual tokens and
    the prompt's. mask [P, S]: 0 on padding. last [P]: the last token of each prompt. cache: keys
    and values of the inputs; None where whole rows are passed instead.
    """

    inputs: Tensor
    mask: Int[Tensor, "P S"]
    last: Int[Tensor, " P"]
    cache: DynamicCache | None = None

    def rows(self, index: Tensor) -> "Prefix":
        """Select rows; without a cache, trim the padding to the longest of them."""
        inputs, mask, last, cache = self.inputs[index], self.mask[index], self.last[index], None
        if self.cache is not None:
            cache = _fork(self.cache)
            cache.batch_select_indices(index)
        else:
            start = mask.shape[1] - int(mask.sum(dim=1).max())
            inputs, mask = inputs[:, start:], mask[:, start:]
        return Prefix(inputs, mask, last, cache)


class DecoderOnly(Backbone):
    """A decoder-only language model such as Llama, GPT-2 or Gemma 3; see :class:`Backbone`.

    The tokenizer's EOS ends a response, in training, sampling and generation alike.
    """

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states that the output head and a value head read."""
        return int(self.base.get_output_embeddings().weight.shape[-1])

    @property
    def reader(self) -> nn.Module:
        """The decoder without its output head."""
        return find_decoder(self.base)

    def read(self, prompts: Prompts) -> Prefix:
        """Read each prompt once, and keep its keys and values for all of its responses."""
        prefix, shares = self._split(prompts), self.caches_exactly
        for part in self.base.modules():
            # A layer that is computed again for the backward pass would extend a cache twice. FSDP
            # gathers its weights for that pass by a hook on its output, which a cache bypasses.
            recomputes = self.base.training and getattr(part, "gradient_checkpointing", False)
            bypasses = torch.is_grad_enabled() and isinstance(part, FSDPModule)
            shares = shares and not (recomputes or bypasses)
        return self._read(prefix) if shares else prefix

    def score(
        self,
        context: Prefix,
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        temperature: float = 1.0,
        value_head: ValueHead | None = None,
        with_entropy: bool = False,
    ) -> TokenScores:
        """Score given responses in one pass, with the softmax in fp32."""
        inputs = torch.cat([context.last[:, None], responses[:, :-1]], dim=1)
        if context.cache is not None:
            context = context._replace(cache=_fork(context.cache))
        logits, hidden = self._decode(context, inputs, mask)
        return token_scores(logits, hidden, responses, mask, temperature, value_head, with_entropy)

    @torch.no_grad()
    def sample(
        self, context: Prefix, settings: Sampling, value_head: ValueHead | None = None
    ) -> Samples:
        """Sample one response for each row of a context from the full distribution."""
        return sample_responses(
            _Decoder(self, context), context.last, settings, self.eos_id, self.pad_id, value_head
        )

    def token_loss(self, batch: Mapping[str, Any]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Sum the cross-entropy over the labels that are not padding; prompts have no loss."""
        labels = batch["labels"]
        places = labels != IGNORED_LABEL
        prefix = self._split(Prompts(batch["input_ids"], batch["attention_mask"]))
        before = labels.masked_fill(~places, self.pad_id)[:, :-1]
        inputs = torch.cat([prefix.last[:, None], before], dim=1)
        logits, _ = self._decode(prefix, inputs, places)
        return F.cross_entropy(logits.float(), labels[places], reduction="sum"), places.sum()

    @torch.no_grad()
    def generate(
        self, batch: Mapping[str, Any], decoding: Decoding, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """Generate one text for each row of a batch by the model's own ``generate``.

        Prompts are left-padded, with positions from the mask. See :meth:`Backbone.generate` for
        the settings.
        """
        if not self.caches_exactly and len(batch["input_ids"]) > 1:
            # Left padding would enter a memory that is not keys and values.
            rows = zip(batch["input_ids"].split(1), batch["attention_mask"].split(1), strict=True)
            parts = [{"input_ids": ids, "attention_mask": mask} for ids, mask in rows]
            return [text for part in parts for text in self.generate(part, decoding)]
        prefix = self._split(Prompts(batch["input_ids"], batch["attention_mask"]))
        row = self._append(prefix, prefix.last[:, None])
        inputs, mask = row.inputs, row.mask
        name = "input_ids" if inputs.dim() == 2 else "inputs_embeds"
        tokens = self.base.generate(
            **{name: inputs}, attention_mask=mask, eos_token_id=self.eos_id,
            pad_token_id=self.pad_id, **decoding.arguments(),
            **({} if streamer is None else {"streamer": streamer}),
        )  # fmt: skip
        # Given embeddings, it returns the new tokens only.
        return self.decode(tokens[:, inputs.shape[1] :] if name == "input_ids" else tokens)

    @torch.no_grad()
    def plain_distribution(
        self, prompts: Prompts, responses: Int[Tensor, "B T"], temperature: float = 1.0
    ) -> Float[Tensor, "B T V"]:
        """Return log pi(. | y_<t) by a call of the model for each row, without any padding."""
        found = []
        rows = zip(*prompts, responses, strict=True)
        for prompt, real, response in rows:
            row = torch.cat([prompt[real.bool()], response[:-1]])[None]
            logits = self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            found.append(logits[0, -len(response) :].float() / temperature)
        return torch.stack(found).log_softmax(dim=-1)

    @cached_property
    @torch.no_grad()
    def caches_exactly(self) -> bool:
        """Whether cached passes differ from whole ones by rounding only, 1e-3 of the logits.

        Models with another kind of memory than keys and values pass whole rows instead.
        """
        if "past_key_values" not in signature(self.base.forward).parameters:
            return False
        layers = DynamicCache(config=self.base.config).layers
        for layer in layers:
            # A layer may have another memory beside its keys and values (Falcon H1).
            if not isinstance(layer, DynamicLayer) or isinstance(layer, LinearAttentionLayer):
                return False
        device = self.base.device
        tokens = torch.tensor([[self.eos_id, self.pad_id, self.eos_id]], device=device)
        prompts = Prompts(tokens.expand(2, -1), torch.tensor([[1, 1, 0], [1, 1, 1]], device=device))
        prefix, places = self._split(prompts), torch.ones(2, 3, dtype=torch.bool, device=device)
        inputs = tokens.expand(2, -1)
        training = self.base.training
        self.base.eval()  # dropout is no difference between the two
        with torch.autocast(device.type, enabled=False):
            whole, _ = self._decode(prefix, inputs, places)
            cached, _ = self._decode(self._read(prefix), inputs, places)
        self.base.train(training)
        scale = max(float(whole.abs().max()), 1.0)
        return bool((whole - cached).abs().max() <= 1e-3 * scale)

    def _split(self, prompts: Prompts) -> Prefix:
        """Left-pad prompts, set their last tokens apart, and put a soft prompt before them."""
        ids, mask = _pad(*prompts, "left")
        start = mask.shape[1] - int(mask.sum(dim=1).max())
        inputs, mask, last = ids[:, start:-1], mask[:, start:-1], ids[:, -1]
        if self.has_soft_prompt:
            embedded = self.base.get_input_embeddings()(inputs)
            virtual = self.model.get_prompt(len(ids)).to(embedded.dtype)
            mask = torch.cat([mask.new_ones(virtual.shape[:2]), mask], dim=1)
            inputs, mask = _pad(torch.cat([virtual, embedded], dim=1), mask, "left")
        return Prefix(inputs, mask, last)

    def _read(self, prefix: Prefix) -> Prefix:
        """Compute the keys and values of a prefix."""
        cache = DynamicCache(config=self.base.config)
        if prefix.mask.numel():
            nowhere = torch.zeros_like(prefix.mask, dtype=torch.bool)
            self._forward(prefix.inputs, prefix.mask, nowhere, cache)
        return prefix._replace(cache=cache)

    def _decode(self, prefix: Prefix, inputs: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Pass tokens after a prefix; a cache of it is extended in place.

        Args:
            prefix: What comes before, one row for each row of ``inputs``.
            inputs: Token ids, [B, T].
            places: True where logits and hidden states are wanted, N of them, [B, T].

        Returns:
            Logits [N, V] and last hidden states [N, d].
        """
        if prefix.cache is not None:
            mask = torch.cat([prefix.mask, torch.ones_like(inputs)], dim=1)
            return self._forward(inputs, mask, places, prefix.cache)
        row = self._append(prefix, inputs)
        places = F.pad(places, (prefix.mask.shape[1], 0))
        # Padding that comes last is right for every causal model, whatever its positions.
        inputs, mask = _pad(row.inputs, row.mask, "right")
        places, _ = _pad(places, row.mask, "right")
        return self._forward(inputs, mask, places)

    def _append(self, prefix: Prefix, tokens: Int[Tensor, "B T"]) -> Prefix:
        """Append tokens to a prefix: to its mask, and to its inputs unless a cache has them."""
        mask = torch.cat([prefix.mask, torch.ones_like(tokens)], dim=1)
        if prefix.cache is not None:
            return prefix._replace(mask=mask)
        added = tokens
        if prefix.inputs.dim() == 3:
            added = self.base.get_input_embeddings()(tokens).to(prefix.inputs.dtype)
        return prefix._replace(inputs=torch.cat([prefix.inputs, added], dim=1), mask=mask)

    def _forward(
        self, inputs: Tensor, mask: Tensor, places: Tensor, cache: DynamicCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model's forward pass, with positions that do not count padding.

        Args:
            inputs: Token ids [B, T] or embeddings [B, T, d].
            mask: 0 on padding, for what is cached and for the inputs, [B, S + T].
            places: True where logits and hidden states are wanted, N of them, [B, T].
            cache: Keys and values of the S tokens before, extended in place.

        Returns:
            Logits [N, V] and last hidden states [N, d].
        """
        arguments: dict[str, Any] = {"input_ids" if inputs.dim() == 2 else "inputs_embeds": inputs}
        if cache is not None:
            arguments["past_key_values"] = cache
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
            arguments["position_ids"] = positions[:, -inputs.shape[1] :]
        return forward_at(
            self.base,
            self.reader,
            places,
            **arguments,
            attention_mask=mask,
            use_cache=cache is not None,
        )

    @cached_property
    @torch.no_grad()
    def _takes_positions(self) -> bool:
        """Whether it accepts positions and counts them from 0, unlike RoBERTa."""
        if "position_ids" not in signature(self.base.forward).parameters:
            return False
        tokens = torch.full((1, 3), self.eos_id, device=self.base.device)
        positions = torch.arange(3, device=tokens.device)[None]
        training = self.base.training
        self.base.eval()
        own = self.base(input_ids=tokens, use_cache=False).logits
        given = self.base(input_ids=tokens, position_ids=positions, use_cache=False).logits
        self.base.train(training)
        return torch.allclose(own, given, rtol=1e-3, atol=1e-3)


def find_decoder(model: Any) -> nn.Module:
    """Return a decoder-only model without its output head."""
    embedding, parts = model.get_input_embeddings(), model.children()
    found: nn.Module = model.get_decoder()
    # transformers does not find it in Llama 4; it is the part that embeds the tokens.
    return found if found is not model else next(p for p in parts if embedding in p.modules())


class _Decoder:
    """Decodes one token at a time after a prefix, over its cache if there is one."""

    def __init__(self, backbone: DecoderOnly, prefix: Prefix) -> None:
        self.backbone = backbone
        cache = None if prefix.cache is None else _fork(prefix.cache)
        self.prefix = prefix._replace(cache=cache)

    def step(self, tokens: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Read one token of each row; return logits [B, V] and hidden states [B, d]."""
        places = torch.ones_like(tokens[:, None], dtype=torch.bool)
        found = self.backbone._decode(self.prefix, tokens[:, None], places)
        self.prefix = self.backbone._append(self.prefix, tokens[:, None])
        return found

    def keep(self, rows: Tensor) -> None:
        """Continue with some of the rows only."""
        self.prefix = self.prefix.rows(rows)


def _pad(values: Tensor, mask: Tensor, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Move the padding of rows [B, L, ...] to one side; what is real keeps its order."""
    order = (mask if side == "left" else 1 - mask).argsort(dim=1, stable=True)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return values[rows, order], mask[rows, order]


def _fork(cache: DynamicCache) -> DynamicCache:
    """Copy a cache so that extending it leaves the original as it is; tensors are shared."""
    fork = copy(cache)
    fork.layers = [copy(layer) for layer in cache.layers]
    return fork
