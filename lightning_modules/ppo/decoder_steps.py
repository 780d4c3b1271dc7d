"""The decoding steps of a rollout: with keys and values that grow, or compiled in fixed shapes."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from lightning_modules.linear import prepacked

WIDTH = 128
"""The encoder's states are padded to multiples of this, so that few shapes are captured."""


class DecoderSteps(Protocol):
    """Runs the decoder token by token over a batch whose rows end one after the other."""

    def prepare(self) -> AbstractContextManager[object]:
        """Lay out the weights for many steps, inside a ``with`` block."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read one token of each row, [B]; give the states that the next is drawn in, [B, d]."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""


class GrowingSteps:
    """Steps over keys and values that grow; rows that are not kept cost nothing any more.

    Args:
        model: The encoder-decoder itself, without PEFT's wrapping.
        hidden: Encoder states, [B, S, d].
        mask: [B, S].
    """

    def __init__(self, model: Any, hidden: Tensor, mask: Tensor) -> None:
        self.model, self.hidden, self.mask = model, hidden, mask
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def prepare(self) -> AbstractContextManager[object]:
        """Lay out the weights, inside a ``with`` block."""
        stack = ExitStack()
        stack.enter_context(prepacked(*read_each_step(self.model), rows=len(self.hidden)))
        return stack

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read one token of each row."""
        return take_step(self.model.get_decoder(), tokens, self.cache, self.hidden, self.mask)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""
        self.cache.batch_select_indices(rows)
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]


class CompiledSteps:
    """The same steps, compiled, in shapes and at addresses that do not change.

    On a GPU a step of a few rows takes longer to be launched, kernel by kernel, than its weights
    take to be read. ``inductor`` fuses the kernels and captures them as one CUDA graph,
    ``cudagraphs`` captures them as they are. Both want fixed shapes: keys and values have room for
    the longest response, and rows that are not kept are computed all the same.

    Args:
        model: The encoder-decoder itself, without PEFT's wrapping.
        hidden: Encoder states, [B, S, d].
        mask: [B, S].
        limit: Most tokens of a response.
        backend: Of ``torch.compile``.
    """

    def __init__(self, model: Any, hidden: Tensor, mask: Tensor, limit: int, backend: str) -> None:
        self.model = model
        padding = -hidden.shape[1] % WIDTH
        self.hidden = F.pad(hidden, (0, 0, 0, padding))
        self.mask = F.pad(mask, (0, padding))
        self.rows = torch.arange(len(hidden), device=hidden.device)
        self.tokens = torch.zeros_like(self.rows)
        if (kept := _KEPT.get(model)) is None or kept.backend != backend:
            kept = _KEPT[model] = _Kept(model, backend)
        self.kept = kept
        mixed = torch.is_autocast_enabled(hidden.device.type)
        self.cache = kept.find_cache(len(hidden), self.hidden.shape[1], limit, mixed)
        self.is_first = True

    def prepare(self) -> AbstractContextManager[object]:
        """Lay out the weights where they were before, inside a ``with`` block."""
        stack = ExitStack()
        for layer in self.model.get_decoder().modules():
            if (known := getattr(layer, "known", None)) is not None:
                layer.known = F.pad(known, (0, 0, 0, self.hidden.shape[1] - known.shape[1]))
                stack.callback(setattr, layer, "known", known)
        modules, copies = read_each_step(self.model), self.kept.copies
        stack.enter_context(prepacked(*modules, rows=len(self.hidden), copies=copies))
        return stack

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read one token of each row."""
        self.tokens[self.rows] = tokens
        # The first step computes keys and values of the encoder's states: another computation.
        step = take_step if self.is_first else self.kept.step
        self.is_first = False
        torch.compiler.cudagraph_mark_step_begin()
        decoder = self.model.get_decoder()
        return step(decoder, self.tokens, self.cache, self.hidden, self.mask)[self.rows]

    def keep(self, rows: Tensor) -> None:
        """Give the states of some of the rows only."""
        self.rows = self.rows[rows]


class _Kept:
    """What has to outlive a rollout, for a captured graph knows its tensors by their addresses."""

    def __init__(self, model: Any, backend: str) -> None:
        self.backend = backend
        self.config = model.get_decoder().config
        # Inductor captures a graph in this mode only; other backends know no modes.
        mode = "reduce-overhead" if backend == "inductor" else None
        self.step = torch.compile(take_step, backend=backend, mode=mode)
        self.copies: dict[nn.Module, Tensor] = {}
        self._caches: dict[tuple[int, int, int, bool], EncoderDecoderCache] = {}

    def find_cache(self, rows: int, width: int, limit: int, mixed: bool) -> EncoderDecoderCache:
        """Give the emptied cache of a shape, in bf16 or fp32."""
        kind = rows, width, limit, mixed
        if (cache := self._caches.get(kind)) is None:
            parts = (StaticCache(config=self.config, max_cache_len=n) for n in (limit, width))
            cache = self._caches[kind] = EncoderDecoderCache(*parts)
        else:
            cache.reset()
        return cache


_KEPT: "WeakKeyDictionary[nn.Module, _Kept]" = WeakKeyDictionary()


def read_each_step(model: Any) -> tuple[nn.Module, nn.Module]:
    """Give the parts of a model whose weights every decoding step reads."""
    return model.get_decoder(), model.get_output_embeddings()


def take_step(
    decoder: Any, tokens: Tensor, cache: EncoderDecoderCache, hidden: Tensor, mask: Tensor
) -> Tensor:
    """Run a decoder over one token of each row, [B]; give its last hidden states, [B, d]."""
    output = decoder(
        input_ids=tokens[:, None],
        past_key_values=cache,
        encoder_hidden_states=hidden,
        encoder_attention_mask=mask,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]
